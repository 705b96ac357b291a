"""Defines what is learned, and how it is scored. See README.md."""

from collections.abc import Mapping
from typing import Any

from vpt_jax.problems.classification import Classification
from vpt_jax.problems.multi_label import MultiLabel
from vpt_jax.problems.problem import Problem, Score
from vpt_jax.problems.semantic_segmentation import Segmentation
from vpt_jax.utils import lookup

__all__ = [
  "PROBLEMS",
  "Classification",
  "MultiLabel",
  "Problem",
  "Score",
  "Segmentation",
  "build",
  "from_config",
  "get",
  "of_run",
  "titles",
]

PROBLEMS: dict[str, type[Problem]] = {
  "classification": Classification,
  "multi_label": MultiLabel,
  "segmentation": Segmentation,
}
# Runs of versions that knew no other one do not name it.
DEFAULT = "classification"


def get(name: str) -> type[Problem]:
  """Returns the class of the problem that `config.problem` names.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return PROBLEMS[lookup.choose(name, PROBLEMS, "problem")]


def build(name: str, num_classes: int) -> Problem:
  """Returns the problem that `config.problem` names, see `get`."""
  return get(name)(num_classes)


def of_run(facts: Mapping[str, Any]) -> type[Problem]:
  """Returns the problem that a run's config, result or record names.

  Those of old versions name none, and are of classification.
  """
  return get(facts.get("problem", DEFAULT))


def from_config(config: Mapping[str, Any], num_classes: int) -> Problem:
  """Returns the problem of a run, see `of_run`."""
  return of_run(config).from_config(config, num_classes)


def titles() -> dict[str, str]:
  """Returns {name: title} of the scores of all problems."""
  return {
    score.name: score.title
    for problem in PROBLEMS.values()
    for score in problem.scores
  }
