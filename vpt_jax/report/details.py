"""Prepares what the page shows of single runs.

These are learning curves, searches, condensations, and the config and place of
every run; each as JSON for the scripts in `assets`.
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
    return float(f"{value:.4g}")
  return None


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
