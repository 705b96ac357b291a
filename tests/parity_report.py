"""Collects the differences of one fixture, and says how large each may be."""

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
  """`relative` times the tensor's largest entry, but at least `absolute`."""

  absolute: float
  relative: float = 0.0

  def limit(self, theirs: np.ndarray) -> float:
    """Returns the largest difference from this tensor that is allowed."""
    largest = float(np.max(np.abs(theirs), initial=0.0))
    return max(self.absolute, self.relative * largest)


TOLERANCES = {
  "logits": Tolerance(2e-5),
  "loss": Tolerance(2e-5),
  "intermediates": Tolerance(1e-4),
  "gradients": Tolerance(1e-7, 1e-4),
  "weights": Tolerance(1e-7),
  # The reference interpolates in float32, 7.6e-7 away from its own float64
  # (ours: 3e-8), because it rounds the places between the pixels.
  "bicubic": Tolerance(1e-6),
  "factors": Tolerance(1e-9),
  "rates": Tolerance(0.0, 1e-6),  # the optimizer's own are float32
  "losses": Tolerance(1e-4),
  "gradient norms": Tolerance(0.0, 1e-4),
  "parameters": Tolerance(1e-6, 1e-4),
  "final logits": Tolerance(1e-4),
  "scores": Tolerance(0.0, 1e-4),
  "selection": Tolerance(0.0),
  "counts": Tolerance(0.0),
  "percent": Tolerance(1e-4),
  # OpenCV resizes in fixed-point numbers.
  "pixels": Tolerance(1.0),
  "share of unequal pixels": Tolerance(0.1),
  "normalized images": Tolerance(1e-6, 1e-6),
  "step rates": Tolerance(1e-12),
}
# Groups of which the worst few are printed, not only the worst.
_MANY = ("gradients", "parameters")


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison: the largest difference, and what is allowed."""

  group: str
  name: str
  diff: float
  limit: float

  @property
  def failed(self) -> bool:
    """Whether the difference is beyond the limit; NaN is."""
    return not self.diff <= self.limit

  @property
  def share(self) -> float:
    """The difference over the limit; rows of a group are ranked by it."""
    if not self.limit:
      return math.inf if self.failed else 0.0
    if not math.isfinite(self.diff):
      return math.inf
    return self.diff / self.limit

  def __str__(self) -> str:
    beyond = "  BEYOND" if self.failed else ""
    return f"{self.diff:.1e} of {self.limit:.1e}  {self.name}{beyond}"


class Report:
  """Rows of one file, and notes on what else to know."""

  def __init__(self):
    self.rows: list[Row] = []
    self.notes: list[str] = []

  def add(
    self, group: str, name: str, ours: Any, theirs: Any, floor: float = 0.0
  ) -> None:
    """Compares two arrays of the same shape.

    Args:
      group: key of `TOLERANCES`.
      name: of the row.
      ours: of the library.
      theirs: of the reference.
      floor: a difference as large as this is allowed in any case.
    """
    ours = np.asarray(ours)
    theirs = np.asarray(theirs)
    if ours.shape == theirs.shape:
      diff = float(np.max(np.abs(ours - theirs), initial=0.0))
    else:
      diff = math.inf
      self.notes.append(
        f"{name}: shape {ours.shape} here, {theirs.shape} there"
      )
    limit = max(floor, TOLERANCES[group].limit(theirs))
    self.rows.append(Row(group, name, diff, limit))

  @property
  def failed(self) -> bool:
    """Whether any row is beyond its limit."""
    return any(row.failed for row in self.rows)

  def lines(self, verbose: bool) -> list[str]:
    """Returns the worst rows of each group and all that failed, or all rows."""
    out = []
    for group in dict.fromkeys(row.group for row in self.rows):
      rows = [row for row in self.rows if row.group == group]
      rows.sort(key=lambda row: (row.failed, row.share), reverse=True)
      num_failed = sum(row.failed for row in rows)
      num_shown = max(3 if group in _MANY else 1, num_failed)
      shown = rows if verbose else rows[:num_shown]
      for i, row in enumerate(shown):
        label = f"{group} ({len(rows)})" if i == 0 else ""
        out.append(f"  {label:<20} {row}")
    for note in self.notes:
      out.append(f"  note: {note}")
    return out
