"""The windows of Swin's grid, and what its attention adds for them."""

import math

import numpy as np

Grid = tuple[int, int]


def relative_position(window: int) -> np.ndarray:
  """Index [T, T] into the bias table for T = window^2 places of a window."""
  row, column = np.divmod(np.arange(window * window), window)
  rows = row[:, None] - row + window - 1
  columns = column[:, None] - column + window - 1
  return rows * (2 * window - 1) + columns


def shift_mask(grid: Grid, window: int, shift: int) -> np.ndarray:
  """What shifted windows [W, T, T] add to the logits: -100 between strangers.

  Patches that the cyclic shift has brought together from opposite borders
  must not see each other.
  """
  region = [
    np.digitize(np.arange(size), [size - window, size - shift]) for size in grid
  ]
  label = region[0][:, None] * 3 + region[1]
  label = np.asarray(to_windows(label[None, :, :, None], window))[0, :, :, 0]
  return np.where(label[:, :, None] == label[:, None, :], 0.0, -100.0).astype(
    np.float32
  )


def to_windows(x, window: int):
  """[B, h, w, D] -> [B, W, T, D]: W windows of T = window^2 patches."""
  batch, rows, columns, width = x.shape
  x = x.reshape(batch, rows // window, window, columns // window, window, width)
  return x.swapaxes(2, 3).reshape(batch, -1, window * window, width)


def from_windows(x, grid: Grid):
  """[B, W, T, D] -> [B, h, w, D], the inverse of `to_windows`."""
  batch, _, places, width = x.shape
  window = math.isqrt(places)
  x = x.reshape(
    batch, grid[0] // window, grid[1] // window, window, window, width
  )
  return x.swapaxes(2, 3).reshape(batch, *grid, width)
