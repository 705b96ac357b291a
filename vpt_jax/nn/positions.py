"""Position embeddings: fixed tables, and how they come to another grid."""

from collections.abc import Callable

import flax.linen as nn
import numpy as np

Grid = tuple[int, int]


def initial(resize_as: str, grid: Grid) -> Callable[..., np.ndarray]:
  """Initialiser of positions [1, h w, D], which `sincos` fixes."""
  if resize_as == "sincos":
    return lambda rng, shape: sincos(grid, shape[-1])
  return lambda rng, shape: nn.initializers.normal(shape[-1] ** -0.5)(
    rng, shape
  )


def sincos(grid: Grid, width: int) -> np.ndarray:
  """MoCo v3's fixed table [1, h w, D] (Chen et al. 2021, arXiv 2104.02057).

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
  frequency = 10000.0 ** -(np.arange(width // 4) / (width // 4))
  row, column = (
    axis.reshape(-1, 1) * frequency
    for axis in np.meshgrid(*map(np.arange, grid), indexing="ij")
  )
  table = [np.sin(row), np.cos(row), np.sin(column), np.cos(column)]
  return np.concatenate(table, axis=1)[None].astype(np.float32)


def resize(
  table: np.ndarray, grid_from: Grid, grid_to: Grid, how: str = "linear"
) -> np.ndarray:
  """Position embeddings [1, h w, D] -> [1, h' w', D].

  Args:
    table: float32.
    grid_from: (h, w).
    grid_to: (h', w').
    how: `linear`: corners stay at corners (scipy's zoom), as in big_vision and
      VPT's code. `bicubic`: as DINO's code, which adds 0.1 to the new size
      before it takes the ratio. `sincos`: MoCo v3's table is computed anew.
  """
  width = table.shape[-1]
  if how == "sincos":
    return sincos(grid_to, width)
  table = table.astype(np.float32).reshape(*grid_from, width)
  if how == "bicubic":
    for axis in (0, 1):
      weights = _cubic(grid_from[axis], grid_to[axis])
      table = np.moveaxis(np.tensordot(weights, table, (1, axis)), 0, axis)
  else:
    from scipy import ndimage  # slow to import, seldom needed

    zoom = (grid_to[0] / grid_from[0], grid_to[1] / grid_from[1], 1)
    table = ndimage.zoom(table, zoom, order=1)
  return table.reshape(1, -1, width).astype(np.float32)


def _cubic(old: int, new: int) -> np.ndarray:
  """Weights [new, old] of Keys' cubic convolution with a = -0.75.

  Pixel centres are half-way, the edge is repeated: PyTorch's `interpolate` with
  a scale factor of (new + 0.1) / old.
  """
  a = -0.75
  place = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
  first = np.floor(place).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    d = np.abs(place - first - tap)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    np.add.at(
      weights,
      (np.arange(new), np.clip(first + tap, 0, old - 1)),
      np.where(d <= 1, near, far),
    )
  return weights
