"""Configures the protocol in small, for two CPU cores.

Digits and EuroSAT at 32 px with the embedded backbone, a 2 x 2 grid and two
seeds:

    python -m vpt_jax.main --config=configs/sweep_mini.py:vpt_deep \
        --config.data.dir=DIR --workdir=runs/mini/vpt_deep
    python -m vpt_jax.report runs/mini --out tables

DIR holds the pack `vtab-1k/eurosat`. Methods: the keys of `METHODS`.
"""

from ml_collections import ConfigDict

from configs import common, gated_vtab, linear_vtab, vapt_vtab, vpt_vtab

METHODS = {
  "linear": linear_vtab,
  "vpt_deep": vpt_vtab,
  "vapt": vapt_vtab,
  "gated": gated_vtab,
}


def get_config(arg: str = "vpt_deep") -> ConfigDict:
  """Returns the small sweep of a method."""
  if arg not in METHODS:
    raise ValueError(
      f"unknown method {arg!r} of sweep_mini.py; known: {', '.join(METHODS)}"
    )
  config = METHODS[arg].get_config()
  config.sweep.seeds = (42, 44)
  if arg != "linear":  # its features are computed once
    config.epochs = 12
    config.optim.warmup_epochs = 1
  # The tasks have nothing of their own.
  return common.swept(config, arg, {"digits": config, "eurosat": config})
