"""Draws times against the number of prompts, of vpt_jax and of PyTorch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpt_jax.analysis import figures
from vpt_jax.bench import bench_tables, measure

Row = Mapping[str, Any]  # see `measure.row`


def draw(rows: Sequence[Row], to: Path) -> None:
  """Draws a line of two panels for every backbone, batch and type.

  Args:
    rows: see `measure.row`.
    to: a PNG.
  """
  groups = bench_tables.grouped(rows)
  methods = list(dict.fromkeys(row["case"]["method"] for row in rows))
  height = 0.6 + 3.0 * len(groups)
  with figures.figure(to, 9.5, height, "") as fig:
    panels = fig.subplots(len(groups), len(measure.TIMED), squeeze=False)
    for (name, part), panels_of_group in zip(
      groups.items(), panels, strict=True
    ):
      for command, axes in zip(measure.TIMED, panels_of_group, strict=True):
        axes.set_title(f"{name}: {command}")
        _panel(axes, part, command, methods)
    panels[0, 0].legend()


def _panel(
  axes: Any, rows: Sequence[Row], command: str, methods: Sequence[str]
) -> None:
  """Draws the two lines of each method: the dashed one is PyTorch's."""
  axes.set_xlabel("prompts")
  axes.set_ylabel("ms per batch")
  for index, method in enumerate(methods):
    of_method = [row for row in rows if row["case"]["method"] == method]
    look = {"color": figures.colour(index), "marker": figures.marker(index)}
    _line(
      axes,
      _jax_points(of_method, command),
      "-",
      label=f"{method}, {measure.JAX}",
      **look,
    )
    _line(
      axes,
      _torch_points(of_method, command),
      "--",
      label=f"{method}, torch",
      markerfacecolor="white",
      **look,
    )
  axes.set_ylim(bottom=0)


Points = list[tuple[int, float]]  # (prompts, milliseconds)


def _jax_points(rows: Sequence[Row], command: str) -> Points:
  return [_point(row, measure.JAX, command) for row in rows]


def _torch_points(rows: Sequence[Row], command: str) -> Points:
  """Returns the times of PyTorch's fastest variant, where there is one."""
  out = []
  for row in rows:
    variant = measure.best(row["sides"], command)
    if variant is not None:
      out.append(_point(row, variant, command))
  return out


def _point(row: Row, side: str, command: str) -> tuple[int, float]:
  seconds = measure.median(row["sides"][side], command)
  return row["case"]["prompts"], 1e3 * seconds


def _line(axes: Any, points: Points, style: str, **options: Any) -> None:
  if points:
    prompts, milliseconds = zip(*sorted(points), strict=True)
    axes.plot(prompts, milliseconds, style, **options)
