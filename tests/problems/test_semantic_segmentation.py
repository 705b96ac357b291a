"""Segmentation: losses and scores against plain loops over pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax.distributed import shard_gradients
from vpt_jax.problems import semantic_segmentation
from vpt_jax.problems.semantic_segmentation import Segmentation

CLASSES = 4
IGNORE = 255
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 2, 3, CLASSES)).astype(np.float32)
AUXILIARY = RNG.normal(size=(3, 4, 3, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, (3, 4, 6))
LABELS[0, :2] = IGNORE
LABELS[1, 1, 3:] = IGNORE
PROBLEM = Segmentation(CLASSES)
EVERY = jnp.ones(3)


def pixel_losses(logits):
  """Cross entropies [3, 4, 6] by numpy, of logits of the labels' size."""
  shifted = logits - logits.max(-1, keepdims=True)
  log = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
  known = np.where(LABELS == IGNORE, 0, LABELS)
  found = -np.take_along_axis(log, known[..., None], -1)[..., 0]
  return np.where(LABELS == IGNORE, 0, found)


def resized(logits):
  return np.asarray(PROBLEM.resized(jnp.asarray(logits), (4, 6)))


def test_the_mean_is_over_all_pixels():
  """Ignored ones add nothing and count, as published."""
  want = pixel_losses(resized(LOGITS)).mean((1, 2))
  found = PROBLEM.loss(jnp.asarray(LOGITS), jnp.asarray(LABELS))
  np.testing.assert_allclose(found, want, rtol=1e-5)


def test_the_gradient_keeps_few_maps_of_the_labels_size():
  """Of a large number of classes; a one-hot and its products would be more."""
  problem = Segmentation(150)
  logits = jax.ShapeDtypeStruct((2, 16, 16, 150), jnp.float32)
  labels = jax.ShapeDtypeStruct((2, 64, 64), jnp.int32)

  def loss(logits, labels):
    return problem.loss(logits, labels).mean()

  program = jax.jit(jax.grad(loss)).lower(logits, labels).compile()
  largest = 4 * 150 * 2 * 64 * 64  # bytes of the resized logits
  assert program.memory_analysis().temp_size_in_bytes < 3.2 * largest


def test_auxiliary_heads_weigh_two_fifths():
  main = pixel_losses(resized(LOGITS)).mean((1, 2))
  auxiliary = pixel_losses(resized(AUXILIARY)).mean((1, 2))
  outputs = (jnp.asarray(LOGITS), jnp.asarray(AUXILIARY))
  found = PROBLEM.loss(outputs, jnp.asarray(LABELS))
  np.testing.assert_allclose(found, main + 0.4 * auxiliary, rtol=1e-5)


@pytest.mark.parametrize("mask", [[1, 1, 1], [1, 1, 0]])
def test_the_other_mean_is_over_labelled_pixels_of_the_batch(mask):
  """Copies that fill the batch up do not count."""
  problem = dataclasses.replace(PROBLEM, average="labelled")
  real = np.array(mask)
  losses = pixel_losses(resized(LOGITS)).sum((1, 2))
  labelled = (LABELS != IGNORE).sum((1, 2))
  want = (losses * real).sum() / (labelled * real).sum()
  found = problem.loss(
    jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(mask)
  )
  mean = (found * real).sum() / real.sum()
  np.testing.assert_allclose(mean, want, rtol=1e-5)


@pytest.mark.parametrize("average", semantic_segmentation.AVERAGES)
def test_shards_give_the_loss_of_the_whole_batch(average):
  """Loss and gradient, for batches in one, two or four parts."""
  problem = dataclasses.replace(PROBLEM, average=average)
  logits = jnp.concatenate([jnp.asarray(LOGITS), jnp.asarray(LOGITS[:1])])
  labels = jnp.concatenate([jnp.asarray(LABELS), jnp.asarray(LABELS[1:2])])
  batch = {"logits": logits, "label": labels, "mask": jnp.array([1, 1, 1, 0])}

  def loss(scale, batch):
    found = problem.loss(scale * batch["logits"], batch["label"], batch["mask"])
    return (found * batch["mask"]).sum() / 3, ({}, {})

  results = []
  for shards in (1, 2, 4):
    run = shard_gradients.value_and_grad(loss, shards)
    (value, _), gradient = run(jnp.float32(1.5), batch)
    results.append((value, gradient))
  for found in results[1:]:
    np.testing.assert_allclose(found, results[0], rtol=1e-5)


@pytest.mark.parametrize("average", semantic_segmentation.AVERAGES)
def test_images_without_labels_give_zero(average):
  """And no NaN, in their gradient neither."""
  problem = dataclasses.replace(PROBLEM, average=average)
  labels = jnp.full((3, 4, 6), IGNORE)

  def loss(logits):
    return problem.loss(logits, labels).mean()

  value, gradient = jax.value_and_grad(loss)(jnp.asarray(LOGITS))
  assert value == 0
  np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))
  sums = PROBLEM.training_sums(jnp.asarray(LOGITS), labels, EVERY)
  assert PROBLEM.score_training(sums, 3) == 0


def counted(prediction, real):
  """Sums by loops over classes."""
  labelled = (LABELS != IGNORE) & np.array(real, bool)[:, None, None]
  out = {"intersect": [], "predicted": [], "label": []}
  for k in range(CLASSES):
    is_label = labelled & (k == LABELS)
    is_predicted = labelled & (prediction == k)
    out["intersect"].append((is_label & is_predicted).sum())
    out["predicted"].append(is_predicted.sum())
    out["label"].append(is_label.sum())
  return out


@pytest.mark.parametrize("mask", [[1, 1, 1], [1, 0, 1]])
def test_sums_are_exact_counts(mask):
  """Ignored pixels and copies count nowhere, whatever is predicted there."""
  prediction = resized(LOGITS).argmax(-1)
  found = PROBLEM.evaluation_sums(
    jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(mask)
  )
  want = counted(prediction, mask)
  assert found.keys() == want.keys()
  for name, values in found.items():
    assert values.dtype == jnp.int32
    np.testing.assert_array_equal(values, want[name], name)
  training = PROBLEM.training_sums(
    jnp.asarray(LOGITS), jnp.asarray(LABELS), jnp.asarray(mask)
  )
  assert training["hits"] == sum(want["intersect"])
  assert training["labelled"] == sum(want["label"])


def test_counts_are_exact_beyond_float32():
  """One more than 2^24 pixels in a batch, which float32 cannot count."""
  side = 4097
  labels = jnp.zeros((1, side, side), jnp.uint8)
  problem = Segmentation(2)
  sums = problem.pixel_sums(labels, labels, jnp.ones(1))
  assert sums["intersect"].tolist() == [side * side, 0]
  assert side * side > 2**24 and (side * side) % 2


def test_too_many_pixels_for_a_batch_are_refused():
  labels = jax.ShapeDtypeStruct((2, 2**15, 2**15), jnp.int32)
  with pytest.raises(ValueError, match="use a smaller batch"):
    jax.eval_shape(PROBLEM.pixel_sums, labels, labels, jnp.ones(2))


def test_scores_leave_classes_out_that_do_not_occur():
  """mIoU: neither labelled nor predicted; mAcc: not labelled."""
  sums = {
    "intersect": np.array([6, 0, 3, 0]),
    "predicted": np.array([8, 4, 3, 0]),
    "label": np.array([10, 0, 5, 0]),
  }
  found = semantic_segmentation.of_classes(sums)
  np.testing.assert_allclose(found["iou"], [50, 0, 60, np.nan])
  np.testing.assert_allclose(found["accuracy"], [60, np.nan, 60, np.nan])
  scores = PROBLEM.measure(sums, {}, LABELS)
  want = {"miou": 110 / 3, "macc": 60.0, "aacc": 60.0}
  assert scores == pytest.approx(want)


def test_scores_of_nothing_are_refused():
  zeros = np.zeros(CLASSES)
  sums = {"intersect": zeros, "predicted": zeros, "label": zeros}
  with pytest.raises(ValueError, match="nothing to score"):
    PROBLEM.measure(sums, {}, LABELS)


def test_predictions_are_maps_of_any_size():
  logits = jnp.asarray(LOGITS)
  own = PROBLEM.predict(logits)["prediction"]
  np.testing.assert_array_equal(own, LOGITS.argmax(-1))
  larger = PROBLEM.predict((logits, logits), (4, 6))["prediction"]
  np.testing.assert_array_equal(larger, resized(LOGITS).argmax(-1))
  assert larger.dtype == jnp.int32
  np.testing.assert_array_equal(PROBLEM.top_class(logits), own)
  sums = PROBLEM.probabilities(logits).sum(-1)
  np.testing.assert_allclose(sums, np.ones((3, 2, 3)), rtol=1e-6)


def test_maps_at_hand_give_the_same_scores():
  """Outputs, the record's classes and the lines of every image agree."""
  prediction = resized(LOGITS).argmax(-1)
  predictions = {"prediction": prediction}
  scores = PROBLEM.measure_outputs(LOGITS, LABELS)
  record = PROBLEM.record(LABELS, predictions)
  ious = [value for value in record["class_iou"] if value is not None]
  assert np.mean(ious) == pytest.approx(scores["miou"])
  assert len(record["class_accuracy"]) == CLASSES
  names = ["a.png", "b.png", "=c.png"]
  text = PROBLEM.write_predictions(names, LABELS, predictions, ())
  lines = text.splitlines()
  assert lines[0] == "path,labelled,accuracy,miou"
  labelled = [int(line.split(",")[1]) for line in lines[1:]]
  assert labelled == (LABELS != IGNORE).sum((1, 2)).tolist()
  assert lines[3].startswith("'=c.png,24,")


def test_an_image_without_classes_has_an_empty_line():
  labels = np.full((1, 2, 2), IGNORE)
  predictions = {"prediction": np.zeros((1, 2, 2), np.int32)}
  text = PROBLEM.write_predictions(["a"], labels, predictions, ())
  assert text.splitlines()[1] == "a,0,,"
  assert PROBLEM.record(labels, predictions)["class_iou"] == [None] * CLASSES


def test_maps_of_another_size_are_refused():
  predictions = {"prediction": np.zeros((3, 2, 3), np.int32)}
  with pytest.raises(ValueError, match="expected equal sizes"):
    PROBLEM.record(LABELS, predictions)


def test_classes_of_a_map_are_named():
  label = np.array([[1, 1], [0, IGNORE]])
  assert PROBLEM.label_text(label, ("cat", "dog", "c", "d")) == "dog, cat"
  assert PROBLEM.label_text(np.full((2, 2), IGNORE), ()) == "no class"


@pytest.mark.parametrize(
  "labels, says",
  [
    (np.zeros(3, int), "one integer a pixel"),
    (np.zeros((1, 2, 2)), "labels are float64"),
    (np.array([[[0, CLASSES]]]), "label 4 of image 0 at row 0, column 1"),
    (np.array([[[0, -1]]]), "label -1 of image 0"),
    (np.full((1, 2, 2), IGNORE), "every pixel is 255"),
  ],
)
def test_labels_that_are_none_are_refused(labels, says):
  with pytest.raises(ValueError, match=says):
    PROBLEM.check_labels(labels, "my data")


def test_right_labels_pass():
  PROBLEM.check_labels(LABELS, "my data")
  PROBLEM.check_labels(LABELS.astype(np.uint8), "my data")


def test_options_that_contradict_are_refused():
  with pytest.raises(ValueError, match="one of the 300 classes"):
    Segmentation(300)
  assert Segmentation(300, ignore=-1).num_classes == 300
  with pytest.raises(ValueError, match="did you mean 'labelled'"):
    Segmentation(3, average="labeled")


def test_it_may_be_static_under_jit():
  """Equal problems share a compilation."""
  assert hash(Segmentation(3)) == hash(Segmentation(3))
  assert Segmentation(3) == Segmentation(3)
