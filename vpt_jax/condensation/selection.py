"""Keeps the prompts with the best scores, and makes the smaller model of them.

Masks are [L, P], True for a prompt that stays: L sets of P prompts, see
`prompt_scores.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats

from vpt_jax import model as model_lib
from vpt_jax.condensation import prompt_scores
from vpt_jax.utils import trees


def ranking(score: np.ndarray) -> np.ndarray:
  """Returns indices into the flat [L P] scores, the highest one first.

  Of equal scores the one with the smaller index is first.
  """
  return np.argsort(-np.ravel(score), kind="stable")


def keep(score: np.ndarray, share: float) -> np.ndarray:
  """Returns a mask [L, P], True at the k prompts with the highest scores.

    k = max(1, round(share L P)), of all sets together

  Args:
    score: [L, P].
    share: of the prompts, in (0, 1].

  Raises:
    ValueError: the share is out of range, or a score is NaN.
  """
  score = np.asarray(score)
  if not 0 < share <= 1:
    raise ValueError(f"share={share} of the prompts; expected 0 < share <= 1")
  if np.isnan(score).any():
    raise ValueError(
      f"{np.isnan(score).sum()} of {score.size} scores are NaN; "
      "the model that they are of has diverged"
    )
  count = max(1, round(share * score.size))
  mask = np.zeros(score.size, bool)
  mask[ranking(score)[:count]] = True
  return mask.reshape(score.shape)


def indices(mask: np.ndarray) -> tuple[tuple[int, ...], ...]:
  """Returns a mask [L, P] as VPT's option `kept`: of every set its prompts."""
  sets = [np.flatnonzero(row).tolist() for row in mask]
  return tuple(tuple(kept) for kept in sets)


def pack(flat: Mapping[str, Any], mask: np.ndarray) -> trees.Flat:
  """Returns a flat tree with the prompts of a mask, as VPT with `kept` has it.

  Args:
    flat: with arrays of prompts [L_s, P, D].
    mask: [L, P], True for prompts that stay.

  Returns:
    The tree with packed arrays [prompts, D]; one without prompts is left out.
  """
  mask = np.asarray(mask, bool)
  out = dict(flat)
  first = 0  # set of the next array
  for path, prompts in flat.items():
    if not prompt_scores.PROMPT_PATH.fullmatch(path):
      continue
    end = first + len(prompts)
    packed = np.asarray(prompts)[mask[first:end]]
    first = end
    if len(packed):
      out[path] = packed
    else:
      del out[path]
  return out


def condensed(
  model: model_lib.Model, variables: dict[str, Any], mask: np.ndarray
) -> tuple[model_lib.Model, dict[str, Any]]:
  """Returns the smaller model of the kept prompts, and its variables.

  Args:
    model: with learned prompts.
    variables: {params: {backbone, method, head}, ...}.
    mask: [L, P], True for prompts that stay.

  Raises:
    ValueError: a mask of another shape, or of no prompt.
  """
  prompt_scores.check(model)
  mask = np.asarray(mask, bool)
  expected = prompt_scores.shape(variables)
  if mask.shape != expected or not mask.any():
    raise ValueError(
      f"the mask of prompts keeps {mask.sum()} of {mask.shape}; expected at "
      f"least one of {expected}"
    )
  smaller = model.clone(method=model.method.clone(kept=indices(mask)))
  packed = pack(trees.flatten(variables), mask)
  return smaller, trees.unflatten(packed)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Returns Spearman's rank correlation of two arrays of as many numbers.

  Ties are at their mean rank. If all numbers of an array are equal there is no
  order, and the result is 0.
  """
  a = np.ravel(a)
  b = np.ravel(b)
  if np.ptp(a) == 0 or np.ptp(b) == 0:
    return 0.0
  return float(scipy.stats.spearmanr(a, b).statistic)
