"""Chooses which runs of a grid a sweep tries: all, or fewer.

A search is given the axes of the grid and a function that trains runs and
returns their validation scores. It returns the best cell of the grid.
"""

from collections.abc import Callable, Sequence
import itertools
import math
from typing import Any

from ml_collections import ConfigDict

Cell = dict[str, Any]  # field -> value
Axes = Sequence[tuple[str, Sequence[Any]]]
Score = float | None  # None: the run diverged
Train = Callable[[list[Cell]], list[Score]]

# Of successive halving: a third of the runs is kept, and trains three times as
# long.
KEPT_SHARE = 3
RUNGS = 3


class AllDiverged(ValueError):
  """No run of a search has a score."""


def cells(axes: Axes) -> list[Cell]:
  """Returns all combinations, the last axis fastest."""
  fields = [field for field, _ in axes]
  choices = [values for _, values in axes]
  out = []
  for values in itertools.product(*choices):
    cell = dict(zip(fields, values, strict=True))
    out.append(cell)
  return out


def best(tried: Sequence[Cell], scores: Sequence[Score]) -> list[int]:
  """Returns the numbers of the runs with a score, the best one first.

  Of equal scores the one with the smaller rate is first.

  Raises:
    AllDiverged: there is none.
  """

  def rank(i):
    rate = tried[i].get("optim.lr", 0.0)
    return -scores[i], rate, i

  done = [i for i, score in enumerate(scores) if score is not None]
  if not done:
    raise AllDiverged(
      f"all {len(tried)} runs of the search diverged; take "
      "smaller values of optim.lr into config.sweep.grid"
    )
  return sorted(done, key=rank)


def grid(axes: Axes, train: Train, base: ConfigDict) -> Cell:
  """Tries every combination, as VPT does.

  Args:
    axes: of the grid.
    train: trains runs and returns their scores.
    base: resolved config of a run of the search, before any change.
  """
  del base
  tried = cells(axes)
  order = best(tried, train(tried))
  return tried[order[0]]


def coordinate(axes: Axes, train: Train, base: ConfigDict) -> Cell:
  """Searches one axis after the other, the last one first.

  As VAPT's `--fast`: the decay at the first rate, then the rate with the best
  decay. For the arguments see `grid`.
  """
  del base
  chosen = {field: values[0] for field, values in axes}
  for field, values in reversed(axes):
    tried = [{**chosen, field: value} for value in values]
    order = best(tried, train(tried))
    chosen = tried[order[0]]
  return chosen


def halving(axes: Axes, train: Train, base: ConfigDict) -> Cell:
  """Searches by successive halving.

  All runs train for a ninth of the epochs (with a schedule of that length),
  the best third of them for a third, the best third of these for all. For the
  arguments see `grid`.

  Source: Jamieson and Talwalkar 2016, arXiv 1502.07943.
  """
  tried = cells(axes)
  for rung in reversed(range(RUNGS)):
    changes = {}
    if rung > 0:
      share = KEPT_SHARE**rung
      epochs = math.ceil(base.epochs / share)
      warmup_epochs = math.ceil(base.optim.warmup_epochs / share)
      changes["epochs"] = epochs
      changes["optim.warmup_epochs"] = warmup_epochs
    shorter = [{**cell, **changes} for cell in tried]
    order = best(tried, train(shorter))
    kept = math.ceil(len(tried) / KEPT_SHARE)
    tried = [tried[i] for i in order[:kept]]
  return tried[0]


SEARCHES = {
  "grid": grid,
  "coordinate": coordinate,
  "halving": halving,
}
