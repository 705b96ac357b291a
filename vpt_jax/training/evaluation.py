"""Evaluation of a model on a split."""

from collections.abc import Callable
import csv
import dataclasses
import io
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np
import optax

from vpt_jax import model as models
from vpt_jax.data.examples import Split
from vpt_jax.data.pipeline import Feed
from vpt_jax.data.transforms import views
from vpt_jax.distributed import sharding
from vpt_jax.utils import trees

Apply = Callable[..., jax.Array]
Sums = dict[str, np.ndarray]
# (trainable, frozen, collections, batch) -> (sums, what it tells of each image)
Step = Callable[..., tuple[dict[str, jax.Array], dict[str, jax.Array]]]


def make_apply(model: models.Model, normalize: str) -> Apply:
  """`apply(variables, image uint8 [B, H, W, 3]) -> logits [B, K]`."""
  size = model.method.input_size

  def apply(variables, image):
    return model.apply(variables, views.prepare(image, size, normalize))

  return apply


def make_eval_step(apply: Apply, mesh: Mesh | None = None) -> Step:
  """`eval_step`, jitted; on a mesh every device gets all that it tells."""
  return jax.jit(eval_step(apply), out_shardings=mesh and sharding.whole(mesh))


def eval_step(apply: Apply) -> Step:
  """`step(trainable, frozen, collections, batch)` -> (sums over the batch,
  prediction and confidence of each image)."""

  def step(trainable, frozen, collections, batch):
    logits = apply(
      {"params": trees.merge(trainable, frozen), **collections}, batch["image"]
    )
    label, mask = batch["label"], batch["mask"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    classes = jax.nn.one_hot(label, logits.shape[-1]) * mask[:, None]
    hit = logits.argmax(-1) == label
    each = {
      "prediction": logits.argmax(-1),
      "confidence": jax.nn.softmax(logits).max(-1),
    }
    return {
      "loss": (loss * mask).sum(),
      "count": classes.sum(0),
      "correct": (classes * hit[:, None]).sum(0),
    }, each

  return step


def evaluate(
  step: Step,
  trainable: trees.Flat,
  frozen: trees.Flat,
  collections: dict[str, Any],
  feed: Feed,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
  """Scores of the whole split, every image exactly once.

  Returns:
    (scores, predictions), see `scores`; prediction [N] and its probability,
    confidence [N].

  Raises:
    ValueError: the loss is NaN or infinite.
  """
  total, predictions = collect(step, trainable, frozen, collections, feed)
  return scores(total), predictions


def collect(
  step: Step,
  trainable: trees.Flat,
  frozen: trees.Flat,
  collections: dict[str, Any],
  feed: Feed,
) -> tuple[Sums, dict[str, np.ndarray]]:
  """Sums over the whole split, every image exactly once, and what a step
  tells of each image. Both may have leading axes [...] of many models.

  Returns:
    ({loss [...], count [..., K], correct [..., K]}, {prediction [..., N],
    confidence [..., N]}).
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
    name: np.concatenate([each[name] for each in every], axis=-1)[..., :n]
    for name in every[0]
  }


def scores(total: Sums) -> dict[str, float]:
  """Scores of one model from its sums, see `collect`.

  Returns:
    top1 and mean_per_class (mean over the classes that occur of their recall)
    in percent, loss (mean cross entropy), count (images).

  Raises:
    ValueError: the loss is NaN or infinite.
  """
  seen = total["count"] > 0
  recall = total["correct"][seen] / total["count"][seen]
  n = total["count"].sum()
  if not np.isfinite(total["loss"]):
    raise ValueError(f"loss of the {int(n)} test images is {total['loss'] / n}")
  return {
    "top1": float(100 * total["correct"].sum() / n),
    "mean_per_class": float(100 * recall.mean()),
    "loss": float(total["loss"] / n),
    "count": int(n),
  }


def predictions_csv(split: Split, predictions: dict[str, np.ndarray]) -> str:
  """Lines `path,label,prediction,confidence`, with a header.

  Images without a name are called by their index.
  """
  out = io.StringIO()
  write = csv.writer(out, lineterminator="\n").writerow
  write(("path", "label", "prediction", "confidence"))
  for i, (label, prediction, confidence) in enumerate(
    zip(split.labels, predictions["prediction"], predictions["confidence"])
  ):
    write(
      (
        split.names[i] if len(split.names) else i,
        label,
        prediction,
        f"{confidence:.6f}",
      )
    )
  return out.getvalue()


def cache_features(
  model: models.Model, params: Any, feed: Feed, normalize: str
) -> Split:
  """The split with its frozen features [N, D] in place of its images."""
  size = model.method.input_size

  def extract(params, image):
    image = views.prepare(image, size, normalize)
    return model.apply({"params": params}, image, method=model.features)

  extract = jax.jit(extract, out_shardings=sharding.whole(feed.mesh))
  split = feed.split
  parts = [
    jax.device_get(extract(params, batch["image"]))
    for batch in feed.batches(np.arange(len(split)))
  ]
  features = np.concatenate(parts)[: len(split)]
  return dataclasses.replace(split, images=features)
