"""Classification: its loss, sums, scores and what it writes, by hand."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax import problems
from vpt_jax.problems import Classification

OUTPUTS = np.log(
  np.array(
    [[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]]
  )
)
LABELS = np.array([0, 0, 2, 1])


def test_loss_is_cross_entropy():
  loss = Classification(3).loss(jnp.asarray(OUTPUTS), jnp.asarray(LABELS))
  want = -np.log([0.7, 0.3, 0.8, 0.25])
  np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_training_score_leaves_filling_out():
  mask = jnp.array([1.0, 1.0, 0.0, 1.0])
  sums = Classification(3).training_sums(
    jnp.asarray(OUTPUTS), jnp.asarray(LABELS), mask
  )
  assert tuple(sums) == Classification.training_sum_names
  score = Classification(3).score_training(sums, mask.sum())
  assert score == pytest.approx(100 / 3)


def test_scores():
  """Class 0: one of two; 1: none; 2: all. Class 3 does not occur."""
  outputs = np.pad(OUTPUTS, ((0, 0), (0, 1)), constant_values=-9)
  scores = Classification(4).measure_outputs(outputs, LABELS)
  assert scores == {"top1": 50.0, "mean_per_class": 50.0}
  assert list(scores) == [score.name for score in Classification.scores]


def test_predictions_csv():
  problem = Classification(3)
  text = problem.write_predictions(
    ["a,b.png", "c.png", "d.png", "e.png"],
    LABELS,
    problem.predict(jnp.asarray(OUTPUTS)),
    (),
  )
  rows = list(csv.reader(text.splitlines()))
  assert rows[0] == ["path", "label", "prediction", "confidence"]
  assert rows[1] == ["a,b.png", "0", "0", "0.700000"]
  assert rows[4] == ["e.png", "1", "0", "0.500000"]


def test_confusion():
  predictions = {"prediction": np.array([0, 1, 1, 0, 0, 2])}
  record = Classification(3).record(np.array([0, 0, 1, 2, 2, 2]), predictions)
  assert record["confusion"] == [
    [0, 0, 1],
    [0, 1, 1],
    [1, 1, 1],
    [2, 0, 2],
    [2, 2, 1],
  ]
  assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
  "labels,message",
  [
    (np.array([0, 3]), r"test images: label 3 is out of range 0\.\.2"),
    (np.array([0, -1]), r"test images: label -1 is out of range"),
    (np.array([[0, 1, 1]]), "needs one integer an image"),
    (np.array([0.0, 1.0]), "labels are float64"),
  ],
)
def test_labels_that_cannot_be_used(labels, message):
  with pytest.raises(ValueError, match=message):
    Classification(3).check_labels(labels, "test images")


def test_an_unknown_problem_is_refused():
  with pytest.raises(ValueError, match="did you mean 'classification'"):
    problems.build("clasification", 3)


def test_runs_of_old_versions_are_of_classification():
  assert problems.from_config({}, 7) == Classification(7)
  assert problems.of_run({"schema": 1}) is Classification
