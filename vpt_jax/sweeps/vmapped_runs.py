"""Many runs at once: they share one frozen backbone and train under `vmap`.

Runs that differ only in the fields of `varying` have the same program: their
trainable trees, optimizer states and random keys are stacked along a new first
axis, the runs', and the training step is mapped over it. Each has its own rate,
decay, seed, hence order of images, dropout and start, and is to rounding what
it would be alone. One that diverges goes on as NaN in its own row and is
marked; the others never meet it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.data import pipeline
from vpt_jax.distributed import memory, processes, sharding
from vpt_jax.training import (
  checkpoints,
  evaluation,
  loop,
  metrics,
  optim,
)
from vpt_jax.training import (
  experiment as jobs,
)
from vpt_jax.training import records as results
from vpt_jax.utils import trees

# Part of the free memory that runs may take together.
FILL = 0.8


def varying(config: ConfigDict) -> list[str]:
  """Fields in which runs of a group may differ: rate, decay, schedule, seed,
  dropout, and where the method's parameters start from."""
  section = config.get(config.method, ConfigDict())
  classes = len(config.head_groups) or 2
  starts = models.build(config, classes).method.start_options
  out = [
    "name",
    "optim.lr",
    "optim.weight_decay",
    "optim.schedule",
    "optim.warmup_epochs",
    "optim.warmup_from_zero",
  ]
  # A random backbone differs with the seed, and they share it.
  if config.backbone.checkpoint != "random":
    out.append("seed")
  return out + [
    f"{config.method}.{option}"
    for option in section
    if "dropout" in option or option in starts
  ]


def key(config: ConfigDict) -> str:
  """The same for resolved configs that may be in one group."""
  flat = trees.flatten(configs.plain(config))
  for field in varying(config):
    del flat[field.replace(".", "/")]
  return configs.digest(ConfigDict({"fields": flat}), 12)


def run(
  job: jobs.Job,
  members: Sequence[ConfigDict],
  folder: Path,
  stage: str,
  cells: Sequence[dict[str, Any]],
  keep: Sequence[Path] = (),
) -> list[results.Record]:
  """Trains and evaluates some runs; goes on where an earlier call was killed.

  Args:
    job: of a config of the same `key`.
    members: their resolved configs, of one `key`.
    folder: gets checkpoints/, to be deleted once the records are safe.
    stage: see `results.py`.
    cells: see there.
    keep: folders that get adapter.npz and predictions.csv of each, or ().

  Returns:
    Their records.
  """
  started = time.monotonic()
  group = Group(job, members)
  state, curve, speed = group.fit(folder)
  finite = np.isfinite(curve).all((0, 2))
  step = jax.jit(
    jax.vmap(
      lambda trainable, frozen, collections, shared, batch: (
        evaluation.eval_step(job.apply, job.problem)(
          trainable, {**shared, **frozen}, collections, batch
        )
      ),
      in_axes=(0, 0, 0, None, None),
    )
  )
  total, predictions = evaluation.collect(
    lambda trainable, frozen, collections, batch: step(
      trainable, group.hyper["frozen"], collections, frozen, batch
    ),
    state.trainable,
    group.shared,
    state.collections,
    job.test,
    axis=1,
  )
  finite &= np.isfinite(total["loss"])
  seconds = (time.monotonic() - started) / len(members)
  records = []
  for i, (config, cell) in enumerate(zip(members, cells)):
    mine = lambda values: jax.tree.map(lambda x: x[i], values)
    done = bool(finite[i])
    names = jobs.curve_names(job.problem)
    lines = [dict(zip(names, values)) for values in curve[:, i].T.tolist()]
    lines = (
      lines if done else [line for line in lines if np.isfinite(line["loss"])]
    )
    records.append(
      jobs.record(
        job,
        config,
        stage,
        lines,
        mine(total) if done else None,
        mine(predictions),
        seconds=seconds,
        speed=speed or None,
        cell=cell,
        group=len(members),
      )
    )
    if keep and done:
      own = mine(group.hyper["frozen"])
      jobs.save(
        keep[i],
        job,
        config,
        {**own, **mine(state.trainable)},
        mine(state.collections),
        mine(predictions),
      )
  return records


class Group:
  """Runs of one job that train together.

  Attributes:
    shared: frozen parameters, the same for all.
    hyper: of each run, stacked [G, ...]: `rates` of every epoch, `decay`,
      `options` of the method that differ, and parameters that are frozen but
      its own.
    state: before the first step, stacked.
  """

  def __init__(self, job: jobs.Job, members: Sequence[ConfigDict]):
    """Runs that share what a job holds; see `run`."""
    self.job, self.members = job, members
    classes = job.data.train.num_classes
    own = [
      path for path in job.start.frozen if not path.startswith("backbone/")
    ]

    def start(config: ConfigDict) -> jobs.Start:
      """Without the backbone, of which there is to be one."""
      one = jobs.start(
        config, models.build(config, classes), job.checkpoint, job.data
      )
      return one._replace(frozen={path: one.frozen[path] for path in own})

    starts = [start(config) for config in members]
    self.shared = {
      path: leaf for path, leaf in job.start.frozen.items() if path not in own
    }
    section = members[0].get(members[0].method, ConfigDict())
    differ = [
      option
      for option in section
      if "dropout" in option
      and len({config[config.method][option] for config in members}) > 1
    ]
    hyper = [
      {
        "rates": jnp.asarray(
          optim.epoch_rates(config.optim, config.batch_size, config.epochs),
          jnp.float32,
        ),
        "decay": jnp.float32(config.optim.weight_decay),
        "options": {
          option: jnp.float32(config[config.method][option])
          for option in differ
        },
        "frozen": models.store(first.frozen, config),
      }
      for config, first in zip(members, starts)
    ]
    states = [
      jobs.train_state(config, first, self._optimizer(one))
      for config, first, one in zip(members, starts, hyper)
    ]
    stack = lambda values: sharding.replicate(
      jax.tree.map(lambda *leaves: jnp.stack(leaves), *values), job.mesh
    )
    self.hyper, self.state = stack(hyper), stack(states)
    seeds = [config.seed for config in members]
    self._alike = len(set(seeds)) == 1
    self._step = jax.jit(
      jax.vmap(self._one, in_axes=(0, 0, None, None if self._alike else 1)),
      donate_argnums=1,
    )

  def _optimizer(self, hyper: dict[str, Any]):
    return self.job.optimizer(
      optim.per_epoch(hyper["rates"], len(self.job.train)), hyper["decay"]
    )

  def _one(
    self,
    hyper: dict[str, Any],
    state: loop.TrainState,
    shared: trees.Flat,
    batch: pipeline.Batch,
  ):
    """The step of one run; `hyper` and `state` are its own."""
    model = self.job.model
    model = model.clone(method=model.method.clone(**hyper["options"]))
    return self.job.step(model, self._optimizer(hyper))(
      state, {**shared, **hyper["frozen"]}, batch
    )

  def batches(self, epoch: int) -> Iterator[pipeline.Batch]:
    """Batches of an epoch: [B, ...] if all runs have the same order, else
    [B, G, ...]."""
    feed, seeds = self.job.train, [config.seed for config in self.members]
    n, size = len(feed.split), feed.batch_size
    orders = [pipeline.order(n, seed, epoch) for seed in seeds]
    places = [
      pipeline.crop_positions(n, seed, epoch)[order]
      for seed, order in zip(seeds, orders)
    ]
    if self._alike:
      yield from feed.batches(orders[0], places[0])
      return
    rows = lambda arrays: np.concatenate(
      [
        np.resize(part, (size, *part.shape[1:]))
        for part in (
          np.stack(arrays, 1)[first : first + size]
          for first in range(0, n, size)
        )
      ]
    ).reshape(-1, *arrays[0].shape[1:])
    split = lambda x: x.reshape(size, len(seeds), *x.shape[1:])
    for first, batch in zip(
      range(0, n, size),
      feed.batches(rows(orders), rows(places), size * len(seeds)),
    ):
      mask = np.repeat(np.arange(first, first + size) < n, len(seeds))
      yield {
        "image": split(batch["image"]),
        "label": split(batch["label"]),
        "mask": split(jnp.asarray(mask, jnp.float32)),
      }

  def fit(self, folder: Path) -> tuple[loop.TrainState, np.ndarray, float]:
    """The epochs that are left, from the newest checkpoint on.

    Returns:
      (final state, curve [3, G, epochs] with the rows `experiment.curve_names`, NaN from where
      a run diverged on, training images per second of all together).
    """
    config, per_epoch = self.members[0], len(self.job.train)
    names = jobs.curve_names(self.job.problem)
    curve = np.full(
      (len(names), len(self.members), config.epochs), np.nan, np.float32
    )
    state = self.state
    saved = checkpoints.Checkpoints(folder / "checkpoints", 1)
    epoch = 0
    if saved.latest is not None:
      epoch = saved.latest // per_epoch
      state, curve = saved.restore((state, curve))
    progress = metrics.Progress(
      epoch,
      config.epochs,
      per_epoch,
      len(self.job.train.split) * len(self.members),
      self.job.problem.training_score,
    )
    try:
      with processes.PreemptionNotice().listening() as preempted:
        for epoch in range(epoch, config.epochs):
          state, curve[:, :, epoch] = self._epoch(epoch, state, progress)
          stop = preempted((epoch + 1) * per_epoch)
          if (
            stop
            or (epoch + 1) % config.checkpoint.every_epochs == 0
            or (epoch + 1 == config.epochs)
          ):
            saved.save((epoch + 1) * per_epoch, (state, curve))
          if stop:
            raise processes.Preempted
          if not np.isfinite(curve[0, :, epoch]).any():
            break  # all have diverged
    finally:
      progress.close()
      saved.close()
    return state, curve, progress.images_per_second

  def _epoch(
    self, epoch: int, state: loop.TrainState, progress: metrics.Progress
  ) -> tuple[loop.TrainState, np.ndarray]:
    records = []
    for batch in self.batches(epoch):
      state, record = self._step(self.hyper, state, self.shared, batch)
      records.append(record)
      late = max(0, len(records) - loop.LAG)
      if late or len(records) == 1:
        losses = np.asarray(records[late]["loss"])
        losses = losses[np.isfinite(losses)]
        progress.step(float(losses.mean()) if len(losses) else np.nan, 0.0)
      else:
        progress.step()
    columns = {
      name: np.stack(
        [np.asarray(record[name], np.float64) for record in records]
      )
      for name in records[0]
    }
    images = columns["images"]
    loss = (columns["loss"] * images).sum(0) / images.sum(0)
    # The norm tells of an update that the next loss would show, if any came.
    loss = np.where(np.isfinite(columns["param_norm"]).all(0), loss, np.nan)
    problem = self.job.problem
    sums = {name: columns[name].sum(0) for name in problem.training_sum_names}
    score = problem.score_training(sums, images.sum(0))
    rates = np.asarray(self.hyper["rates"][:, epoch])
    alive = np.isfinite(loss)
    progress.epoch(
      epoch,
      {
        "loss": loss[alive].mean() if alive.any() else np.nan,
        problem.training_score.name: (
          score[alive].mean() if alive.any() else np.nan
        ),
        "lr": rates.mean(),
      },
    )
    return state, np.where(alive, np.stack([loss, score, rates]), np.nan)


def taken(job: jobs.Job, member: ConfigDict) -> int:
  """Bytes that a run takes beside the backbone, by XLA's own count."""
  one = Group(job, [member])
  batch = next(one.batches(0))
  program = one._step.lower(one.hyper, one.state, one.shared, batch).compile()
  return program.memory_analysis().temp_size_in_bytes + sum(
    leaf.nbytes for leaf in jax.tree.leaves(one.state)
  )


def most(job: jobs.Job, members: Sequence[ConfigDict]) -> int:
  """How many of these runs fit on the device together.

  Runs of a head on cached features take next to nothing.
  """
  if job.on_features or len(members) == 1:
    return len(members)
  return max(
    1,
    min(
      len(members),
      int(FILL * memory.free_bytes(job.mesh) / taken(job, members[0])),
    ),
  )
