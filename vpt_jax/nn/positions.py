"""Makes position embeddings: fixed tables, and tables for another grid."""

from collections.abc import Callable
import functools

import flax.linen as nn
import jax
import numpy as np

Grid = tuple[int, int]


def initial(
  resize_as: str, grid: Grid
) -> Callable[..., np.ndarray | jax.Array]:
  """Returns the initialiser of positions [1, h w, D].

  Args:
    resize_as: `sincos` for a fixed table; see `resize`.
    grid: (h, w).
  """

  def fixed(rng, shape):
    del rng
    return sincos(grid, shape[-1])

  def drawn(rng, shape):
    *_, width = shape
    init = nn.initializers.normal(width**-0.5)
    return init(rng, shape)

  return fixed if resize_as == "sincos" else drawn


def sincos(grid: Grid, width: int) -> np.ndarray:
  """Returns MoCo v3's fixed table [1, h w, D] (Chen et al. 2021, 2104.02057).

  A quarter of the width each: sin and cos of the row, sin and cos of the
  column, times 10000^(-k / (D / 4)). (Its code calls the row the width, which
  makes no difference to square images.)

  Raises:
    ValueError: the width is no multiple of 4.
  """
  if width % 4:
    raise ValueError(
      f"sin-cos positions need a width divisible by 4, not {width}"
    )
  quarter = width // 4
  frequency = 10000.0 ** -(np.arange(quarter) / quarter)
  row, column = np.indices(grid)
  row_angle = row.reshape(-1, 1) * frequency
  column_angle = column.reshape(-1, 1) * frequency
  table = np.concatenate(
    [
      np.sin(row_angle),
      np.cos(row_angle),
      np.sin(column_angle),
      np.cos(column_angle),
    ],
    axis=1,
  )
  return table[None].astype(np.float32)


def resize(
  table: np.ndarray, grid_from: Grid, grid_to: Grid, how: str = "linear"
) -> np.ndarray:
  """Returns position embeddings [1, h w, D] for another grid, [1, h' w', D].

  Args:
    table: float32.
    grid_from: (h, w).
    grid_to: (h', w').
    how: `linear`: corners stay at corners (scipy's zoom), as in big_vision and
      VPT's code. `bicubic`: as DINO's code, which adds 0.1 to the new size
      before it takes the ratio. `bilinear` and `bicubic_exact`: by the ratio
      of the sizes, as mmsegmentation. `sincos`: MoCo v3's table is computed
      anew.
  """
  width = table.shape[-1]
  if how == "sincos":
    return sincos(grid_to, width)
  table = table.astype(np.float32).reshape(*grid_from, width)
  if how in _WEIGHTS:
    table = _resize_by(_WEIGHTS[how], table, grid_to)
  else:
    table = _resize_linear(table, grid_to)
  return table.reshape(1, -1, width).astype(np.float32)


def _resize_linear(table: np.ndarray, grid_to: Grid) -> np.ndarray:
  """Returns [h, w, D] as [h', w', D]."""
  from scipy import ndimage  # slow to import, seldom needed

  rows, columns, _ = table.shape
  new_rows, new_columns = grid_to
  zoom = (new_rows / rows, new_columns / columns, 1)
  return ndimage.zoom(table, zoom, order=1)


def _resize_by(
  weights_of: Callable[[int, int], np.ndarray], table: np.ndarray, grid_to: Grid
) -> np.ndarray:
  """Returns [h, w, D] as [h', w', D]; `weights_of` gives [new, old]."""
  for axis in (0, 1):
    weights = weights_of(table.shape[axis], grid_to[axis])
    resized = np.tensordot(weights, table, (1, axis))
    table = np.moveaxis(resized, 0, axis)
  return table


def _linear_weights(old: int, new: int) -> np.ndarray:
  """Returns weights [new, old] of the two nearest, PyTorch's `interpolate`.

  Pixel centres are half-way, the edge is repeated.
  """
  target = np.arange(new)
  centre = np.clip((target + 0.5) * old / new - 0.5, 0, old - 1)
  first = np.floor(centre).astype(int)
  weights = np.zeros((new, old))
  weights[target, first] = 1 - (centre - first)
  np.add.at(weights, (target, np.minimum(first + 1, old - 1)), centre - first)
  return weights


def _cubic_weights(old: int, new: int, more: float = 0.0) -> np.ndarray:
  """Returns weights [new, old] of Keys' cubic convolution.

  Pixel centres are half-way, the edge is repeated: PyTorch's `interpolate` with
  a scale factor of (new + more) / old.
  """
  target = np.arange(new)
  centre = (target + 0.5) * old / (new + more) - 0.5
  first = np.floor(centre).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    source = np.clip(first + tap, 0, old - 1)
    weight = _cubic(centre - first - tap)
    np.add.at(weights, (target, source), weight)
  return weights


def _cubic(x: np.ndarray) -> np.ndarray:
  """Returns Keys' kernel for distances of at most two pixels.

  (a + 2) |x|^3 - (a + 3) |x|^2 + 1         for |x| <= 1
  a |x|^3 - 5 a |x|^2 + 8 a |x| - 4 a       beyond,   a = -0.75
  """
  a = -0.75
  x = np.abs(x)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, far)


# How positions are resized -> (old, new) -> weights [new, old].
_WEIGHTS: dict[str, Callable[[int, int], np.ndarray]] = {
  "bicubic": functools.partial(_cubic_weights, more=0.1),
  "bicubic_exact": _cubic_weights,
  "bilinear": _linear_weights,
}
