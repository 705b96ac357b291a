"""Diagnoses a checkpoint that does not fit a backbone."""

from collections.abc import Iterator, Mapping
import math
import re
from typing import Any

from vpt_jax.backbones import factory

_POSITIONS = "pos_embedding"
_EMBEDDING = "embedding/kernel"
_BLOCK = "Transformer/encoderblock_0/"
_BIAS = "MultiHeadDotProductAttention_0/relative_position_bias"


def causes(
  flat: Mapping[str, Any], template: Mapping[str, Any]
) -> Iterator[str]:
  """Yields the likely cause as one line of text.

  Args:
    flat: path -> array of the file, under our names.
    template: path -> array or ShapeDtypeStruct of the backbone.
  """
  cause = (
    _other_channels(flat, template)
    or _other_model(flat, template)
    or _other_parts(flat, template)
    or _other_numbers(flat, template)
    or _unknown_parts(flat, template)
  )
  yield f"Likely cause: {cause}"


def _other_model(flat: Mapping[str, Any], template: Mapping[str, Any]) -> str:
  """Returns the cause if the file's architecture is another, else ""."""
  file = shape_of(flat)
  wanted = shape_of(template)
  if file == wanted:
    return ""
  cause = (
    f"the file is of another model ({_text(file)}) than this "
    f"backbone ({_text(wanted)})"
  )
  if "width" in file and "mlp_dim" in file:
    names = factory.fitting(file)
    if names:
      cause += f"; of its shape are {', '.join(names)}"
  return cause


def _other_channels(
  flat: Mapping[str, Any], template: Mapping[str, Any]
) -> str:
  """Returns the cause if the file is for images of other channels, else ""."""
  file = _axes(flat, _EMBEDDING)
  wanted = _axes(template, _EMBEDDING)
  if len(file) != 4 or len(wanted) != 4 or file[2] == wanted[2]:
    return ""
  cause = (
    f"the file is for images of {file[2]} channels, this backbone for "
    f"{wanted[2]} (RGB)"
  )
  if file[2] == 1:
    return (
      f"{cause}; grey images are shown to it as RGB here, so give each of the "
      f"{wanted[2]} channels a third of its kernel"
    )
  return f"{cause}; choose a file that was trained on RGB images"


def _axes(flat: Mapping[str, Any], name: str) -> tuple[int, ...]:
  """Returns the shape of an array, () if it is not there."""
  return getattr(flat.get(name), "shape", ())


def _text(shape: Mapping[str, int]) -> str:
  """Returns a shape in words: "ViT, patch_size 16, width 768, ..."."""
  kind = "no transformer"
  if "window" in shape:
    kind = "Swin"
  elif "depth" in shape:
    kind = "ViT"
  return ", ".join([kind, *(f"{key} {shape[key]}" for key in shape)])


def _other_parts(flat: Mapping[str, Any], template: Mapping[str, Any]) -> str:
  """Returns the cause if a part is known that only one of both has, else ""."""
  missing = template.keys() - flat.keys()
  unexpected = flat.keys() - template.keys()
  if "Transformer/fc_norm/scale" in unexpected:
    return (
      "it was fine-tuned with mean pooling (`fc_norm`); set "
      "config.backbone.norm=after and config.pool=img"
    )
  if any("dist_token" in name for name in unexpected):
    return "a distilled DeiT, whose second class token is not supported"
  if any(name.startswith("projection/") for name in missing):
    return (
      "a file without the projection head that config.backbone.projection "
      "asks for; DINO's is in the file named ..._full_checkpoint.pth only"
    )
  if "embedding_norm/scale" in unexpected:
    return (
      "the file is CLIP's visual tower, with a norm before the blocks; choose "
      "a backbone whose name begins with clip_"
    )
  if "embedding_norm/scale" in missing:
    return (
      "the file is a plain ViT, but this backbone CLIP's visual tower, with a "
      "norm before the blocks"
    )
  if "window" in shape_of(flat) and _POSITIONS in unexpected:
    return (
      "a Swin with absolute positions (`absolute_pos_embed`), which no "
      "published backbone of the list has; build "
      "vpt_jax.backbones.swin.Swin(absolute_positions=True) for it"
    )
  if "cls" in missing:
    return "the file has no class token; it was trained with another pooling"
  if "cls" in unexpected:
    return "the file has a class token, this backbone has none"
  return ""


def _other_numbers(flat: Mapping[str, Any], template: Mapping[str, Any]) -> str:
  """Returns the cause if dtypes or positions are others, else ""."""
  dtypes = {str(array.dtype) for array in flat.values()} - {"float32"}
  if dtypes:
    return (
      f"numbers of type {', '.join(sorted(dtypes))}, as in a quantised "
      "model; choose a file of floats"
    )
  both_have_positions = _POSITIONS in flat and _POSITIONS in template
  if both_have_positions and (
    tuple(flat[_POSITIONS].shape) != tuple(template[_POSITIONS].shape)
  ):
    return (
      "positions of a grid that is no square (then set "
      "config.backbone.grid=(rows, columns)), or with more than one class token"
    )
  return ""


def _unknown_parts(flat: Mapping[str, Any], template: Mapping[str, Any]) -> str:
  """Returns the cause where nothing known is wrong."""
  unexpected = sorted(flat.keys() - template.keys())
  if unexpected:
    return (
      "a variant with parts that this backbone does not have, as "
      f"{unexpected[0]!r}; it is not known that they change no output"
    )
  if template.keys() - flat.keys():
    return "the file is not whole, or of a variant without these parts"
  return "another number of attention heads, or another variant"


def shape_of(flat: Mapping[str, Any]) -> dict[str, int]:
  """Returns what the arrays' shapes say about a transformer.

  Args:
    flat: path -> array or ShapeDtypeStruct, under our names.

  Returns:
    patch_size, width, depth, mlp_dim and a Swin's window, those that are there.
  """
  out = {}
  kernel = _axes(flat, _EMBEDDING)
  if len(kernel) == 4:
    out["patch_size"] = kernel[0]
    out["width"] = kernel[3]
  blocks = set()
  for name in flat:
    found = re.match(r"Transformer/encoderblock_\d+/", name)
    if found:
      blocks.add(found[0])
  out["depth"] = len(blocks)
  hidden_bias = _axes(flat, _BLOCK + "MlpBlock_0/Dense_0/bias")
  if len(hidden_bias) == 1:
    out["mlp_dim"] = hidden_bias[0]
  table = _axes(flat, _BLOCK + _BIAS)
  if len(table) == 2:  # (2 window - 1)^2 rows.
    out["window"] = (math.isqrt(table[0]) + 1) // 2
  return {key: int(value) for key, value in out.items() if value}
