"""Defines semantic segmentation: one class for every pixel."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vpt_jax.distributed import shard_gradients
from vpt_jax.ops.switch import Ops
from vpt_jax.problems.problem import Arrays, Problem, Score, Sums
from vpt_jax.utils import csv_texts, lookup

# The logits [B, H, W, K]; or these, then those of auxiliary heads.
Outputs = jax.Array | Sequence[jax.Array]

AVERAGES = ("all", "labelled")
_DEFAULT_OPS = Ops()
_MAX_PIXELS = 2**31  # of a batch, which are counted in int32


@dataclasses.dataclass(frozen=True)
class Segmentation(Problem):
  """One class of K for every pixel; some pixels have none, and do not count.

    loss = CE(main) + auxiliary_weight sum_i CE(auxiliary_i)

  where CE is the mean softmax cross entropy over pixels. Logits are resized to
  the labels, never labels to logits. Labels are integers [N, H, W], 0 .. K - 1
  or `ignore`.

  Attributes:
    ignore: the label of pixels without a class.
    auxiliary_weight: of every auxiliary head's loss.
    average: `all`: the mean is over all pixels, of which those without a class
      add 0 (the default of mmsegmentation, and what SETR's configs use);
      `labelled`: over those of the batch that have a class.
    align_corners: how logits are resized, see `ops/bilinear.py`.
    ops: form of the operations.
  """

  ignore: int = 255
  auxiliary_weight: float = 0.4
  average: str = "all"
  align_corners: bool = False
  ops: Ops = _DEFAULT_OPS

  name = "segmentation"
  scores = (
    Score("miou", "mIoU"),
    Score("macc", "mean accuracy"),
    Score("aacc", "pixel accuracy"),
  )
  training_score = Score("train_aacc", "training pixel accuracy")
  training_sum_names = ("hits", "labelled")
  dense = True

  def __post_init__(self):
    """Checks the options.

    Raises:
      ValueError: unknown average, or a class is ignored.
    """
    lookup.choose(self.average, AVERAGES, "average of the segmentation loss")
    if 0 <= self.ignore < self.num_classes:
      raise ValueError(
        f"the label {self.ignore} is to be ignored, and it is one of the "
        f"{self.num_classes} classes 0..{self.num_classes - 1}; choose another "
        "number for pixels without a class"
      )

  @classmethod
  def from_config(
    cls, config: Mapping[str, Any], num_classes: int
  ) -> "Segmentation":
    """Returns the problem with the options of the section `segmentation`."""
    section = config["segmentation"]
    return cls(
      num_classes,
      auxiliary_weight=section["auxiliary_weight"],
      average=section["average"],
      align_corners=section["align_corners"],
    )

  def check_labels(self, labels: np.ndarray, origin: str) -> None:
    """Raises ValueError unless labels are [N, H, W], 0 .. K - 1 or `ignore`."""
    if labels.ndim != 3 or labels.dtype.kind not in "iu":
      raise ValueError(
        f"{origin}: labels are {labels.dtype} {list(labels.shape)}; "
        "segmentation needs one integer a pixel, [N, H, W]"
      )
    is_labelled = labels != self.ignore
    is_outside = (labels < 0) | (labels >= self.num_classes)
    wrong = np.argwhere(is_outside & is_labelled)
    if len(wrong):
      image, row, column = wrong[0].tolist()
      raise ValueError(
        f"{origin}: label {labels[image, row, column]} of image {image} at row "
        f"{row}, column {column} is out of range 0..{self.num_classes - 1}; "
        f"pixels without a class have {self.ignore}"
      )
    if not is_labelled.any():
      raise ValueError(
        f"{origin}: every pixel is {self.ignore}, so that nothing can be "
        f"learned or scored; expected some of 0..{self.num_classes - 1}"
      )

  def resized(self, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns logits [B, H, W, K] for a map of this size."""
    return self.ops.bilinear(logits, size, self.align_corners)

  def loss(
    self,
    outputs: Outputs,
    labels: jax.Array,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the loss of every image, whose mean is that of the batch.

    Args:
      outputs: main logits [B, H, W, K], or a sequence of these and those of the
        auxiliary heads.
      labels: [B, H', W'].
      mask: [B], 0 for copies that fill the last batch up; None: there are none.
        The average `labelled` needs it, as it is not of each image alone.
    """
    main, *auxiliary = _each(outputs)
    total = self._cross_entropy(main, labels, mask)
    for logits in auxiliary:
      of_head = self._cross_entropy(logits, labels, mask)
      total += self.auxiliary_weight * of_head
    return total

  def batch_loss(
    self, outputs: Outputs, labels: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Returns the loss of every image of a batch."""
    return self.loss(outputs, labels, mask)

  def _cross_entropy(
    self, logits: jax.Array, labels: jax.Array, mask: jax.Array | None
  ) -> jax.Array:
    """Returns the mean over an image's pixels, [B]; see `average`."""
    logits = self.resized(logits, _size_of(labels))
    is_labelled = labels != self.ignore
    known = jnp.where(is_labelled, labels, 0).astype(jnp.int32)
    of_pixels = optax.softmax_cross_entropy_with_integer_labels(logits, known)
    of_pixels = jnp.where(is_labelled, of_pixels, 0.0)
    if self.average == "all":
      return of_pixels.mean((1, 2))
    if mask is None:
      mask = jnp.ones(len(labels))
    labelled = is_labelled.sum((1, 2)) * mask
    pixels = shard_gradients.sum_over_shards(labelled.sum())
    images = shard_gradients.sum_over_shards(mask.sum())
    return of_pixels.sum((1, 2)) * images / jnp.maximum(pixels, 1.0)

  def training_sums(
    self, outputs: Outputs, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns `hits`, pixels whose class is right, of `labelled` ones."""
    prediction = self._prediction(outputs, labels)
    counts = self._counts(prediction, labels, mask)
    return {name: counts[name].sum() for name in self.training_sum_names}

  def score_training(self, sums: Sums, images: Any) -> Any:
    """Returns the share of pixels that are right, in percent."""
    del images
    labelled = sums["labelled"]
    # Where no pixel has a class, none is right.
    return 100 * sums["hits"] / (labelled + (labelled == 0))

  def evaluation_sums(
    self, outputs: Outputs, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns the pixels of each class, exact integers [K].

    They are `intersect`, where prediction and label agree, `predicted` and
    `label`, all of them where a pixel has a class. Sums of a batch are int32;
    those over batches are to be float64 or int64 (`training/evaluation.py`).

    Raises:
      ValueError: a batch has too many pixels for int32.
    """
    return self.pixel_sums(self._prediction(outputs, labels), labels, mask)

  def pixel_sums(
    self, prediction: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns `evaluation_sums` of label maps [B, H, W] that are at hand."""
    if labels.size >= _MAX_PIXELS:
      raise ValueError(
        f"a batch of label maps {list(labels.shape)} has {labels.size} pixels; "
        f"expected fewer than {_MAX_PIXELS}, use a smaller batch"
      )
    counts = self._counts(prediction, labels, mask)
    return {
      "intersect": self._histogram(labels, counts["hits"]),
      "predicted": self._histogram(prediction, counts["labelled"]),
      "label": self._histogram(labels, counts["labelled"]),
    }

  def _prediction(self, outputs: Outputs, labels: jax.Array) -> jax.Array:
    """Returns label maps of the labels' size."""
    return self.predict(outputs, _size_of(labels))["prediction"]

  def _counts(
    self, prediction: jax.Array, labels: jax.Array, mask: jax.Array
  ) -> dict[str, jax.Array]:
    """Returns maps, 1 where a pixel has a class and where it is right."""
    is_real = (mask > 0)[:, None, None]
    is_labelled = (labels != self.ignore) & is_real
    hits = (prediction == labels) & is_labelled
    return {
      "hits": hits.astype(jnp.int32),
      "labelled": is_labelled.astype(jnp.int32),
    }

  def _histogram(self, classes: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns how many pixels of each class there are, int32 [K].

    Args:
      classes: [B, H, W].
      counts: likewise, 0 for pixels that are left out, else 1.
    """
    zeros = jnp.zeros(self.num_classes, jnp.int32)
    # Ignored labels are no class; their pixels have no count.
    return zeros.at[classes.reshape(-1)].add(counts.reshape(-1), mode="drop")

  def predict(
    self, outputs: Outputs, size: tuple[int, int] | None = None
  ) -> dict[str, jax.Array]:
    """Returns `prediction`, the most probable class of each pixel, int32.

    Args:
      outputs: see `loss`.
      size: (H, W) of the label maps; None: that of the logits.
    """
    logits = _each(outputs)[0]
    if size is not None:
      logits = self.resized(logits, size)
    return {"prediction": self.ops.argmax(logits)}

  def probabilities(self, outputs: Outputs) -> jax.Array:
    """Returns the softmax of the main logits, [B, H, W, K]."""
    return jax.nn.softmax(_each(outputs)[0])

  def top_class(self, outputs: Outputs) -> jax.Array:
    """Returns the most probable class of each pixel, [B, H, W]."""
    return self.predict(outputs)["prediction"]

  def measure(
    self, sums: Sums, predictions: Arrays, labels: np.ndarray
  ) -> dict[str, float]:
    """Returns miou, macc and aacc in percent, see `of_classes`."""
    del predictions, labels
    return measured(sums)

  def measure_outputs(
    self, outputs: Any, labels: np.ndarray
  ) -> dict[str, float]:
    """Returns the `scores` of outputs that are all at hand."""
    given = jax.tree.map(jnp.asarray, outputs)
    every = jnp.ones(len(labels))
    sums = self.evaluation_sums(given, jnp.asarray(labels), every)
    return measured(jax.device_get(sums))

  def label_text(self, label: Any, class_names: Sequence[str]) -> str:
    """Returns the names of the classes of a label map, most pixels first."""
    classes, pixels = np.unique(np.asarray(label), return_counts=True)
    order = np.argsort(-pixels, kind="stable")
    names = []
    for k in classes[order].tolist():
      if k != self.ignore:
        names.append(class_names[k])
    return ", ".join(names) or "no class"

  def write_predictions(
    self,
    names: list[str],
    labels: np.ndarray,
    predictions: Arrays,
    class_names: tuple[str, ...],
  ) -> str:
    """Returns lines `path,labelled,accuracy,miou`, with a header.

    `labelled` are the image's pixels that have a class; the scores are of this
    image alone, empty if it has no such pixel.
    """
    del class_names
    sums = []
    for label, prediction in zip(
      labels, predictions["prediction"], strict=True
    ):
      sums.append(self._sums_of_maps(label, prediction))
    return table(names, sums)

  def record(self, labels: np.ndarray, predictions: Arrays) -> dict[str, Any]:
    """Returns `class_iou` and `class_accuracy` [K], see `kept_of`."""
    return kept_of(self._sums_of_maps(labels, predictions["prediction"]))

  def _sums_of_maps(
    self, labels: np.ndarray, prediction: np.ndarray
  ) -> dict[str, np.ndarray]:
    """Returns `evaluation_sums` of label maps of equal shape, int64 [K].

    Raises:
      ValueError: the maps have other sizes.
    """
    if labels.shape != prediction.shape:
      raise ValueError(
        f"predicted label maps are {list(prediction.shape)}, labels "
        f"{list(labels.shape)}; expected equal sizes: predict with the labels' "
        "size"
      )
    is_labelled = labels != self.ignore
    label = labels[is_labelled]
    predicted = prediction[is_labelled]
    right = label[label == predicted]
    size = self.num_classes
    return {
      "intersect": np.bincount(right, minlength=size),
      "predicted": np.bincount(predicted, minlength=size),
      "label": np.bincount(label, minlength=size),
    }


def of_classes(sums: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns `iou` and `accuracy` of each class in percent, float64 [K].

    IoU = intersect / (predicted + label - intersect)
    accuracy = intersect / label

  A class without such pixels has NaN: it is left out of means.

  Args:
    sums: `evaluation_sums` of a whole split.
  """
  intersect = np.asarray(sums["intersect"], np.float64)
  label = np.asarray(sums["label"], np.float64)
  union = np.asarray(sums["predicted"], np.float64) + label - intersect
  return {
    "iou": _percent(intersect, union),
    "accuracy": _percent(intersect, label),
  }


def measured(sums: Mapping[str, Any]) -> dict[str, float]:
  """Returns miou, macc and aacc in percent.

  The first two are means over the classes that occur, see `of_classes`; the
  last is the share of all pixels with a class that are right.

  Args:
    sums: `evaluation_sums` of a whole split.

  Raises:
    ValueError: no pixel has a class.
  """
  labelled = np.asarray(sums["label"], np.float64).sum()
  if not labelled:
    raise ValueError(
      "no pixel of the images that are evaluated has a class, so that there is "
      "nothing to score; expected labels other than the ignored one"
    )
  found = of_classes(sums)
  right = np.asarray(sums["intersect"], np.float64).sum()
  return {
    "miou": float(np.nanmean(found["iou"])),
    "macc": float(np.nanmean(found["accuracy"])),
    "aacc": float(100 * right / labelled),
  }


def kept_of(sums: Mapping[str, Any]) -> dict[str, list[float | None]]:
  """Returns `class_iou` and `class_accuracy` [K] in percent, for records.

  A value is None where the class is in neither labels nor predictions, or not
  in the labels.

  Args:
    sums: `evaluation_sums` of a whole split.
  """
  found = of_classes(sums)
  return {
    "class_iou": _without_nan(found["iou"]),
    "class_accuracy": _without_nan(found["accuracy"]),
  }


def table(names: Sequence[str], sums: Sequence[Mapping[str, Any]]) -> str:
  """Returns lines `path,labelled,accuracy,miou`, with a header.

  See `Segmentation.write_predictions`.

  Args:
    names: of the images.
    sums: `evaluation_sums` of each.
  """
  lines = [("path", "labelled", "accuracy", "miou")]
  for name, of_image in zip(names, sums, strict=True):
    labelled = int(of_image["label"].sum())
    accuracy = ""
    miou = ""
    if labelled:
      scores = measured(of_image)
      accuracy = f"{scores['aacc']:.4f}"
      miou = f"{scores['miou']:.4f}"
    lines.append((name, str(labelled), accuracy, miou))
  return csv_texts.lines(lines)


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """Returns 100 part / whole, NaN where the whole is 0."""
  share = np.full(part.shape, np.nan)
  np.divide(100 * part, whole, out=share, where=whole > 0)
  return share


def _without_nan(values: np.ndarray) -> list[float | None]:
  """Returns numbers as JSON has them, None for NaN."""
  return [None if np.isnan(value) else float(value) for value in values]


def _each(outputs: Outputs) -> Sequence[jax.Array]:
  """Returns the main logits and those of auxiliary heads."""
  if isinstance(outputs, (tuple, list)):
    return outputs
  return (cast(jax.Array, outputs),)


def _size_of(labels: jax.Array) -> tuple[int, int]:
  """Returns (H, W) of label maps [B, H, W]."""
  _, rows, columns = labels.shape
  return rows, columns
