"""Makes records of a problem that the report knows nothing about."""

import pytest

from tests import report_records as made
from vpt_jax import problems


class Tags(problems.Problem):
  """Made up: what the report reads of a problem that it knows nothing about."""

  name = "tags"
  scores = (
    problems.Score("mean_average_precision", "mean average precision"),
    problems.Score("distance", "distance", "mm"),
  )
  training_score = problems.Score("train_precision", "training precision")


@pytest.fixture(name="tags")
def _tags(monkeypatch):
  """Makes records of the problem above."""
  monkeypatch.setitem(problems.PROBLEMS, "tags", Tags)

  def make(value, metric="mean_average_precision", **more):
    return made.of_problem("tags", metric, "train_precision", value, **more)

  return make
