"""Cuts Swin's grid into windows, and makes what attention adds for them."""

import math
from typing import Any

import jax
import numpy as np

Grid = tuple[int, int]


def relative_position(window: int) -> np.ndarray:
  """Returns which row of the bias table each pair of patches uses.

  The table has a row for each offset (down, right), row by row.

  Args:
    window: side of the windows, in patches.

  Returns:
    [T, T] for the T = window^2 patches of a window.
  """
  row, column = np.divmod(np.arange(window * window), window)
  largest = window - 1
  offsets = 2 * window - 1  # -largest .. largest
  down = row[:, None] - row + largest
  right = column[:, None] - column + largest
  return down * offsets + right


def shift_mask(grid: Grid, window: int, shift: int) -> np.ndarray:
  """Returns what shifted windows add to the logits: -100 between strangers.

  Patches that the cyclic shift has brought together from opposite borders
  must not see each other.

  Args:
    grid: rows and columns of patches.
    window: side of the windows.
    shift: of the grid, in patches.

  Returns:
    [W, T, T], float32.
  """
  rows, columns = grid
  row = _border_region(rows, window, shift)
  column = _border_region(columns, window, shift)
  region = 3 * row[:, None] + column
  image = region[None, :, :, None]
  windows = to_windows(image, window)
  region = windows[0, :, :, 0]
  is_same = region[:, :, None] == region[:, None, :]
  return np.where(is_same, 0.0, -100.0).astype(np.float32)


def _border_region(size: int, window: int, shift: int) -> np.ndarray:
  """Returns 0 far from the border, 1 in its window, 2 for what came around.

  Args:
    size: of the axis, in patches.
    window: side of the windows.
    shift: of the grid, in patches.

  Returns:
    [size].
  """
  last_window = size - window
  came_around = size - shift
  return np.digitize(np.arange(size), [last_window, came_around])


def to_windows(x: Any, window: int) -> Any:
  """Returns [B, h, w, D] as W windows of T = window^2 patches, [B, W, T, D]."""
  batch, rows, columns, width = x.shape
  down = rows // window
  right = columns // window
  windows = down * right
  patches = window * window
  x = x.reshape(batch, down, window, right, window, width)
  x = x.swapaxes(2, 3)
  return x.reshape(batch, windows, patches, width)


def from_windows(x: jax.Array, grid: Grid) -> jax.Array:
  """Returns [B, W, T, D] as [B, h, w, D], the inverse of `to_windows`."""
  batch, _, patches, width = x.shape
  rows, columns = grid
  window = math.isqrt(patches)
  down = rows // window
  right = columns // window
  x = x.reshape(batch, down, right, window, window, width)
  x = x.swapaxes(2, 3)
  return x.reshape(batch, rows, columns, width)
