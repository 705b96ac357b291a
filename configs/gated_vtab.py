"""Gated Prompt Tuning on a VTAB-1k or FGVC task with MAE or MoCo v3 ViT-B/16.

  python -m vpt_jax.main --config=configs/gated_vtab.py:eurosat
  python -m vpt_jax.main --config=configs/gated_vtab.py:mocov3,eurosat

Without a task: the embedded digits and backbone, so that this runs anywhere:

  python -m vpt_jax.main --config=configs/gated_vtab.py
"""

from ml_collections import ConfigDict

from configs import common

# The paper's table 5: (batch size, prompts, learning rate, initial gate prior)
# with MAE, and with MoCo v3. Rates are not scaled with the batch.
TUNED = {
  "caltech101": ((128, 1, 0.5, 5), (128, 10, 2.5, 4)),
  "cifar100": ((128, 1, 0.25, 5), (128, 10, 1.0, 15)),
  "clevr_distance": ((128, 1, 0.1, 15), (128, 5, 1.0, 10)),
  "clevr_count": ((128, 1, 0.05, 15), (128, 5, 0.5, 5)),
  "diabetic_retinopathy": ((128, 5, 0.05, 10), (128, 5, 0.5, 5)),
  "dmlab": ((128, 1, 0.1, 5), (128, 1, 1.0, 5)),
  "dsprites_orientation": ((128, 1, 0.05, 5), (128, 5, 0.5, 5)),
  "dsprites_location": ((128, 1, 0.1, 5), (128, 5, 0.5, 5)),
  "dtd": ((128, 1, 0.25, 1), (128, 10, 1.0, 5)),
  "eurosat": ((128, 5, 0.1, 1), (128, 10, 1.0, 5)),
  "kitti": ((128, 5, 0.1, 7), (128, 5, 1.0, 5)),
  "oxford_flowers102": ((128, 1, 0.25, 5), (128, 5, 1.0, 7)),
  "oxford_iiit_pet": ((128, 1, 0.5, 10), (64, 100, 1.0, 1)),
  "patch_camelyon": ((128, 1, 0.05, 5), (128, 1, 1.0, 10)),
  "resisc45": ((128, 10, 0.25, 5), (64, 100, 1.0, 7)),
  "smallnorb_azimuth": ((128, 1, 0.1, 20), (128, 10, 0.5, 3)),
  "smallnorb_elevation": ((128, 1, 0.05, 10), (128, 5, 0.5, 4)),
  "sun397": ((128, 1, 0.5, 10), (128, 1, 1.0, 4)),
  "svhn": ((128, 1, 0.1, 10), (128, 5, 1.0, 10)),
  "fgvc_cub": ((64, 100, 0.1, 5), (64, 100, 1.0, 5)),
  "fgvc_flowers": ((64, 100, 0.1, 15), (64, 100, 1.0, 10)),
  "fgvc_cars": ((64, 100, 0.25, 5), (64, 100, 0.5, 5)),
  "fgvc_dogs": ((64, 100, 0.5, 15), (64, 100, 0.5, 10)),
  "fgvc_nabirds": ((64, 100, 0.5, 5), (64, 100, 1.0, 5)),
}
# What the paper searches, not scaled with the batch.
RATES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
# Name in the argument -> (config.backbone.name, its column above).
BACKBONES = {"mae": ("mae_b16", 0), "mocov3": ("mocov3_b16_pretrain", 1)}


def get_config(arg: str = "") -> ConfigDict:
  """Gated Prompt Tuning for "TASK" or "BACKBONE,TASK"; "": embedded.

  TASK: see vpt_jax/data/tasks.py; BACKBONE: mae (default) or mocov3.
  """
  name, _, task = arg.rpartition(",")
  if (name or "mae") not in BACKBONES:
    raise ValueError(
      f"unknown backbone {name!r} of gated_vtab.py; known: "
      f"{', '.join(BACKBONES)}"
    )
  config = common.get_config()
  config.task = task
  config.method = "gated"
  config.backbone.name, column = BACKBONES[name or "mae"]
  if config.backbone.name == "mae_b16":
    config.backbone.norm = "after"  # the checkpoint's own
  tuned = TUNED.get(task, ((128, 5, 0.1, 5), (128, 5, 1.0, 5)))[column]
  (
    config.batch_size,
    config.gated.num_tokens,
    config.optim.lr,
    config.gated.gate_init,
  ) = tuned[0], tuned[1], tuned[2], float(tuned[3])
  config.optim.scale_lr = False
  config.optim.weight_decay = 0.0
  config.sweep.grid = common.grid(RATES, (0.0,))
  if not task:
    config = common.embedded(config)
    config.backbone.norm = ""
    config.gated.num_tokens, config.gated.dropout = 30, 0.0
    config.gated.gate_init, config.optim.lr = 1.0, 0.02
  return config
