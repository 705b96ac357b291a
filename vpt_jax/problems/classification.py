"""Defines classification: one class an image, softmax cross entropy."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from vpt_jax.problems.problem import Arrays, Problem, Score, Sums
from vpt_jax.utils import csv_texts


class Classification(Problem):
  """One class of K for an image.

    loss = -log softmax(logits)[label]

  Labels are integers [N] in 0 .. K - 1.
  """

  name = "classification"
  scores = (
    Score("top1", "top-1"),
    Score("mean_per_class", "mean per class"),
  )
  training_score = Score("train_top1", "training top-1")
  training_sum_names = ("hits",)

  def check_labels(self, labels: np.ndarray, origin: str) -> None:
    """Raises ValueError unless labels are integers [N] in 0 .. K - 1."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
      raise ValueError(
        f"{origin}: labels are {labels.dtype} {list(labels.shape)}; "
        "classification needs one integer an image"
      )
    outside = np.flatnonzero((labels < 0) | (labels >= self.num_classes))
    if len(outside):
      raise ValueError(
        f"{origin}: label {labels[outside[0]]} is out of range "
        f"0..{self.num_classes - 1} of the training images"
      )

  def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the softmax cross entropy of every image."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)

  def training_sums(
    self, outputs: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns `hits`: the images whose most probable class is the label."""
    hits = (outputs.argmax(-1) == labels) * mask
    return {"hits": hits.sum()}

  def score_training(self, sums: Sums, images: Any) -> Any:
    """Returns the share of hits in percent."""
    return 100 * sums["hits"] / images

  def evaluation_sums(
    self, outputs: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns of every class its images, `count`, and hits, `correct`: [K]."""
    classes = jax.nn.one_hot(labels, outputs.shape[-1]) * mask[:, None]
    hit = outputs.argmax(-1) == labels
    return {
      "count": classes.sum(0),
      "correct": (classes * hit[:, None]).sum(0),
    }

  def predict(self, outputs: jax.Array) -> dict[str, jax.Array]:
    """Returns the most probable class, `prediction`, and its `confidence`."""
    return {
      "prediction": outputs.argmax(-1),
      "confidence": self.probabilities(outputs).max(-1),
    }

  def probabilities(self, outputs: jax.Array) -> jax.Array:
    """Returns the softmax of the outputs."""
    return jax.nn.softmax(outputs)

  def measure(
    self, sums: Sums, predictions: Arrays, labels: np.ndarray
  ) -> dict[str, float]:
    """Returns top1 and mean_per_class in percent.

    The latter is the mean, over the classes that occur, of their recall.
    """
    occurs = sums["count"] > 0
    recall = sums["correct"][occurs] / sums["count"][occurs]
    top1 = sums["correct"].sum() / sums["count"].sum()
    return {
      "top1": float(100 * top1),
      "mean_per_class": float(100 * recall.mean()),
    }

  def label_text(self, label: Any, class_names: Sequence[str]) -> str:
    """Returns the name of the class."""
    return class_names[label]

  def write_predictions(
    self,
    names: list[str],
    labels: np.ndarray,
    predictions: Arrays,
    class_names: tuple[str, ...],
  ) -> str:
    """Returns lines `path,label,prediction,confidence`, with a header.

    Labels and predictions are names where they are known, else numbers.
    """
    titles = class_names or tuple(map(str, range(self.num_classes)))
    lines = [("path", "label", "prediction", "confidence")]
    for name, label, prediction, confidence in zip(
      names,
      labels,
      predictions["prediction"],
      predictions["confidence"],
      strict=True,
    ):
      classes = (titles[label], titles[prediction])
      lines.append((name, *classes, f"{confidence:.6f}"))
    return csv_texts.lines(lines)

  def record(self, labels: np.ndarray, predictions: Arrays) -> dict[str, Any]:
    """Returns `confusion`: [[label, prediction, images], ...], no zeros."""
    pairs = np.stack([labels, predictions["prediction"]], axis=1)
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    rows = np.concatenate([distinct, counts[:, None]], axis=1)
    return {"confusion": rows.tolist()}
