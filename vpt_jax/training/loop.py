"""Trains a run: all its epochs, with checkpoints, metrics and progress."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax.data import pipeline
from vpt_jax.distributed import processes
from vpt_jax.problems import Problem
from vpt_jax.training import step as step_lib
from vpt_jax.training.checkpoints import Checkpoints
from vpt_jax.training.metrics import Metrics
from vpt_jax.training.optim import Rate
from vpt_jax.training.progress import Progress
from vpt_jax.training.step import Step, TrainState
from vpt_jax.utils import signals, trees
from vpt_jax.utils.logs import log

# Losses are looked at this many steps late: they are ready by then, so looking
# costs nothing, and the host never runs further ahead of the device than this.
LAG = 20

StepMetrics = Mapping[str, Any]  # scalars on the device or on the host


class Diverged(ValueError):
  """The loss or a parameter is NaN or infinite."""


def fit(
  config: ConfigDict,
  workdir: Path,
  state: TrainState,
  frozen: trees.Flat,
  train: pipeline.BaseFeed,
  step: Step,
  rate: Rate,
  problem: Problem,
  run: Mapping[str, str] | None = None,
) -> tuple[TrainState, float | None]:
  """Trains the epochs that are left, from the newest checkpoint on.

  Args:
    config: resolved.
    workdir: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
    state: at step 0.
    frozen: flat frozen tree.
    train: training images.
    step: from `step.make_train_step`.
    rate: learning rate of a step.
    problem: of the sums that `step` gives.
    run: that this is, see `run_folder.identity`.

  Returns:
    (final state, training images per second without compilation; None if
    there was nothing left to time).

  Raises:
    Diverged: a loss is NaN or infinite; nothing is saved after it.
    processes.Preempted: SIGTERM came; the step before is saved.
  """
  loop = _Loop(
    config, workdir, state, frozen, train, step, rate, problem, run or {}
  )
  try:
    with processes.PreemptionNotice().listening() as preempted:
      for epoch in range(loop.first_epoch, config.epochs):
        loop.train_epoch(epoch, preempted)
        loop.end_epoch(epoch, preempted)
  finally:
    loop.close()
  return loop.state, loop.progress.images_per_second or None


class _Loop:
  """A run while it trains.

  Attributes:
    state: after the latest step.
    first_epoch: that is not over yet.
    progress: what the user sees.
  """

  def __init__(
    self,
    config: ConfigDict,
    workdir: Path,
    state: TrainState,
    frozen: trees.Flat,
    train: pipeline.BaseFeed,
    step: Step,
    rate: Rate,
    problem: Problem,
    run: Mapping[str, str],
  ):
    """Restores the newest checkpoint, and opens the files; see `fit`."""
    self.state = state
    self.first_epoch = 0
    # Of the steps of the epoch that is not over yet.
    self._step_metrics: list[StepMetrics] = []
    self._config = config
    self._workdir = workdir
    self._frozen = frozen
    self._train = train
    self._step = step
    self._rate = rate
    self._problem = problem
    self._checkpoints = Checkpoints(
      workdir / "checkpoints", config.checkpoint.keep, run
    )
    self._resume()
    self._metrics = Metrics(
      workdir,
      self._first_step(self.first_epoch),
      run.get("config", ""),
      [problem.training_score.name],
    )
    self.progress = Progress(
      self.first_epoch,
      config.epochs,
      len(train),
      train.images_per_epoch,
      problem.training_score,
    )

  def _first_step(self, epoch: int) -> int:
    return epoch * len(self._train)

  def _resume(self) -> None:
    """Takes up the state of the newest checkpoint, if there is one."""
    names = step_lib.metric_names(self._problem)
    metrics = {name: np.zeros(len(self._train), np.float32) for name in names}
    restored = self._checkpoints.restore((self.state, metrics))
    if restored is None:
      return
    step, (self.state, metrics) = restored
    self.first_epoch, steps_done = divmod(step, len(self._train))
    for i in range(steps_done):
      self._step_metrics.append({name: metrics[name][i] for name in names})
    more = f" and {steps_done} steps" if steps_done else ""
    log.info("resumes after epoch %d%s", self.first_epoch, more)

  def train_epoch(
    self, epoch: int, preempted: processes.PreemptionNotice
  ) -> None:
    """Takes the steps of an epoch that are left.

    Raises:
      Diverged: see `fit`.
      processes.Preempted: see `fit`.
    """
    first_step = self._first_step(epoch)
    lr = float(self._rate(first_step))
    for batch in self._batches(epoch):
      self.state, metrics = self._step(self.state, self._frozen, batch)
      self._step_metrics.append(metrics)
      self._look_at_loss(epoch, lr)
      steps_done = len(self._step_metrics)
      is_over = steps_done == len(self._train)
      if not is_over and preempted(first_step + steps_done):
        self._save(first_step + steps_done)
        raise processes.Preempted

  def _batches(self, epoch: int) -> Iterator[pipeline.Batch]:
    """Yields the batches of an epoch that are left."""
    steps_done = len(self._step_metrics)
    return self._train.epoch(self._config.seed, epoch, steps_done)

  def _look_at_loss(self, epoch: int, lr: float) -> None:
    """Shows a loss that is ready, and checks it."""
    ready = max(0, len(self._step_metrics) - LAG)
    is_first = len(self._step_metrics) == 1
    if not ready and not is_first:
      self.progress.step()
      return
    loss = float(self._step_metrics[ready]["loss"])
    check_finite(
      loss, self._first_step(epoch) + ready, epoch, lr, self._workdir
    )
    self.progress.step(loss, lr)

  def end_epoch(
    self, epoch: int, preempted: processes.PreemptionNotice
  ) -> None:
    """Writes the metrics of an epoch that is over, and maybe a checkpoint.

    Raises:
      Diverged: see `fit`.
      processes.Preempted: see `fit`; after the last epoch too, as what follows
        is not short.
    """
    first_step = self._first_step(epoch)
    values = summarise(
      self._problem,
      jax.device_get(self._step_metrics),
      epoch,
      float(self._rate(first_step)),
      self._workdir,
    )
    self._step_metrics = []
    self.progress.epoch(epoch, values)
    self._metrics.write(
      values, images_per_second=self.progress.images_per_second
    )
    step = self._first_step(epoch + 1)
    is_preempted = preempted(step)
    if is_preempted or is_checkpoint_due(self._config, epoch):
      self._save(step)
    if is_preempted:
      raise processes.Preempted

  @signals.saving()
  def _save(self, step: int) -> None:
    """Saves the state, with the metrics of the epoch that is not over yet."""
    metrics = {
      name: np.zeros(len(self._train), np.float32)
      for name in step_lib.metric_names(self._problem)
    }
    for i, values in enumerate(jax.device_get(self._step_metrics)):
      for name, column in metrics.items():
        column[i] = values[name]
    self._checkpoints.save(step, (self.state, metrics))

  def close(self) -> None:
    """Closes the files; waits until checkpoints are on disk.

    All of them, also if one fails.
    """
    with contextlib.ExitStack() as stack:
      stack.callback(self._checkpoints.close)
      stack.callback(self._metrics.close)
      stack.callback(self.progress.close)


def is_checkpoint_due(config: ConfigDict, epoch: int) -> bool:
  """Returns whether there is to be a checkpoint after an epoch."""
  epochs_done = epoch + 1
  if epochs_done == config.epochs:
    return True
  return epochs_done % config.checkpoint.every_epochs == 0


def check_finite(
  value: float,
  step: int,
  epoch: int,
  lr: float,
  workdir: Path,
  what: str = "loss",
) -> None:
  """Raises Diverged, with where to look, unless the value is a number."""
  if not np.isfinite(value):
    raise Diverged(
      f"{what} is {value} at step {step} (epoch {epoch}, lr {lr:.4g}); "
      f"nothing was saved since the last checkpoint. Look at grad_norm in "
      f"{workdir}/metrics.jsonl, and lower config.optim.lr"
    )


def summarise(
  problem: Problem,
  step_metrics: Sequence[StepMetrics],
  epoch: int,
  lr: float,
  workdir: Path,
) -> dict[str, float]:
  """Returns the means over an epoch's steps, each image counted once.

  Args:
    problem: of the sums.
    step_metrics: of all its steps, on the host.
    epoch: its number.
    lr: its learning rate.
    workdir: of the run, for the error.

  Raises:
    Diverged: a loss or a parameter of it is NaN or infinite.
  """
  steps = len(step_metrics)
  for i, values in enumerate(step_metrics):
    # The norm tells of an update that the next loss would show, if any came.
    for what in ("loss", "param_norm"):
      step = epoch * steps + i
      check_finite(values[what], step, epoch, lr, workdir, what)

  def column(name: str) -> np.ndarray:
    return np.array([values[name] for values in step_metrics], np.float64)

  images = column("images")
  sums = {name: column(name).sum() for name in problem.training_sum_names}
  score = problem.score_training(sums, images.sum())
  return {
    "step": (epoch + 1) * steps,
    "epoch": epoch,
    "lr": lr,
    "loss": float((column("loss") * images).sum() / images.sum()),
    problem.training_score.name: float(score),
    "grad_norm": float(column("grad_norm").mean()),
  }
