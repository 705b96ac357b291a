"""Writes and reads the metrics of every epoch: JSON lines and TensorBoard."""

from collections.abc import Iterator, Mapping
import json
from pathlib import Path
from typing import Any

from vpt_jax.utils import files

FILE = "metrics.jsonl"


class Metrics:
  """`metrics.jsonl` (one line per epoch) and TensorBoard's events of a run.

  Lines hold no times, so that a resumed run ends with the same bytes.
  """

  def __init__(self, workdir: Path, step: int):
    """Opens the files.

    Args:
      workdir: of the run.
      step: at which the run is resumed; lines of later ones, which a killed run
        has left, are dropped.
    """
    self._path = workdir / FILE
    kept = [line for line in read_metrics(self._path) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    files.write_atomic(self._path, text.encode())
    self._file = self._path.open("a")
    self._events: Any = None  # of TensorBoard, from the first epoch on
    self._first_event = step + 1

  def write(self, values: Mapping[str, float], **only_events: float) -> None:
    """Appends the values of an epoch.

    Args:
      values: of the epoch; `step` is among them.
      **only_events: values for TensorBoard alone, such as speeds.
    """
    files.check_locks(self._path)
    self._file.write(json.dumps(values) + "\n")
    self._file.flush()
    if self._events is None:
      # Not before the first step: where torch is installed it is imported, too.
      import tensorboardX  # pylint: disable=import-outside-toplevel

      self._events = tensorboardX.SummaryWriter(
        str(self._path.parent / "tensorboard"), purge_step=self._first_event
      )
    for name, value in {**values, **only_events}.items():
      if name != "step":
        self._events.add_scalar(name, value, values["step"])

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._events is not None:
      self._events.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
  """Yields the lines of a `metrics.jsonl`, up to one that a kill cut off."""
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      yield json.loads(line)
    except json.JSONDecodeError:
      return
