"""Writes and reads the metrics of every epoch: JSON lines and TensorBoard."""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
import time
from typing import Any

from vpt_jax.utils import files, json_files, system_errors

FILE = "metrics.jsonl"
# What every line has, beside the problem's training score.
LINE = {
  "step": json_files.WHOLE,
  "epoch": json_files.WHOLE,
  "lr": json_files.NUMBER,
  "loss": json_files.NUMBER,
}
REMEDY = "delete this line, the curve of the run will lack this epoch"


class Metrics:
  """`metrics.jsonl` (one line per epoch) and TensorBoard's events of a run.

  Lines hold no times, so that a resumed run ends with the same bytes.
  """

  def __init__(
    self,
    workdir: Path,
    step: int,
    run: str = "",
    scores: Sequence[str] = (),
  ):
    """Opens the files.

    Args:
      workdir: of the run.
      step: at which the run is resumed; lines of later ones, which a killed run
        has left, are dropped.
      run: id of the run's record, which its lines hold; lines of another one
        are dropped.
      scores: what its lines have beside `LINE`.

    Raises:
      ValueError: a damaged line, see `read_metrics`.
    """
    self._path = workdir / FILE
    self._run = run
    kept = []
    for line in _read_lines(self._path, scores):
      if line["step"] <= step and line.get("run", run) == run:
        kept.append(line)
    text = "".join(json.dumps(line) + "\n" for line in kept)
    files.write_atomic(self._path, text.encode())
    # Without a buffer: what a full disk does not take is not kept for later.
    self._file = self._path.open("ab", buffering=0)
    self._events: _Events | None = None  # from the first epoch on
    self._first_event = step + 1

  def write(self, values: Mapping[str, float], **only_events: float) -> None:
    """Appends the values of an epoch.

    Args:
      values: of the epoch; `step` is among them.
      **only_events: values for TensorBoard alone, such as speeds.
    """
    files.check_locks(self._path)
    line = {**values, "run": self._run} if self._run else values
    text = json.dumps(line) + "\n"
    system_errors.append(self._file, text.encode(), self._path)
    if self._events is None:
      folder = self._path.parent / "tensorboard"
      self._events = _Events(folder, self._first_event)
    events = {**values, **only_events}
    step = int(events.pop("step"))
    self._events.write(events, step)

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._events is not None:
      self._events.close()


class _Events:
  """TensorBoard's events of a run.

  Written at once: the thread of tensorboardX's own writer ends when the disk is
  full, and whoever goes on to write waits for it for ever.
  """

  def __init__(self, folder: Path, step: int):
    """Begins a file.

    Args:
      folder: gets it.
      step: from which on older events are not shown.
    """
    # Not before the first step: where torch is installed it is imported, too.
    # pylint: disable=import-outside-toplevel
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    files.check_locks(folder)  # the imports take long
    self._folder = folder
    self._scalar = summary.scalar
    self._event = event_pb2.Event
    with system_errors.naming(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self._writer = event_file_writer.EventsWriter(str(folder / "events"))
      version = self._event(step=step, file_version="brain.Event:2")
      self._writer.write_event(version)
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._writer.write_event(self._event(step=step, session_log=start))

  def write(self, values: Mapping[str, float], step: int) -> None:
    """Writes values of a step."""
    with system_errors.naming(self._folder):
      for name, value in values.items():
        scalar = self._scalar(name, value)
        event = self._event(wall_time=time.time(), step=step, summary=scalar)
        self._writer.write_event(event)
      self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    with system_errors.naming(self._folder):
      self._writer.close()


def read_metrics(
  path: Path, scores: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
  """Yields the values of each epoch in a `metrics.jsonl`, without its run.

  A last line that a kill cut off is left out.

  Args:
    path: of the file.
    scores: what its lines have beside `LINE`.

  Raises:
    ValueError: a damaged line; which one, and what to do.
  """
  for line in _read_lines(path, scores):
    line.pop("run", None)
    yield line


def _read_lines(path: Path, scores: Sequence[str]) -> Iterator[dict[str, Any]]:
  """Yields the lines of a `metrics.jsonl`, see `read_metrics`."""
  fields = {**LINE, **dict.fromkeys(scores, json_files.NUMBER)}
  if not path.exists():
    return
  *lines, last = path.read_bytes().split(b"\n")
  for number, line in enumerate(lines, 1):
    yield _parsed(line, f"{path}, line {number}", fields)
  try:
    yield _parsed(last, str(path), fields)
  except ValueError:  # A line that has no end is torn, or there is none.
    return


def _parsed(
  line: bytes, where: str, fields: json_files.Fields
) -> dict[str, Any]:
  # The norm of gradients may be infinite.
  return json_files.parse(line, where, fields, REMEDY, infinite=True)
