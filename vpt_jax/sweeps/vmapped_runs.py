"""Trains many runs at once: they share one frozen backbone, under `vmap`.

Runs that differ only in `varying_fields` have the same program: their trainable
trees, optimizer states and random keys are stacked along a new first axis, that
of the G runs, and the training step is mapped over it. Each run has its own
rate, decay, seed, hence order of images, dropout and start, and is to rounding
what it would be alone. A run that diverges stays NaN in its own row and is
marked; the others are not affected.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
import time
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax.data import pipeline
from vpt_jax.distributed import memory, processes, sharding
from vpt_jax.training import (
  checkpoints,
  evaluation,
  experiment,
  loop,
  optim,
  records,
  run_folder,
  run_results,
)
from vpt_jax.training import step as step_lib
from vpt_jax.training.progress import Progress
from vpt_jax.utils import trees

# Share of the free memory that runs may take together.
FILL = 0.8

Cell = Mapping[str, Any]  # field -> value, see `searches.py`
StepMetrics = Mapping[str, jax.Array]  # of all runs, [G]


def varying_fields(config: ConfigDict) -> list[str]:
  """Returns the fields in which runs that train together may differ.

  They are rate, decay, schedule, seed, dropout, and where the method's
  parameters start from.
  """
  num_classes = len(config.head_groups) or 2  # how many does not matter here
  method = model_lib.build(config, num_classes).method
  fields = [
    "name",
    "optim.lr",
    "optim.weight_decay",
    "optim.schedule",
    "optim.warmup_epochs",
    "optim.warmup_from_zero",
  ]
  # A random backbone differs with the seed, and they share it.
  if config.backbone.checkpoint != "random":
    fields.append("seed")
  for option in config.get(config.method, ConfigDict()):
    if "dropout" in option or option in method.start_options:
      fields.append(f"{config.method}.{option}")
  return fields


def group_key(config: ConfigDict) -> str:
  """Returns a name that is the same for configs that may train together.

  Args:
    config: resolved.
  """
  fields = trees.flatten(config_lib.plain(config))
  for field in varying_fields(config):
    del fields[field.replace(".", "/")]
  return config_lib.digest(ConfigDict({"fields": fields}), 12)


def run(
  job: experiment.Experiment,
  configs: Sequence[ConfigDict],
  folder: Path,
  stage: str,
  cells: Sequence[Cell],
  folders: Sequence[Path] = (),
) -> list[records.Record]:
  """Trains and evaluates some runs; resumes where an earlier call was killed.

  Args:
    job: of a config of the same `group_key`.
    configs: of the runs, resolved, of one `group_key`.
    folder: gets checkpoints/, to be deleted once the records are safe.
    stage: see `records.RunRecord`.
    cells: what each run differs in, see `records.RunRecord`.
    folders: get adapter.npz and predictions.csv of each run; (): not kept.

  Returns:
    The records of the runs.
  """
  started = time.monotonic()
  runs = VmappedRuns(job, configs)
  fingerprint = run_folder.fingerprint(job.data)
  identity = run_folder.identity(configs, job.backbone, fingerprint)
  trained = runs.fit(folder, identity)
  total, predictions = runs.evaluate(trained.state)
  seconds_each = (time.monotonic() - started) / len(configs)
  # [G]: every epoch's loss, score and rate, and the loss of the test images.
  finite = np.isfinite(trained.curve).all(axis=(0, 2))
  finite &= np.isfinite(total["loss"])
  out = []
  for i, (config, cell) in enumerate(zip(configs, cells, strict=True)):
    done = bool(finite[i])
    reached = None
    if done:
      reached = evaluation.evaluated(
        job.problem,
        _row(total, i),
        _row(predictions, i),
        job.data.test,
        job.data.train.class_names,
      )
    record = run_results.record(
      job,
      config,
      stage,
      runs.curve_lines(trained.curve, i, done),
      reached,
      seconds=seconds_each,
      speed=trained.images_per_second or None,
      cell=cell,
      group=len(configs),
    )
    out.append(record)
    if folders and reached is not None:
      own_frozen = _row(runs.own.frozen, i)
      own_trainable = _row(trained.state.trainable, i)
      run_results.save(
        folders[i],
        job,
        config,
        {**own_frozen, **own_trainable},
        _row(trained.state.collections, i),
        reached,
        run_folder.identity([config], job.backbone, fingerprint),
      )
  return out


def _row(values: Any, i: int) -> Any:
  """Returns what run i has of values [G, ...] of all runs."""
  return jax.tree.map(lambda leaf: leaf[i], values)


class Own(NamedTuple):
  """What each run has of its own, beside its state.

  Attributes:
    rates: learning rate of every epoch.
    decay: weight decay.
    options: of the method, those in which the runs differ.
    frozen: frozen parameters that are not the backbone's.
  """

  rates: jax.Array
  decay: jax.Array
  options: dict[str, jax.Array]
  frozen: trees.Flat


class Trained(NamedTuple):
  """What training gives.

  Attributes:
    state: of all runs after the last epoch, stacked.
    curve: [3, G, epochs], the rows as `run_results.curve_names`; NaN from the
      epoch on in which a run diverged.
    images_per_second: in training, of all runs together.
  """

  state: step_lib.TrainState
  curve: np.ndarray
  images_per_second: float


class VmappedRuns:
  """Runs of one job that train together.

  Attributes:
    job: what they share.
    configs: of each.
    shared: frozen parameters that are the same for all, those of the backbone.
    own: `Own` of each run, stacked [G, ...].
    state: of each run before the first step, stacked [G, ...].
  """

  def __init__(self, job: experiment.Experiment, configs: Sequence[ConfigDict]):
    """Makes the initial state of all runs; see `run` for the arguments."""
    self.job = job
    self.configs = configs
    self.shared = {
      path: leaf
      for path, leaf in job.start.frozen.items()
      if path.startswith("backbone/")
    }
    starts = [self._start(config) for config in configs]
    options = self._options_that_differ()
    own = []
    states = []
    for config, start in zip(configs, starts, strict=True):
      own_of_run = self._own(config, start, options)
      optimizer = self._optimizer(own_of_run)
      state = experiment.train_state(config, start, optimizer)
      own.append(own_of_run)
      states.append(state)
    self.own = self._stack(own)
    self.state = self._stack(states)
    # Runs of one seed have the same order of images, hence the same batches.
    seeds = {config.seed for config in configs}
    self._one_order = len(seeds) == 1
    axis_of_runs = None if self._one_order else 1
    step = jax.vmap(
      self._step_of_run,
      in_axes=(0, 0, None, axis_of_runs),
    )
    self._step = jax.jit(step, donate_argnums=1)

  def _start(self, config: ConfigDict) -> experiment.Start:
    """Returns where a run starts from, without the backbone.

    There is to be one backbone in memory, not one for each run.
    """
    job = self.job
    model = model_lib.build(config, job.data.train.num_classes)
    start = experiment.start(config, model, job.checkpoint, job.data)
    own_frozen = {
      path: start.frozen[path]
      for path in job.start.frozen
      if path not in self.shared
    }
    return start._replace(frozen=own_frozen)

  def _options_that_differ(self) -> list[str]:
    """Returns the method's options in which the programs' inputs differ.

    These are dropout rates. Options that only say where parameters start from
    have done their work in `_start`.
    """
    method = self.configs[0].method
    section = self.configs[0].get(method, ConfigDict())
    differ = []
    for option in section:
      if "dropout" not in option:
        continue
      values = {config[method][option] for config in self.configs}
      if len(values) > 1:
        differ.append(option)
    return differ

  def _own(
    self, config: ConfigDict, start: experiment.Start, options: Sequence[str]
  ) -> Own:
    rates = optim.epoch_rates(config.optim, config.batch_size, config.epochs)
    section = config.get(config.method, ConfigDict())
    return Own(
      rates=jnp.asarray(rates, jnp.float32),
      decay=jnp.float32(config.optim.weight_decay),
      options={option: jnp.float32(section[option]) for option in options},
      frozen=model_lib.store(start.frozen, config),
    )

  def _stack(self, values: Sequence[Any]) -> Any:
    """Returns trees of single runs as one [G, ...], on all devices."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)
    return sharding.replicate(stacked, self.job.mesh)

  def _optimizer(self, own: Own) -> optax.GradientTransformation:
    """Returns the optimizer of one run."""
    rate = optim.per_epoch(own.rates, len(self.job.train))
    return self.job.optimizer(rate, own.decay)

  def _step_of_run(
    self,
    own: Own,
    state: step_lib.TrainState,
    shared: trees.Flat,
    batch: pipeline.Batch,
  ) -> tuple[step_lib.TrainState, StepMetrics]:
    """Takes the training step of one run; `vmap` makes it that of all."""
    model = self.job.model
    options: dict[str, Any] = {**own.options}
    model = model.clone(method=model.method.clone(**options))
    step = self.job.step(model, self._optimizer(own))
    return step(state, {**shared, **own.frozen}, batch)

  def batches(self, epoch: int) -> Iterator[pipeline.Batch]:
    """Yields the batches of an epoch.

    They are [B, ...] if all runs have the same order of images, else
    [B, G, ...].
    """
    feed = cast(pipeline.Feed, self.job.train)
    orders = []
    crops = []  # where each image is cropped, in the order of the run
    for config in self.configs:
      visits = feed.visits(config.seed, epoch)
      orders.append(visits.images)
      crops.append(feed.places(config.seed, visits))
    if self._one_order:
      yield from feed.batches(orders[0], crops[0])
    else:
      yield from self._interleaved(np.stack(orders, 1), np.stack(crops, 1))

  def _interleaved(
    self, orders: np.ndarray, crops: np.ndarray
  ) -> Iterator[pipeline.Batch]:
    """Yields batches [B, G, ...] of runs with an order of images each.

    The feed is asked for batches of B G images, those of all runs one after
    the other for each position.

    Args:
      orders: [N, G] indices of images.
      crops: [N, G, 2], see `pipeline.crop_positions`.
    """
    feed = cast(pipeline.Feed, self.job.train)
    size = feed.batch_size
    num_images, num_runs = orders.shape
    filled = []  # positions in an epoch; the last batch is filled with copies
    masks = []  # [B, G]: 0 for these
    for first in range(0, num_images, size):
      end = min(first + size, num_images)
      positions = np.arange(first, end)
      filled.append(np.resize(positions, size))
      mask = np.zeros((size, num_runs), np.float32)
      mask[: end - first] = 1
      masks.append(mask)
    every = np.concatenate(filled)
    indices = orders[every].reshape(-1)
    places = crops[every].reshape(-1, 2)
    batches = feed.batches(indices, places, batch_size=size * num_runs)
    for mask, batch in zip(masks, batches, strict=True):
      image = batch["image"]
      label = batch["label"]
      yield {
        "image": image.reshape(size, num_runs, *image.shape[1:]),
        "label": label.reshape(size, num_runs, *label.shape[1:]),
        "mask": jnp.asarray(mask),
      }

  def fit(
    self, folder: Path, identity: Mapping[str, str] | None = None
  ) -> Trained:
    """Trains the epochs that are left, from the newest checkpoint on.

    Args:
      folder: has checkpoints/, or gets it.
      identity: of the runs together, see `run_folder.identity`.

    Raises:
      processes.Preempted: the process was asked to end; a checkpoint is saved.
    """
    config = self.configs[0]  # the same epochs and checkpoints for all
    problem = self.job.problem
    steps_per_epoch = len(self.job.train)
    names = run_results.curve_names(problem)
    shape = (len(names), len(self.configs), config.epochs)
    curve = np.full(shape, np.nan, np.float32)
    state = self.state
    saved = checkpoints.Checkpoints(folder / "checkpoints", 1, identity)
    first = 0
    restored = saved.restore((state, curve))
    if restored is not None:
      steps_done, (state, curve) = restored
      first = steps_done // steps_per_epoch
    progress = Progress(
      first,
      config.epochs,
      steps_per_epoch,
      self.job.train.images_per_epoch * len(self.configs),
      problem.training_score,
    )
    try:
      with processes.PreemptionNotice().listening() as preempted:
        for epoch in range(first, config.epochs):
          state, curve[:, :, epoch] = self._epoch(epoch, state, progress)
          steps = (epoch + 1) * steps_per_epoch
          stop = preempted(steps)
          is_last = epoch + 1 == config.epochs
          is_due = (epoch + 1) % config.checkpoint.every_epochs == 0
          if stop or is_due or is_last:
            saved.save(steps, (state, curve))
          if stop:
            raise processes.Preempted
          losses = curve[0, :, epoch]
          if not np.isfinite(losses).any():
            break  # all have diverged
    finally:
      progress.close()
      saved.close()
    return Trained(
      state=state,
      curve=curve,
      images_per_second=progress.images_per_second,
    )

  def _epoch(
    self, epoch: int, state: step_lib.TrainState, progress: Progress
  ) -> tuple[step_lib.TrainState, np.ndarray]:
    """Trains one epoch; returns the state and the curve's column [3, G]."""
    step_metrics = []
    for batch in self.batches(epoch):
      state, of_step = self._step(self.own, state, self.shared, batch)
      step_metrics.append(of_step)
      _show_step(progress, step_metrics)
    column = self._summary(epoch, step_metrics)
    loss, score, rates = column
    alive = np.isfinite(loss)
    mean_loss = np.nan
    mean_score = np.nan
    if alive.any():
      mean_loss = loss[alive].mean()
      mean_score = score[alive].mean()
    progress.epoch(
      epoch,
      {
        "loss": mean_loss,
        self.job.problem.training_score.name: mean_score,
        "lr": rates.mean(),
      },
    )
    return state, np.where(alive, column, np.nan)

  def _summary(
    self, epoch: int, step_metrics: Sequence[StepMetrics]
  ) -> np.ndarray:
    """Returns mean loss, training score and rate of an epoch, [3, G].

    The loss of a run that has diverged is NaN.
    """
    problem = self.job.problem
    by_step = {}  # name -> [steps, G]
    for name in step_metrics[0]:
      values = [np.asarray(of_step[name]) for of_step in step_metrics]
      by_step[name] = np.stack(values).astype(np.float64)
    images = by_step["images"]
    num_images = images.sum(0)
    sums = {name: by_step[name].sum(0) for name in problem.training_sum_names}
    score = problem.score_training(sums, num_images)
    mean_loss = (by_step["loss"] * images).sum(0) / num_images
    # The norm shows an update that the next loss would show, if any came.
    sane = np.isfinite(by_step["param_norm"]).all(0)
    loss = np.where(sane, mean_loss, np.nan)
    rates = np.asarray(self.own.rates[:, epoch])
    return np.stack([loss, score, rates])

  def evaluate(
    self, state: step_lib.TrainState
  ) -> tuple[evaluation.Sums, evaluation.Predictions]:
    """Returns the sums and predictions of all runs on the test images.

    Returns:
      See `evaluation.collect`; arrays [G, ...] and [G, N, ...].
    """
    job = self.job
    step_of_run = evaluation.eval_step(job.apply, job.problem)

    def with_own_frozen(own_frozen, trainable, shared, collections, batch):
      frozen = {**shared, **own_frozen}
      return step_of_run(trainable, frozen, collections, batch)

    step_of_all = jax.jit(
      jax.vmap(with_own_frozen, in_axes=(0, 0, None, 0, None))
    )

    def step(trainable, shared, collections, batch):
      return step_of_all(self.own.frozen, trainable, shared, collections, batch)

    return evaluation.collect(
      step,
      state.trainable,
      self.shared,
      state.collections,
      cast(pipeline.Feed, job.test),
      axis=1,
    )

  def curve_lines(
    self, curve: np.ndarray, i: int, done: bool
  ) -> list[dict[str, float]]:
    """Returns the curve of run i as a mapping for each epoch.

    Args:
      curve: see `Trained`.
      i: number of the run.
      done: False for a run that diverged; its epochs until then are returned.
    """
    names = run_results.curve_names(self.job.problem)
    lines = []
    for values in curve[:, i].T.tolist():
      line = dict(zip(names, values, strict=True))
      if done or np.isfinite(line["loss"]):
        lines.append(line)
    return lines


def _show_step(progress: Progress, step_metrics: Sequence[StepMetrics]) -> None:
  """Shows the mean loss of the latest step that is surely done.

  Waiting for the one that was just started would keep the device idle.
  """
  count = len(step_metrics)
  newest_done = max(0, count - loop.LAG)
  if newest_done == 0 and count > 1:
    progress.step()
    return
  losses = np.asarray(step_metrics[newest_done]["loss"])
  finite = losses[np.isfinite(losses)]
  mean = float(finite.mean()) if len(finite) else np.nan
  progress.step(mean)


def bytes_per_run(job: experiment.Experiment, config: ConfigDict) -> int:
  """Returns what a run takes beside the backbone, by XLA's own count."""
  runs = VmappedRuns(job, [config])
  batch = next(runs.batches(0))
  lowered = runs._step.lower(runs.own, runs.state, runs.shared, batch)
  memory: Any = lowered.compile().memory_analysis()
  leaves = jax.tree.leaves(runs.state)
  state_bytes = sum(leaf.nbytes for leaf in leaves)
  return memory.temp_size_in_bytes + state_bytes


def most_together(
  job: experiment.Experiment, configs: Sequence[ConfigDict]
) -> int:
  """Returns how many of these runs fit on the device together, at least 1.

  Runs of a head on cached features take next to nothing: all fit.
  """
  count = len(configs)
  if job.on_features or count == 1:
    return count
  free = FILL * memory.free_bytes(job.mesh)
  each = bytes_per_run(job, configs[0])
  fitting = int(free / each)
  return min(max(fitting, 1), count)
