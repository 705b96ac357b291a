"""From records to rows: mean and standard deviation per method and task."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import json
import math
import statistics
from typing import Any

from vpt_jax.report.suites import Column
from vpt_jax.training import records as results
from vpt_jax.utils import trees

Record = results.Record

RESULTS = ("final", "single")  # stages whose scores tables show
STAGES = (*RESULTS, "search", "condense")
NUMBER = (int, float)
Fields = dict[str, type | tuple[type, ...]]
ALL: Fields = dict(
  id=str,
  stage=str,
  name=str,
  method=str,
  task=str,
  split=str,
  seed=int,
  backbone=dict,
  cell=dict,
  config=dict,
  device=str,
  versions=dict,
  seconds=NUMBER,
)
RUN: Fields = dict(
  status=str,
  trainable_params=int,
  total_params=int,
  train_images=int,
  group=int,
  curve=dict,
)
DONE: Fields = dict(
  metric=str,
  top1=NUMBER,
  mean_per_class=NUMBER,
  loss=NUMBER,
  count=int,
  classes=list,
)
CONDENSE: Fields = dict(statistic=str, rows=list)
SHARE: Fields = dict(
  share=NUMBER,
  prompts=int,
  per_set=list,
  top1_as_is=NUMBER,
  top1_tuned=NUMBER,
  gmacs=NUMBER,
  milliseconds=NUMBER,
)
CLASSES = 100_000  # that a label is below
# Fields that make another method, under whatever name.
KINDS = ("method", "trainable", "vpt.deep")
METRICS = ("top1", "mean_per_class")


@dataclasses.dataclass(frozen=True)
class Score:
  """What the seeds of a row reach on a task.

  Attributes:
    mean: percent; None if all diverged.
    std: over seeds, sample (n - 1); None of fewer than two.
    count: seeds in the mean.
    diverged: seeds that are not.
    trained: trainable parameters.
    percent: of all parameters.
    metric: top1 or mean_per_class.
  """

  mean: float | None
  std: float | None
  count: int
  diverged: int
  trained: float
  percent: float
  metric: str


@dataclasses.dataclass(frozen=True)
class Row:
  """A method on a backbone.

  Attributes:
    name: what tables call it; with fields that tell it from rows of this name.
    backbone: its name.
    records: of all tasks and seeds.
    scores: of each task.
  """

  name: str
  backbone: str
  records: tuple[Record, ...]
  scores: dict[str, Score]

  def of(self, task: str) -> list[Record]:
    """The records of a task."""
    return [record for record in self.records if plain(record["task"]) == task]

  def value(self, column: Column) -> float | None:
    """The score or mean of a column; None unless all its tasks are there."""
    return column.mean(
      {
        task: score.mean
        for task, score in self.scores.items()
        if score.mean is not None
      }
    )


@dataclasses.dataclass(frozen=True)
class Results:
  """What tables show.

  Attributes:
    split: of these scores.
    rows: in the order of the records.
    left_out: results of other splits, {split: records}.
    diverged: records of the rows that are in no mean.
  """

  split: str
  rows: list[Row]
  left_out: dict[str, int]
  diverged: list[Record]


def collect(records: Sequence[Record], split: str = "test") -> Results:
  """Rows, one per (name, backbone), of the stages final and single.

  Rows of one name are told apart by what makes another method (`KINDS`), and if
  a task and seed is there twice, by the fields of the configs that differ: by
  those that a search picks (`optim.*`) only where no others differ.

  Raises:
    ValueError: a record that is not of the schema, or two of one config.
  """
  check(records)
  found = [record for record in records if record["stage"] in RESULTS]
  groups: dict[tuple[str, str], list[Record]] = {}
  for record in found:
    if record["split"] == split:
      groups.setdefault(
        (plain(record["name"]).strip(), backbone(record)), []
      ).append(record)
  rows = []
  for (name, model), members in groups.items():
    for variant, part in variants(members).items():
      tasks: dict[str, list[Record]] = {}
      for record in part:
        tasks.setdefault(plain(record["task"]), []).append(record)
      rows.append(
        Row(
          f"{name} ({variant})" if variant else name,
          model,
          tuple(part),
          {task: score(same) for task, same in tasks.items()},
        )
      )
  left_out = Counter(
    record["split"] for record in found if record["split"] != split
  )
  return Results(
    split,
    rows,
    dict(left_out),
    [
      record
      for row in rows
      for record in row.records
      if record["status"] == "diverged"
    ],
  )


def score(records: Sequence[Record]) -> Score:
  """Of the seeds of one task."""
  values = [
    record[record["metric"]] for record in records if record["status"] == "done"
  ]
  metrics = [record["metric"] for record in records if "metric" in record]
  return Score(
    statistics.fmean(values) if values else None,
    statistics.stdev(values) if len(values) > 1 else None,
    len(values),
    len(records) - len(values),
    statistics.fmean(record["trainable_params"] for record in records),
    statistics.fmean(
      100 * record["trainable_params"] / record["total_params"]
      for record in records
    ),
    metrics[0] if metrics else "top1",
  )


def variants(records: Sequence[Record]) -> dict[str, list[Record]]:
  """{what tells them apart: records}; one entry, "", if nothing has to."""
  tasks: dict[tuple[str, int], list[Record]] = {}
  for record in records:
    tasks.setdefault((record["task"], record["seed"]), []).append(record)
  twice = [same for same in tasks.values() if len(same) > 1]
  known = {record["id"]: fields(record) for record in records}

  def value(record: Record, field: str) -> str:
    return known[record["id"]].get(field, "-")

  def apart(names: Sequence[str]) -> bool:
    return all(
      len({tuple(value(record, name) for name in names) for record in same})
      == len(same)
      for same in twice
    )

  kinds = [
    name
    for name in KINDS
    if len({value(record, name) for record in records}) > 1
  ]
  differ = sorted(
    {
      name
      for same in twice
      for record in same
      for name in known[record["id"]]
      if len({value(other, name) for other in same}) > 1
    }
  )
  names = sorted(
    {*kinds, *(name for name in differ if not name.startswith("optim."))}
  )
  if not apart(names):
    names = sorted({*kinds, *differ})
  if not apart(names):
    record = twice[0][0]
    raise ValueError(
      f"two records of {record['name']!r} on {record['task']!r}, seed "
      f"{record['seed']}, have one config (one is {record['id']!r}); expected"
      " one: delete a line, or report these folders one at a time"
    )
  out: dict[str, list[Record]] = {}
  for record in records:
    label = ", ".join(f"{name}={value(record, name)}" for name in names)
    out.setdefault(plain(label), []).append(record)
  return out


def fields(record: Record) -> dict[str, str]:
  """{"vpt.num_tokens": "10"}: the config and the backbone's checksum."""
  flat = trees.flatten(record["config"])
  out = {
    path.replace("/", "."): json.dumps(leaf).strip('"')
    for path, leaf in flat.items()
  }
  return out | {"backbone.sha256": str(record["backbone"].get("sha256"))[:8]}


def backbone(record: Record) -> str:
  """The backbone's name."""
  return plain(str(record["backbone"].get("name")))


def plain(text: str) -> str:
  """A stranger's text without what would steer a terminal."""
  return "".join(char if char.isprintable() else "?" for char in text)


def check(records: Sequence[Record]) -> None:
  """Raises ValueError for a record that lacks what its stage must have."""
  for record in records:
    _check(record, ALL, record)
    if record["stage"] not in STAGES:
      _fault(record, "stage", f"one of {', '.join(STAGES)}", record)
    if record["stage"] == "condense":
      _check(record, CONDENSE, record)
      for row in record["rows"]:
        _check(row, SHARE, record)
      continue
    _check(record, RUN, record)
    if record["total_params"] < 1:
      _fault(record, "total_params", "at least 1", record)
    if record["status"] not in ("done", "diverged"):
      _fault(record, "status", "done or diverged", record)
    for name, values in record["curve"].items():
      if not isinstance(values, list):
        _fault(record["curve"], name, "a list", record)
    if record["status"] == "done":
      _check(record, DONE, record)
      if record["metric"] not in METRICS:
        _fault(record, "metric", " or ".join(METRICS), record)
      for pair in record.get("confusion") or []:
        if not (
          isinstance(pair, list)
          and len(pair) == 3
          and all(isinstance(part, int) and 0 <= part < 2**31 for part in pair)
          and max(pair[:2]) < CLASSES
        ):
          _fault(
            record, "confusion", "[[label, prediction, images], ...]", record
          )


def _check(part: Any, known: Fields, record: Record) -> None:
  for name, kind in known.items():
    value = part.get(name) if isinstance(part, dict) else None
    if not isinstance(value, kind):
      names = kind if isinstance(kind, tuple) else (kind,)
      _fault(part, name, " or ".join(one.__name__ for one in names), record)
    if isinstance(value, float) and not math.isfinite(value):
      _fault(part, name, "a finite number", record)


def _fault(part: Any, name: str, expected: str, record: Record) -> None:
  found = (
    f"is {part[name]!r:.40}"
    if isinstance(part, dict) and name in part
    else "is missing"
  )
  raise ValueError(
    f"record {str(record.get('id'))!r:.40}: field {name!r} {found}, expected "
    f"{expected}; delete its line from {results.FILE}, the run can be made "
    "again"
  )
