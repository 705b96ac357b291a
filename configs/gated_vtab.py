"""Configures Gated Prompt Tuning on a VTAB-1k or FGVC task.

The backbone is MAE's or MoCo v3's ViT-B/16:

    python -m vpt_jax.main --config=configs/gated_vtab.py:eurosat
    python -m vpt_jax.main --config=configs/gated_vtab.py:mocov3,eurosat

Without a task: the embedded digits and backbone, so that this runs anywhere:

    python -m vpt_jax.main --config=configs/gated_vtab.py
"""

from ml_collections import ConfigDict

from configs import common

# The paper's table 5: (batch size, prompts, learning rate, initial gate prior)
# of each task, with MAE. Rates are not scaled with the batch.
MAE = {
  "caltech101": (128, 1, 0.5, 5.0),
  "cifar100": (128, 1, 0.25, 5.0),
  "clevr_distance": (128, 1, 0.1, 15.0),
  "clevr_count": (128, 1, 0.05, 15.0),
  "diabetic_retinopathy": (128, 5, 0.05, 10.0),
  "dmlab": (128, 1, 0.1, 5.0),
  "dsprites_orientation": (128, 1, 0.05, 5.0),
  "dsprites_location": (128, 1, 0.1, 5.0),
  "dtd": (128, 1, 0.25, 1.0),
  "eurosat": (128, 5, 0.1, 1.0),
  "kitti": (128, 5, 0.1, 7.0),
  "oxford_flowers102": (128, 1, 0.25, 5.0),
  "oxford_iiit_pet": (128, 1, 0.5, 10.0),
  "patch_camelyon": (128, 1, 0.05, 5.0),
  "resisc45": (128, 10, 0.25, 5.0),
  "smallnorb_azimuth": (128, 1, 0.1, 20.0),
  "smallnorb_elevation": (128, 1, 0.05, 10.0),
  "sun397": (128, 1, 0.5, 10.0),
  "svhn": (128, 1, 0.1, 10.0),
  "fgvc_cub": (64, 100, 0.1, 5.0),
  "fgvc_flowers": (64, 100, 0.1, 15.0),
  "fgvc_cars": (64, 100, 0.25, 5.0),
  "fgvc_dogs": (64, 100, 0.5, 15.0),
  "fgvc_nabirds": (64, 100, 0.5, 5.0),
}
# The same with MoCo v3.
MOCOV3 = {
  "caltech101": (128, 10, 2.5, 4.0),
  "cifar100": (128, 10, 1.0, 15.0),
  "clevr_distance": (128, 5, 1.0, 10.0),
  "clevr_count": (128, 5, 0.5, 5.0),
  "diabetic_retinopathy": (128, 5, 0.5, 5.0),
  "dmlab": (128, 1, 1.0, 5.0),
  "dsprites_orientation": (128, 5, 0.5, 5.0),
  "dsprites_location": (128, 5, 0.5, 5.0),
  "dtd": (128, 10, 1.0, 5.0),
  "eurosat": (128, 10, 1.0, 5.0),
  "kitti": (128, 5, 1.0, 5.0),
  "oxford_flowers102": (128, 5, 1.0, 7.0),
  "oxford_iiit_pet": (64, 100, 1.0, 1.0),
  "patch_camelyon": (128, 1, 1.0, 10.0),
  "resisc45": (64, 100, 1.0, 7.0),
  "smallnorb_azimuth": (128, 10, 0.5, 3.0),
  "smallnorb_elevation": (128, 5, 0.5, 4.0),
  "sun397": (128, 1, 1.0, 4.0),
  "svhn": (128, 5, 1.0, 10.0),
  "fgvc_cub": (64, 100, 1.0, 5.0),
  "fgvc_flowers": (64, 100, 1.0, 10.0),
  "fgvc_cars": (64, 100, 0.5, 5.0),
  "fgvc_dogs": (64, 100, 0.5, 10.0),
  "fgvc_nabirds": (64, 100, 1.0, 5.0),
}
TUNED = {"mae": MAE, "mocov3": MOCOV3}
# What other tasks start from.
START = {"mae": (128, 5, 0.1, 5.0), "mocov3": (128, 5, 1.0, 5.0)}
BACKBONES = {"mae": "mae_b16", "mocov3": "mocov3_b16_pretrain"}
# What the paper searches, not scaled with the batch.
RATES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def get_config(arg: str = "") -> ConfigDict:
  """Returns the config for "TASK" or "BACKBONE,TASK"; "": embedded.

  TASK: see vpt_jax/data/tasks.py; BACKBONE: mae (default) or mocov3.
  """
  backbone, _, task = arg.rpartition(",")
  backbone = backbone or "mae"
  if backbone not in BACKBONES:
    raise ValueError(
      f"unknown backbone {backbone!r} of gated_vtab.py; known: "
      f"{', '.join(BACKBONES)}"
    )
  config = common.get_config()
  config.task = task
  config.method = "gated"
  config.backbone.name = BACKBONES[backbone]
  if backbone == "mae":
    config.backbone.norm = "after"  # the checkpoint's own
  batch_size, prompts, lr, gate = TUNED[backbone].get(task, START[backbone])
  config.batch_size = batch_size
  config.gated.num_tokens = prompts
  config.optim.lr = lr
  config.gated.gate_init = gate
  config.optim.scale_lr = False
  config.optim.weight_decay = 0.0
  config.sweep.grid = common.grid(RATES, (0.0,))
  return config if task else _embedded(config)


def _embedded(config: ConfigDict) -> ConfigDict:
  """Returns the config of the embedded task, which the paper does not have."""
  config = common.embedded(config)
  config.backbone.norm = ""
  config.gated.num_tokens = 30
  config.gated.dropout = 0.0
  config.gated.gate_init = 1.0
  config.optim.lr = 0.02
  return config
