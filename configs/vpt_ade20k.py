"""Configures Visual Prompt Tuning with SETR-PUP, and what it is compared with.

    python -m vpt_jax.main --config=configs/vpt_ade20k.py:deep
    python -m vpt_jax.main --config=configs/vpt_ade20k.py:shallow,mae
    python -m vpt_jax.main --config=configs/vpt_ade20k.py:head,cityscapes

FORM: shallow, deep, deep24, prompt_bias, head, bias or full. Without an
argument: deep on an embedded task and backbone, so that this runs anywhere;
with them too: `:shallow,digit_scenes`.

    python -m vpt_jax.main --config=configs/vpt_ade20k.py

README.md says what to download and what a run costs.
"""

from ml_collections import ConfigDict

from configs import baselines_vtab, common, gated_ade20k, segmentation

# VPT's paper has ViT-L on ImageNet-21k; MAE and MoCo v3 are those of Gated
# Prompt Tuning, which compares with VPT on them.
BACKBONES = {
  "large": "vit_l16_in21k",
  "base": "vit_b16_in21k",
  "mae": "mae_b16",
  "mae_large": "mae_l16",
  "mocov3": "mocov3_b16_pretrain",
}
LARGE = ("large", "mae_large")
# Blocks that auxiliary heads and the main one read, counted from 1. ViT-L: as
# mmsegmentation's config, where they are 9, 14, 19 and 23 from 0; SETR's own
# has a fourth auxiliary head, on the last block. ViT-B: see gated_ade20k.py.
BLOCKS_LARGE = (10, 15, 20, 24)

# Fields of the rows of both papers' tables. Prompts per block of VPT-deep: 10
# with every backbone (VPT's author says so of ViT-L, Gated's table 3 has 10 x
# 12), 2 where Gated's table 6 has 24 in all; of shallow: 100 (table 3) or 24.
# Of VPT with bias tuning: 100 (VPT's author). VPT's authors do not drop out
# shallow prompts; deep ones by 0.1 in their recipes for classification, and
# what they did here is not known.
FORMS = {
  "shallow": {
    "method": "vpt",
    "vpt.deep": False,
    "vpt.num_tokens": 100,
    "vpt.dropout": 0.0,
  },
  "deep": {"method": "vpt", "vpt.num_tokens": 10, "vpt.dropout": 0.1},
  "shallow24": {
    "method": "vpt",
    "vpt.deep": False,
    "vpt.num_tokens": 24,
    "vpt.dropout": 0.0,
  },
  "deep24": {"method": "vpt", "vpt.num_tokens": 2, "vpt.dropout": 0.1},
  "prompt_bias": {
    "method": "vpt",
    "vpt.num_tokens": 100,
    "vpt.dropout": 0.1,
    "trainable": baselines_vtab.PROMPT_BIAS,
  },
  "head": {"method": "linear"},
  "bias": {"method": "linear", "trainable": common.BIAS},
  "full": {"method": "full"},
}


def get_config(arg: str = "") -> ConfigDict:
  """Returns the config for words of FORM, BACKBONE and TASK; "": embedded.

  FORM: see `FORMS`, deep if there is none; BACKBONE: see `BACKBONES`, large if
  there is none; TASK: see `segmentation.TASKS`, ade20k if there is none.
  """
  config, words = segmentation.start(
    arg, "vpt_ade20k.py", BACKBONES, form=FORMS
  )
  config.update_from_flattened_dict(FORMS[words["form"] or "deep"])
  if words["task"] == segmentation.EMBEDDED:
    return _embedded(config)
  is_large = words["backbone"] in LARGE
  config.segmentation.blocks = BLOCKS_LARGE if is_large else gated_ade20k.BLOCKS
  return config


def _embedded(config: ConfigDict) -> ConfigDict:
  """Returns the config of the embedded task, which no paper has."""
  config.vpt.num_tokens = 30
  config.vpt.dropout = 0.0
  return config
