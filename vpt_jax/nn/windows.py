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
  # On each axis: 0 far from the border, 1 in its window, 2 what came around.
  rows, columns = grid
  row = np.digitize(np.arange(rows), [rows - window, rows - shift])
  column = np.digitize(np.arange(columns), [columns - window, columns - shift])
  region = 3 * row[:, None] + column
  region = to_windows(region[None, :, :, None], window)[0, :, :, 0]
  is_same = region[:, :, None] == region[:, None, :]
  return np.where(is_same, 0.0, -100.0).astype(np.float32)


def to_windows(x: Any, window: int) -> Any:
  """Returns [B, h, w, D] as W windows of T = window^2 patches, [B, W, T, D]."""
  batch, rows, columns, width = x.shape
  down = rows // window
  right = columns // window
  x = x.reshape(batch, down, window, right, window, width)
  return x.swapaxes(2, 3).reshape(batch, down * right, window * window, width)


def from_windows(x: jax.Array, grid: Grid) -> jax.Array:
  """Returns [B, W, T, D] as [B, h, w, D], the inverse of `to_windows`."""
  batch, _, patches, width = x.shape
  rows, columns = grid
  window = math.isqrt(patches)
  down = rows // window
  right = columns // window
  x = x.reshape(batch, down, right, window, window, width)
  return x.swapaxes(2, 3).reshape(batch, rows, columns, width)
