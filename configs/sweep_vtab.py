"""The whole table of a method, by the protocol of its paper: the 19 tasks of
VTAB-1k, for PGN its own twelve.

  python -m vpt_jax.main --config=configs/sweep_vtab.py:vapt \
      --config.data.dir=DIR --workdir=runs/vapt_vtab
  python -m vpt_jax.report runs/vapt_vtab --out tables

Methods: the keys of `METHODS`; `gated_mae` and `gated_mocov3` name their
backbones. The search is over 800 training and 200 validation images, the table
from all 1,000 and five seeds. Killed, the same command goes on; see
vpt_jax/sweeps/protocol.py for several processes.
"""

from ml_collections import ConfigDict

from configs import (
  baselines_vtab,
  common,
  gated_vtab,
  linear_vtab,
  pgn,
  vapt_vtab,
  vpt_vtab,
)

TASKS = (
  "cifar100",
  "caltech101",
  "dtd",
  "oxford_flowers102",
  "oxford_iiit_pet",
  "svhn",
  "sun397",
  "patch_camelyon",
  "eurosat",
  "resisc45",
  "diabetic_retinopathy",
  "clevr_count",
  "clevr_distance",
  "dmlab",
  "kitti",
  "dsprites_location",
  "dsprites_orientation",
  "smallnorb_azimuth",
  "smallnorb_elevation",
)

# Of the twelve whole data sets of PGN's paper.
PGN_TASKS = tuple(
  f"pgn_{name}"
  for name in (
    "cifar100",
    "cifar10",
    "flowers",
    "food101",
    "eurosat",
    "sun397",
    "ucf101",
    "svhn",
    "pets",
    "dtd",
    "resisc45",
    "clevr",
  )
)

# Name -> (its config for a task, tasks). What is searched is in these configs.
METHODS = {
  "vapt": (vapt_vtab.get_config, TASKS),
  "vpt_deep": (vpt_vtab.get_config, TASKS),
  "vpt_shallow": (lambda task: _shallow(vpt_vtab.get_config(task)), TASKS),
  "linear": (linear_vtab.get_config, TASKS),
  "full": (lambda task: baselines_vtab.get_config(f"full,{task}"), TASKS),
  "gated_mae": (lambda task: gated_vtab.get_config(f"mae,{task}"), TASKS),
  "gated_mocov3": (lambda task: gated_vtab.get_config(f"mocov3,{task}"), TASKS),
  "pgn": (lambda task: pgn.get_config(f"clip,{task}"), PGN_TASKS),
}


def _shallow(config: ConfigDict) -> ConfigDict:
  """VPT's authors use no dropout with shallow prompts."""
  config.vpt.deep, config.vpt.dropout = False, 0.0
  return config


def get_config(arg: str = "vapt") -> ConfigDict:
  """The sweep of a method over its tasks; see `METHODS`."""
  if arg not in METHODS:
    raise ValueError(
      f"unknown method {arg!r} of sweep_vtab.py; known: {', '.join(METHODS)}"
    )
  make, tasks = METHODS[arg]
  return common.swept(make(tasks[0]), arg, {task: make(task) for task in tasks})
