"""Evaluates a model on a split."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.data.examples import Split
from vpt_jax.data.pipeline import Feed
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.problems import Problem
from vpt_jax.utils import trees

# (variables, images or features of a batch) -> outputs of the head
Apply = Callable[..., jax.Array]
# The loss and what the problem sums over images: arrays [...].
Sums = Mapping[str, np.ndarray]
# What the problem predicts of images: arrays [N, ...].
Predictions = Mapping[str, np.ndarray]
# (trainable, frozen, collections, batch) -> (sums, predictions)
Step = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What a model reached on a split.

  Attributes:
    scores: {name: value} of the problem, and `loss` (mean over images) and
      `count` (images).
    kept: what a record keeps beside these, see `Problem.record`.
    table: text of predictions.csv, a line for each image.
    told: what result.json has beside the scores.
  """

  scores: Mapping[str, float]
  kept: Mapping[str, Any]
  table: str
  told: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def evaluated(
  problem: Problem,
  sums: Sums,
  predictions: Predictions,
  split: Split,
  class_names: tuple[str, ...] = (),
) -> Evaluated:
  """Returns what a model reached, from its sums and predictions.

  Args:
    problem: that they are of.
    sums: see `collect`.
    predictions: see there.
    split: that they are of.
    class_names: K; (): the split's own.

  Raises:
    ValueError: the loss is NaN or infinite.
  """
  # Images without a name are called by their index.
  names = list(split.names) or [str(i) for i in range(len(split))]
  return Evaluated(
    scores=scores(problem, sums, predictions, split.labels),
    kept=problem.record(split.labels, predictions),
    table=problem.write_predictions(
      names, split.labels, predictions, class_names or split.class_names
    ),
  )


def make_apply(model: model_lib.Model, preprocess: Preprocess) -> Apply:
  """Returns `apply(variables, image uint8 [B, H, W, 3]) -> outputs [B, ...]`.

  Args:
    model: backbone, method and head.
    preprocess: what happens to an image before the model sees it.
  """

  def apply(variables, image):
    return model.apply(variables, preprocess.prepare(image))

  return apply


def make_eval_step(
  apply: Apply, problem: Problem, mesh: Mesh | None = None
) -> Step:
  """Returns `eval_step`, jitted; on a mesh every device gets all results."""
  shardings = None if mesh is None else sharding.replicated(mesh)
  return jax.jit(eval_step(apply, problem), out_shardings=shardings)


def eval_step(apply: Apply, problem: Problem) -> Step:
  """Returns `step(trainable, frozen, collections, batch)`.

  It gives (sums over the batch: the loss and those of the problem, the
  problem's predictions of each image).
  """

  def step(trainable, frozen, collections, batch):
    variables = {"params": trees.merge(trainable, frozen), **collections}
    outputs = apply(variables, batch["image"])
    label = batch["label"]
    mask = batch["mask"]
    loss = problem.batch_loss(outputs, label, mask)
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
  collections: Mapping[str, Any],
  feed: Feed,
  problem: Problem,
) -> tuple[dict[str, float], Predictions]:
  """Scores a model on a whole split, every image exactly once.

  Args:
    step: from `make_eval_step`.
    trainable: flat tree.
    frozen: flat tree.
    collections: the model's mutable variables.
    feed: of the split.
    problem: that the step is of.

  Returns:
    (scores, predictions), see `scores`.

  Raises:
    ValueError: the loss is NaN or infinite.
  """
  sums, predictions = collect(step, trainable, frozen, collections, feed)
  return scores(problem, sums, predictions, feed.split.labels), predictions


def collect(
  step: Step,
  trainable: trees.Flat,
  frozen: trees.Flat,
  collections: Mapping[str, Any],
  feed: Feed,
  axis: int = 0,
) -> tuple[Sums, Predictions]:
  """Sums over a whole split, and predicts it; every image exactly once.

  Args:
    step: see `eval_step`.
    trainable: see there.
    frozen: see there.
    collections: see there.
    feed: of the split.
    axis: of the images in what the step predicts; axes before it are those of
      many models, which the sums have too.

  Returns:
    (the step's sums, float64; its predictions [..., N, ...]).
  """
  total: Sums = {}
  parts: dict[str, list[np.ndarray]] = {}
  for batch in feed.batches(np.arange(len(feed.split))):
    # Fetched at once, so that batches of a large split do not pile up.
    sums, predicted = jax.device_get(
      step(trainable, frozen, collections, batch)
    )
    sums = {name: np.float64(value) for name, value in sums.items()}
    if total:
      sums = {name: total[name] + value for name, value in sums.items()}
    total = sums
    for name, values in predicted.items():
      parts.setdefault(name, []).append(values)
  images = np.arange(len(feed.split))  # without the last batch's filling
  predictions = {
    name: np.concatenate(values, axis).take(images, axis)
    for name, values in parts.items()
  }
  return total, predictions


def scores(
  problem: Problem, sums: Sums, predictions: Predictions, labels: np.ndarray
) -> dict[str, float]:
  """Returns the scores of one model from its sums and predictions.

  Args:
    problem: that they are of.
    sums: see `collect`.
    predictions: see there.
    labels: of the split, [N, ...].

  Returns:
    The problem's scores, loss (mean over images), count (images).

  Raises:
    ValueError: the loss is NaN or infinite.
  """
  count = len(labels)
  loss = float(sums["loss"] / count)
  if not np.isfinite(loss):
    raise ValueError(f"loss of the {count} test images is {loss}")
  measured = problem.measure(sums, predictions, labels)
  return {**measured, "loss": loss, "count": count}


def cache_features(
  model: model_lib.Model, params: Any, feed: Feed, preprocess: Preprocess
) -> Split:
  """Returns the split with its features [N, D] in place of its images.

  Args:
    model: backbone, method and head.
    params: nested parameters.
    feed: of the split's images.
    preprocess: what happens to an image before the model sees it.
  """

  def extract(params, image):
    image = preprocess.prepare(image)
    return model.apply({"params": params}, image, method=model.features)

  extract = jax.jit(extract, out_shardings=sharding.replicated(feed.mesh))
  split = feed.split
  parts = []
  for batch in feed.batches(np.arange(len(split))):
    parts.append(jax.device_get(extract(params, batch["image"])))
  features = np.concatenate(parts)[: len(split)]
  return dataclasses.replace(split, images=features)
