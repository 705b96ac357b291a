"""What the page shows of single runs: curves, searches, classes, configs."""

from collections.abc import Sequence
import json
import math
import statistics
from typing import Any

from vpt_jax.report import rows
from vpt_jax.report.rows import Record, Row

Json = dict[str, Any]

POINTS = 200  # of a curve, at most
MATRIX = 100  # classes of a confusion matrix, at most
PAIRS = 20  # that are most confused
SHOWN = 25  # lowest and highest classes, if there are more
METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}
RATE, DECAY = "optim.lr", "optim.weight_decay"


def curves(found: Sequence[Row], names: dict[int, str]) -> list[Json]:
  """Of each row and task, the epochs of each seed, to 4 digits."""
  out = []
  for row in found:
    for task in row.scores:
      runs = [
        {
          "seed": record["seed"],
          "diverged": record["status"] == "diverged",
          **_curve(record["curve"]),
        }
        for record in row.of(task)
      ]
      runs = [run for run in runs if run["epoch"]]
      if runs:
        out.append({"task": task, "label": names[id(row)], "runs": runs})
  return out


def _curve(curve: Json) -> Json:
  loss, top1 = curve.get("loss", []), curve.get("train_top1", [])
  count = max(len(loss), len(top1))
  step = max(1, math.ceil(count / POINTS))
  epochs = sorted({*range(0, count, step), *([count - 1] if count else [])})
  take = lambda values: [
    _digits(values[epoch]) if epoch < len(values) else None for epoch in epochs
  ]
  return {
    "epoch": [epoch + 1 for epoch in epochs],
    "loss": take(loss),
    "top1": take(top1),
  }


def _digits(value: Any) -> float | None:
  """To 4 significant digits; None of what is no finite number."""
  if isinstance(value, (int, float)) and math.isfinite(value):
    return float(f"{value:.4g}")
  return None


def searches(records: Sequence[Record]) -> list[Json]:
  """Of each search, its maps of learning rate and weight decay.

  A search is over all cells of a (name, backbone, task, split); further fields
  of its cells make a map each. The chosen cell has the highest mean score over
  seeds, of equals the smallest rate, of those it came first. In a search that
  shortens some of its runs (successive halving) it is one of the others.
  """
  groups: dict[tuple[str, ...], list[Record]] = {}
  for record in records:
    if record["stage"] == "search":
      key = (
        record["name"],
        rows.backbone(record),
        record["task"],
        record["split"],
      )
      groups.setdefault(key, []).append(record)
  out = []
  for (name, backbone, task, split), members in groups.items():
    cells: dict[tuple[Any, ...], list[Record]] = {}
    short = set()
    for record in members:
      cell = {
        field: value
        for field, value in record["cell"].items()
        if field not in ("task", "seed", "name", "method")
      }
      rate, decay = cell.pop(RATE, None), cell.pop(DECAY, None)
      rest = ", ".join(
        f"{field}={json.dumps(value)}" for field, value in sorted(cell.items())
      )
      key = rest, _number(rate), _number(decay)
      cells.setdefault(key, []).append(record)
      if "epochs" in cell:
        short.add(key)
    scores = {
      cell: [
        record[record["metric"]]
        for record in same
        if record["status"] == "done"
      ]
      for cell, same in cells.items()
    }
    # A cell with a diverged seed is no choice.
    done = {
      cell: statistics.fmean(values)
      for cell, values in scores.items()
      if len(values) == len(cells[cell])
    }
    best = min(
      (cell for cell in done if cell not in short or short == set(cells)),
      key=lambda cell: (-done[cell], cell[1] or 0.0),
      default=None,
    )
    metric = next(
      (record["metric"] for record in members if record["status"] == "done"),
      "top1",
    )
    out += [
      {
        "name": name,
        "backbone": backbone,
        "task": task,
        "split": split,
        "metric": METRICS[metric],
        "rest": rest,
        "cells": [
          [
            rate,
            decay,
            _digits(done.get((other, rate, decay))),
            (other, rate, decay) == best,
            len(scores[other, rate, decay]),
            len(same),
          ]
          for (other, rate, decay), same in cells.items()
          if other == rest
        ],
      }
      for rest in dict.fromkeys(cell[0] for cell in cells)
    ]
  return out


def _number(value: Any) -> float | None:
  return float(value) if isinstance(value, (int, float)) else None


def classes(found: Sequence[Row], names: dict[int, str]) -> list[Json]:
  """Of each row and task, classes and confusions, of all seeds together."""
  out = []
  for row in found:
    for task in row.scores:
      same = [record for record in row.of(task) if record.get("confusion")]
      if same:
        out.append(
          {
            "task": task,
            "label": names[id(row)],
            "seeds": len(same),
            **confusions(same),
          }
        )
  return out


def confusions(records: Sequence[Record]) -> Json:
  """Sums over records of one task; accuracies in percent, by class."""
  pairs: dict[tuple[int, int], int] = {}
  for record in records:
    for label, guess, count in record["confusion"]:
      pairs[label, guess] = pairs.get((label, guess), 0) + count
  titles = max((record["classes"] for record in records), key=len)
  count = max(len(titles), 1 + max(max(pair) for pair in pairs))
  totals = [0] * count
  for (label, _), images in pairs.items():
    totals[label] += images
  accuracy = sorted(
    [
      _digits(100 * pairs.get((label, label), 0) / totals[label]),
      label,
      totals[label],
    ]
    for label in range(count)
    if totals[label]
  )
  left_out = max(0, len(accuracy) - 2 * SHOWN)
  if left_out:
    accuracy = accuracy[:SHOWN] + accuracy[-SHOWN:]
  wrong = sorted(
    (
      (images, label, guess)
      for (label, guess), images in pairs.items()
      if label != guess
    ),
    key=lambda one: (-one[0], *one[1:]),
  )
  wrong = [
    [label, guess, images, totals[label]]
    for images, label, guess in wrong[:PAIRS]
  ]
  matrix = (
    []
    if count > MATRIX
    else [
      [label, guess, images]
      for (label, guess), images in sorted(pairs.items())
      if images
    ]
  )
  shown = (
    range(count)
    if count <= MATRIX
    else {one[1] for one in accuracy}
    | {part for one in wrong for part in one[:2]}
  )
  return {
    "count": count,
    "totals": totals if matrix else [],
    "accuracy": accuracy,
    "left_out": left_out,
    "wrong": wrong,
    "matrix": matrix,
    "titles": {
      label: str(titles[label]) if label < len(titles) else str(label)
      for label in shown
    },
  }


def condensed(records: Sequence[Record]) -> list[Json]:
  """The records of stage condense."""
  return [
    {
      "label": f"{record['name']} on {rows.backbone(record)}, "
      f"{record['task']}, seed {record['seed']}",
      "statistic": record["statistic"],
      "split": record["split"],
      "batch": record["config"].get("batch_size"),
      "device": record["device"],
      "rows": [
        {field: row[field] for field in rows.SHARE} for row in record["rows"]
      ],
    }
    for record in records
    if record["stage"] == "condense"
  ]


def runs(records: Sequence[Record]) -> Json:
  """Where and how each run was made; configs, what all share only once."""
  configs = [rows.fields(record) for record in records]
  first = configs[0] if configs else {}
  common = {
    field: value
    for field, value in first.items()
    if all(config.get(field) == value for config in configs)
  }
  devices, versions = {}, {}
  lines = []
  for record, config in zip(records, configs):
    where = devices.setdefault(record["device"], len(devices))
    software = versions.setdefault(
      ", ".join(
        f"{name} {version}" for name, version in record["versions"].items()
      ),
      len(versions),
    )
    score = record[record["metric"]] if record.get("status") == "done" else None
    lines.append(
      [
        record["id"],
        record["stage"],
        record["name"],
        rows.backbone(record),
        record["task"],
        record["split"],
        record["seed"],
        record.get("status", "done"),
        score,
        round(record["seconds"], 1),
        record.get("images_per_second"),
        record.get("group"),
        where,
        software,
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
