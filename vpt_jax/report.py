"""What a run tells: the split table, progress, metrics and its result."""

from collections.abc import Iterable
import json
import logging
from pathlib import Path
import sys
import time
from typing import Any

import tensorboardX
import tqdm

from vpt_jax import checkpoint, tree

log = logging.getLogger("vpt_jax")


def split_table(trainable: tree.Flat, frozen: tree.Flat, pattern: str) -> str:
  """Which parameters are trained: group, leaves, scalars."""
  rows = [("parameters", "pattern", "leaves", "scalars")]
  for name, flat, rule in (("trainable", trainable, pattern),
                           ("frozen", frozen, "the rest")):
    rows.append((name, rule, str(len(flat)), f"{tree.count(flat):,}"))
    groups = sorted({"/".join(path.split("/")[:2]) for path in flat}
                    if name == "trainable" and len(flat) < 100 else
                    {path.split("/")[0] for path in flat})
    for group in groups:
      part = {path: leaf for path, leaf in flat.items()
              if path == group or path.startswith(group + "/")}
      rows.append(("", group, str(len(part)), f"{tree.count(part):,}"))
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  return "\n".join(
      f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  "
      f"{row[3]:>{widths[3]}}" for row in rows)


class Metrics:
  """`metrics.jsonl` (one line per epoch) and TensorBoard events.

  Lines hold no times, so that a resumed run ends with the same bytes.
  """

  def __init__(self, workdir: Path, step: int):
    """Opens the files, dropping what lies after `step` (a killed run's)."""
    self._path = workdir / "metrics.jsonl"
    self._lines = [line for line in read_metrics(self._path)
                   if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in self._lines)
    checkpoint.write_atomic(self._path, text.encode())
    self._file = self._path.open("a")
    self._events = tensorboardX.SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, values: dict[str, float], **only_events: float) -> None:
    """One record; `values["step"]` is its step."""
    self._file.write(json.dumps(values) + "\n")
    self._file.flush()
    for name, value in {**values, **only_events}.items():
      if name != "step":
        self._events.add_scalar(name, value, values["step"])

  def close(self) -> None:
    self._file.close()
    self._events.close()


def read_metrics(path: Path) -> Iterable[dict[str, Any]]:
  """Records of a `metrics.jsonl`, up to a line that a kill cut off."""
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      yield json.loads(line)
    except json.JSONDecodeError:
      return


class Progress:
  """A bar with loss, rate, images/s and time left on a terminal, else lines."""

  def __init__(self, total: int, initial: int, batch_size: int):
    self._terminal = sys.stderr.isatty()
    self._bar = tqdm.tqdm(
        total=total, initial=initial, unit="step", disable=not self._terminal,
        dynamic_ncols=True, leave=False,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}"
        "{postfix}]")
    self._batch_size = batch_size
    self._start, self._first = time.monotonic(), initial
    self._total, self._last_line = total, 0.0

  def images_per_second(self) -> float:
    seconds = max(1e-9, time.monotonic() - self._start)
    return (self._bar.n - self._first if self._terminal else
            self._steps) * self._batch_size / seconds

  _steps = 0

  def advance(self) -> None:
    self._steps += 1
    self._bar.update()

  def epoch(self, epoch: int, epochs: int, values: dict[str, float]) -> None:
    """Shows an epoch's means: every epoch in the bar, else every 10 s."""
    speed = self.images_per_second()
    text = (f"loss {values['loss']:.4f}  top-1 {values['train_top1']:.1f}  "
            f"lr {values['lr']:.4g}  {speed:.0f} images/s")
    self._bar.set_postfix_str(text)
    now = time.monotonic()
    if not self._terminal and (
        now - self._last_line > 10 or epoch + 1 == epochs):
      done = self._first + self._steps
      left = (self._total - done) * self._batch_size / max(speed, 1e-9)
      log.info("epoch %d/%d  %s  %.0f s left", epoch + 1, epochs, text, left)
      self._last_line = now

  def close(self) -> None:
    self._bar.close()


def result_text(result: dict[str, Any]) -> str:
  """The result of a run in a few lines."""
  percent = result["trainable_percent"]
  return (
      f"{result['task']} {result['split']}: top-1 {result['top1']:.2f} %, mean "
      f"per class {result['mean_per_class']:.2f} % ({result['count']} images)\n"
      f"{result['method']} on {result['backbone']['name']} (sha256 "
      f"{result['backbone']['sha256'][:8]}): {result['trainable_params']:,} "
      f"trainable parameters ({percent:.3f} %), {result['seconds']:.1f} s, "
      f"{result['images_per_second']:.0f} images/s")
