"""Backbones by name: from the table to a module."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vpt_jax.backbones.model_zoo import BACKBONES, Entry
from vpt_jax.backbones.swin import Swin
from vpt_jax.nn.tokens import NORMS
from vpt_jax.nn.transformer import ATTENTION, GELUS
from vpt_jax.utils import lookup


def get(name: str) -> Entry:
  """Entry of a backbone.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return BACKBONES[lookup.choose(name, BACKBONES, "backbone")]


def build(
  config: ConfigDict,
  image_size: int | tuple[int, int],
  dtype: str,
  attention: str = "ours",
) -> nn.Module:
  """The module of `config.backbone` for images of this size.

  Args:
    config: the section.
    image_size: of its sides.
    dtype: of the matrix products.
    attention: what computes it, a key of `blocks.ATTENTION`.

  Raises:
    ValueError: unknown name or option, or a size that patches do not tile.
  """
  entry = get(config.name)
  size: Any = image_size
  size = (size, size) if isinstance(size, int) else tuple(size)
  options: dict[str, Any] = {}
  if config.gelu == "torch":
    if entry.arch.get("gelu", entry.module.gelu) == "tanh":
      options["gelu"] = "exact"
  elif config.gelu:
    options["gelu"] = lookup.choose(config.gelu, GELUS, "backbone.gelu")
  if config.norm:
    options["norm_order"] = lookup.choose(config.norm, NORMS, "backbone.norm")
  if config.projection:
    if entry.projection is None:
      raise ValueError(
        f"backbone {config.name!r} has no projection; those that have: "
        f"{', '.join(n for n, e in BACKBONES.items() if e.projection)}"
      )
    options["projection"] = entry.projection()
  if lookup.choose(attention, ATTENTION, "compute.attention") != "ours":
    if entry.module is Swin:
      raise ValueError(
        f"compute.attention={attention!r} is not for windows; "
        f"{config.name!r} needs 'ours'"
      )
    if attention == "cudnn" and jax.default_backend() != "gpu":
      raise ValueError(
        "compute.attention='cudnn' is for NVIDIA GPUs, JAX has "
        f"{jax.default_backend()!r}; use 'ours'"
      )
    options["attention"] = attention
  return make(config.name, entry, size, dtype=jnp.dtype(dtype), **options)


def make(
  name: str, entry: Entry, size: tuple[int, int], **options: Any
) -> nn.Module:
  """The module of an entry for images of this size.

  Raises:
    ValueError: a size that patches (and windows) do not tile.
  """
  unit, fits = entry.arch.get("patch_size", 4), lambda side: True
  if entry.module is Swin:
    window, stages = entry.arch["window"], len(entry.arch["depths"])
    grids = lambda side: [side // unit // 2**s for s in range(stages)]
    fits = lambda side: (
      side % (unit * 2 ** (stages - 1)) == 0
      and all(grid and grid % min(window, grid) == 0 for grid in grids(side))
    )
  for side in size:
    if side < unit or side % unit or not fits(side):
      near = min(
        (n for n in range(unit, 2 * side + 512, unit) if fits(n)),
        key=lambda n: abs(n - side),
      )
      raise ValueError(
        f"image_size={side} is not a multiple of the patch size "
        f"{unit} of {name!r} (and its windows, if it has any); "
        f"nearest: {near}"
      )
  module = entry.module(image_size=size, **(entry.arch | options))
  if (
    entry.module is Swin
    and size[0] != size[1]
    and (min(module.spec.grids[-1]) < entry.arch["window"])
  ):
    raise ValueError(
      f"image_size={size} leaves {name!r} a grid that is no "
      "square and smaller than its windows; use a larger or a "
      "square image"
    )
  return module


def fitting(shape: Mapping[str, int]) -> list[str]:
  """Names in the table with this patch_size, width, depth, mlp_dim, window."""

  def sizes(entry):
    if entry.module is not Swin:
      return entry.arch
    arch = (
      dict(patch_size=Swin.patch_size, mlp_ratio=Swin.mlp_ratio) | entry.arch
    )
    return arch | dict(
      depth=sum(arch["depths"]), mlp_dim=int(arch["width"] * arch["mlp_ratio"])
    )

  return [
    name
    for name, entry in BACKBONES.items()
    if shape.items() <= sizes(entry).items()
  ]
