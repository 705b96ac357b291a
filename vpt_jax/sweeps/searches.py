"""Which runs of a grid a sweep tries: all, or fewer.

A search is given the axes of the grid and `ask`, which trains runs and tells
their validation scores; it gives the best cell of the grid.
"""

from collections.abc import Callable, Sequence
import itertools
from typing import Any

from ml_collections import ConfigDict

Cell = dict[str, Any]  # field -> value
Axes = Sequence[tuple[str, Sequence[Any]]]
Score = float | None  # None: it diverged
Ask = Callable[[list[Cell]], list[Score]]

# Of successive halving: a third of the runs goes on, three times as long.
KEEP, RUNGS = 3, 3


class AllDiverged(ValueError):
  """No run of a search has a score."""


def cells(axes: Axes) -> list[Cell]:
  """All combinations, the last axis fastest."""
  return [
    dict(zip((field for field, _ in axes), values))
    for values in itertools.product(*(values for _, values in axes))
  ]


def best(tried: Sequence[Cell], scores: Sequence[Score]) -> list[int]:
  """Numbers of the runs with a score, best first; ties: smaller rate first."""
  rank = lambda i: (-scores[i], tried[i].get("optim.lr", 0.0), i)
  order = sorted(
    (i for i, score in enumerate(scores) if score is not None), key=rank
  )
  if not order:
    raise AllDiverged(
      f"all {len(tried)} runs of the search diverged; take "
      "smaller values of optim.lr into config.sweep.grid"
    )
  return order


def grid(axes: Axes, ask: Ask, base: ConfigDict) -> Cell:
  """Tries every combination, as VPT."""
  del base
  tried = cells(axes)
  return tried[best(tried, ask(tried))[0]]


def coordinate(axes: Axes, ask: Ask, base: ConfigDict) -> Cell:
  """One axis after the other, the last one first, as VAPT's `--fast`: the
  decay at the first rate, then the rate with the best decay."""
  del base
  chosen = {field: values[0] for field, values in axes}
  for field, values in reversed(axes):
    tried = [{**chosen, field: value} for value in values]
    chosen = tried[best(tried, ask(tried))[0]]
  return chosen


def halving(axes: Axes, ask: Ask, base: ConfigDict) -> Cell:
  """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943).

  All runs train for a ninth of the epochs (with a schedule of that length),
  the best third of them for a third, the best third of these for all.
  """
  tried = cells(axes)
  for rung in reversed(range(RUNGS)):
    short = lambda epochs: -(-epochs // KEEP**rung)
    length = (
      {
        "epochs": short(base.epochs),
        "optim.warmup_epochs": short(base.optim.warmup_epochs),
      }
      if rung
      else {}
    )
    order = best(tried, ask([{**cell, **length} for cell in tried]))
    tried = [tried[i] for i in order[: -(-len(tried) // KEEP)]]
  return tried[0]


SEARCHES = {"grid": grid, "coordinate": coordinate, "halving": halving}
