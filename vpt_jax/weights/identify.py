"""Which backbone a checkpoint's arrays are of, by their names and shapes."""

from collections.abc import Mapping
import re

import numpy as np

from vpt_jax.backbones import factory
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import positions
from vpt_jax.weights import diagnosis
from vpt_jax.weights.translate import side

Arrays = Mapping[str, np.ndarray]

_KERNEL = (
  "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
)


def module_of(arrays: Arrays, backbone: str = "", heads: int = 0) -> ViT | Swin:
  """The module that has these parameters, for the images they were trained on.

  Args:
    arrays: under our names; a ViT's attention kernels may be [D, D], and its
      positions are of an n x n grid.
    backbone: entry of the table; "": as the arrays say.
    heads: of a ViT; 0: as the entry, the arrays or the table say.

  Raises:
    ValueError: no whole transformer, unknown name, or the number of heads is
      not known.
  """
  shape = diagnosis.shape_of(arrays)
  tables = {
    int(match[1]): array.shape
    for name, array in arrays.items()
    if (
      match := re.fullmatch(
        r"Transformer/encoderblock_(\d+)/.*/relative_"
        "position_bias",
        name,
      )
    )
  }
  if len(shape) < 4 or tables and tables.keys() != {*range(shape["depth"])}:
    raise ValueError(f"its transformer is not whole; of it there is {shape}")
  module = (
    _swin(arrays, shape, tables)
    if tables
    else _vit(arrays, shape, heads or _heads(arrays, shape, backbone))
  )
  if backbone:
    return factory.make(
      backbone, factory.get(backbone), module.image_size, gelu=module.gelu
    )
  return module


def _swin(
  arrays: Arrays,
  shape: Mapping[str, int],
  tables: Mapping[int, tuple[int, ...]],
) -> Swin:
  starts = sorted(
    {0}
    | {
      int(match[1])
      for name in arrays
      if (match := re.match(r"Transformer/merge_(\d+)/", name))
    }
  )
  # Of (2 n - 1)^2 relative positions; n is smaller where the grid is.
  windows = [side(tables[start][0]) // 2 + 1 for start in starts]
  patch, width = shape["patch_size"], shape["width"]
  return Swin(
    (patch * 2 ** (len(starts) - 1) * windows[-1],) * 2,
    width,
    tuple(np.diff([*starts, shape["depth"]]).tolist()),
    tuple(tables[start][1] for start in starts),
    windows[0],
    patch,
    shape["mlp_dim"] / width,
    absolute_positions="pos_embedding" in arrays,
  )


def _vit(arrays: Arrays, shape: Mapping[str, int], heads: int) -> ViT:
  clip = "embedding_norm/scale" in arrays
  return ViT(
    (shape["patch_size"] * _grid(arrays),) * 2,
    **shape,
    num_heads=heads,
    num_cls=int("cls" in arrays),
    gelu="quick" if clip else "exact",
    eps=1e-5 if clip else 1e-6,
    patch_bias="embedding/bias" in arrays,
    pre_norm=clip,
  )


def _grid(arrays: Arrays) -> int:
  """Side of the grid of positions."""
  shape = arrays["pos_embedding"].shape if "pos_embedding" in arrays else ()
  n = side(shape[1]) if len(shape) == 3 else 0
  if not n:
    raise ValueError(
      f"positions (pos_embedding) are {shape}, expected [1, n n "
      "(+ 1 for a class token), D]"
    )
  return n


def _heads(arrays: Arrays, shape: Mapping[str, int], backbone: str) -> int:
  """Heads of a ViT, which PyTorch's files do not tell."""
  kernel = arrays.get(_KERNEL)
  if kernel is not None and kernel.ndim == 3:
    return kernel.shape[1]
  names = [backbone] if backbone else factory.fitting(shape)
  # MoCo v3's ViT-S has twice as many heads as others. What tells it apart are
  # its positions, a fixed table.
  n, width = _grid(arrays), shape["width"]
  fixed = width % 4 == 0 and np.allclose(
    arrays["pos_embedding"], positions.sincos((n, n), width), atol=1e-3
  )
  alike = [
    name
    for name in names
    if fixed == (factory.get(name).arch.get("resize") == "sincos")
  ]
  found = {name: factory.get(name).arch["num_heads"] for name in alike or names}
  if len({*found.values()}) == 1:
    return next(iter(found.values()))
  text = ", ".join(f"{name} ({heads})" for name, heads in found.items())
  raise ValueError(
    "the file does not say how many attention heads it has; "
    + (
      f"the backbones of its shape differ: {text}; say which it is with "
      "--backbone NAME"
      if text
      else f"no backbone is of its shape {shape}; say how many with --heads N"
    )
  )
