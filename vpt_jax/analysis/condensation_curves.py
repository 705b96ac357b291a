"""Draws accuracy and cost against the share of prompts that is kept.

It reads the records of condensations: no model is built, no image is read.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from vpt_jax import problems
from vpt_jax.analysis import curves, figures
from vpt_jax.training import record_checks
from vpt_jax.training import records as records_lib

# Name of the method, backbone, task and statistic: what a line is drawn for.
Key = tuple[str, str, str, str]


@dataclasses.dataclass
class Share:
  """Runs that keep the same share of the prompts.

  Attributes:
    share: of the prompts, 0 .. 1.
    as_is: the first score of the problem of each run, percent, without further
      training.
    tuned: likewise, after fine-tuning.
    gflops: of each run, 10^9 floating point operations of an image, two for a
      multiply-add.
  """

  share: float
  as_is: list[float] = dataclasses.field(default_factory=list)
  tuned: list[float] = dataclasses.field(default_factory=list)
  gflops: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Line:
  """What is drawn of one method, backbone, task and statistic.

  Attributes:
    score: of its problem, which is drawn.
    shares: by share.
  """

  score: problems.Score
  shares: list[Share]


def condensed(records: Sequence[records_lib.Record]) -> dict[Key, Line]:
  """Returns the lines of condensations.

  Args:
    records: of any runs.

  Raises:
    ValueError: no record of a condensation.
  """
  groups: dict[Key, dict[float, Share]] = {}
  scores: dict[Key, problems.Score] = {}
  for record in records:
    if record["stage"] != "condense":
      continue
    key = (
      record["name"],
      record["backbone"]["name"],
      record["task"],
      record["statistic"],
    )
    score = problems.of_run(record).scores[0]
    scores[key] = score
    by_share = groups.setdefault(key, {})
    for row in record["rows"]:
      share = by_share.setdefault(row["share"], Share(row["share"]))
      share.as_is.append(row[f"{score.name}_as_is"])
      share.tuned.append(row[f"{score.name}_tuned"])
      share.gflops.append(2 * row["gmacs"])
  if not groups:
    raise ValueError(
      f"{len(records)} records, none of a condensation; "
      "expected a workdir of configs/condense_vtab.py, or such"
    )
  lines = {}
  for key, by_share in groups.items():
    shares = [by_share[share] for share in sorted(by_share)]
    lines[key] = Line(scores[key], shares)
  return lines


def draw(workdirs: Sequence[str], to: Path) -> str:
  """Draws accuracy and cost against the share of prompts that is kept.

  Args:
    workdirs: of condensations.
    to: the PNG.

  Returns:
    A summary for the terminal.

  Raises:
    ValueError: see `condensed`.
  """
  records = records_lib.find(workdirs, record_checks.fault)
  lines = condensed(records)
  labels, common = figures.distinguish(list(lines))
  title = f"Prompt condensation: {common}"
  with figures.figure(to, 9.5, 4.0, title) as fig:
    left, right = fig.subplots(1, 2)
    _draw_scores(left, list(lines.values()), labels)
    _draw_cost(right, list(lines.values()))
    for axes in (left, right):
      axes.set_xlabel("prompts kept, %")
  _write_numbers(lines, to)
  summary = []
  for key, line in lines.items():
    changes = []
    for share in line.shares:
      as_is = np.mean(share.as_is)
      tuned = np.mean(share.tuned)
      changes.append(f"{100 * share.share:g} %: {as_is:.2f} -> {tuned:.2f}")
    summary.append(f"{', '.join(key)}: {', '.join(changes)}")
  return "\n".join(summary)


def _draw_scores(
  axes: Any, lines: Sequence[Line], labels: Sequence[str]
) -> None:
  """Draws the scores before and after fine-tuning, mean and std over runs."""
  for n, (line, label) in enumerate(zip(lines, labels, strict=True)):
    tuned = [share.tuned for share in line.shares]
    as_is = [share.as_is for share in line.shares]
    for what, values, dashes in (
      ("fine-tuned", tuned, "-"),
      ("as it is", as_is, "--"),
    ):
      axes.errorbar(
        _percents(line),
        [np.mean(of_runs) for of_runs in values],
        [curves.standard_deviation(of_runs) for of_runs in values],
        capsize=3,
        fmt=figures.marker(n) + dashes,
        color=figures.colour(n),
        label=f"{label}, {what}" if label else what,
      )
  titles = sorted({line.score.title for line in lines})
  axes.set(ylabel=f"test {' or '.join(titles)}, %", title="accuracy")
  axes.legend(loc="lower right")


def _draw_cost(axes: Any, lines: Sequence[Line]) -> None:
  """Draws GFLOPs, mean over runs."""
  most = 0.0
  for n, line in enumerate(lines):
    axes.plot(
      _percents(line),
      [np.mean(share.gflops) for share in line.shares],
      figures.marker(n) + "-",
      color=figures.colour(n),
    )
    for share in line.shares:
      most = max(most, *share.gflops)
  axes.set(ylabel="GFLOPs of an image", title="cost", ylim=(0, 1.1 * most))


def _percents(line: Line) -> list[float]:
  return [100 * share.share for share in line.shares]


def _write_numbers(lines: dict[Key, Line], to: Path) -> None:
  """Writes a line for every share."""
  names = sorted({line.score.name for line in lines.values()})
  name = "_or_".join(names)
  header = ["name", "backbone", "task", "statistic", "share", "runs"]
  header += [f"{name}_as_is", "std_as_is", f"{name}_tuned", "std_tuned"]
  header.append("gflops")
  rows = []
  for key, line in lines.items():
    for share in line.shares:
      row = [*key, share.share, len(share.as_is)]
      for values in (share.as_is, share.tuned):
        row += [np.mean(values), curves.standard_deviation(values)]
      rows.append([*row, np.mean(share.gflops)])
  figures.write_csv(to, header, rows)
