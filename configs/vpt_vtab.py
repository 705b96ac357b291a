"""VPT-deep on a VTAB-1k task with ViT-B/16 IN-21k, by the published protocol.

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


def get_config(task: str = "") -> ConfigDict:
  """VPT-deep for a VTAB-1k task, see vpt_jax/data/tasks.py; "": embedded."""
  config = common.get_config()
  config.task = task
  config.method = "vpt"
  (
    config.vpt.num_tokens,
    config.batch_size,
    config.optim.lr,
    config.optim.weight_decay,
  ) = TUNED.get(task, (10, 64, 1.0, 1e-3))
  if not task:
    config = common.embedded(config)
    config.vpt.num_tokens, config.vpt.dropout = 30, 0.0
    config.optim.lr = 0.02
  return config
