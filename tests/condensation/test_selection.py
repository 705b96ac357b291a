"""Selection of prompts, and models that have only some of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.condensation.test_prompt_scores import build, CASES, masked, P
from vpt_jax import model as model_lib
from vpt_jax.condensation import prompt_scores, selection


@pytest.mark.parametrize("case", CASES)
def test_a_condensed_model_is_the_masked_one_and_smaller(case):
  model, variables, batch, sets = build(case)
  assert prompt_scores.shape(variables) == (sets, P)
  masks = np.zeros((3, sets, P), bool)
  masks[0] = True
  masks[1, -1, 1] = True  # one prompt, in the last block
  masks[2, 0], masks[2, -1, 0] = (True, False, True), sets > 1
  whole, *want = jax.jit(
    jax.vmap(lambda mask: model.apply(masked(variables, mask), batch["image"]))
  )(masks)
  for mask, logits in zip(masks[1:], want):
    smaller, less = selection.condensed(model, variables, mask)
    built = jax.eval_shape(lambda: model_lib.init(smaller, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, built["method"]) == jax.tree.map(
      jnp.shape, less["params"]["method"]
    )
    got = jax.jit(smaller.apply)(less, batch["image"])
    np.testing.assert_allclose(got, logits, atol=2e-5)
    assert np.abs(got - whole).max() > 1e-3


def test_multiply_adds_are_those_of_the_prompts_that_are_gone():
  model, variables, _, _ = build("deep")
  mask = np.ones((3, P), bool)
  mask[0, 1] = mask[2, :2] = False
  smaller, _ = selection.condensed(model, variables, mask)
  # A key and a value; then the logits and the mix, for all rows or, in the
  # last block, for the class token's.
  width, rows = 16, 5
  gone = 3 * 2 * width**2 + 2 * rows * width + 2 * (2 * 1 * width)
  assert (
    model_lib.multiply_adds(model) - model_lib.multiply_adds(smaller) == gone
  )
  model, variables, _, _ = build("swin shallow")
  smaller, _ = selection.condensed(model, variables, mask[:1])
  assert model_lib.multiply_adds(smaller) < model_lib.multiply_adds(model)


def test_keep_takes_the_best_of_all_blocks():
  score = np.array([[1.0, 5.0, 3.0], [5.0, 0.0, 2.0]])
  np.testing.assert_array_equal(selection.ranking(score), [1, 3, 2, 5, 0, 4])
  np.testing.assert_array_equal(
    selection.keep(score, 0.5), [[0, 1, 1], [1, 0, 0]]
  )
  assert selection.keep(score, 0.01).sum() == 1
  assert selection.keep(score, 1).all()
  assert selection.indices(selection.keep(score, 1 / 3)) == ((1,), (0,))
  for share in (0, 1.5, -1):
    with pytest.raises(ValueError, match="expected 0 < share <= 1"):
      selection.keep(score, share)
  with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
    selection.keep(np.array([[np.nan, 1.0]]), 0.5)


def test_spearman():
  a = np.array([[1.0, 2.0], [2.0, 7.0]])
  assert selection.spearman(a, a**3) == pytest.approx(1)
  assert selection.spearman(a, -a) == pytest.approx(-1)
  assert selection.spearman(a, np.ones(4)) == 0
  # Ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4.
  assert selection.spearman(a, np.array([3, 1, 4, 9])) == pytest.approx(
    3 / np.sqrt(4.5 * 5)
  )


def test_spearman_without_an_order():
  equal = np.full(4, 2.0)
  assert selection.spearman(equal, np.arange(4)) == 0
  assert selection.spearman(equal, equal) == 0
