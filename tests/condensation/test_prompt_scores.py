"""Scores of prompts, and models that have only some of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vpt_jax import model as model_lib
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.condensation import prompt_scores, selection
from vpt_jax.methods.method import Method
from vpt_jax.methods.vpt import VPT

VIT = ViT((8, 8), 4, 16, depth=3, num_heads=2, mlp_dim=32)
MAE = VIT.clone(pool="imgprompt", norm_order="after")
SWIN = Swin((8, 8), 8, (1, 2), (2, 2), window=2, patch_size=2, mlp_ratio=2.0)
# (backbone, options of VPT, L)
CASES = {
  "deep": (VIT, {}, 3),
  "shallow": (VIT, dict(deep=False), 1),
  "partial": (VIT, dict(num_layers=2), 2),
  "reverse": (VIT, dict(num_layers=2, reverse=True), 2),
  "shared": (VIT, dict(shared=True), 1),
  "project": (VIT, dict(project=5), 3),
  "pooled": (MAE, {}, 3),
  "pooled shallow": (MAE, dict(deep=False), 1),
  "swin": (SWIN, {}, 3),
  "swin shallow": (SWIN, dict(deep=False), 1),
  "swin shared": (SWIN, dict(shared=True), 2),
}
P, K = 3, 4


def build(case, n=12):
  """(model, variables, {image, label} of n images, L)."""
  backbone, options, sets = CASES[case]
  model = model_lib.Model(backbone, VPT(backbone.spec, P, **options), K)
  rng = np.random.default_rng(0)
  # Larger than initial values, so that each prompt matters.
  params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
    jax.eval_shape(lambda: model_lib.init(model, jax.random.key(0))),
  )
  return (
    model,
    {"params": params},
    {
      "image": rng.normal(size=(n, 8, 8, 3)).astype(np.float32),
      "label": rng.integers(0, K, n),
    },
    sets,
  )


def loss_of(model, batch):
  """variables -> mean cross entropy."""
  return jax.jit(
    lambda variables: optax.softmax_cross_entropy_with_integer_labels(
      model.apply(variables, batch["image"]), batch["label"]
    ).mean()
  )


def masked(variables, mask):
  """The variables with a mask [L, P] over their prompts."""
  return {
    **variables,
    "mask": {"method": {"prompt": jnp.asarray(mask, jnp.float32)}},
  }


def test_scores_are_of_all_images_however_they_are_batched():
  model, variables, whole, _ = build("shallow")
  part = lambda a, b, pad=0: {
    **{name: np.concatenate([x[a:b], x[:pad]]) for name, x in whole.items()},
    "mask": np.array([1] * (b - a) + [0] * pad, np.float32),
  }
  names = (
    "removal",
    "removal_signed",
    "taylor_signed",
    "taylor_abs_of_mean",
    "taylor_sample_abs",
    "elementwise_sample_abs",
  )
  of = lambda batches, names: prompt_scores.scores(
    model, variables, batches, names
  )
  want = of([whole], names)
  assert [*want] == [*names] and want["removal"].shape == (1, P)
  got = of([part(0, 8), part(8, 12, 4)], names)
  for name in names:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-3, atol=1e-6)
  # These are of a batch's gradient; batches count by their images.
  names = tuple(prompt_scores.STATISTICS.keys() - {*names})
  first, second = of([part(0, 8)], names), of([part(8, 12, 4)], names)
  got = of([part(0, 8), part(8, 12, 4)], names)
  for name in names:
    np.testing.assert_allclose(
      got[name], (2 * first[name] + second[name]) / 3, rtol=1e-4
    )


@pytest.mark.parametrize("case", ["deep", "shallow", "swin"])
def test_scores_of_each_image_alone(case):
  """Those of a batch, if each image is a batch of its own."""
  model, variables, whole, _ = build(case, n=3)
  one_by_one = [
    {name: x[i : i + 1] for name, x in whole.items()} for i in range(3)
  ]
  for each, batch in (
    ("elementwise_sample_abs", "elementwise_abs"),
    ("taylor_sample_abs", "taylor_batch_abs"),
  ):
    ours = prompt_scores.scores(model, variables, [whole], (each,))[each]
    want = prompt_scores.scores(model, variables, one_by_one, (batch,))[batch]
    np.testing.assert_allclose(ours, want, rtol=1e-3, atol=1e-6)
  assert ours.shape == want.shape


@pytest.mark.parametrize(
  "case",
  ["deep", "partial", "pooled", "pooled shallow", "swin", "swin shallow"],
)
def test_removal_is_the_derivative_along_the_mask(case):
  model, variables, batch, sets = build(case)
  found = prompt_scores.scores(
    model, variables, [batch], ("removal", "removal_signed")
  )
  loss = jax.jit(
    jax.vmap(lambda mask: loss_of(model, batch)(masked(variables, mask)))
  )
  step = 0.02 * np.eye(sets * P).reshape(-1, sets, P)
  slope = (loss(1 + step) - loss(1 - step)).reshape(sets, P) / 0.04
  largest = np.abs(slope).max()
  assert largest > 1e-3  # so that there is something to compare
  np.testing.assert_allclose(
    found["removal_signed"], -slope, atol=2e-3 * largest + 1e-5
  )
  np.testing.assert_array_equal(
    found["removal"], np.abs(found["removal_signed"])
  )


@pytest.mark.parametrize("case", ["deep", "swin"])
def test_a_mask_of_ones_changes_nothing(case):
  model, variables, batch, sets = build(case)
  ones = masked(variables, np.ones((sets, P)))
  got, want = (
    jax.jit(model.apply)(values, batch["image"]) for values in (ones, variables)
  )
  np.testing.assert_array_equal(got, want)


def test_leave_one_out_is_the_loss_of_the_smaller_model():
  model, variables, batch, sets = build("deep")
  halves = [
    {name: x[rows] for name, x in batch.items()}
    for rows in (slice(0, 6), slice(6, 12))
  ]
  loss, without = prompt_scores.leave_one_out(model, variables, halves, chunk=4)
  assert without.shape == (sets, P)
  np.testing.assert_allclose(loss, loss_of(model, batch)(variables), rtol=1e-5)
  for at in ((0, 0), (2, 1)):
    mask = np.ones((sets, P), bool)
    mask[at] = False
    smaller, less = selection.condensed(model, variables, mask)
    np.testing.assert_allclose(
      without[at], loss_of(smaller, batch)(less), rtol=1e-5
    )


def test_what_can_not_be_condensed_is_refused():
  model, variables, batch, _ = build("deep")
  linear = model.clone(method=Method(VIT.spec))
  for call in (
    prompt_scores.scores,
    prompt_scores.leave_one_out,
    selection.condensed,
  ):
    with pytest.raises(ValueError, match="method 'Method' can't be condensed"):
      call(linear, variables, [batch])
  with pytest.raises(ValueError, match="did you mean 'removal'?"):
    prompt_scores.scores(model, variables, [batch], ("removl",))
  with pytest.raises(ValueError, match="got no batch"):
    prompt_scores.scores(model, variables, [])
  with pytest.raises(ValueError, match="got no batch"):
    prompt_scores.leave_one_out(model, variables, [])
  smaller, less = selection.condensed(model, variables, np.ones((3, P)))
  with pytest.raises(ValueError, match="condensed already"):
    prompt_scores.scores(smaller, less, [batch])
  for mask in (np.zeros((3, P)), np.ones((2, P))):
    with pytest.raises(ValueError, match=r"at least one of \(3, 3\)"):
      selection.condensed(model, variables, mask)
  for kept in (
    ((0,), (1,)),
    ((0,), (1,), (P,)),
    ((1, 0), (), ()),
    ((0, 0), (), ()),
  ):
    with pytest.raises(ValueError, match="vpt.kept=.*expected 3 tuples"):
      model_lib.init(
        model.clone(method=model.method.clone(kept=kept)), jax.random.key(0)
      )


def test_the_scale_of_a_prompt_behind_a_layer_norm():
  """sum_d g p = eps / (var(p) + eps) <dL/dLN(p), LN(p)>: small, not zero."""
  rng = np.random.default_rng(0)
  eps = 1e-2  # large, so that float32 tells it from rounding
  p = jnp.asarray(rng.normal(size=(2, 3, 16)) * 0.3, jnp.float32)
  direction = jnp.asarray(rng.normal(size=(2, 3, 16)), jnp.float32)

  def normed(p):
    centred = p - p.mean(-1, keepdims=True)
    return centred / jnp.sqrt(p.var(-1, keepdims=True) + eps)

  def loss(normed_p):
    return jnp.sin(normed_p * direction).sum()

  g = jax.grad(lambda p: loss(normed(p)))(p)
  through = (jax.grad(loss)(normed(p)) * normed(p)).sum(-1)
  want = eps / (p.var(-1) + eps) * through
  np.testing.assert_allclose(prompt_scores.taylor(g, p), want, rtol=1e-4)
  assert np.abs(want).max() > 1e-2
