"""Identifies the backbone of a checkpoint by its arrays' names and shapes."""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from vpt_jax.backbones import factory
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import positions
from vpt_jax.ops.gelu import NAMES
from vpt_jax.weights import agreement, diagnosis, facts
from vpt_jax.weights.facts import Facts
from vpt_jax.weights.grids import side

Arrays = Mapping[str, np.ndarray]

_KERNEL = (
  "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
)
_BIAS_TABLE = r"Transformer/encoderblock_(\d+)/.*/relative_position_bias"
# What `diagnosis.shape_of` finds in a whole transformer.
_NEEDED = {"patch_size", "width", "depth", "mlp_dim"}
# How far positions may be from the fixed table that they were made from.
_SINCOS_TOLERANCE = 1e-3


def module_of(
  arrays: Arrays,
  backbone: str = "",
  heads: int = 0,
  known: Facts = facts.NOTHING,
) -> ViT | Swin:
  """Returns the module that has these parameters.

  It is for images of the size that they were trained on.

  Args:
    arrays: under our names; a ViT's attention kernels may be [D, D], and its
      positions are of an n x n grid.
    backbone: entry of the model zoo; "": as the arrays say.
    heads: of a ViT; 0: as the entry, the arrays or the model zoo say.
    known: of the file, beside its arrays.

  Raises:
    ValueError: no whole transformer, unknown name, or the number of heads or
      CLIP's activation is not known.
  """
  shape = diagnosis.shape_of(arrays)
  tables = _bias_tables(arrays)
  is_whole = shape.keys() >= _NEEDED
  if tables and is_whole:
    is_whole = tables.keys() == set(range(shape["depth"]))
  if not is_whole:
    raise ValueError(f"its transformer is not whole; of it there is {shape}")
  module: ViT | Swin
  if tables:
    module = _swin(arrays, shape, tables)
  else:
    heads = heads or known.heads or _heads(arrays, shape, backbone)
    module = _vit(arrays, shape, heads, known)
  if not backbone:
    return module
  entry = factory.get(backbone)
  return factory.make(
    backbone, entry, module.image_size, gelu=module.gelu, eps=module.eps
  )


def _bias_tables(arrays: Arrays) -> dict[int, tuple[int, ...]]:
  """Returns {block: shape of its relative positions' table}, {} of a ViT."""
  tables = {}
  for name, array in arrays.items():
    found = re.fullmatch(_BIAS_TABLE, name)
    if found:
      tables[int(found[1])] = array.shape
  return tables


def _swin(
  arrays: Arrays,
  shape: Mapping[str, int],
  tables: Mapping[int, tuple[int, ...]],
) -> Swin:
  """Returns the Swin of a shape; `tables` are those of every block."""
  merges = set()
  for name in arrays:
    found = re.match(r"Transformer/merge_(\d+)/", name)
    if found:
      merges.add(int(found[1]))
  starts = sorted({0} | merges)
  depths = np.diff([*starts, shape["depth"]]).tolist()
  # Of (2 n - 1)^2 relative positions; n is smaller where the grid is.
  windows = [side(tables[start][0]) // 2 + 1 for start in starts]
  patch_size = shape["patch_size"]
  # The last stage is one window; each stage before has twice its side.
  image_side = patch_size * 2 ** (len(starts) - 1) * windows[-1]
  has_positions = "pos_embedding" in arrays
  if has_positions:
    image_side = patch_size * _grid_side(arrays)
  return Swin(
    image_size=(image_side, image_side),
    width=shape["width"],
    depths=tuple(depths),
    num_heads=tuple(tables[start][1] for start in starts),
    window=windows[0],
    patch_size=patch_size,
    mlp_ratio=shape["mlp_dim"] / shape["width"],
    absolute_positions=has_positions,
  )


def _vit(
  arrays: Arrays, shape: Mapping[str, Any], heads: int, known: Facts
) -> ViT:
  """Returns the ViT of a shape, or CLIP's visual tower.

  Raises:
    ValueError: nothing says CLIP's activation.
  """
  grid = facts.grid_of(known, shape["patch_size"])
  if grid is None:
    grid = (_grid_side(arrays), _grid_side(arrays))
  rows, columns = grid
  patch_size = shape["patch_size"]
  is_clip = "embedding_norm/scale" in arrays
  if is_clip and not known.gelu:
    raise ValueError(
      f"{agreement.UNKNOWN_CLIP}. Say it with --gelu quick or --gelu exact, or "
      "put the model's config.json or open_clip_config.json beside the file"
    )
  gelu = known.gelu or "exact"
  if gelu not in NAMES:
    raise ValueError(
      f"its activation is {gelu!r}; backbones have {', '.join(NAMES)}"
    )
  return ViT(
    image_size=(rows * patch_size, columns * patch_size),
    **shape,
    num_heads=heads,
    num_cls=1 if "cls" in arrays else 0,
    gelu=gelu,
    eps=known.eps or (1e-5 if is_clip else 1e-6),
    patch_bias="embedding/bias" in arrays,
    pre_norm=is_clip,
  )


def _grid_side(arrays: Arrays) -> int:
  """Returns n of positions on an n x n grid.

  Raises:
    ValueError: there are none, or they are on no such grid.
  """
  shape = arrays["pos_embedding"].shape if "pos_embedding" in arrays else ()
  n = side(shape[1]) if len(shape) == 3 else 0
  if not n:
    raise ValueError(
      f"positions (pos_embedding) are {shape}, expected [1, n n "
      "(+ 1 for a class token), D]"
    )
  return n


def _heads(arrays: Arrays, shape: Mapping[str, int], backbone: str) -> int:
  """Returns the number of heads of a ViT, which PyTorch's files do not tell.

  Raises:
    ValueError: it is not known.
  """
  kernel = arrays.get(_KERNEL)
  if kernel is not None and kernel.ndim == 3:
    return kernel.shape[1]
  names = [backbone] if backbone else factory.fitting(shape)
  # MoCo v3's ViT-S has twice as many heads as others. What tells it apart are
  # its positions, a fixed table.
  is_fixed = _are_fixed_positions(arrays, shape["width"])
  alike = []
  for name in names:
    entry_is_fixed = factory.get(name).arch.get("resize") == "sincos"
    if entry_is_fixed == is_fixed:
      alike.append(name)
  found = {}
  for name in alike or names:
    found[name] = factory.get(name).arch["num_heads"]
  different = set(found.values())
  if len(different) == 1:
    return different.pop()
  if found:
    text = ", ".join(f"{name} ({heads})" for name, heads in found.items())
    advice = (
      f"the backbones of its shape differ: {text}; say which it is with "
      "--backbone NAME"
    )
  else:
    advice = (
      f"no backbone is of its shape {dict(shape)}; say how many with --heads N"
    )
  raise ValueError(
    f"the file does not say how many attention heads it has; {advice}"
  )


def _are_fixed_positions(arrays: Arrays, width: int) -> bool:
  """Returns whether positions are MoCo v3's fixed table of sines."""
  n = _grid_side(arrays)
  if width % 4:
    return False
  table = positions.sincos((n, n), width)
  return np.allclose(arrays["pos_embedding"], table, atol=_SINCOS_TOLERANCE)
