"""CLIP's text tower: names, causality, precision, and PyTorch's numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax.backbones import clip
from vpt_jax.utils import trees

LENGTH, VOCAB = 9, 40


@functools.cache
def tower(dtype=jnp.float32):
  """(apply, params), jitted; all parameters random."""
  module = clip.TextTower(
    width=32,
    depth=2,
    num_heads=4,
    output_dim=12,
    context_length=LENGTH,
    vocab_size=VOCAB,
    dtype=dtype,
  )
  params = jax.eval_shape(module.init, jax.random.key(0), ids())["params"]
  flat = trees.flatten(params)
  rng = np.random.default_rng(0)
  params = trees.unflatten(
    {
      name: jnp.asarray(
        rng.normal(0, 0.3, leaf.shape) + name.endswith("scale"), jnp.float32
      )
      for name, leaf in flat.items()
    }
  )
  return jax.jit(module.apply), params


def ids():
  """[5, 9]: texts of 1 to 7 tokens between start (38) and end (39)."""
  rng = np.random.default_rng(1)
  out = np.zeros((5, LENGTH), np.int32)
  for row, length in zip(out, (1, 2, 3, 5, 7)):
    row[: length + 2] = [38, *rng.integers(1, 38, length), 39]
  return out


def test_names_and_shapes():
  flat = trees.flatten(tower()[1])
  assert {
    name: leaf.shape
    for name, leaf in flat.items()
    if "encoderblock" not in name
  } == {
    "Transformer/encoder_norm/bias": (32,),
    "Transformer/encoder_norm/scale": (32,),
    "pos_embedding": (LENGTH, 32),
    "projection/kernel": (32, 12),
    "token_embedding": (VOCAB, 32),
  }
  assert flat["Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel"].shape == (
    32,
    128,
  )


def test_text_after_the_end_has_no_effect():
  apply, params = tower()
  texts = ids()
  feature = apply({"params": params}, texts)
  assert feature.shape == (5, 12) and feature.dtype == jnp.float32
  changed = np.where(texts == 0, 7, texts)
  np.testing.assert_array_equal(apply({"params": params}, changed), feature)
  for place in (0, 1):
    changed = texts.copy()
    changed[:, place] = texts[:, place] % 37 + 1
    moved = np.abs(apply({"params": params}, changed) - feature).max(axis=1)
    assert (moved > 1e-3).all()


def test_nothing_sees_what_comes_later():
  """Another end: the feature is that of the shorter text."""
  apply, params = tower()
  texts = ids()[-1:].repeat(2, axis=0)
  texts[1, 4] = 39
  short = texts[:1].copy()
  short[0, 4:] = [39, 0, 0, 0, 0]
  np.testing.assert_allclose(
    apply({"params": params}, texts)[1],
    apply({"params": params}, short)[0],
    rtol=0,
    atol=1e-6,
  )


def test_texts_of_another_length():
  apply, params = tower()
  with pytest.raises(ValueError, match=r"ids are \[5, 8\], .* needs \[N, 9\]"):
    apply({"params": params}, ids()[:, :8])


def test_half_precision():
  full, half = (
    apply({"params": params}, ids())
    for apply, params in (tower(), tower(jnp.bfloat16))
  )
  assert half.dtype == jnp.float32
  error = np.abs(half - full).max() / np.abs(full).max()
  assert 1e-5 < error < 0.05


def test_parity_with_torch():
  torch = pytest.importorskip("torch")
  apply, params = tower()
  flat = {
    name: torch.tensor(np.asarray(leaf))
    for name, leaf in trees.flatten(params).items()
  }

  def norm(x, name):
    return torch.nn.functional.layer_norm(
      x, (32,), flat[f"{name}/scale"], flat[f"{name}/bias"], eps=1e-5
    )

  def dense(x, name):
    return x @ flat[f"{name}/kernel"] + flat[f"{name}/bias"]

  with torch.no_grad():
    texts = torch.tensor(ids(), dtype=torch.long)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    x = flat["token_embedding"][texts] + flat["pos_embedding"]
    for i in range(2):
      block = f"Transformer/encoderblock_{i}"
      name = f"{block}/MultiHeadDotProductAttention_0"
      attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
      qkv = [f"{name}/{part}" for part in ("query", "key", "value")]
      attention.in_proj_weight.copy_(
        torch.cat([flat[f"{part}/kernel"].reshape(32, 32).T for part in qkv])
      )
      attention.in_proj_bias.copy_(
        torch.cat([flat[f"{part}/bias"].reshape(32) for part in qkv])
      )
      attention.out_proj.weight.copy_(
        flat[f"{name}/out/kernel"].reshape(32, 32).T
      )
      attention.out_proj.bias.copy_(flat[f"{name}/out/bias"])
      y = norm(x, f"{block}/LayerNorm_0")
      x = x + attention(y, y, y, attn_mask=mask, need_weights=False)[0]
      y = dense(norm(x, f"{block}/LayerNorm_1"), f"{block}/MlpBlock_0/Dense_0")
      y = y * torch.sigmoid(1.702 * y)
      x = x + dense(y, f"{block}/MlpBlock_0/Dense_1")
    x = norm(x, "Transformer/encoder_norm")
    x = x[torch.arange(5), texts.argmax(dim=-1)] @ flat["projection/kernel"]
  np.testing.assert_allclose(
    apply({"params": params}, ids()), x.numpy(), rtol=1e-5, atol=1e-5
  )
