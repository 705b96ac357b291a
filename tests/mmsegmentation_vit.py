"""Compares mmsegmentation's own ViT on images of any size, and its head.

Sides that are no multiple of the patch are filled up with zeros at the bottom
and right, positions come to the new grid, and logits to the image's size.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import dense_head_parity, options
from tests.dense_head_parity import flat, nchw
from tests.parity_report import Report
from tests.reference import Arrays, below, Names
from vpt_jax import model as model_lib
from vpt_jax.methods.method import Method
from vpt_jax.nn import positions
from vpt_jax.nn.dense_heads import UpHead
from vpt_jax.nn.tokens import Reads
from vpt_jax.problems.semantic_segmentation import Segmentation
from vpt_jax.utils import trees

# Parts of names there -> timm's.
_TIMM = {
  "patch_embed.projection": "patch_embed.proj",
  "layers.": "blocks.",
  ".ffn.blocks.0.0": ".mlp.fc1",
  ".ffn.blocks.1": ".mlp.fc2",
  ".ln1": ".norm1",
  ".ln2": ".norm2",
  ".attn.attn.in_proj_": ".attn.qkv.",
  ".attn.attn.out_proj": ".attn.proj",
}
_RESIZE = {"bilinear": "bilinear", "bicubic": "bicubic_exact"}


def _timm_names(arrays: Arrays) -> Arrays:
  """Returns a backbone's arrays by timm's names."""
  renamed = {}
  for key, array in arrays.items():
    name = key
    for theirs, ours in _TIMM.items():
      name = name.replace(theirs, ours)
    renamed[name] = array
  return renamed


def _filled_up(images: np.ndarray, patch: int) -> np.ndarray:
  """Returns images whose sides are multiples of the patch."""
  _, rows, columns, _ = images.shape
  padding = ((0, 0), (0, -rows % patch), (0, -columns % patch), (0, 0))
  return np.pad(images, padding)


def _resized(
  table: np.ndarray, config: dict[str, Any], grid: Any
) -> np.ndarray:
  """Returns positions [1, 1 + N, D], the class token's first, for a grid."""
  rows, columns = config["img_size"]
  patch = config["patch_size"]
  own = (rows // patch, columns // patch)
  how = _RESIZE[config["interpolate_mode"]]
  of_patches = positions.resize(table[:, 1:], own, grid, how)
  return np.concatenate([table[:, :1], of_patches], axis=1)


def compare(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares positions, patches, logits, and the label map."""
  config = meta["backbone"]
  params = below(arrays, "param/")
  encoder = _timm_names(below(params, "backbone."))
  images = arrays["input/images"]
  patch = config["patch_size"]
  filled = _filled_up(images, patch)
  _, rows, columns, _ = filled.shape
  grid = (rows // patch, columns // patch)
  encoder["pos_embed"] = _resized(encoder["pos_embed"], config, grid)
  theirs = arrays["out/pos_embed_resized"]
  report.add("bicubic", "positions", encoder["pos_embed"], theirs)

  heads = config["num_heads"]
  backbone_flat = below(Names(heads).parameters(encoder), "backbone/")
  backbone = options.architecture(
    backbone_flat,
    (rows, columns),
    heads,
    gelu="exact",
    eps=config["norm_cfg"]["eps"],
  )
  # It has no final norm; the head has its own.
  reads = Reads(tuple(config["out_indices"]), final_norm=False)
  num_classes, channels, _, _ = params["decode_head.conv_seg.weight"].shape
  model = model_lib.Model(
    backbone, Method(backbone.spec), num_classes, reads=reads
  )
  nested = jax.tree.map(jnp.asarray, trees.unflatten(backbone_flat))
  features = model.apply(
    {"params": {"backbone": nested}}, jnp.asarray(filled), method=model.features
  )
  for i, feature in enumerate(features):
    theirs = flat(arrays[f"out/feature_nchw/{i}"])
    report.add("intermediates", f"feature/{i}", feature, theirs)
  head = UpHead(num_classes, grid, width=channels)
  variables = dense_head_parity.variables_of(below(params, "decode_head."))
  logits = head.apply(variables, features[-1])
  report.add("logits", "logits", nchw(logits), arrays["out/logits_nchw"])
  problem = Segmentation(num_classes)
  size = images.shape[1:3]
  resized = problem.resized(logits, size)
  theirs = arrays["out/logits_resized_nchw"]
  report.add("logits", "resized logits", nchw(resized), theirs)
  prediction = problem.predict(logits, size)["prediction"][0]
  report.add("counts", "prediction", prediction, arrays["out/prediction"])
