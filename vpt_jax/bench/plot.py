"""Times against the number of prompts, ours and PyTorch's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpt_jax.analysis import figures
from vpt_jax.bench import bench_tables, measure


def draw(rows: Sequence[Mapping[str, Any]], to: Path) -> None:
  """Draws a line of two panels for every backbone, batch and type.

  Args:
    rows: see `measure.row`.
    to: a PNG.
  """
  groups = bench_tables.grouped(rows)
  methods = list(dict.fromkeys(row["case"]["method"] for row in rows))
  with figures.figure(to, 9.5, 0.6 + 3.0 * len(groups), "") as fig:
    panels = fig.subplots(len(groups), 2, squeeze=False)
    for (name, part), line in zip(groups.items(), panels):
      for command, axes in zip(("forward", "train"), line):
        axes.set_title(f"{name}: {command}")
        axes.set_xlabel("prompts")
        axes.set_ylabel("ms per batch")
        for i, method in enumerate(methods):
          _lines(
            axes,
            [row for row in part if row["case"]["method"] == method],
            command,
            method,
            i,
          )
        axes.set_ylim(bottom=0)
    panels[0, 0].legend()


def _lines(
  axes: Any,
  rows: Sequence[Mapping[str, Any]],
  command: str,
  method: str,
  i: int,
) -> None:
  """A method's two lines: ours, and dashed the fastest of PyTorch."""
  style = {"color": figures.colour(i), "marker": figures.marker(i)}
  for name in ("ours", "torch"):
    points = []
    for row in sorted(rows, key=lambda row: row["case"]["prompts"]):
      side = "ours" if name == "ours" else measure.best(row["sides"], command)
      if side:
        points.append(
          (
            row["case"]["prompts"],
            1e3 * measure.median(row["sides"][side], command),
          )
        )
    if points:
      axes.plot(
        *zip(*points),
        "-" if name == "ours" else "--",
        label=f"{method}, {name}",
        **style,
        markerfacecolor=None if name == "ours" else "white",
      )
