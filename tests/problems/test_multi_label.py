"""Multi-label classification: by hand, by scikit-learn, and in whole runs."""

import csv
import json

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn import metrics as sklearn_metrics

import vpt_jax
from vpt_jax.data.examples import Split
from vpt_jax.problems import heads
from vpt_jax.problems.multi_label import MultiLabel
from vpt_jax.report import result_tables, rows
from vpt_jax.sweeps import protocol
from vpt_jax.training import experiment, records, run_folder

CHANNELS = ("red", "green", "blue")


def photos(n, seed=0):
  """Images whose classes are the channels that are bright, and their labels."""
  rng = np.random.default_rng(seed)
  labels = rng.random((n, 3)) < 0.4
  labels[0] = [False, True, True]
  images = rng.integers(0, 90, (n, 8, 8, 3)) + 120 * labels[:, None, None, :]
  return images.astype(np.uint8), labels.astype(np.uint8)


def several_classes(n, seed=0):
  """The same as a split."""
  return vpt_jax.from_arrays(*photos(n, seed))


@pytest.fixture
def config(config):
  config.problem = "multi_label"
  config.task = "photos"
  config.method = "linear"
  config.epochs = 2
  config.batch_size = 16
  config.optim.update(warmup_epochs=0, lr=2.0)
  return config


def test_loss_is_the_mean_over_classes():
  outputs = jnp.array([[0.0, 2.0], [-1.0, 30.0]])
  labels = jnp.array([[1, 0], [1, 1]], jnp.uint8)
  p = 1 / (1 + np.exp(-np.array([[0.0, 2.0], [-1.0, 30.0]])))
  want = [
    -(np.log(p[0, 0]) + np.log(1 - p[0, 1])) / 2,
    -(np.log(p[1, 0]) + np.log(p[1, 1])) / 2,
  ]
  np.testing.assert_allclose(MultiLabel(2).loss(outputs, labels), want, 1e-6)


def test_training_score_is_the_share_of_right_labels():
  outputs = jnp.array([[1.0, -1.0], [1.0, 1.0], [5.0, 5.0]])
  labels = jnp.array([[1, 0], [1, 0], [0, 0]], jnp.uint8)
  mask = jnp.array([1.0, 1.0, 0.0])  # the last one only fills the batch
  sums = MultiLabel(2).training_sums(outputs, labels, mask)
  assert tuple(sums) == MultiLabel.training_sum_names
  score = MultiLabel(2).score_training(sums, mask.sum())
  assert score == pytest.approx(75.0)


def test_scores_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  labels = (rng.random((50, 5)) < 0.3).astype(np.uint8)
  labels[:, 2] = 0  # a class that does not occur is in no mean
  outputs = rng.normal(size=(50, 5)).astype(np.float32)
  outputs[:, 1] = outputs[:, 1].round()  # equal ones
  scores = MultiLabel(5).measure_outputs(outputs, labels)
  there = [0, 1, 3, 4]
  want = sklearn_metrics.average_precision_score(
    labels[:, there], outputs[:, there], average="macro"
  )
  assert scores["mean_average_precision"] == pytest.approx(100 * want)
  assert scores["label_accuracy"] == pytest.approx(
    100 * ((outputs > 0) == labels).mean()
  )
  record = MultiLabel(5).record(labels, {"logits": outputs})
  kept = record["average_precision"]
  assert kept[2] is None
  assert np.mean([kept[k] for k in there]) == pytest.approx(100 * want)
  json.dumps(record, allow_nan=False)


def test_predictions_csv():
  text = MultiLabel(3).write_predictions(
    ["a.png", "b.png"],
    np.array([[1, 0, 1], [0, 0, 0]], np.uint8),
    {"logits": np.array([[0.0, 3.0, 3.0], [-3.0, -3.0, 0.1]], np.float32)},
    CHANNELS,
  )
  lines = list(csv.reader(text.splitlines()))
  assert lines == [
    ["path", "labels", "predictions", *CHANNELS],
    ["a.png", "red|blue", "green|blue", "0.5", "0.952574", "0.952574"],
    ["b.png", "", "blue", "0.0474259", "0.0474259", "0.524979"],
  ]


@pytest.mark.parametrize(
  "labels,message",
  [
    (np.array([0, 1]), r"labels are int64 \[2\]; .* needs zeros and ones"),
    (np.ones((2, 3)), "labels are float64"),
    (np.ones((2, 4), np.uint8), "of 4 classes, those of the training .* 3"),
    (np.full((2, 3), 2), "labels are from 2 to 2"),
    (np.zeros((2, 3), np.uint8), "no image has any class"),
  ],
)
def test_labels_that_cannot_be_used(labels, message):
  with pytest.raises(ValueError, match=f"test images: .*{message}"):
    MultiLabel(3).check_labels(labels, "test images")


def test_labels_of_the_other_problem_are_refused(config, tmp_path):
  images, labels = photos(20)
  one_class = vpt_jax.from_arrays(images, labels.argmax(1), 3)
  with pytest.raises(ValueError, match="training images: labels are int32"):
    vpt_jax.run(config, tmp_path, vpt_jax.Data(one_class, one_class))
  config.problem = "classification"
  several = several_classes(20)
  with pytest.raises(ValueError, match="needs one integer an image"):
    vpt_jax.run(config, tmp_path, vpt_jax.Data(several, several))


def test_groups_of_classes_are_refused(config):
  config.head = "pretrained"
  config.head_groups = ((0,), (1, 2))
  with pytest.raises(ValueError, match="classes that exclude each other"):
    heads.groups(config, 2)


def test_a_share_of_the_images():
  split = several_classes(30)
  half = split.share(0.5, 0)
  quarter = split.share(0.25, 0)
  assert (len(half), len(quarter)) == (15, 8)
  assert half.labels.shape == (15, 3)
  of_half = {image.tobytes() for image in half.images}
  assert {image.tobytes() for image in quarter.images} < of_half


def test_data_are_told_apart_by_their_labels():
  split = several_classes(10)
  other = Split(split.images, 1 - split.labels, 3)
  data = experiment.Data(split, split)
  assert run_folder.fingerprint(data) != run_folder.fingerprint(
    experiment.Data(split, other)
  )


def read_predictions(path):
  """Labels and probabilities [N, K] of a predictions.csv."""
  with path.open(newline="") as file:
    head, *lines = csv.reader(file)
  names = head[3:]
  labels = [[name in line[1].split("|") for name in names] for line in lines]
  probabilities = [[float(text) for text in line[3:]] for line in lines]
  return np.array(labels), np.array(probabilities)


@pytest.mark.parametrize("method", ["linear", "vpt"])
def test_a_run(config, tmp_path, method, caplog):
  caplog.set_level("INFO", "vpt_jax")
  config.method = method
  data = vpt_jax.Data(several_classes(60), several_classes(40, seed=1))
  result = vpt_jax.run(config, tmp_path, data)
  labels, probabilities = read_predictions(tmp_path / "predictions.csv")
  np.testing.assert_array_equal(labels, data.test.labels)
  want = sklearn_metrics.average_precision_score(labels, probabilities)
  assert result["mean_average_precision"] == pytest.approx(100 * want)
  assert result["label_accuracy"] == pytest.approx(
    100 * ((probabilities > 0.5) == labels).mean()
  )
  loss = sklearn_metrics.log_loss(labels.ravel(), probabilities.ravel())
  assert result["loss"] == pytest.approx(loss, rel=1e-4)
  assert result["problem"] == "multi_label"
  assert any("training label accuracy" in line for line in caplog.messages)

  (record,) = records.Store(tmp_path / records.FILE).read()
  assert record["metric"] == "mean_average_precision"
  assert record["curve"].keys() == {"loss", "train_label_accuracy", "lr"}
  assert np.mean(record["average_precision"]) == pytest.approx(100 * want)
  table = result_tables.terminal([record])
  assert "Mean average precision on the test images" in table
  assert f"{result['mean_average_precision']:.2f}" in table


def test_a_sweep_maximises_average_precision(config, tmp_path):
  for part, seed in (("train", 0), ("val", 1), ("test", 2)):
    for i, image in enumerate(photos(24, seed)[0]):
      Image.fromarray(image).save(tmp_path / f"{part}{i}.png")
  with (tmp_path / "labels.csv").open("w") as file:
    file.write("path,label,split\n")
    for part, seed in (("train", 0), ("val", 1), ("test", 2)):
      for i, label in enumerate(photos(24, seed)[1]):
        names = "|".join(np.array(CHANNELS)[label > 0])
        file.write(f"{part}{i}.png,{names},{part}\n")
  config.task = ""
  config.data.source = f"csv:{tmp_path / 'labels.csv'}"
  config.data.cache = str(tmp_path / "cache")
  config.mode = "sweep"
  config.sweep.grid = (("optim.lr", (0.02, 0.5)),)
  config.sweep.seeds = (1, 2)
  found = protocol.run(config, tmp_path / "sweep")
  search = [one for one in found if one["stage"] == "search"]
  final = [one for one in found if one["stage"] == "final"]
  assert (len(search), len(final)) == (2, 2)
  score = "mean_average_precision"
  assert {one["metric"] for one in found} == {score}
  best = max(search, key=lambda one: one[score])
  for one in final:
    assert one["cell"]["optim.lr"] == best["cell"]["optim.lr"]
    assert one["classes"] == sorted(CHANNELS)
    folder = tmp_path / "sweep" / "runs" / f"{one['task']}-{one['id']}"
    labels, probabilities = read_predictions(folder / "predictions.csv")
    want = sklearn_metrics.average_precision_score(labels, probabilities)
    assert one[score] == pytest.approx(100 * want)
  (row,) = rows.collect(found).rows
  (cell,) = row.scores.values()
  assert cell.mean == pytest.approx(np.mean([one[score] for one in final]))
  assert all(one["average_precision"] is None for one in search)
