"""Models without the prompts of one block."""

import jax
import numpy as np
import pytest

from tests.analysis.tiny import (
  adapter_of,
  build,
  compiled,
  IMAGES,
  K,
  MAE,
  P,
  SWIN,
  VIT,
)
from vpt_jax.analysis import (
  prompt_importance,
  subject,
)
from vpt_jax.condensation import selection
from vpt_jax.methods.method import Method
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT

RNG = np.random.default_rng(0)


def hiding(model, variables, numbers):
  """block -> logits with its prompts hidden."""
  apply = jax.jit(prompt_importance.maskable(model, numbers).apply)
  return lambda block: apply(
    {
      **variables,
      "mask": {"method": {"blocks": 1.0 - np.eye(len(numbers))[block]}},
    },
    IMAGES,
  )


@pytest.mark.parametrize("backbone", [VIT, MAE, SWIN])
def test_a_hidden_block_of_vpt_is_the_model_without_its_prompts(backbone):
  model, variables = build(backbone, VPT(backbone.spec, P))
  numbers = subject.prompts(adapter_of(model, variables))
  assert numbers == [P] * 3
  before = compiled(model.apply, variables, IMAGES)
  hidden = hiding(model, variables, numbers)
  for block in (0, 2):
    keep = np.ones((3, P), bool)
    keep[block] = False
    smaller, packed = selection.condensed(model, variables, keep)
    got = hidden(block)
    np.testing.assert_allclose(
      got, compiled(smaller.apply, packed, IMAGES), rtol=1e-4, atol=1e-4
    )
    assert np.abs(got - before).max() > 1e-2


def test_condensed_prompts_can_be_hidden():
  model, variables = build(VIT, VPT(VIT.spec, P))
  keep = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
  smaller, packed = selection.condensed(model, variables, keep)
  numbers = subject.prompts(adapter_of(smaller, packed))
  assert numbers == [2, 1, 0]
  none, rest = selection.condensed(model, variables, keep & [[1], [0], [0]])
  np.testing.assert_allclose(
    hiding(smaller, packed, numbers)(1),
    compiled(none.apply, rest, IMAGES),
    rtol=1e-4,
    atol=1e-4,
  )


class WithoutSecond(VAPT):
  """VAPT whose second block gets no prompts."""

  def context(self, i, tokens, *, train):
    return None if i == 1 else super().context(i, tokens, train=train)


class Dropped(VPT):
  """VPT-shallow whose prompts the last block does not get."""

  def before(self, i, tokens, *, train):
    return tokens.with_prompt(None) if i == 2 else tokens


@pytest.mark.parametrize(
  "method,other,block",
  [
    (VAPT(VIT.spec, P), WithoutSecond(VIT.spec, P), 1),
    (VPT(VIT.spec, P, deep=False), Dropped(VIT.spec, P, deep=False), 2),
  ],
)
def test_a_hidden_block_of_other_methods(method, other, block):
  model, variables = build(VIT, method)
  numbers = subject.prompts(adapter_of(model, variables))
  got = hiding(model, variables, numbers)(block)
  want = compiled(model.clone(method=other).apply, variables, IMAGES)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  before = compiled(model.apply, variables, IMAGES)
  assert np.abs(got - before).max() > 1e-2


def test_accuracies_count_each_image_once():
  model, variables = build(VIT, VPT(VIT.spec, P))
  pixels = RNG.integers(0, 255, (5, 8, 8, 3)).astype(np.uint8)
  labels = RNG.integers(0, K, 5)
  adapter = adapter_of(model, variables, method="vpt")
  whole, without = prompt_importance.scores_without_blocks(
    adapter, pixels, labels
  )
  hits = (
    compiled(model.apply, variables, pixels / 127.5 - 1).argmax(-1) == labels
  )
  assert whole == pytest.approx(100 * hits.mean())
  assert [*without] == [0, 1, 2]
  model, variables = build(VIT, Method(VIT.spec))
  with pytest.raises(ValueError, match="'linear' has no prompts beside"):
    prompt_importance.scores_without_blocks(
      adapter_of(model, variables, method="linear"), pixels, labels
    )
