"""Defines multi-label classification: any number of classes an image."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from vpt_jax.problems.problem import Arrays, Problem, Score, Sums
from vpt_jax.utils import csv_texts

SEPARATOR = "|"  # between the labels of an image
THRESHOLD = 0.5  # a class is predicted above this probability


class MultiLabel(Problem):
  """Any number of K classes for an image, each by its own sigmoid.

    loss = -1/K sum_k (y_k log p_k + (1 - y_k) log(1 - p_k)),
    p = sigmoid(logits)

  Labels are y [N, K], zeros and ones.
  """

  name = "multi_label"
  scores = (
    Score("mean_average_precision", "mean average precision"),
    Score("label_accuracy", "label accuracy"),
  )
  training_score = Score("train_label_accuracy", "training label accuracy")
  training_sum_names = ("right",)
  multi_label = True

  def check_labels(self, labels: np.ndarray, origin: str) -> None:
    """Raises ValueError unless labels are zeros and ones [N, K]."""
    wanted = f"zeros and ones [N, {self.num_classes}], integers"
    if labels.ndim != 2 or labels.dtype.kind not in "biu":
      raise ValueError(
        f"{origin}: labels are {labels.dtype} {list(labels.shape)}; "
        f"multi-label classification needs {wanted}"
      )
    if labels.shape[1] != self.num_classes:
      raise ValueError(
        f"{origin}: labels are of {labels.shape[1]} classes, those of the "
        f"training images of {self.num_classes}"
      )
    if not np.isin(labels, (0, 1)).all():
      raise ValueError(
        f"{origin}: labels are from {labels.min()} to {labels.max()}; "
        f"multi-label classification needs {wanted}"
      )
    if not labels.any():
      raise ValueError(
        f"{origin}: no image has any class, so that nothing can be scored"
      )

  def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean over the classes of the sigmoid cross entropy."""
    of_classes = optax.sigmoid_binary_cross_entropy(
      outputs, labels.astype(outputs.dtype)
    )
    return of_classes.mean(-1)

  def training_sums(
    self, outputs: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns `right`: the sum over images of their share of right labels."""
    is_right = (self.probabilities(outputs) > THRESHOLD) == (labels > 0)
    return {"right": (is_right.mean(-1) * mask).sum()}

  def score_training(self, sums: Sums, images: Any) -> Any:
    """Returns the share of labels that are right, in percent."""
    return 100 * sums["right"] / images

  def evaluation_sums(
    self, outputs: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns the sums of `training_sums`."""
    return self.training_sums(outputs, labels, mask)

  def predict(self, outputs: jax.Array) -> dict[str, jax.Array]:
    """Returns `logits`: high probabilities would be rounded to equal ones."""
    return {"logits": outputs}

  def probabilities(self, outputs: jax.Array) -> jax.Array:
    """Returns the probability of each class, which do not add up to 1."""
    return jax.nn.sigmoid(outputs)

  def measure(
    self, sums: Sums, predictions: Arrays, labels: np.ndarray
  ) -> dict[str, float]:
    """Returns mean_average_precision and label_accuracy in percent.

    The former is the mean, over the classes that occur, of the average
    precision as scikit-learn defines it.
    """
    of_classes = average_precisions(labels, predictions["logits"])
    return {
      "mean_average_precision": float(np.nanmean(of_classes)),
      "label_accuracy": float(100 * sums["right"] / len(labels)),
    }

  def label_text(self, label: Any, class_names: Sequence[str]) -> str:
    """Returns the names of the image's classes."""
    return _names(label, class_names) or "no class"

  def write_predictions(
    self,
    names: list[str],
    labels: np.ndarray,
    predictions: Arrays,
    class_names: tuple[str, ...],
  ) -> str:
    """Returns lines `path,labels,predictions`, then a column per class.

    Labels are as `a|b`, names where they are known, else numbers. A class's
    column has its probability.
    """
    titles = class_names or tuple(map(str, range(self.num_classes)))
    probabilities = np.asarray(self.probabilities(predictions["logits"]))
    lines = [("path", "labels", "predictions", *titles)]
    for name, label, probability in zip(
      names, labels, probabilities, strict=True
    ):
      predicted = _names(probability > THRESHOLD, titles)
      numbers = [f"{value:.6g}" for value in probability]
      lines.append((name, _names(label, titles), predicted, *numbers))
    return csv_texts.lines(lines)

  def record(self, labels: np.ndarray, predictions: Arrays) -> dict[str, Any]:
    """Returns `average_precision` [K] in percent, null where no image is."""
    of_classes = average_precisions(labels, predictions["logits"])
    values = [None if np.isnan(value) else value for value in of_classes]
    return {"average_precision": values}


def average_precisions(labels: np.ndarray, ranking: np.ndarray) -> list[float]:
  """Returns the average precision of each class in percent.

    AP = sum_n (R_n - R_{n-1}) P_n

  with precision P_n and recall R_n of the n images that rank highest.

  Args:
    labels: zeros and ones [N, K].
    ranking: [N, K], the higher the more probable.

  Returns:
    K numbers, NaN for a class without images.
  """
  from sklearn.metrics import average_precision_score  # slow to import

  found = []
  for label, rank in zip(labels.T, ranking.T, strict=True):
    value = average_precision_score(label, rank) if label.any() else np.nan
    found.append(float(100 * value))
  return found


def _names(chosen: np.ndarray, names: Sequence[str]) -> str:
  """Returns the names of the classes k with chosen[k], as `a|b`."""
  return SEPARATOR.join(str(names[k]) for k in np.flatnonzero(chosen).tolist())
