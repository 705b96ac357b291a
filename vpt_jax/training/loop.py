"""Training: the state, the jitted step and the loop over epochs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
from ml_collections import ConfigDict
import numpy as np
import optax

from vpt_jax import model as models
from vpt_jax.data import pipeline
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import processes, shard_gradients
from vpt_jax.problems import Problem
from vpt_jax.training import checkpoints as checkpoint
from vpt_jax.training import metrics as logs
from vpt_jax.training import optim
from vpt_jax.utils import trees

# Losses are looked at this many steps late: they are ready by then, so looking
# costs nothing, and the host never runs further ahead of the device than this.
LAG = 20


class TrainState(flax.struct.PyTreeNode):
  """All that changes while training, hence all that a checkpoint holds.

  Attributes:
    step: updates done, int32.
    trainable: flat trainable tree.
    opt_state: of the optimizer, over `trainable` alone.
    collections: mutable variables of the model (batch statistics), or {}.
    rng: raw key; step i draws from `fold_in(rng, i)`.
  """

  step: jax.Array
  trainable: trees.Flat
  opt_state: optax.OptState
  collections: dict[str, Any]
  rng: jax.Array


# (state, frozen, batch) -> (state, metrics)
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Diverged(ValueError):
  """The loss or a parameter is NaN or infinite."""


def make_train_step(
  model: models.Model,
  tx: optax.GradientTransformation,
  *,
  problem: Problem,
  preprocess: Preprocess,
  augment: str,
  min_scale: float = 1.0,
  on_features: bool = False,
  shards: int = 1,
) -> Step:
  """`train_step`, jitted; the state is donated."""
  return jax.jit(
    train_step(
      model,
      tx,
      problem=problem,
      preprocess=preprocess,
      augment=augment,
      min_scale=min_scale,
      on_features=on_features,
      shards=shards,
    ),
    donate_argnums=0,
  )


def train_step(
  model: models.Model,
  tx: optax.GradientTransformation,
  *,
  problem: Problem,
  preprocess: Preprocess,
  augment: str,
  min_scale: float = 1.0,
  on_features: bool = False,
  shards: int = 1,
) -> Step:
  """`step(state, frozen, batch) -> (state, metrics)`.

  Gradients are taken with respect to `state.trainable` alone.

  Args:
    model: classifier.
    tx: optimizer over the flat trainable tree.
    problem: gives the loss and the sums of `training_score`.
    preprocess: what happens to an image before the model sees it.
    augment, min_scale: see `Preprocess.train_view`.
    on_features: batches hold cached features [B, D] instead of images.
    shards: that batches are in; see `spmd.value_and_grad`.
  """

  def loss_of(trainable, batch, frozen, collections, images, rng):
    """A shard's part of the batch's mean; `images` are the whole batch's."""
    mask = batch["mask"]
    variables = {
      "params": trees.merge(trainable, frozen),
      **collections,
      "batch": {"mask": mask},
    }
    outputs, updated = model.apply(
      variables,
      batch["image"],
      train=True,
      mutable=list(collections),
      rngs={"dropout": rng},
      method=model.classify if on_features else None,
    )
    loss = problem.loss(outputs, batch["label"])
    sums = problem.training_sums(outputs, batch["label"], mask)
    return (loss * mask).sum() / images, (sums, updated)

  def constrained(trainable):
    nested = trees.unflatten(trainable)
    if "method" not in nested:
      return trainable
    nested["method"] = model.method.constrain(nested["method"])
    return trees.flatten(nested)

  def step(state, frozen, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    augment_rng, dropout_rng = jax.random.split(rng)
    images = batch["mask"].sum()
    if not on_features:
      batch = {
        **batch,
        "image": preprocess.train_view(
          batch["image"], augment, augment_rng, min_scale
        ),
      }
    (loss, (sums, collections)), grads = shard_gradients.value_and_grad(
      loss_of, shards
    )(state.trainable, batch, frozen, state.collections, images, dropout_rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable = constrained(optax.apply_updates(state.trainable, updates))
    metrics = {
      "loss": loss,
      **sums,
      "images": images,
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(trainable),
    }
    return TrainState(
      state.step + 1,
      trainable,
      opt_state,
      {**state.collections, **collections},
      state.rng,
    ), metrics

  return step


def fit(
  config: ConfigDict,
  workdir: Path,
  state: TrainState,
  frozen: trees.Flat,
  train: pipeline.Feed,
  step_fn: Callable[..., Any],
  rate: optim.Rate,
  problem: Problem,
) -> tuple[TrainState, float | None]:
  """The epochs that are left, from the newest checkpoint on.

  Args:
    config: resolved.
    workdir: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
    state: at step 0.
    frozen: flat frozen tree.
    train: training images.
    step_fn: from `make_train_step`.
    rate: learning rate of a step.
    problem: of the sums that `step_fn` gives.

  Returns:
    (final state, training images per second without compilation; None if
    there was nothing left to time).

  Raises:
    Diverged: a loss is NaN or infinite; nothing is saved after it.
    hosts.Preempted: SIGTERM came; the step before is saved.
  """
  per_epoch, size = len(train), train.batch_size
  checkpoints = checkpoint.Checkpoints(
    workdir / "checkpoints", config.checkpoint.keep
  )
  names = (
    "loss",
    *problem.training_sum_names,
    "images",
    "grad_norm",
    "param_norm",
  )
  # Of the steps of an epoch that is not over yet.
  partial = {name: np.zeros(per_epoch, np.float32) for name in names}
  start = done = 0
  if checkpoints.latest is not None:
    state, partial = checkpoints.restore((state, partial))
    start, done = divmod(checkpoints.latest, per_epoch)
    logs.log.info(
      "goes on after epoch %d%s", start, f" and {done} steps" if done else ""
    )
  records = [{name: partial[name][i] for name in names} for i in range(done)]
  metrics = logs.Metrics(workdir, start * per_epoch)
  progress = logs.Progress(
    start, config.epochs, per_epoch, len(train.split), problem.training_score
  )

  def save(step: int) -> None:
    for i, record in enumerate(jax.device_get(records)):
      for name in names:
        partial[name][i] = record[name]
    checkpoints.save(step, (state, partial))

  try:
    with processes.PreemptionNotice().listening() as preempted:
      for epoch in range(start, config.epochs):
        lr, first = float(rate(epoch * per_epoch)), epoch * per_epoch
        n = len(train.split)
        order = pipeline.order(n, config.seed, epoch)
        place = pipeline.crop_positions(n, config.seed, epoch)[order]
        for batch in train.batches(order[done * size :], place[done * size :]):
          state, record = step_fn(state, frozen, batch)
          records.append(record)
          late = max(0, len(records) - LAG)
          if late or len(records) == 1:
            loss = float(records[late]["loss"])
            check_finite(loss, first + late, epoch, lr, workdir)
            progress.step(loss, lr)
          else:
            progress.step()
          if len(records) < per_epoch and preempted(first + len(records)):
            save(first + len(records))
            raise processes.Preempted
        values = summarise(problem, jax.device_get(records), epoch, lr, workdir)
        progress.epoch(epoch, values)
        metrics.write(values, images_per_second=progress.images_per_second)
        done, records = 0, []
        stop = preempted(first + per_epoch)
        if (
          stop
          or (epoch + 1) % config.checkpoint.every_epochs == 0
          or (epoch + 1 == config.epochs)
        ):
          save(first + per_epoch)
        if stop:  # after the last epoch too: what follows is not short
          raise processes.Preempted
  finally:
    progress.close()
    metrics.close()
    checkpoints.close()
  return state, progress.images_per_second or None


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
  records: list[dict[str, np.ndarray]],
  epoch: int,
  lr: float,
  workdir: Path,
) -> dict[str, float]:
  """Means over an epoch's steps, each image counted once.

  Raises:
    Diverged: a loss or a parameter of it is NaN or infinite.
  """
  first = epoch * len(records)
  for i, record in enumerate(records):
    # The norm tells of an update that the next loss would show, if any came.
    for what in ("loss", "param_norm"):
      check_finite(record[what], first + i, epoch, lr, workdir, what)
  column = lambda name: np.array([r[name] for r in records], np.float64)
  images = column("images")
  sums = {name: column(name).sum() for name in problem.training_sum_names}
  score = problem.score_training(sums, images.sum())
  return {
    "step": first + len(records),
    "epoch": epoch,
    "lr": lr,
    "loss": float((column("loss") * images).sum() / images.sum()),
    problem.training_score.name: float(score),
    "grad_norm": float(column("grad_norm").mean()),
  }
