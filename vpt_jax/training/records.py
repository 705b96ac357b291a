"""The store of results: one record per run, a line of `records.jsonl` each.

Lines are only ever appended, each with one write under a lock, so that several
processes may share a file, and a killed one leaves at most a last line without
an end, which is not read. All tables and pages are made from these records.

Every record has

  schema       1
  id           12 hex digits, of the config; a second record of it is not kept
  stage        search (picks hyper-parameters), final (of a sweep), single (one
               run) or condense (all stages of a condensation)
  name         what tables call the method
  method, task, split, seed
  backbone     {name, sha256}
  cell         {field: value}, what differs between the runs of a sweep
  config       all of it, as JSON
  device, versions
  seconds      of this run; of a group of runs, its share

and unless its stage is condense

  status       done or diverged (its loss or parameters became NaN or infinite)
  trainable_params, total_params, train_images
  images_per_second   of training, of all runs of its group together, or null
  group        how many runs were trained together
  problem      what is learned; records of old versions lack it, which are of
               classification
  curve        {loss, lr and the problem's training score, which is train_top1
               of classification}: of each epoch

and, if done, the scores on the `split`:

  metric       name of the score that the task's papers report, or the problem's
               first one
  top1, mean_per_class   scores of classification, percent; other problems have
               theirs
  loss, count  mean loss, images
  classes      names, or [] if not known
  confusion    what the problem keeps of its predictions, null in searches. Of
               classification [[label, prediction, images], ...], no zeros

A record of stage condense has `statistic`, `rows` (share, prompts, per_set,
top1_as_is, top1_tuned, gmacs, milliseconds; the first of all prompts) and, if
asked for, `oracle` ({statistic: {magnitude, change}}), see `condense.py`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from vpt_jax.utils import files

SCHEMA = 1
FILE = "records.jsonl"
Record = dict[str, Any]


class Store:
  """The records of one file."""

  def __init__(self, path: str | os.PathLike):
    """Records of a file, which need not be there yet."""
    self.path = Path(path)

  def add(self, record: Record) -> None:
    """Appends a record, unless one of its id is there."""
    line = json.dumps({"schema": SCHEMA, **record}, allow_nan=False) + "\n"
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self._locked() as file:
      if record["id"] in {known["id"] for known in self.read()}:
        return
      end = file.seek(0, os.SEEK_END)
      if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":  # a killed process's last line
          text = self.path.read_bytes()
          file.truncate(text.rfind(b"\n") + 1)
      file.seek(0, os.SEEK_END)
      file.write(line.encode())
      file.flush()
      os.fsync(file.fileno())

  @contextlib.contextmanager
  def _locked(self) -> Iterator[Any]:
    lock_file = self.path.with_name(f".{self.path.name}.lock")
    with files.waiting_lock(lock_file), self.path.open("a+b") as file:
      yield file

  def read(self) -> list[Record]:
    """All records, in the order in which they came.

    Raises:
      ValueError: a line is damaged or of another schema.
    """
    if not self.path.exists():
      return []
    *lines, _ = self.path.read_bytes().split(b"\n")
    return [
      _parsed(line, f"{self.path}, line {i + 1}")
      for i, line in enumerate(lines)
    ]


def _parsed(line: bytes, where: str) -> Record:
  try:
    record = json.loads(line)
  except ValueError as error:
    raise ValueError(
      f"{where}: not JSON ({error}); delete this line, the run "
      "can be made again"
    ) from None
  if not isinstance(record, dict) or record.get("schema") != SCHEMA:
    raise ValueError(
      f"{where}: expected a record of schema {SCHEMA}, as this "
      "version of vpt_jax writes"
    )
  return record


def find(paths: Sequence[str | os.PathLike]) -> list[Record]:
  """The records of runs: of folders, the topmost files in or below each.

  Raises:
    ValueError: a path without records, or a damaged line.
  """
  out: dict[str, Record] = {}
  for path in map(Path, paths):
    found = [path] if path.is_file() else _topmost(path)
    if not found:
      raise ValueError(
        f"no {FILE} in or below {path}; expected the workdir of "
        "a finished run or of a sweep"
      )
    for file in found:
      for record in Store(file).read():
        out.setdefault(record["id"], record)
  return list(out.values())


def _topmost(folder: Path) -> list[Path]:
  found = []
  for parent, folders, names in os.walk(folder):
    if FILE in names:
      found.append(Path(parent) / FILE)
      folders.clear()  # what lies below are parts of that run
  return sorted(found)
