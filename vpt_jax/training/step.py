"""Defines the training step: the state, gradients and the update."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import optax

from vpt_jax import model as model_lib
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import shard_gradients
from vpt_jax.problems import Problem
from vpt_jax.utils import trees

Metrics = dict[str, jax.Array]
# (state, frozen, batch) -> (state, metrics)
Step = Callable[..., tuple["TrainState", Metrics]]


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


def metric_names(problem: Problem) -> tuple[str, ...]:
  """Returns the names of the metrics of a step, scalars."""
  sums = problem.training_sum_names
  return ("loss", *sums, "images", "grad_norm", "param_norm")


def make_train_step(
  model: model_lib.Model, optimizer: optax.GradientTransformation, **options
) -> Step:
  """Returns `train_step`, jitted; the state is donated.

  Args:
    model: see `train_step`.
    optimizer: see there.
    **options: see there.
  """
  return jax.jit(train_step(model, optimizer, **options), donate_argnums=0)


def train_step(
  model: model_lib.Model,
  optimizer: optax.GradientTransformation,
  *,
  problem: Problem,
  preprocess: Preprocess,
  augment: str,
  min_scale: float = 1.0,
  on_features: bool = False,
  shards: int = 1,
) -> Step:
  """Returns `step(state, frozen, batch) -> (state, metrics)`.

  Gradients are taken with respect to `state.trainable` alone. The metrics are
  those of `metric_names`: the mean loss, the problem's sums and the number of
  images of the batch, and norms of all gradients and trainable parameters.

  Args:
    model: backbone, method and head.
    optimizer: over the flat trainable tree.
    problem: gives the loss and the sums of `training_score`.
    preprocess: what happens to an image before the model sees it.
    augment: see `Preprocess.train_view`.
    min_scale: see there.
    on_features: batches hold cached features [B, D] instead of images.
    shards: that batches are in; see `shard_gradients.value_and_grad`.
  """

  def loss_of_shard(trainable, batch, frozen, collections, num_images, rng):
    """Returns a shard's part of the batch's mean loss.

    `num_images` are the whole batch's.
    """
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
    loss = problem.batch_loss(outputs, batch["label"], mask)
    sums = problem.training_sums(outputs, batch["label"], mask)
    return (loss * mask).sum() / num_images, (sums, updated)

  loss_and_gradients = shard_gradients.value_and_grad(loss_of_shard, shards)

  def step(state, frozen, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    augment_rng, dropout_rng = jax.random.split(rng)
    num_images = batch["mask"].sum()
    if "size" in batch:  # views that were made, and padded, on the host
      image = preprocess.normalize_padded(batch["image"], batch["size"])
      batch = {**batch, "image": image}
    elif not on_features:
      image = preprocess.train_view(
        batch["image"], augment, augment_rng, min_scale
      )
      batch = {**batch, "image": image}
    (loss, (sums, collections)), gradients = loss_and_gradients(
      state.trainable, batch, frozen, state.collections, num_images, dropout_rng
    )
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    trainable = _constrained(model, trainable)
    metrics = {
      "loss": loss,
      **sums,
      "images": num_images,
      "grad_norm": optax.tree.norm(gradients),
      "param_norm": optax.tree.norm(trainable),
    }
    new_state = TrainState(
      step=state.step + 1,
      trainable=trainable,
      opt_state=opt_state,
      collections={**state.collections, **collections},
      rng=state.rng,
    )
    return new_state, metrics

  return step


def _constrained(model: model_lib.Model, trainable: trees.Flat) -> trees.Flat:
  """Returns parameters after the method's projection."""
  nested = trees.unflatten(trainable)
  if "method" not in nested:
    return trainable
  nested["method"] = model.method.constrain(nested["method"])
  return trees.flatten(nested)
