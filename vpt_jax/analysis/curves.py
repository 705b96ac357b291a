"""Draws a score against a field of the config, from the records of runs.

No model is built, and no image is read.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vpt_jax import config as config_lib
from vpt_jax import problems
from vpt_jax.analysis import figures
from vpt_jax.training import record_checks
from vpt_jax.training import records as records_lib
from vpt_jax.utils import lookup, trees

# Fields that are shares, and are drawn in percent.
SHARES = ("data.train_share",)
# Axes are logarithmic from this ratio of the largest to the smallest value on.
WIDE = 16
# On them, neighbouring ticks have at least this ratio.
LEAST_TICK_RATIO = 1.25

# Name of the method, backbone and task: what a line is drawn for.
Key = tuple[str, str, str]


class Point(NamedTuple):
  """Runs that differ in their seed alone.

  Attributes:
    value: of the field.
    seeds: of these runs.
    scores: of each, percent.
    metric: the name of these scores.
  """

  value: Any
  seeds: list[int]
  scores: list[float]
  metric: str

  @property
  def mean(self) -> float:
    """Mean over the seeds."""
    return float(np.mean(self.scores))

  @property
  def std(self) -> float:
    """Standard deviation of a sample (n - 1); 0 for a single run."""
    return standard_deviation(self.scores)


def standard_deviation(values: Sequence[float]) -> float:
  """Returns that of a sample (n - 1); 0 for a single value."""
  if len(values) == 1:
    return 0.0
  return float(np.std(values, ddof=1))


def points(
  records: Sequence[records_lib.Record], field: str
) -> dict[Key, list[Point]]:
  """Returns {(name, backbone, task): its points, by the field's value}.

  Args:
    records: those of finished runs on the test images count.
    field: of the config, such as `vpt.num_tokens`; runs of methods that do not
      have it are left out.

  Raises:
    ValueError: no run, no such field, or two runs of one seed.
  """
  runs = [record for record in records if _is_final(record)]
  if not runs:
    raise ValueError(
      f"{len(records)} records, none of a finished run on the test images"
    )
  known: set[str] = set()
  groups: dict[Key, dict[Any, list[records_lib.Record]]] = {}
  for run in runs:
    fields = _fields(run)
    known.update(fields)
    if field not in fields:
      continue
    key = run["name"], run["backbone"]["name"], run["task"]
    by_value = groups.setdefault(key, defaultdict(list))
    by_value[fields[field]].append(run)
  lookup.choose(field, known, "config field")
  lines = {}
  for key, by_value in groups.items():
    lines[key] = [
      _point(value, by_value[value], field) for value in _sorted(by_value)
    ]
  return lines


def _is_final(record: records_lib.Record) -> bool:
  """Returns whether a record is of a finished run on the test images."""
  return (
    record["stage"] in ("final", "single")
    and record["status"] == "done"
    and record["split"] == "test"
  )


def _fields(run: records_lib.Record) -> dict[str, Any]:
  """Returns the config of a run as {"vpt.num_tokens": 10}, lists as tuples."""
  fields = {}
  for path, value in trees.flatten(run["config"]).items():
    if isinstance(value, list):
      value = tuple(value)
    fields[path.replace("/", ".")] = value
  return fields


def _sorted(values: Iterable[Any]) -> list[Any]:
  """Returns distinct values in order: numbers by size, others by text."""
  distinct = list(dict.fromkeys(values))
  if all(isinstance(value, (int, float)) for value in distinct):
    return sorted(distinct)
  return sorted(distinct, key=str)


def _point(value: Any, runs: Sequence[records_lib.Record], field: str) -> Point:
  """Returns the point of runs with the same value, all of different seeds."""
  by_seed: dict[int, records_lib.Record] = {}
  for run in runs:
    other = by_seed.setdefault(run["seed"], run)
    if other is not run:
      lines = config_lib.difference(other["config"], run["config"])
      raise ValueError(
        f"two runs of seed {run['seed']} with {field}={value!r} "
        f"({run['name']}, {run['task']}): their mean would mix what differs; "
        "name folders with one of them. Between them:\n  "
        + "\n  ".join(lines or ["nothing"])
      )
  metric = runs[0]["metric"]
  scores = [run[metric] for run in runs]
  return Point(value, list(by_seed), scores, metric)


def draw(workdirs: Sequence[str], field: str, to: Path) -> str:
  """Draws scores against a field of the config, mean and std over seeds.

  Args:
    workdirs: of runs or sweeps.
    field: its name, with dots.
    to: the PNG.

  Returns:
    A summary for the terminal.

  Raises:
    ValueError: see `points`.
  """
  records = records_lib.find(workdirs, record_checks.fault)
  lines = points(records, field)
  labels, common = figures.distinguish(list(lines))
  all_points = [point for line in lines.values() for point in line]
  with figures.figure(to, 6.8, 4.2, common) as fig:
    axes = fig.subplots()
    places = _set_horizontal_axis(axes, all_points, field)
    for n, (label, line) in enumerate(zip(labels, lines.values(), strict=True)):
      axes.errorbar(
        [places[point.value] for point in line],
        [point.mean for point in line],
        [point.std for point in line],
        capsize=3,
        label=label,
        fmt=figures.marker(n) + "-",
        color=figures.colour(n),
      )
    axes.set(ylabel=_vertical_label(all_points))
    if len(lines) > 1:
      axes.legend()
  _write_numbers(lines, field, to)
  summary = []
  for key, line in lines.items():
    scores = [f"{point.value}: {point.mean:.2f} %" for point in line]
    summary.append(f"{', '.join(key)}: {', '.join(scores)}")
  return "\n".join(summary)


def _set_horizontal_axis(
  axes: Any, all_points: Sequence[Point], field: str
) -> dict[Any, float]:
  """Sets label, scale and ticks; returns where each value of the field is."""
  values = _sorted(point.value for point in all_points)
  is_share = field in SHARES
  axes.set(xlabel=f"{field}, %" if is_share else field)
  if not all(_is_number(value) for value in values):
    axes.set_xticks(range(len(values)), map(str, values))
    return {value: place for place, value in enumerate(values)}
  scale = 100 if is_share else 1
  places = {value: scale * value for value in values}
  if min(values) > 0 and max(values) >= WIDE * min(values):
    _set_logarithmic(axes, list(places.values()))
  return places


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _set_logarithmic(axes: Any, places: Sequence[float]) -> None:
  """Makes an axis logarithmic, with ticks at the values as far as they fit."""
  axes.set_xscale("log")
  ticks: list[float] = []
  for place in places:
    if not ticks or place >= LEAST_TICK_RATIO * ticks[-1]:
      ticks.append(place)
  axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
  axes.set_xticks([], minor=True)


def _vertical_label(all_points: Sequence[Point]) -> str:
  titles = problems.titles()
  metrics = sorted({titles[point.metric] for point in all_points})
  label = f"{' or '.join(metrics)} of the test images, %"
  most = max(len(point.seeds) for point in all_points)
  if most > 1:
    label += f"\nmean and std over up to {most} seeds"
  return label


def _write_numbers(lines: dict[Key, list[Point]], field: str, to: Path) -> None:
  """Writes a line for every point."""
  header = ["name", "backbone", "task", field, "metric", "runs", "mean", "std"]
  header.append("seeds")
  rows = []
  for key, line in lines.items():
    for point in line:
      runs = len(point.seeds)
      std = point.std if runs > 1 else ""
      seeds = " ".join(map(str, point.seeds))
      rows.append(
        [*key, point.value, point.metric, runs, point.mean, std, seeds]
      )
  figures.write_csv(to, header, rows)
