"""Defines `Problem`: what is learned, apart from backbone and method.

A problem says what labels look like, what the head reads, the loss of an
image, the sums from which scores are made, the score that a search maximises,
and how predictions are written. Nothing outside this room computes a cross
entropy, counts hits or knows that a label is one integer.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, cast, ClassVar

import jax
import numpy as np

Sums = Mapping[str, Any]
Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Score:
  """A number that a problem reports.

  Attributes:
    name: key in result.json and in records.
    title: what tables and figures call it.
    unit: printed after the number.
  """

  name: str
  title: str
  unit: str = "%"


@dataclasses.dataclass(frozen=True)
class Problem:
  """Base of all problems; one that is hashable, so it may be static in `jit`.

  Attributes:
    num_classes: K.
    name: of the problem, as `config.problem` has it.
    scores: all that it reports, the larger the better; searches maximise the
      first one unless the task's papers report another one.
    training_score: the running score of training, of each epoch.
    training_sum_names: the keys of `training_sums`.
    multi_label: labels are rows [K] of zeros and ones, not one integer.
    dense: labels are maps, a class for every pixel; heads read patches.
  """

  num_classes: int
  name: ClassVar[str]
  scores: ClassVar[tuple[Score, ...]]
  training_score: ClassVar[Score]
  training_sum_names: ClassVar[tuple[str, ...]]
  multi_label: ClassVar[bool] = False
  dense: ClassVar[bool] = False

  @classmethod
  def from_config(
    cls, config: Mapping[str, Any], num_classes: int
  ) -> "Problem":
    """Returns the problem with the options of a resolved config."""
    del config
    return cls(num_classes)

  def check_labels(self, labels: np.ndarray, origin: str) -> None:
    """Raises ValueError for labels that this problem cannot use.

    Args:
      labels: of N images, [N, ...].
      origin: where they are from, for the error.
    """
    raise NotImplementedError

  def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the loss of every image.

    Args:
      outputs: what the head gives, [B, ...].
      labels: [B, ...].

    Returns:
      [B], float32.
    """
    raise NotImplementedError

  def batch_loss(
    self, outputs: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Returns the loss of every image of a batch, see `loss`.

    Args:
      outputs: [B, ...].
      labels: [B, ...].
      mask: [B], 0 for copies that fill the last batch up, else 1; only a loss
        that is a mean over the batch has to know them.
    """
    del mask
    return self.loss(outputs, labels)

  def training_sums(
    self, outputs: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns scalars to be summed over steps, for `training_score`.

    Args:
      outputs: [B, ...].
      labels: [B, ...].
      mask: [B], 0 for copies that fill the last batch up, else 1.
    """
    raise NotImplementedError

  def score_training(self, sums: Sums, images: Any) -> Any:
    """Returns the `training_score` of an epoch from its `training_sums`.

    Args:
      sums: of all its steps; scalars, or [...] for many runs.
      images: how many there were, likewise.
    """
    raise NotImplementedError

  def evaluation_sums(
    self, outputs: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns what evaluation sums over all batches; see `training_sums`."""
    raise NotImplementedError

  def predict(self, outputs: jax.Array) -> dict[str, jax.Array]:
    """Returns what evaluation keeps of every image, arrays [B, ...]."""
    raise NotImplementedError

  def probabilities(self, outputs: jax.Array) -> jax.Array:
    """Returns what a predict function gives users: [B, K], float32."""
    raise NotImplementedError

  def top_class(self, outputs: jax.Array) -> jax.Array:
    """Returns the most probable class of every image, integers [B]."""
    return outputs.argmax(-1)

  def measure(
    self, sums: Sums, predictions: Arrays, labels: np.ndarray
  ) -> dict[str, float]:
    """Returns the `scores` of one model on a split.

    Args:
      sums: `evaluation_sums` of the whole split.
      predictions: of `predict`, [N, ...].
      labels: [N, ...].
    """
    raise NotImplementedError

  def measure_outputs(
    self, outputs: np.ndarray, labels: np.ndarray
  ) -> dict[str, float]:
    """Returns the `scores` of outputs that are all at hand.

    Args:
      outputs: what the head gives, [N, ...].
      labels: [N, ...].
    """
    # Functions of jax.numpy take arrays of NumPy as well.
    given = cast(jax.Array, outputs)
    every = cast(jax.Array, np.ones(len(labels), np.float32))
    sums = self.evaluation_sums(given, cast(jax.Array, labels), every)
    sums, predictions = jax.device_get((sums, self.predict(given)))
    return self.measure(sums, predictions, labels)

  def label_text(self, label: Any, class_names: Sequence[str]) -> str:
    """Returns the label of one image in words, for figures.

    Args:
      label: [...], one entry of the labels [N, ...].
      class_names: K.
    """
    raise NotImplementedError

  def write_predictions(
    self,
    names: list[str],
    labels: np.ndarray,
    predictions: Arrays,
    class_names: tuple[str, ...],
  ) -> str:
    """Returns the text of predictions.csv, a line for every image.

    Args:
      names: of the images.
      labels: [N, ...].
      predictions: of `predict`, [N, ...].
      class_names: K, or () if not known.
    """
    raise NotImplementedError

  def record(self, labels: np.ndarray, predictions: Arrays) -> dict[str, Any]:
    """Returns what a run's record keeps beside its scores, as JSON values."""
    raise NotImplementedError
