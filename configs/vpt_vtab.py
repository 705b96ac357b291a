"""Configures VPT-deep on a VTAB-1k task, by the published protocol.

The backbone is ViT-B/16 IN-21k:

    python -m vpt_jax.main --config=configs/vpt_vtab.py:eurosat

Without a task: the embedded digits and backbone, so that this runs anywhere:

    python -m vpt_jax.main --config=configs/vpt_vtab.py
"""

from ml_collections import ConfigDict

from configs import common

# (prompts, batch size, base learning rate, weight decay) of the three recipes
# that the authors publish with their results; the others start from defaults.
TUNED = {
  "dmlab": (100, 64, 1.0, 1e-3),
  "eurosat": (100, 64, 1.0, 1e-3),
  "sun397": (5, 128, 25.0, 1e-4),
}
START = (10, 64, 1.0, 1e-3)


def get_config(task: str = "") -> ConfigDict:
  """Returns the config for a task of vpt_jax/data/tasks.py; "": embedded."""
  config = common.get_config()
  config.task = task
  config.method = "vpt"
  prompts, batch_size, lr, weight_decay = TUNED.get(task, START)
  config.vpt.num_tokens = prompts
  config.batch_size = batch_size
  config.optim.lr = lr
  config.optim.weight_decay = weight_decay
  if not task:
    config = common.embedded(config)
    config.vpt.num_tokens = 30
    config.vpt.dropout = 0.0
    config.optim.lr = 0.02
  return config
