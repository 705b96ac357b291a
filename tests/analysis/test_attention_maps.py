"""Attention of every block, and where it goes."""

import jax
import numpy as np
import pytest

from tests.analysis.tiny import (
  build,
  compiled,
  IMAGES,
  K,
  MAE,
  matrices,
  P,
  SWIN,
  T,
  VIT,
)
from vpt_jax import model as models
from vpt_jax.analysis import (
  attention_maps,
)
from vpt_jax.methods.method import Method
from vpt_jax.methods.vpt import VPT


@pytest.mark.parametrize("method", [VPT(VIT.spec, P), Method(VIT.spec)])
@pytest.mark.parametrize("remat", [False, True])
def test_attention_is_seen_and_the_logits_stay(method, remat):
  model, variables = build(VIT, method)
  model = model.clone(remat=remat)
  alone = compiled(model.apply, variables, IMAGES)
  logits, _ = compiled(
    lambda *args: model.apply(*args, mutable=["intermediates"]),
    variables,
    IMAGES,
  )
  np.testing.assert_allclose(logits, alone, rtol=1e-6, atol=1e-6)
  found = matrices(model, variables)
  keys = T + (P if isinstance(method, VPT) else 0)
  assert [block.weights.shape for block in found] == [
    (3, 2, T, keys),
    (3, 2, T, keys),
    (3, 2, 1, keys),
  ]
  for block in found:
    np.testing.assert_allclose(block.weights.sum(-1), 1, rtol=1e-5)
  assert "intermediates" not in models.collections(model, jax.random.key(0))


def test_prompts_only_take_their_share_of_the_first_block():
  """w_k with prompts = w_k without, times what the prompts leave."""
  model, variables = build(VIT, VPT(VIT.spec, P))
  plain, bare = (
    models.Model(VIT, Method(VIT.spec), K),
    {"params": {**variables["params"], "method": {}}},
  )
  ours = matrices(model, variables)[0].weights
  want = matrices(plain, bare)[0].weights
  left = 1 - ours[..., T:].sum(-1, keepdims=True)
  assert left.max() < 0.9
  np.testing.assert_allclose(ours[..., :T], want * left, rtol=1e-4)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("backbone", [VIT, MAE])
def test_shares_are_of_the_rows_that_are_pooled(backbone, deep):
  model, variables = build(backbone, VPT(VIT.spec, P, deep=deep))
  for i, block in enumerate(matrices(model, variables)):
    weights = np.asarray(block.weights).mean(1)
    # Carried prompts lie between class token and patches, others at the end.
    carried = (
      range(1, 1 + P)
      if not deep or (backbone is MAE and i == 2)
      else (range(T, T + P))
    )
    patches = [k for k in range(1, T + P) if k not in carried]
    asking = [0] if backbone is VIT else range(-4, 0)
    row = weights[:, list(asking)].mean(1)
    own, to_prompts, to_patches = attention_maps.shares(
      block, model.backbone.pool
    )
    np.testing.assert_allclose(own, row[:, 0], rtol=1e-5)
    np.testing.assert_allclose(
      to_prompts, row[:, list(carried)].sum(-1), rtol=1e-5
    )
    np.testing.assert_allclose(to_patches, row[:, patches], rtol=1e-5)
    np.testing.assert_allclose(
      own + to_prompts + to_patches.sum(-1), 1, rtol=1e-5
    )


def test_windows_have_no_attention_over_the_image():
  model, variables = build(SWIN, VPT(SWIN.spec, P))
  with pytest.raises(ValueError, match="Swin, which has no attention over"):
    matrices(model, variables)
