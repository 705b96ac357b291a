"""Configures the README's table of segmentation on real photographs.

    python -m vpt_jax.main --config=configs/segmentation_ti16.py:vpt_deep \
        --config.backbone.checkpoint=FILE --config.data.source=npz:DATA

FILE is a ViT-Ti/16 of ImageNet-1k that takes images in [-1, 1], DATA a file of
images with label maps; segfolder:PATH does as well. The argument is a method of
`METHODS`, maybe with a head of `HEADS`: vpt_deep,pup.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

Fields = dict[str, Any]

# Fields that differ from what `get_config` sets for all.
METHODS: dict[str, Fields] = {
  "linear": {"method": "linear"},
  "vpt_deep": {"method": "vpt", "vpt.num_tokens": 20},
  "gated": {"method": "gated", "gated.num_tokens": 20, "gated.gate_init": 1.0},
}
HEADS: dict[str, Fields] = {
  "linear": {"segmentation.decoder": "linear"},
  # Two auxiliary heads at blocks 5 and 9; a quarter of the published width.
  "pup": {"segmentation.decoder": "pup", "segmentation.width": 32},
}


def get_config(arg: str = "vpt_deep") -> ConfigDict:
  """Returns the config of "METHOD" or "METHOD,HEAD"."""
  method, _, head = arg.partition(",")
  head = head or "linear"
  if method not in METHODS or head not in HEADS:
    raise ValueError(
      f"unknown argument {arg!r} of segmentation_ti16.py; expected METHOD or "
      f"METHOD,HEAD of methods {', '.join(METHODS)} and heads "
      f"{', '.join(HEADS)}"
    )
  config = common.get_config()
  config.problem = "segmentation"
  config.name = f"{method}, {head} head"
  config.backbone.name = "vit_ti16"
  config.backbone.gelu = "tanh"
  config.image_size = 160
  config.data.train_split = "train"
  config.data.normalize = "half"
  config.batch_size = 16
  config.epochs = 5
  config.steps_per_epoch = 30
  config.optim.name = "adamw"
  config.optim.lr = 3e-3
  config.optim.scale_lr = False
  config.optim.weight_decay = 1e-3
  config.optim.schedule = "poly"
  config.optim.warmup_epochs = 0
  config.optim.policies = ((".*", {}),)
  config.vpt.dropout = 0.0
  config.gated.dropout = 0.0
  # Images are seen at the size of a window, times a random factor.
  section = config.segmentation
  section.scale = (320, 160)
  section.factors = (0.75, 1.5)
  section.test_scale = (320, 160)
  config.update_from_flattened_dict(METHODS[method] | HEADS[head])
  return config
