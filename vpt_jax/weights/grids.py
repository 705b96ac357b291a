"""Finds the grid of a checkpoint's positions, and resizes them to another.

A table [1, N, D] does not say how its N positions lie: 144 may be 12 x 12 or
9 x 16. The grid is told by the user or a config; else it is a square, unless
the table itself looks otherwise: neighbours are alike.
"""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from vpt_jax.nn import positions
from vpt_jax.weights.translate import Arrays, Translated

Grid = tuple[int, int]

POSITIONS = "pos_embedding"

# Of small tables, and of long strips, likeness says nothing.
_FEWEST = 36
_LONGEST = 6  # times as long as wide
# Mean cosine of vertical neighbours. Of trained tables and of sines it is 0.4
# to 0.95 where the columns are right, and clearly less where they are not.
_ALIKE = 0.4
_MORE_ALIKE = 0.2


def check(
  arrays: Mapping[str, Any], file_grid: Grid | None, who_says: str
) -> None:
  """Raises ValueError if positions are not those of the file's grid.

  Args:
    arrays: under our names, the class token's position apart.
    file_grid: (rows, columns), None if nobody says it: then they are to be on a
      square.
    who_says: the grid.
  """
  table = arrays.get(POSITIONS)
  if table is None or table.ndim != 3:
    return
  count = table.shape[1]
  if file_grid is None:
    _check_looks_square(table)
  elif count != math.prod(file_grid):
    rows, columns = file_grid
    raise ValueError(
      f"{who_says} says a grid of {rows} x {columns} patches, but the file has "
      f"{count} positions; correct it (config.backbone.grid=(rows, columns))"
    )


def _check_looks_square(table: np.ndarray) -> None:
  """Raises ValueError if n n positions look like those of another grid."""
  n = side(table.shape[1])
  if not n:
    return
  likeness = alike(table)
  best = max(likeness, key=likeness.__getitem__, default=n)
  is_clear = likeness.get(best, 0.0) > max(
    _ALIKE, likeness.get(n, 0.0) + _MORE_ALIKE
  )
  if best == n or not is_clear:
    return
  rows = n * n // best
  raise ValueError(
    f"its {n * n} positions look like those of a grid of {rows} x {best}, not "
    f"{n} x {n}: there neighbours are more alike ({likeness[best]:.2f} against "
    f"{likeness[n]:.2f}). Set config.backbone.grid=({rows}, {best}), or "
    f"({n}, {n}) if that is right"
  )


def alike(table: np.ndarray) -> dict[int, float]:
  """Returns how alike vertical neighbours are by the number of columns.

  Args:
    table: [1, N, D].

  Returns:
    columns -> mean cosine of positions i and i + columns, the mean position
    taken off; {} of a table that is too small.
  """
  rows = np.asarray(table[0], np.float32)
  count = len(rows)
  if count < _FEWEST:
    return {}
  rows = rows - rows.mean(axis=0)
  lengths = np.linalg.norm(rows, axis=1, keepdims=True)
  rows = rows / np.maximum(lengths, 1e-12)
  out = {}
  for columns in range(2, count // 2 + 1):
    shape = sorted((columns, count // columns))
    if count % columns or shape[1] > _LONGEST * shape[0]:
      continue
    cosines = (rows[columns:] * rows[:-columns]).sum(axis=1)
    out[columns] = float(cosines.mean())
  return out


def resize(
  arrays: Arrays,
  grid: Grid,
  how: str,
  file_grid: Grid | None = None,
) -> None:
  """Resizes positions [1, h w, D] of another grid, in place.

  Where nothing says their grid, n n of them are taken for an n x n grid; others
  stay as they are: their shape is an error.

  Args:
    arrays: under our names.
    grid: (rows, columns) of the backbone.
    how: see `positions.resize`.
    file_grid: of the positions, if it is known.
  """
  table = arrays.get(POSITIONS)
  if table is None or table.ndim != 3 or len(table) != 1:
    return
  count = table.shape[1]
  if file_grid is None and side(count):
    file_grid = (side(count), side(count))
  if file_grid is None or count != math.prod(file_grid):
    return
  if file_grid != tuple(grid):
    arrays[POSITIONS] = positions.resize(table, file_grid, grid, how)


def split_class_position(
  found: Translated,
  grid: tuple[int, int] | None,
  file_grid: tuple[int, int] | None = None,
) -> Arrays:
  """Adds the class token's position, the first of 1 + n n, to the token.

  Args:
    found: the checkpoint.
    grid: of the backbone; where big_vision has its positions today, just as
      many have none for the class token (5 x 10 is 1 + 7 x 7).
    file_grid: of the file, if it is known; then there are 1 + h w of them.

  Raises:
    ValueError: n n positions in a layout that has the class token's as well,
      or another number than the known grid has.
  """
  arrays = found.arrays
  cls = arrays.get("cls")
  table = arrays.get("pos_embedding")
  if cls is None or table is None or table.ndim != 3:
    return arrays
  name = found.origin["pos_embedding"]
  count = table.shape[1]
  has_class_position = found.layout != "big_vision" or "posembed_input" in name
  if file_grid and count == math.prod(file_grid) and not has_class_position:
    return arrays
  if not has_class_position and grid and count == math.prod(grid):
    # In big_vision's older files they are below `Transformer/`, and have it.
    is_old = "Transformer/" in name and side(count - 1)
    if not is_old:
      return arrays
  first = table[:, :1]
  rest = table[:, 1:]
  is_grid = side(count - 1) > 0
  if file_grid:
    is_grid = count - 1 == math.prod(file_grid)
  if cls.shape == first.shape and is_grid:
    return arrays | {"cls": cls + first, "pos_embedding": rest}
  if has_class_position and side(count):
    raise ValueError(
      f"its {count} positions are not the class token's and those of an n x n "
      "grid; if their grid is another one, set "
      "config.backbone.grid=(rows, columns)"
    )
  return arrays


def side(count: int) -> int:
  """Returns n if count is n n, else 0."""
  n = math.isqrt(count)
  return n if n * n == count else 0
