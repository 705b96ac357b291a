"""Configures CLIP's zero-shot classifier: texts of class names, no training.

    python -m vpt_jax.main --config=configs/clip_zero_shot.py:eurosat

Fetches the weights and the tokenizer's merges; needs `pip install '.[clip]'`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(task: str = "eurosat") -> ConfigDict:
  """Returns the config with CLIP ViT-B/32 (others: clip_b16, clip_l14)."""
  config = common.get_config()
  config.task = task
  config.method = "linear"
  config.head = "zero_shot"
  config.epochs = 0
  config.optim.warmup_epochs = 0
  config.backbone.name = "clip_b32"
  config.backbone.projection = True
  config.data.normalize = "backbone"
  # No other images are read.
  config.data.train_split = "test"
  config.data.test_split = "test"
  return config
