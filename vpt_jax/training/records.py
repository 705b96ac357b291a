"""Keeps the results of runs: one record per run, a line of `records.jsonl`.

Lines are only ever appended, each with one write under a lock, so that several
processes may share a file, and a killed one leaves at most a last line without
an end, which is not read. All tables and pages are made from these records.

A line is JSON with `schema` 1 and the fields of `RunRecord`; where it is of a
finished run, also those of `Outcome`, its scores and what its problem keeps,
all on one level. Lines of `stage` condense have, of these, `id`, `stage`,
`name`, `problem`, `method`, `task`, `split`, `seed`, `backbone`, `cell`,
`config`, `device`, `versions` and `seconds`, and of their own `statistic`,
`rows` (share, prompts, per_set, the problem's first score as SCORE_as_is and
SCORE_tuned, gmacs, milliseconds; the first row is of all prompts) and, if asked
for, `oracle` ({statistic: {magnitude, change}}), see `condensation/stages.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from vpt_jax import problems
from vpt_jax.utils import files, json_files, system_errors, texts

SCHEMA = 1
FILE = "records.jsonl"
REMEDY = "delete this line, the run can be made again"
# A line as it is in the file.
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a finished run reached on the images of its split.

  Attributes:
    metric: name of the score that the task's papers report, or of the
      problem's first one.
    scores: {name: value} of the problem; of classification top1 and
      mean_per_class, percent.
    loss: mean over the images.
    count: images.
    classes: names, or () if not known.
    kept: what the problem keeps of the predictions, None in searches. Of
      classification {"confusion": [[label, prediction, images], ...]}, without
      zeros; of segmentation `class_iou` and `class_accuracy`, percent of each
      class, null without such pixels, `multi_scale`, its scores over several
      scales if they were asked for, and `head_params`, the scalars of its head.
  """

  metric: str
  scores: Mapping[str, float]
  loss: float
  count: int
  classes: tuple[str, ...]
  kept: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """The record of a run.

  Attributes:
    id: 12 hex digits, of the config; a second record of it is not kept.
    stage: search (picks hyper-parameters), final (of a sweep) or single (one
      run).
    name: what tables call the method.
    problem: what is learned. Lines of old versions lack it; they are of
      classification.
    method: `config.method`.
    task: its name.
    split: of the images that are scored.
    seed: `config.seed`.
    backbone: {name, sha256}.
    cell: {field: value}, what differs between the runs of a sweep.
    config: all of it, as JSON.
    device: number and kind.
    versions: of the libraries.
    seconds: of this run; of runs that train together, its share.
    trainable_params: scalars that are trained.
    total_params: all scalars.
    train_images: images.
    images_per_second: of training, of all runs together; None: not known.
    group: how many runs were trained together.
    curve: {loss, the problem's training score, lr}, a value for each epoch.
    outcome: None of a run that diverged: its loss or parameters became NaN or
      infinite. The line says so as `status`, done or diverged.
  """

  id: str
  stage: str
  name: str
  problem: str
  method: str
  task: str
  split: str
  seed: int
  backbone: Mapping[str, str]
  cell: Mapping[str, Any]
  config: Mapping[str, Any]
  device: str
  versions: Mapping[str, str]
  seconds: float
  trainable_params: int
  total_params: int
  train_images: int
  images_per_second: float | None
  group: int
  curve: Mapping[str, Sequence[float]]
  outcome: Outcome | None = None

  def to_json(self) -> Record:
    """Returns the line, without its schema."""
    line = {name: getattr(self, name) for name in _names(RunRecord)}
    outcome = line.pop("outcome")
    if outcome is None:
      return {**line, "status": "diverged"}
    return {
      **line,
      "status": "done",
      **outcome.scores,
      "loss": outcome.loss,
      "count": outcome.count,
      "metric": outcome.metric,
      "classes": list(outcome.classes),
      **outcome.kept,
    }

  @classmethod
  def from_json(cls, line: Record) -> "RunRecord":
    """Returns the record of a line, also of one of an older version.

    Raises:
      ValueError: fields that every run has are missing.
    """
    line = {**line, "problem": problems.of_run(line).name}
    names = [name for name in _names(cls) if name != "outcome"]
    _check_there(line, [*names, "status"])
    outcome = None
    if line["status"] == "done":
      outcome = _read_outcome(line, [*names, "status", "schema"])
    return cls(**{name: line[name] for name in names}, outcome=outcome)


def _read_outcome(line: Record, others: Sequence[str]) -> Outcome:
  """Returns the outcome of a finished run's line.

  Args:
    line: of the file.
    others: fields of it that are not of the outcome.

  Raises:
    ValueError: fields that every outcome has are missing.
  """
  scores = [score.name for score in problems.of_run(line).scores]
  names = [*scores, "metric", "loss", "count", "classes"]
  _check_there(line, names)
  kept = dict(line)
  for name in [*others, *names]:
    kept.pop(name, None)
  return Outcome(
    metric=line["metric"],
    scores={name: line[name] for name in scores},
    loss=line["loss"],
    count=line["count"],
    classes=tuple(line["classes"]),
    kept=kept,
  )


def _check_there(line: Record, names: Sequence[str]) -> None:
  missing = [name for name in names if name not in line]
  if missing:
    raise ValueError(
      f"record {line.get('id')!r} has no {', '.join(missing)}; expected a "
      f"run's record of schema {SCHEMA}"
    )


def _names(record_class: type) -> list[str]:
  return [field.name for field in dataclasses.fields(record_class)]


class Store:
  """The records of one file."""

  def __init__(self, path: str | os.PathLike):
    """Takes a file, which need not be there yet."""
    self.path = Path(path)

  def add(self, record: Record) -> None:
    """Appends a record, unless one of its id is there."""
    line = json.dumps({"schema": SCHEMA, **record}, allow_nan=False) + "\n"
    files.check_locks(self.path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self._locked() as file:
      if record["id"] in {known["id"] for known in self.read()}:
        return
      self._cut_torn_line(file)
      file.seek(0, os.SEEK_END)
      system_errors.append(file, line.encode(), self.path)
      os.fsync(file.fileno())

  def read(self) -> list[Record]:
    """Returns all records, in the order in which they came.

    Raises:
      ValueError: a line is damaged or of another schema.
    """
    if not self.path.exists():
      return []
    # What follows the last end of a line is empty, or torn by a kill.
    *lines, _ = self.path.read_bytes().split(b"\n")
    return [
      _parsed(line, self.place(number)) for number, line in enumerate(lines, 1)
    ]

  def place(self, line: int) -> str:
    """Returns the name of a line, the first is 1, for an error."""
    return f"{self.path}, line {line}"

  @contextlib.contextmanager
  def _locked(self) -> Iterator[io.FileIO]:
    lock_file = self.path.with_name(f".{self.path.name}.lock")
    with (
      files.waiting_lock(lock_file),
      self.path.open("a+b", buffering=0) as file,
    ):
      yield file

  def _cut_torn_line(self, file: io.FileIO) -> None:
    """Drops the last line if it has no end: a killed process's."""
    end = file.seek(0, os.SEEK_END)
    if not end:
      return
    file.seek(end - 1)
    if file.read(1) != b"\n":
      text = self.path.read_bytes()
      file.truncate(text.rfind(b"\n") + 1)


def _parsed(line: bytes, where: str) -> Record:
  expected = f"a record of schema {SCHEMA}, as this version of vpt_jax writes"
  record = json_files.parse(line, where, {}, REMEDY, expected)
  if record.get("schema") != SCHEMA:
    raise ValueError(f"{where}: expected {expected}")
  wrong = json_files.fault(record, {"id": json_files.TEXT})
  if not wrong and "metric" in record:
    wrong = _fault_of_score(record)
  if wrong:
    raise ValueError(f"{where}: {wrong}; {REMEDY}")
  # Versions before 0.2 kept names of files that are no UTF-8 as they are.
  return texts.printable_values(record)


def _fault_of_score(record: Record) -> str:
  """Returns what is wrong with the score that a record is judged by, or ""."""
  wrong = json_files.fault(record, {"metric": json_files.TEXT})
  if wrong:
    return wrong
  name = record["metric"]
  if name not in record:
    return f"field 'metric' is {name!r:.40}, and there is no such score"
  return json_files.fault(record, {name: json_files.NUMBER})


def find(
  paths: Sequence[str | os.PathLike],
  fault_of: Callable[[Record], str] | None = None,
) -> list[Record]:
  """Returns the records of runs, each id once.

  Args:
    paths: see `locate`.
    fault_of: likewise.

  Raises:
    ValueError: see `locate`.
  """
  return [located.record for located in locate(paths, fault_of)]


class Located(NamedTuple):
  """Is a record and where it is.

  Attributes:
    record: a line.
    folder: of its file.
  """

  record: Record
  folder: Path


def locate(
  paths: Sequence[str | os.PathLike],
  fault_of: Callable[[Record], str] | None = None,
) -> list[Located]:
  """Returns the records of runs and their folders, each id once.

  Args:
    paths: of files; or of folders, whose topmost files are read.
    fault_of: returns what is wrong with a record, "" if nothing, such as
      `record_checks.fault`; None: fields are not checked.

  Raises:
    ValueError: a path without records, or a damaged line.
  """
  by_id: dict[str, Located] = {}
  for path in map(Path, paths):
    found = [path] if path.is_file() else _topmost(path)
    if not found:
      raise ValueError(
        f"no {FILE} in or below {path}; expected the workdir of a finished run "
        "or of a sweep"
      )
    for store in map(Store, found):
      for number, record in enumerate(store.read(), 1):
        if record["id"] in by_id:
          continue
        wrong = fault_of(record) if fault_of else ""
        if wrong:
          raise ValueError(f"{store.place(number)}: {wrong}; {REMEDY}")
        by_id[record["id"]] = Located(record, store.path.parent)
  return list(by_id.values())


def _topmost(folder: Path) -> list[Path]:
  """Returns the files in or below a folder, but those below another file's."""
  found = []
  for parent, folders, names in os.walk(folder):
    if FILE in names:
      found.append(Path(parent) / FILE)
      folders.clear()  # what lies below are parts of that run
  return sorted(found)
