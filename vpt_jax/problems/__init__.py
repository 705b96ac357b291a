"""Problems: what is learned, and how it is scored. See README.md."""

from vpt_jax.problems.classification import Classification
from vpt_jax.problems.problem import Problem, Score
from vpt_jax.utils import lookup

__all__ = ["PROBLEMS", "Problem", "Score", "build"]

PROBLEMS: dict[str, type[Problem]] = {
  "classification": Classification,
}


def build(name: str, num_classes: int) -> Problem:
  """Returns the problem that `config.problem` names.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return PROBLEMS[lookup.choose(name, PROBLEMS, "problem")](num_classes)
