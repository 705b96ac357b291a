"""What is likely wrong with a checkpoint that does not fit a backbone."""

from collections.abc import Iterator, Mapping
import math
import re
from typing import Any

from vpt_jax.backbones import factory

_POSITIONS = "pos_embedding"
_BLOCK = "Transformer/encoderblock_0/"
_BIAS = "MultiHeadDotProductAttention_0/relative_position_bias"


def causes(
  flat: Mapping[str, Any], template: Mapping[str, Any]
) -> Iterator[str]:
  """What is likely wrong, in words."""
  file, ours = shape_of(flat), shape_of(template)
  missing, more = template.keys() - flat.keys(), flat.keys() - template.keys()
  text = lambda shape: ", ".join(
    [
      "Swin"
      if "window" in shape
      else "ViT"
      if "depth" in shape
      else "no transformer",
      *(f"{key} {value}" for key, value in shape.items()),
    ]
  )
  names = ", ".join(
    factory.fitting(file) if "width" in file and ("mlp_dim" in file) else ()
  )
  kinds = {str(array.dtype) for array in flat.values()} - {"float32"}
  grids = {
    str(arrays[_POSITIONS].shape)
    for arrays in (flat, template)
    if _POSITIONS in arrays
  }
  causes = (
    (
      file != ours,
      f"the file is of another model ({text(file)}) than this "
      f"backbone ({text(ours)})"
      + f"; of its shape are {names}"
      * (names != ""),
    ),
    (
      "Transformer/fc_norm/scale" in more,
      "it was fine-tuned with mean "
      "pooling (`fc_norm`); set config.backbone.norm=after and "
      "config.pool=img",
    ),
    (
      any("dist_token" in name for name in more),
      "a distilled DeiT, whose second class token is not supported",
    ),
    (
      any(name.startswith("projection/") for name in missing),
      "a file "
      "without the projection head that config.backbone.projection asks for; "
      "DINO's is in the file named ..._full_checkpoint.pth only",
    ),
    (
      "embedding_norm/scale" in more,
      "the file is CLIP's visual tower, with "
      "a norm before the blocks; choose a backbone whose name begins with "
      "clip_",
    ),
    (
      "embedding_norm/scale" in missing,
      "the file is a plain ViT, but this "
      "backbone CLIP's visual tower, with a norm before the blocks",
    ),
    (
      "window" in file and _POSITIONS in more,
      "a Swin with absolute positions (`absolute_pos_embed`), which no "
      "published backbone of the list has; build "
      "vpt_jax.backbones.swin.Swin(absolute_positions=True) for it",
    ),
    (
      "cls" in missing,
      "the file has no class token; it was trained with another pooling",
    ),
    ("cls" in more, "the file has a class token, this backbone has none"),
    (
      kinds,
      f"numbers of type {', '.join(sorted(kinds))}, as in a quantised "
      "model; choose a file of floats",
    ),
    (
      len(grids) > 1,
      "positions of a grid that is no square, or with more "
      "than one class token",
    ),
    (more, "a variant with parts that this backbone does not have"),
    (missing, "the file is not whole, or of a variant without these parts"),
    (True, "another number of attention heads, or another variant"),
  )
  yield "Likely cause: " + next(cause for found, cause in causes if found)


def shape_of(flat: Mapping[str, Any]) -> dict[str, int]:
  """patch_size, width, depth, mlp_dim and Swin's window, by a tree's shapes."""
  shape = lambda name: getattr(flat.get(name), "shape", ())
  out = {}
  if len(shape("embedding/kernel")) == 4:
    out["patch_size"], _, _, out["width"] = shape("embedding/kernel")
  out["depth"] = len(
    {
      match[0]
      for match in map(re.compile(r"Transformer/encoderblock_\d+/").match, flat)
      if match
    }
  )
  if len(shape(_BLOCK + "MlpBlock_0/Dense_0/bias")) == 1:
    out["mlp_dim"] = shape(_BLOCK + "MlpBlock_0/Dense_0/bias")[0]
  table = shape(_BLOCK + _BIAS)
  if len(table) == 2:  # (2 window - 1)^2 rows.
    out["window"] = (math.isqrt(table[0]) + 1) // 2
  return {key: int(value) for key, value in out.items() if value}
