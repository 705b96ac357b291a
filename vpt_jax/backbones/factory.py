"""Builds backbones by name: from the model zoo to a module."""

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from vpt_jax.backbones.model_zoo import BACKBONES, Entry
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import DinoHead, ViT
from vpt_jax.nn.tokens import NORMS
from vpt_jax.ops import gelu
from vpt_jax.ops.switch import ATTENTION_FORMS as ATTENTION
from vpt_jax.ops.switch import Ops
from vpt_jax.utils import lookup

__all__ = ["ATTENTION", "BACKBONES", "Entry", "build", "fitting", "get", "make"]

_DEFAULT_OPS = Ops()


def get(name: str) -> Entry:
  """Returns the entry of a backbone.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return BACKBONES[lookup.choose(name, BACKBONES, "backbone")]


def build(
  config: ConfigDict,
  image_size: int | tuple[int, int],
  dtype: str,
  ops: Ops = _DEFAULT_OPS,
) -> ViT | Swin:
  """Returns the module of `config.backbone` for images of this size.

  Args:
    config: the section.
    image_size: of both sides, or (height, width).
    dtype: of the matrix products.
    ops: form of its operations.

  Raises:
    ValueError: unknown name or option, or a size that patches do not tile.
  """
  entry = get(config.name)
  size: Any = image_size
  if isinstance(image_size, int):
    size = (image_size, image_size)
  if entry.module is Swin and ops.attention_form != "auto":
    raise ValueError(
      f"compute.attention={ops.attention_form!r} is not for windows; "
      f"{config.name!r} needs 'auto'"
    )
  options: dict[str, Any] = {"dtype": jnp.dtype(dtype), "ops": ops}
  options["gelu"] = gelu_of(config)
  if config.get("eps"):
    options["eps"] = config.eps
  if config.norm:
    options["norm_order"] = lookup.choose(config.norm, NORMS, "backbone.norm")
  if config.projection:
    options["projection"] = _projection(config.name, entry, ops)
  return make(config.name, entry, tuple(size), **options)


def gelu_of(config: ConfigDict) -> str:
  """Returns the GELU that a section `config.backbone` chooses.

  `torch` is what the published code runs: the exact one for models that were
  trained with the tanh form, their own for all others.

  Raises:
    ValueError: an unknown name.
  """
  entry = get(config.name)
  trained_with = entry.arch.get("gelu", entry.module.gelu)
  if not config.gelu:
    return trained_with
  if config.gelu != "torch":
    return lookup.choose(config.gelu, gelu.NAMES, "backbone.gelu")
  return "exact" if trained_with == "tanh" else trained_with


def _projection(name: str, entry: Entry, ops: Ops) -> nn.Module:
  """Returns what follows the pooled feature of a backbone.

  Raises:
    ValueError: nothing does.
  """
  if entry.projection is None:
    with_projection = [n for n, e in BACKBONES.items() if e.projection]
    raise ValueError(
      f"backbone {name!r} has no projection; those that have: "
      f"{', '.join(with_projection)}"
    )
  projection = entry.projection()
  if isinstance(projection, DinoHead):
    return projection.clone(ops=ops)
  return projection


def make(
  name: str, entry: Entry, size: tuple[int, int], **options: Any
) -> ViT | Swin:
  """Returns the module of an entry for images of this size.

  Args:
    name: of the entry, for errors.
    entry: of the model zoo.
    size: (height, width).
    **options: attributes of the module that replace the entry's.

  Raises:
    ValueError: a size that patches (and windows) do not tile.
  """
  nearest = tuple(_nearest_side(entry, side) for side in size)
  for side, fitting_side in zip(size, nearest, strict=True):
    if side != fitting_side:
      raise ValueError(
        f"image_size={side} is not a multiple of the patch size "
        f"{patch_size(entry)} of {name!r} (and its windows, if it has any); "
        f"nearest: {fitting_side}"
      )
  module = entry.module(image_size=size, **(entry.arch | options))
  if isinstance(module, Swin):
    _check_last_grid(name, module)
  return module


def _check_last_grid(name: str, module: Swin) -> None:
  """Raises ValueError for windows that would not be squares."""
  rows, columns = cast(tuple[int, int], module.spec.grids[-1])
  if rows == columns or min(rows, columns) >= module.window:
    return
  height, width = module.image_size
  pixels = height // rows  # of a patch in the last stage
  least = pixels * module.window
  square = min(height, width)
  enough = (max(height, least), max(width, least))
  raise ValueError(
    f"image_size={module.image_size} leaves {name!r} a grid that is no "
    "square and smaller than its windows; nearest: "
    f"{(square, square)} or {enough}"
  )


def patch_size(entry: Entry) -> int:
  """Returns the side of a patch of an entry's backbone, in pixels."""
  return entry.arch.get("patch_size", Swin.patch_size)


def _fits(entry: Entry, side: int) -> bool:
  """Returns whether patches, and windows in every stage, tile a side."""
  patch = patch_size(entry)
  if side < patch or side % patch:
    return False
  if entry.module is not Swin:
    return True
  stages = len(entry.arch["depths"])
  units = [patch * 2**stage for stage in range(stages)]  # pixels of a patch
  if side % units[-1]:
    return False
  for unit in units:
    grid = side // unit
    window = min(entry.arch["window"], grid)
    if grid % window:
      return False
  return True


def _nearest_side(entry: Entry, side: int) -> int:
  """Returns the side nearest to this one that fits, itself if it does."""
  if _fits(entry, side):
    return side
  patch = patch_size(entry)
  fitting_sides = [
    candidate
    for candidate in range(patch, 2 * side + 512, patch)
    if _fits(entry, candidate)
  ]
  return min(fitting_sides, key=lambda candidate: abs(candidate - side))


def fitting(shape: Mapping[str, int]) -> list[str]:
  """Returns the names of the backbones that have these sizes.

  Args:
    shape: some of patch_size, width, depth, mlp_dim, window.
  """
  names = []
  for name, entry in BACKBONES.items():
    if shape.items() <= _sizes(entry).items():
      names.append(name)
  return names


def _sizes(entry: Entry) -> dict[str, Any]:
  """Returns an entry's attributes, a Swin's with the names of a ViT's too."""
  if entry.module is not Swin:
    return entry.arch
  defaults = {"patch_size": Swin.patch_size, "mlp_ratio": Swin.mlp_ratio}
  arch = defaults | entry.arch
  arch["depth"] = sum(arch["depths"])
  arch["mlp_dim"] = int(arch["width"] * arch["mlp_ratio"])
  return arch
