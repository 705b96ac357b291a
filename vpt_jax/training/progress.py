"""Shows how far training is: a bar on a terminal, else lines of the log."""

from collections.abc import Mapping
import contextlib
import sys
import time

import tqdm
from tqdm.contrib import logging as tqdm_logging

from vpt_jax.problems import Score
from vpt_jax.utils import signals
from vpt_jax.utils.logs import log

SECONDS_BETWEEN_LINES = 10
BAR_FORMAT = (
  "{percentage:3.0f}% {bar} step {n_fmt}/{total_fmt}{postfix} "
  "[{elapsed}, {remaining} left]"
)
LINE_FORMAT = (
  "epoch %d/%d  loss %.4f  %s %.1f  lr %.4g  %.0f images/s  %.0f s left"
)


class Progress:
  """A bar with loss, learning rate, images/s and time left; or lines.

  Attributes:
    images_per_second: of all epochs so far, without the first step, which
      compiles.
  """

  def __init__(
    self,
    start: int,
    epochs: int,
    steps_per_epoch: int,
    images_per_epoch: int,
    score: Score,
  ):
    """Starts to show.

    Args:
      start: how many epochs are done.
      epochs: of the whole run.
      steps_per_epoch: steps.
      images_per_epoch: images.
      score: the problem's training score.
    """
    self.images_per_second = 0.0
    self._epochs = epochs
    self._images_per_epoch = images_per_epoch
    self._score = score
    # The first batch is not timed.
    self._timed_images = -(images_per_epoch // steps_per_epoch)
    self._clock: float | None = None  # when the first step was done
    self._last_line: float | None = None
    self._bar = tqdm.tqdm(
      total=epochs * steps_per_epoch,
      initial=start * steps_per_epoch,
      leave=False,
      disable=not sys.stderr.isatty(),
      dynamic_ncols=True,
      bar_format=BAR_FORMAT,
    )
    self._open = contextlib.ExitStack()
    self._open.enter_context(tqdm_logging.logging_redirect_tqdm([log]))
    self._open.callback(self._bar.close)

  def step(self, loss: float | None = None, lr: float = 0.0) -> None:
    """Counts a step that was started.

    Args:
      loss: of the latest step of which it is known; None: of none is.
      lr: learning rate.
    """
    signals.step_done()
    if loss is not None:
      if self._clock is None:
        self._clock = time.monotonic()
      self._bar.set_postfix_str(
        f"loss {loss:.4f}, lr {lr:.4g}, {self.images_per_second:.0f} images/s",
        refresh=False,
      )
    self._bar.update()

  def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
    """Counts an epoch that is over; without a terminal it may write a line.

    It does so every ten seconds and after the last epoch.

    Args:
      epoch: its number, from 0 on.
      values: loss, lr and the training score.
    """
    now = time.monotonic()
    started = now if self._clock is None else self._clock
    self._timed_images += self._images_per_epoch
    self.images_per_second = self._timed_images / max(now - started, 1e-9)
    if self._bar.disable and self._is_line_due(epoch, now):
      self._last_line = now
      self._write_line(epoch, values)

  def _is_line_due(self, epoch: int, now: float) -> bool:
    if self._last_line is None or epoch + 1 == self._epochs:
      return True
    return now - self._last_line > SECONDS_BETWEEN_LINES

  def _write_line(self, epoch: int, values: Mapping[str, float]) -> None:
    images_left = (self._epochs - epoch - 1) * self._images_per_epoch
    log.info(
      LINE_FORMAT,
      epoch + 1,
      self._epochs,
      values["loss"],
      self._score.title,
      values[self._score.name],
      values["lr"],
      self.images_per_second,
      images_left / max(self.images_per_second, 1e-9),
    )

  def close(self) -> None:
    """Takes the bar away."""
    self._open.close()
