"""Configures a linear probe on a VTAB-1k task, by VPT's published protocol.

    python -m vpt_jax.main --config=configs/linear_vtab.py:eurosat

Without a task: the embedded digits and backbone.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(task: str = "") -> ConfigDict:
  """Returns the config of a VTAB-1k task, see vpt_jax/data/tasks.py."""
  config = common.get_config()
  config.task = task
  config.method = "linear"
  config.checkpoint.every_epochs = config.epochs
  if not task:
    config = common.embedded(config)
    # The features are computed once, so the published protocol is seconds.
    config.epochs = 100
    config.batch_size = 64
    config.optim.name = "sgd"
    config.optim.lr = 2.5
    config.optim.scale_lr = True
    config.optim.warmup_epochs = 10
    config.optim.warmup_from_zero = True
    config.optim.weight_decay = 1e-4
    config.sweep.grid = common.grid((0.25, 2.5), (0.01, 0.0001))
  return config
