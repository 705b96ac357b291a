"""Evaluation of a model on a split."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from vpt_jax import model as models
from vpt_jax.data.examples import Split
from vpt_jax.data.pipeline import Feed
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.problems import Problem
from vpt_jax.utils import trees

Apply = Callable[..., jax.Array]
Sums = dict[str, np.ndarray]
# (trainable, frozen, collections, batch) -> (sums, what it tells of each image)
Step = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


def make_apply(model: models.Model, preprocess: Preprocess) -> Apply:
  """`apply(variables, image uint8 [B, H, W, 3]) -> logits [B, K]`."""

  def apply(variables, image):
    return model.apply(variables, preprocess.prepare(image))

  return apply


def make_eval_step(
  apply: Apply, problem: Problem, mesh: Mesh | None = None
) -> Step:
  """`eval_step`, jitted; on a mesh every device gets all that it tells."""
  return jax.jit(
    eval_step(apply, problem), out_shardings=mesh and sharding.replicated(mesh)
  )


def eval_step(apply: Apply, problem: Problem) -> Step:
  """`step(trainable, frozen, collections, batch)` -> (sums over the batch,
  the problem's predictions of each image)."""

  def step(trainable, frozen, collections, batch):
    outputs = apply(
      {"params": trees.merge(trainable, frozen), **collections}, batch["image"]
    )
    label, mask = batch["label"], batch["mask"]
    loss = problem.loss(outputs, label)
    sums = {
      "loss": (loss * mask).sum(),
      **problem.evaluation_sums(outputs, label, mask),
    }
    return sums, problem.predict(outputs)

  return step


def evaluate(
  step: Step,
  trainable: trees.Flat,
  frozen: trees.Flat,
  collections: dict[str, Any],
  feed: Feed,
  problem: Problem,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Scores of the whole split, every image exactly once.

  Returns:
    (scores, predictions [N, ...]), see `scores`.

  Raises:
    ValueError: the loss is NaN or infinite.
  """
  total, predictions = collect(step, trainable, frozen, collections, feed)
  return scores(problem, total, predictions, feed.split.labels), predictions


def collect(
  step: Step,
  trainable: trees.Flat,
  frozen: trees.Flat,
  collections: dict[str, Any],
  feed: Feed,
  axis: int = 0,
) -> tuple[Sums, dict[str, np.ndarray]]:
  """Sums over the whole split, every image exactly once, and the predictions.

  Args:
    step, trainable, frozen, collections: see `eval_step`.
    feed: of the split.
    axis: of the images in what the step predicts; axes before it are those of
      many models.

  Returns:
    ({loss [...] and the problem's sums}, its predictions [..., N, ...]).
  """
  total, every = None, []
  for batch in feed.batches(np.arange(len(feed.split))):
    # Fetched at once, so that batches of a large split do not pile up.
    sums, each = jax.device_get(step(trainable, frozen, collections, batch))
    sums = jax.tree.map(np.float64, sums)
    every.append(each)
    total = sums if total is None else jax.tree.map(np.add, total, sums)
  n = len(feed.split)
  return total, {
    name: np.concatenate([each[name] for each in every], axis).take(
      np.arange(n), axis
    )
    for name in every[0]
  }


def scores(
  problem: Problem,
  total: Sums,
  predictions: Mapping[str, np.ndarray],
  labels: np.ndarray,
) -> dict[str, float]:
  """Scores of one model from its sums and predictions, see `collect`.

  Returns:
    The problem's scores, loss (mean over images), count (images).

  Raises:
    ValueError: the loss is NaN or infinite.
  """
  n = len(labels)
  if not np.isfinite(total["loss"]):
    raise ValueError(f"loss of the {n} test images is {total['loss'] / n}")
  return {
    **problem.measure(total, predictions, labels),
    "loss": float(total["loss"] / n),
    "count": n,
  }


def cache_features(
  model: models.Model, params: Any, feed: Feed, preprocess: Preprocess
) -> Split:
  """The split with its frozen features [N, D] in place of its images."""

  def extract(params, image):
    image = preprocess.prepare(image)
    return model.apply({"params": params}, image, method=model.features)

  extract = jax.jit(extract, out_shardings=sharding.replicated(feed.mesh))
  split = feed.split
  parts = [
    jax.device_get(extract(params, batch["image"]))
    for batch in feed.batches(np.arange(len(split)))
  ]
  features = np.concatenate(parts)[: len(split)]
  return dataclasses.replace(split, images=features)
