"""Configures the whole table of a method, by the protocol of its paper.

The tasks are the 19 of VTAB-1k, for PGN its own twelve:

    python -m vpt_jax.main --config=configs/sweep_vtab.py:vapt \
        --config.data.dir=DIR --workdir=runs/vapt_vtab
    python -m vpt_jax.report runs/vapt_vtab --out tables

Methods: the keys of `METHODS`; `gated_mae` and `gated_mocov3` name their
backbones. The search is over 800 training and 200 validation images, the table
from all 1,000 and five seeds. Killed, the same command resumes; see
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
PGN_TASKS = (
  "pgn_cifar100",
  "pgn_cifar10",
  "pgn_flowers",
  "pgn_food101",
  "pgn_eurosat",
  "pgn_sun397",
  "pgn_ucf101",
  "pgn_svhn",
  "pgn_pets",
  "pgn_dtd",
  "pgn_resisc45",
  "pgn_clevr",
)


def vpt_shallow(task: str) -> ConfigDict:
  """Returns VPT-shallow; its authors use no dropout with shallow prompts."""
  config = vpt_vtab.get_config(task)
  config.vpt.deep = False
  config.vpt.dropout = 0.0
  return config


def full(task: str) -> ConfigDict:
  """Returns full fine-tuning."""
  return baselines_vtab.get_config(f"full,{task}")


def gated_mae(task: str) -> ConfigDict:
  """Returns Gated Prompt Tuning with MAE."""
  return gated_vtab.get_config(f"mae,{task}")


def gated_mocov3(task: str) -> ConfigDict:
  """Returns Gated Prompt Tuning with MoCo v3."""
  return gated_vtab.get_config(f"mocov3,{task}")


def pgn_clip(task: str) -> ConfigDict:
  """Returns PGN with CLIP."""
  return pgn.get_config(f"clip,{task}")


# Name -> (its config for a task, tasks). What is searched is in these configs.
METHODS = {
  "vapt": (vapt_vtab.get_config, TASKS),
  "vpt_deep": (vpt_vtab.get_config, TASKS),
  "vpt_shallow": (vpt_shallow, TASKS),
  "linear": (linear_vtab.get_config, TASKS),
  "full": (full, TASKS),
  "gated_mae": (gated_mae, TASKS),
  "gated_mocov3": (gated_mocov3, TASKS),
  "pgn": (pgn_clip, PGN_TASKS),
}


def get_config(arg: str = "vapt") -> ConfigDict:
  """Returns the sweep of a method over its tasks; see `METHODS`."""
  if arg not in METHODS:
    raise ValueError(
      f"unknown method {arg!r} of sweep_vtab.py; known: {', '.join(METHODS)}"
    )
  get_task_config, tasks = METHODS[arg]
  by_task = {task: get_task_config(task) for task in tasks}
  return common.swept(get_task_config(tasks[0]), arg, by_task)
