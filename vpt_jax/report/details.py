"""Prepares what the page shows of single runs.

These are learning curves, searches, confusions, condensations, and the config
and place of every run; each as JSON for the scripts in `assets`.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import math
import statistics
from typing import Any

from vpt_jax import problems
from vpt_jax.report import record_fields
from vpt_jax.report.record_fields import Record
from vpt_jax.report.rows import Row
from vpt_jax.training import record_checks
from vpt_jax.utils import json_files

Json = dict[str, Any]

MOST_POINTS = 200  # of a curve
MOST_IN_MATRIX = 100  # classes of a confusion matrix
MOST_PAIRS = 20  # of classes that are confused
SHOWN_CLASSES = 25  # with the lowest and highest accuracy, if there are more
RATE = "optim.lr"
DECAY = "optim.weight_decay"


# Learning curves.


def curves(found: Sequence[Row], names: Mapping[int, str]) -> list[Json]:
  """Returns the epochs of each seed, of each row and task, to 4 digits.

  Args:
    found: rows.
    names: {id of a row: short name}.
  """
  out = []
  for row in found:
    for task in row.scores:
      records = row.records_of(task)
      runs = [_run_curve(record) for record in records]
      runs = [run for run in runs if run["epoch"]]
      if runs:
        score = problems.of_run(records[0]).training_score
        out.append(
          {
            "task": task,
            "label": names[id(row)],
            "score": axis_title(score),
            "runs": runs,
          }
        )
  return out


def _run_curve(record: Record) -> Json:
  """Returns at most MOST_POINTS epochs of a run, the last one among them."""
  score = problems.of_run(record).training_score
  losses = record["curve"].get("loss", [])
  scores = record["curve"].get(score.name, [])
  count = max(len(losses), len(scores))
  epochs = list(range(0, count, max(1, math.ceil(count / MOST_POINTS))))
  if count and epochs[-1] != count - 1:
    epochs.append(count - 1)
  return {
    "seed": record["seed"],
    "diverged": record["status"] == "diverged",
    "epoch": [epoch + 1 for epoch in epochs],
    "loss": _taken(losses, epochs),
    "score": _taken(scores, epochs),
  }


def _taken(values: Sequence[Any], epochs: Sequence[int]) -> list[float | None]:
  """Returns the values of some epochs; None where a value is missing."""
  return [
    _digits(values[epoch]) if epoch < len(values) else None for epoch in epochs
  ]


def _digits(value: Any) -> float | None:
  """Returns a number to 4 significant digits; None of no finite number."""
  if isinstance(value, (int, float)) and math.isfinite(value):
    return _four_digits(value)
  return None


def _four_digits(value: float) -> float:
  """Returns a finite number to 4 significant digits."""
  return float(f"{value:.4g}")


def axis_title(score: problems.Score) -> str:
  """Returns what stands at an axis: "top-1, %"."""
  return f"{score.title}, {score.unit}" if score.unit else score.title


# Searches of hyper-parameters.


@dataclasses.dataclass(frozen=True)
class CellKey:
  """What tells the cells of a search apart.

  Attributes:
    rest: fields beside rate and decay, in words; each value makes a map.
    rate: the learning rate, or None.
    decay: the weight decay, or None.
  """

  rest: str
  rate: float | None
  decay: float | None


@dataclasses.dataclass
class Cell:
  """The runs of a cell, one for each seed.

  Attributes:
    records: of its runs.
    shortened: it trains for fewer epochs than others (successive halving).
  """

  records: list[Record] = dataclasses.field(default_factory=list)
  shortened: bool = False

  @property
  def done(self) -> list[Record]:
    """The records of runs that did not diverge."""
    return [record for record in self.records if record["status"] == "done"]

  @property
  def mean(self) -> float | None:
    """The mean score over seeds; None if one diverged: such is no choice."""
    done = self.done
    if len(done) < len(self.records):
      return None
    return statistics.fmean(
      record_fields.finished_value(record) for record in done
    )


def searches(records: Sequence[Record]) -> list[Json]:
  """Returns the maps of learning rate and weight decay of each search.

  A search is over all cells of a (name, backbone, task, split); further fields
  of its cells make a map each. The chosen cell has the highest mean score over
  seeds, of equals the smallest rate, of those it came first. In a search that
  shortens some of its runs (successive halving) it is one of the others.
  """
  by_search: dict[tuple[str, ...], list[Record]] = {}
  for record in records:
    if record["stage"] == "search":
      key = (
        record["name"],
        record_fields.backbone(record),
        record["task"],
        record["split"],
      )
      by_search.setdefault(key, []).append(record)
  out = []
  for (name, backbone, task, split), runs_of_search in by_search.items():
    cells = _cells(runs_of_search)
    best = _best(cells)
    metric = _metric(runs_of_search)
    for rest in dict.fromkeys(key.rest for key in cells):
      out.append(
        {
          "name": name,
          "backbone": backbone,
          "task": task,
          "split": split,
          "metric": metric.title,
          "unit": metric.unit,
          "rest": rest,
          "cells": _map(cells, rest, best),
        }
      )
  return out


def _cells(records: Sequence[Record]) -> dict[CellKey, Cell]:
  cells: dict[CellKey, Cell] = {}
  for record in records:
    fields = dict(record["cell"])
    # These are what rows and runs are of, not what is searched.
    for field in ("task", "seed", "name", "method"):
      fields.pop(field, None)
    rate = _number(fields.pop(RATE, None))
    decay = _number(fields.pop(DECAY, None))
    rest = ", ".join(
      f"{field}={json.dumps(value)}" for field, value in sorted(fields.items())
    )
    cell = cells.setdefault(CellKey(rest, rate, decay), Cell())
    cell.records.append(record)
    if "epochs" in fields:
      cell.shortened = True
  return cells


def _best(cells: Mapping[CellKey, Cell]) -> CellKey | None:
  """Returns the chosen cell, see `searches`; None if there is none."""
  complete = [key for key, cell in cells.items() if not cell.shortened]
  candidates = []
  for key in complete or cells:
    mean = cells[key].mean
    if mean is not None:
      rate = 0.0 if key.rate is None else key.rate
      candidates.append((-mean, rate, key))
  if not candidates:
    return None
  # `min` takes the first of equals; keys are not compared.
  return min(candidates, key=lambda candidate: candidate[:2])[-1]


def _metric(records: Iterable[Record]) -> problems.Score:
  """Returns the score of a search, which its finished runs name."""
  records = list(records)
  for record in records:
    if record["status"] == "done":
      return record_fields.metric(record)
  return record_fields.metric(records[0])


def _map(
  cells: Mapping[CellKey, Cell], rest: str, best: CellKey | None
) -> list[list[Any]]:
  """Returns the cells of a map: [rate, decay, mean, is chosen, done, runs]."""
  out = []
  for key, cell in cells.items():
    if key.rest == rest:
      out.append(
        [
          key.rate,
          key.decay,
          _digits(cell.mean),
          key == best,
          len(cell.done),
          len(cell.records),
        ]
      )
  return out


def _number(value: Any) -> float | None:
  return float(value) if json_files.is_number(value) else None


# Classes, and what they are taken for.


def classes(found: Sequence[Row], names: Mapping[int, str]) -> list[Json]:
  """Returns how well the classes of each row and task are recognised.

  They are of all seeds together, and of records that have it: confusions of
  classification, average precisions of multi-label classification.

  Args:
    found: rows.
    names: {id of a row: short name}.
  """
  out = []
  for row in found:
    for task in row.scores:
      records = row.records_of(task)
      for field, summary in CLASS_SUMMARIES.items():
        kept = [record for record in records if record.get(field)]
        if kept:
          head = {
            "task": task,
            "label": names[id(row)],
            "seeds": len(kept),
          }
          out.append(head | summary(kept))
  return out


@dataclasses.dataclass(frozen=True)
class ClassScore:
  """How well a class is recognised.

  Attributes:
    label: of the class.
    percent: its accuracy or average precision, to 4 digits.
    images: of the class; None if that is not known.
  """

  label: int
  percent: float
  images: int | None


def confusions(records: Sequence[Record]) -> Json:
  """Returns the sums over the records of one task, as the page shows them.

  Of many classes only those are shown that have the lowest and the highest
  accuracy and those that are confused most, without the matrix.
  """
  pairs = _summed_pairs(records)
  class_names = max((record["classes"] for record in records), key=len)
  count = max(len(class_names), 1 + max(map(max, pairs)))
  totals = [0] * count
  for (label, _), images in pairs.items():
    totals[label] += images

  accuracies, left_out = _extremes(_accuracies(pairs, totals))
  wrong = _most_confused(pairs, totals)
  shown: Iterable[int] = range(count)
  matrix = [[*pair, images] for pair, images in sorted(pairs.items()) if images]
  if count > MOST_IN_MATRIX:
    matrix = []
    shown = {accuracy.label for accuracy in accuracies}
    for label, guess, *_ in wrong:
      shown |= {label, guess}
  return {
    "measure": "accuracy",
    "count": count,
    "totals": totals if matrix else [],
    "scores": _score_lists(accuracies),
    "left_out": left_out,
    "wrong": wrong,
    "matrix": matrix,
    "titles": {label: _class_title(class_names, label) for label in shown},
  }


Pairs = Mapping[tuple[int, int], int]  # {(label, prediction): images}


def _summed_pairs(records: Sequence[Record]) -> Pairs:
  out: dict[tuple[int, int], int] = {}
  for record in records:
    for label, guess, images in record["confusion"]:
      out[label, guess] = out.get((label, guess), 0) + images
  return out


def _accuracies(pairs: Pairs, totals: Sequence[int]) -> list[ClassScore]:
  """Returns the accuracy of each class that has images."""
  out = []
  for label, images in enumerate(totals):
    if images:
      percent = _four_digits(100 * pairs.get((label, label), 0) / images)
      out.append(ClassScore(label, percent, images))
  return out


def _extremes(scores: Sequence[ClassScore]) -> tuple[list[ClassScore], int]:
  """Returns the lowest and the highest, sorted, and how many are left out."""
  ordered = sorted(scores, key=lambda score: (score.percent, score.label))
  left_out = max(0, len(ordered) - 2 * SHOWN_CLASSES)
  if left_out:
    ordered = ordered[:SHOWN_CLASSES] + ordered[-SHOWN_CLASSES:]
  return ordered, left_out


def _score_lists(scores: Sequence[ClassScore]) -> list[list[Any]]:
  return [[score.percent, score.label, score.images] for score in scores]


def _most_confused(pairs: Pairs, totals: Sequence[int]) -> list[list[int]]:
  """Returns [label, prediction, images, images of the class], most first."""
  wrong = []
  for (label, guess), images in pairs.items():
    if label != guess:
      wrong.append([label, guess, images, totals[label]])
  wrong.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
  return wrong[:MOST_PAIRS]


def _class_title(class_names: Sequence[Any], label: int) -> str:
  return str(class_names[label] if label < len(class_names) else label)


def average_precisions(records: Sequence[Record]) -> Json:
  """Returns the mean over the records of one task, as `confusions` does.

  A class that no record has images of has no average precision.
  """
  class_names = max((record["classes"] for record in records), key=len)
  values: dict[int, list[float]] = {}
  for record in records:
    for label, value in enumerate(record["average_precision"]):
      if value is not None:
        values.setdefault(label, []).append(value)
  scores = []
  for label, of_seeds in values.items():
    percent = _four_digits(statistics.fmean(of_seeds))
    scores.append(ClassScore(label, percent, None))
  shown, left_out = _extremes(scores)
  titles = {}
  for score in shown:
    titles[score.label] = _class_title(class_names, score.label)
  return {
    "measure": "average precision",
    "count": len(scores),
    "totals": [],
    "scores": _score_lists(shown),
    "left_out": left_out,
    "wrong": [],
    "matrix": [],
    "titles": titles,
  }


# {field of a record: what sums it up over seeds}
CLASS_SUMMARIES = {
  "confusion": confusions,
  "average_precision": average_precisions,
}


# Condensations.


def condensed(records: Sequence[Record]) -> list[Json]:
  """Returns the shares of prompts of each condensation, with their scores."""
  out = []
  for record in records:
    if record["stage"] != "condense":
      continue
    as_is, tuned = record_checks.share_scores(record)
    shares = []
    for row in record["rows"]:
      share = {field: row[field] for field in record_checks.CONDENSED_SHARE}
      shares.append(share | {"as_is": row[as_is], "tuned": row[tuned]})
    out.append(
      {
        "label": f"{record['name']} on {record_fields.backbone(record)}, "
        f"{record['task']}, seed {record['seed']}",
        "statistic": record["statistic"],
        "score": axis_title(problems.of_run(record).scores[0]),
        "split": record["split"],
        "batch": record["config"].get("batch_size"),
        "device": record["device"],
        "rows": shares,
      }
    )
  return out


# Where and how each run was made.


def runs(records: Sequence[Record]) -> Json:
  """Returns a line for each record; what all configs share only once."""
  configs = [record_fields.flat_config(record) for record in records]
  common = _common(configs)
  devices: dict[str, int] = {}  # {text: its index}
  versions: dict[str, int] = {}
  lines = []
  for record, config in zip(records, configs, strict=True):
    software = ", ".join(
      f"{name} {version}" for name, version in record["versions"].items()
    )
    lines.append(
      [
        record["id"],
        record["stage"],
        record["name"],
        record_fields.backbone(record),
        record["task"],
        record["split"],
        record["seed"],
        record.get("status", "done"),
        _final_score(record),
        round(record["seconds"], 1),
        record.get("images_per_second"),
        record.get("group"),
        devices.setdefault(record["device"], len(devices)),
        versions.setdefault(software, len(versions)),
        {
          field: value for field, value in config.items() if field not in common
        },
      ]
    )
  return {
    "common": common,
    "devices": list(devices),
    "versions": list(versions),
    "rows": lines,
  }


def _common(configs: Sequence[Mapping[str, str]]) -> dict[str, str]:
  """Returns the fields that have one value in all configs."""
  if not configs:
    return {}
  out = {}
  for field, value in configs[0].items():
    if all(config.get(field) == value for config in configs):
      out[field] = value
  return out


def _final_score(record: Record) -> float | None:
  """Returns a run's score; None of a condensation, which has several."""
  if record["stage"] == "condense":
    return None
  return record_fields.value(record)
