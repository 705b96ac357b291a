"""Makes a dense model see images of other sizes than it was built for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.backbones.swin import Swin
from vpt_jax.nn import positions
from vpt_jax.nn.tokens import Spec
from vpt_jax.problems import segmentation_heads
from vpt_jax.utils import trees

POSITIONS = "backbone/pos_embedding"
Size = tuple[int, ...]

_ONE_SIZE = (
  "sees images of one size; use config.segmentation.test='slide', whose "
  "windows have that size"
)


def filled_size(model: model_lib.Model, size: Size) -> Size:
  """Returns the least size, of whole patches, that has room for an image."""
  patch = model.backbone.spec.patch_size
  height, width = (-(-side // patch) * patch for side in size)
  return height, width


def model_at(model: model_lib.Model, size: Size) -> model_lib.Model:
  """Returns a dense model for images of another size, (height, width).

  Raises:
    ValueError: the backbone has windows, which would not tile it.
  """
  if isinstance(model.backbone, Swin):
    raise ValueError(f"a Swin {_ONE_SIZE}")
  backbone = model.backbone.clone(image_size=size)
  spec: Spec = backbone.spec
  return model.clone(
    backbone=backbone,
    method=model.method.clone(spec=spec),
    dense=segmentation_heads.at_size(model.dense, spec, model.reads),
  )


def check(model: model_lib.Model) -> None:
  """Raises ValueError if a model sees images of one size only."""
  height, width = model.backbone.image_size
  larger = (height, width + model.backbone.spec.patch_size)
  other = model_at(model, larger)
  own_shapes = _shapes(model)
  for name, shape in _shapes(other).items():
    _check_same(name, own_shapes[name], shape)


def sees_any(model: model_lib.Model) -> bool:
  """Returns whether a model sees images of any size, see `check`."""
  try:
    check(model)
  except ValueError:
    return False
  return True


def _check_same(name: str, own: Size, other: Size) -> None:
  if own != other and name != POSITIONS:
    raise ValueError(
      f"{name} is {list(own)}, and {list(other)} for images of another size: "
      f"this method {_ONE_SIZE}"
    )


def _shapes(model: model_lib.Model) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each parameter."""
  shapes = jax.eval_shape(lambda: model_lib.init(model, jax.random.key(0)))
  return {name: leaf.shape for name, leaf in trees.flatten(shapes).items()}


def params_at(
  model: model_lib.Model, other: model_lib.Model, params: dict[str, Any]
) -> dict[str, Any]:
  """Returns a model's parameters for the same one at another size.

  Positions come to the other grid; nothing else may depend on the size.

  Args:
    model: whose parameters these are.
    other: from `model_at`.
    params: nested {backbone, method, head}.

  Raises:
    ValueError: another parameter depends on the size.
  """
  wanted = _shapes(other)
  found = {}
  for name, leaf in trees.flatten(params).items():
    _check_same(name, leaf.shape, wanted[name])
    is_same = leaf.shape == wanted[name]
    found[name] = leaf if is_same else _resized(model, other, leaf)
  return trees.unflatten(found)


def _resized(
  model: model_lib.Model, other: model_lib.Model, table: jax.Array
) -> jax.Array:
  """Returns positions for the other model's grid."""
  grid_from = model.backbone.spec.grids[0]
  grid_to = other.backbone.spec.grids[0]
  how = model.backbone.resize
  resized = positions.resize(np.asarray(table), grid_from, grid_to, how)
  return jnp.asarray(resized, table.dtype)
