"""Curves over the records of runs: no model is built, no image is read."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vpt_jax import config as configs
from vpt_jax import problems
from vpt_jax.analysis import figures
from vpt_jax.training import records as results
from vpt_jax.utils import lookup, trees

# Fields that are shares, and are drawn in percent.
SHARES = ("data.train_share",)
# Axes are logarithmic from this ratio of the largest to the smallest value on.
WIDE = 16


class Point(NamedTuple):
  """Runs that differ in their seed alone.

  Attributes:
    value: of the field.
    seeds: of these runs.
    scores: of each, percent.
    metric: what they are.
  """

  value: Any
  seeds: list[int]
  scores: list[float]
  metric: str

  @property
  def mean(self) -> float:
    return float(np.mean(self.scores))

  @property
  def std(self) -> float:
    """Of a sample (n - 1); 0 for a single run."""
    return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0


def points(
  records: Sequence[results.Record], field: str
) -> dict[tuple[str, str, str], list[Point]]:
  """{(name, backbone, task): its points, by the field's value}.

  Args:
    records: those of finished runs on the test images count.
    field: of the config, such as `vpt.num_tokens`; runs of methods that do not
      have it are left out.

  Raises:
    ValueError: no run, no such field, or two runs of one seed.
  """
  runs = [
    record
    for record in records
    if record["stage"] in ("final", "single")
    and record["status"] == "done"
    and record["split"] == "test"
  ]
  if not runs:
    raise ValueError(
      f"{len(records)} records, none of a finished run on the test images"
    )
  path = field.replace(".", "/")
  flat = {run["id"]: trees.flatten(run["config"]) for run in runs}
  lookup.choose(
    field,
    {name.replace("/", ".") for one in flat.values() for name in one},
    "config field",
  )
  groups = defaultdict(lambda: defaultdict(list))
  for run in runs:
    if path in flat[run["id"]]:
      value = flat[run["id"]][path]
      value = tuple(value) if isinstance(value, list) else value
      key = run["name"], run["backbone"]["name"], run["task"]
      groups[key][value].append(run)
  return {
    key: [_point(value, same, field) for value, same in _sorted(of)]
    for key, of in groups.items()
  }


def _sorted(groups: dict[Any, Any]) -> list[tuple[Any, Any]]:
  numbers = all(isinstance(value, (int, float)) for value in groups)
  return sorted(
    groups.items(), key=lambda item: item[0] if numbers else str(item[0])
  )


def _point(value: Any, runs: Sequence[results.Record], field: str) -> Point:
  """One point of runs with the same value, all of different seeds."""
  by_seed = {}
  for run in runs:
    other = by_seed.setdefault(run["seed"], run)
    if other is not run:
      lines = configs.difference(other["config"], run["config"])
      raise ValueError(
        f"two runs of seed {run['seed']} with {field}={value!r} "
        f"({run['name']}, {run['task']}): their mean would mix what differs; "
        "name folders with one of them. Between them:\n  "
        + "\n  ".join(lines or ["nothing"])
      )
  metric = runs[0]["metric"]
  return Point(value, list(by_seed), [run[metric] for run in runs], metric)


def curve(workdirs: Sequence[str], field: str, to: Path) -> str:
  """Accuracy against a field of the config, mean and std over seeds.

  Args:
    workdirs: of runs or sweeps.
    field: its name, with dots.
    to: the PNG.

  Raises:
    ValueError: see `points`.
  """
  found = points(results.find(workdirs), field)
  labels, common = figures.apart(list(found))
  values = [
    value
    for value, _ in _sorted(
      {point.value: 0 for line in found.values() for point in line}
    )
  ]
  number = all(
    isinstance(value, (int, float)) and not isinstance(value, bool)
    for value in values
  )
  scale = 100 if field in SHARES else 1
  place = (lambda value: scale * value) if number else values.index
  metrics = sorted(
    {
      problems.titles()[point.metric]
      for line in found.values()
      for point in line
    }
  )
  with figures.figure(to, 6.8, 4.2, common) as fig:
    axes = fig.subplots()
    for n, (label, line) in enumerate(zip(labels, found.values())):
      axes.errorbar(
        [place(point.value) for point in line],
        [point.mean for point in line],
        [point.std for point in line],
        capsize=3,
        label=label,
        fmt=figures.marker(n) + "-",
        color=figures.colour(n),
      )
    if not number:
      axes.set_xticks(range(len(values)), map(str, values))
    elif min(values) > 0 and max(values) >= WIDE * min(values):
      _log(axes, [scale * value for value in values])
    most = max(len(point.seeds) for line in found.values() for point in line)
    over = f"\nmean and std over up to {most} seeds" if most > 1 else ""
    axes.set(
      xlabel=field + (", %" if field in SHARES else ""),
      ylabel=f"{' or '.join(metrics)} of the test images, %{over}",
    )
    if len(found) > 1:
      axes.legend()
  figures.table(
    to,
    [
      "name",
      "backbone",
      "task",
      field,
      "metric",
      "runs",
      "mean",
      "std",
      "seeds",
    ],
    [
      [
        *key,
        point.value,
        point.metric,
        len(point.seeds),
        point.mean,
        point.std if len(point.seeds) > 1 else "",
        " ".join(map(str, point.seeds)),
      ]
      for key, line in found.items()
      for point in line
    ],
  )
  return "\n".join(
    f"{', '.join(key)}: "
    + ", ".join(f"{point.value}: {point.mean:.2f} %" for point in line)
    for key, line in found.items()
  )


def _log(axes: Any, values: Sequence[float]) -> None:
  """A logarithmic axis whose ticks are the values, as far as they fit."""
  axes.set_xscale("log")
  kept: list[float] = []
  for value in values:
    if not kept or value >= 1.25 * kept[-1]:
      kept.append(value)
  axes.set_xticks(kept, [f"{value:g}" for value in kept])
  axes.set_xticks([], minor=True)


def condensed(
  records: Sequence[results.Record],
) -> dict[tuple[str, str, str, str], list[dict[str, Any]]]:
  """{(name, backbone, task, statistic): rows by share}.

  A row has share, runs and, of as_is, tuned (the first score of the records'
  problem, percent) and gflops (10^9 floating point operations of an image, two
  for a multiply-add), the values of all runs.

  Raises:
    ValueError: no record of a condensation.
  """
  groups = defaultdict(lambda: defaultdict(list))
  for record in records:
    if record["stage"] == "condense":
      key = (
        record["name"],
        record["backbone"]["name"],
        record["task"],
        record["statistic"],
      )
      score = problems.of_run(record).scores[0].name
      for row in record["rows"]:
        groups[key][row["share"]].append(
          (row[f"{score}_as_is"], row[f"{score}_tuned"], 2 * row["gmacs"])
        )
  if not groups:
    raise ValueError(
      f"{len(records)} records, none of a condensation; "
      "expected a workdir of configs/condense_vtab.py, or such"
    )
  return {
    key: [
      {
        "share": share,
        "runs": len(rows),
        "as_is": [as_is for as_is, _, _ in rows],
        "tuned": [tuned for _, tuned, _ in rows],
        "gflops": [gflops for _, _, gflops in rows],
      }
      for share, rows in sorted(of.items())
    ]
    for key, of in groups.items()
  }


def condensation(workdirs: Sequence[str], to: Path) -> str:
  """Accuracy and cost against the share of prompts that is kept.

  Args:
    workdirs: of condensations.
    to: the PNG.
  """
  records = results.find(workdirs)
  found = condensed(records)
  # Of one problem: there is one axis.
  score = next(
    problems.of_run(record).scores[0]
    for record in records
    if record["stage"] == "condense"
  )
  labels, common = figures.apart(list(found))
  spread = lambda values: np.std(values, ddof=1) if len(values) > 1 else 0.0
  with figures.figure(to, 9.5, 4.0, f"Prompt condensation: {common}") as fig:
    left, right = fig.subplots(1, 2)
    for n, (label, rows) in enumerate(zip(labels, found.values())):
      percent = [100 * row["share"] for row in rows]
      for name, what, line in (
        ("tuned", "fine-tuned", "-"),
        ("as_is", "as it is", "--"),
      ):
        left.errorbar(
          percent,
          [np.mean(row[name]) for row in rows],
          [spread(row[name]) for row in rows],
          capsize=3,
          fmt=figures.marker(n) + line,
          color=figures.colour(n),
          label=f"{label}, {what}" if label else what,
        )
      right.plot(
        percent,
        [np.mean(row["gflops"]) for row in rows],
        figures.marker(n) + "-",
        color=figures.colour(n),
      )
    left.set(ylabel=f"test {score.title}, {score.unit}", title="accuracy")
    left.legend(loc="lower right")
    most = max(max(row["gflops"]) for rows in found.values() for row in rows)
    right.set(ylabel="GFLOPs of an image", title="cost", ylim=(0, 1.1 * most))
    for axes in (left, right):
      axes.set_xlabel("prompts kept, %")
  figures.table(
    to,
    [
      "name",
      "backbone",
      "task",
      "statistic",
      "share",
      "runs",
      f"{score.name}_as_is",
      "std_as_is",
      f"{score.name}_tuned",
      "std_tuned",
      "gflops",
    ],
    [
      [
        *key,
        row["share"],
        row["runs"],
        *(
          f(row[name]) for name in ("as_is", "tuned") for f in (np.mean, spread)
        ),
        np.mean(row["gflops"]),
      ]
      for key, rows in found.items()
      for row in rows
    ],
  )
  return "\n".join(
    f"{', '.join(key)}: "
    + ", ".join(
      f"{100 * row['share']:g} %: {np.mean(row['as_is']):.2f} -> "
      f"{np.mean(row['tuned']):.2f}"
      for row in rows
    )
    for key, rows in found.items()
  )
