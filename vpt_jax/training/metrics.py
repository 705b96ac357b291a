"""What a run tells: the split table, progress, metrics and its result."""

from collections.abc import Iterable
import contextlib
import json
import logging
from pathlib import Path
import sys
import time
from typing import Any

import tqdm
from tqdm.contrib import logging as tqdm_logging

from vpt_jax import problems
from vpt_jax.problems import Score
from vpt_jax.utils import files, trees

log = logging.getLogger("vpt_jax")


def split_table(trainable: trees.Flat, frozen: trees.Flat, pattern: str) -> str:
  """Which parameters are trained: group, leaves, scalars."""
  rows = [("parameters", "pattern", "leaves", "scalars")]
  for name, flat, rule in (
    ("trainable", trainable, pattern),
    ("frozen", frozen, "the rest"),
  ):
    rows.append((name, rule, str(len(flat)), f"{trees.count(flat):,}"))
    groups = sorted(
      {"/".join(path.split("/")[:2]) for path in flat}
      if name == "trainable" and len(flat) < 100
      else {path.split("/")[0] for path in flat}
    )
    for group in groups:
      part = {
        path: leaf
        for path, leaf in flat.items()
        if path == group or path.startswith(group + "/")
      }
      rows.append(("", group, str(len(part)), f"{trees.count(part):,}"))
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  return "\n".join(
    f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  "
    f"{row[3]:>{widths[3]}}"
    for row in rows
  )


class Metrics:
  """`metrics.jsonl` (one line per epoch) and TensorBoard events.

  Lines hold no times, so that a resumed run ends with the same bytes.
  """

  def __init__(self, workdir: Path, step: int):
    """Opens the files, dropping what lies after `step` (a killed run's)."""
    self._path = workdir / "metrics.jsonl"
    self._lines = [
      line for line in read_metrics(self._path) if line["step"] <= step
    ]
    text = "".join(json.dumps(line) + "\n" for line in self._lines)
    files.write_atomic(self._path, text.encode())
    self._file = self._path.open("a")
    self._events, self._purge = None, step + 1

  def write(self, values: dict[str, float], **only_events: float) -> None:
    """One record; `values["step"]` is its step."""
    self._file.write(json.dumps(values) + "\n")
    self._file.flush()
    if self._events is None:
      # Not before the first step: where torch is installed it is imported, too.
      import tensorboardX  # pylint: disable=import-outside-toplevel

      self._events = tensorboardX.SummaryWriter(
        str(self._path.parent / "tensorboard"), purge_step=self._purge
      )
    for name, value in {**values, **only_events}.items():
      if name != "step":
        self._events.add_scalar(name, value, values["step"])

  def close(self) -> None:
    self._file.close()
    if self._events is not None:
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

  def __init__(
    self, start: int, epochs: int, steps: int, images: int, score: Score
  ):
    """`start` of `epochs` epochs are done; each has `steps` and `images`.

    `score` is the problem's training score.
    """
    self._score = score
    self._epochs, self._images = epochs, images
    self._timed = -(images // steps)  # the first batch compiles
    self._clock = self._last_line = None
    self.images_per_second = 0.0
    self._bar = tqdm.tqdm(
      total=epochs * steps,
      initial=start * steps,
      leave=False,
      disable=not sys.stderr.isatty(),
      dynamic_ncols=True,
      bar_format=(
        "{percentage:3.0f}% {bar} step {n_fmt}/{total_fmt}{postfix} "
        "[{elapsed}, {remaining} left]"
      ),
    )
    self._open = contextlib.ExitStack()
    self._open.enter_context(tqdm_logging.logging_redirect_tqdm([log]))
    self._open.callback(self._bar.close)

  def step(self, loss: float | None = None, lr: float = 0.0) -> None:
    """One step was started; the loss is that of the latest one known."""
    if loss is not None:
      self._clock = self._clock or time.monotonic()  # the first step compiles
      self._bar.set_postfix_str(
        f"loss {loss:.4f}, lr {lr:.4g}, {self.images_per_second:.0f} images/s",
        refresh=False,
      )
    self._bar.update()

  def epoch(self, epoch: int, values: dict[str, float]) -> None:
    """An epoch is over: a line every 10 s and at the end, if no terminal."""
    now = time.monotonic()
    self._timed += self._images
    self.images_per_second = self._timed / max(now - (self._clock or now), 1e-9)
    left = (
      (self._epochs - epoch - 1)
      * self._images
      / max(self.images_per_second, 1e-9)
    )
    due = self._last_line is None or now - self._last_line > 10
    if self._bar.disable and (due or epoch + 1 == self._epochs):
      self._last_line = now
      log.info(
        "epoch %d/%d  loss %.4f  %s %.1f  lr %.4g  %.0f images/s  %.0f s left",
        epoch + 1,
        self._epochs,
        values["loss"],
        self._score.title,
        values[self._score.name],
        values["lr"],
        self.images_per_second,
        left,
      )

  def close(self) -> None:
    self._open.close()


def result_text(result: dict[str, Any]) -> str:
  """The result of a run in a few lines."""
  percent = result["trainable_percent"]
  speed = result["images_per_second"]
  scores = ", ".join(
    f"{score.title} {result[score.name]:.2f} {score.unit}"
    for score in problems.of_run(result).scores
  )
  return (
    f"{result['task']} {result['split']}: {scores} ({result['count']} images)\n"
    f"{result['method']} on {result['backbone']['name']} (sha256 "
    f"{result['backbone']['sha256'][:8]}): {result['trainable_params']:,} "
    f"trainable parameters ({percent:.3f} %), {result['seconds']:.1f} s"
    + (f", {speed:.0f} images/s" if speed else "")
  )
