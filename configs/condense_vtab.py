"""Configures Prompt Condensation of VPT-deep on a VTAB-1k task.

The backbone is ViT-B/16 IN-21k:

    python -m vpt_jax.main --config=configs/condense_vtab.py:eurosat

Without a task: the embedded digits and backbone, so that this runs anywhere:

    python -m vpt_jax.main --config=configs/condense_vtab.py

VPT-shallow: --config.vpt.deep=False. How well the scores find what matters:
--config.condense.oracle_images=64.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(task: str = "") -> ConfigDict:
  """Returns the config for a task; "": embedded.

  VPT-deep, then 50, 30, 20 and 10 % of its prompts.

  100 prompts a block, as in VPT's published recipes of EuroSAT and DMLab. The
  second stage's length and rate are this library's: the paper's are not known
  here.
  """
  config = common.get_config()
  config.task = task
  config.method = "vpt"
  config.vpt.num_tokens = 100
  config.condense.shares = (0.5, 0.3, 0.2, 0.1)
  if not task:
    config = common.embedded(config)
    config.vpt.num_tokens = 30
    config.vpt.dropout = 0.0
    config.optim.lr = 0.02
    config.condense.epochs = 8
  return config
