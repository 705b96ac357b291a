"""Gradients that are written by hand are those of automatic differentiation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.nn import layers, transformer
from vpt_jax.nn.tokens import to_batch

B, H, Q, K, D = 2, 3, 4, 5, 6


def draw(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def written_out(query, key, value, bias):
  logits = jnp.einsum("bhqd,bhkd->bhqk", query, key)
  logits = logits if bias is None else logits + bias
  return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(logits), value)


@pytest.mark.parametrize("first", [K, 3])
@pytest.mark.parametrize(
  "shape", [None, (K,), (H, 1, K), (B, 1, Q, K), (B, H, Q, K)], ids=str
)
def test_attention(shape, first):
  args = [
    draw(B, H, Q, D),
    draw(B, H, K, D, seed=1),
    draw(B, H, K, D, seed=2),
    None if shape is None else 3 * draw(*shape, seed=3),
  ]
  # Logits of several hundred: the largest must be taken off first.
  for scale in (1, 100):
    scaled = [scale * args[0], *args[1:]]
    ours, pull = jax.vjp(lambda *x: transformer.mixed(*x, first), *scaled)
    theirs, want = jax.vjp(written_out, *scaled)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    np.testing.assert_allclose(
      transformer.mixed(*scaled, first), theirs, atol=2e-6
    )
    given = draw(B, H, Q, D, seed=4)
    for a, b in zip(jax.tree.leaves(pull(given)), jax.tree.leaves(want(given))):
      assert a.shape == b.shape
      # Queries are factors of the keys' gradients, whatever these are.
      np.testing.assert_allclose(a, b, atol=2e-6 * max(scale, np.abs(b).max()))


@pytest.mark.parametrize(
  "shape", [None, (K,), (H, 1, K), (B, 1, Q, K)], ids=str
)
def test_attention_of_the_library(shape):
  args = [
    draw(B, H, Q, D),
    draw(B, H, K, D, seed=1),
    draw(B, H, K, D, seed=2),
    None if shape is None else draw(*shape, seed=3),
  ]
  ours, pull = jax.vjp(lambda *x: transformer.mixed(*x, K), *args)
  theirs, want = jax.vjp(lambda *x: transformer.ATTENTION["xla"](*x, K), *args)
  np.testing.assert_allclose(ours, theirs, atol=2e-6)
  given = draw(B, H, Q, D, seed=4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6),
    pull(given),
    want(given),
  )


def test_attention_in_bfloat16():
  args = [draw(B, H, Q, D), draw(B, H, K, D, seed=1), draw(B, H, K, D, seed=2)]
  half = [x.astype(jnp.bfloat16) for x in args]
  out, pull = jax.vjp(lambda *x: transformer.mixed(*x, K), *half, None)
  want, pull_32 = jax.vjp(written_out, *args, None)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, want, atol=0.03)
  given = draw(B, H, Q, D, seed=4)
  for a, b in zip(pull(given)[:3], pull_32(given)[:3]):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(
      a.astype(jnp.float32), b, atol=0.05 * np.abs(b).max()
    )


@pytest.mark.parametrize(
  "name, theirs",
  [
    ("exact", lambda x: nn.gelu(x, approximate=False)),
    ("tanh", lambda x: nn.gelu(x, approximate=True)),
    ("quick", lambda x: x / (1 + jnp.exp(-1.702 * x))),
  ],
)
def test_gelu(name, theirs):
  x = jnp.linspace(-8, 8, 1001)
  ours = transformer.GELUS[name]
  np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)
  np.testing.assert_allclose(
    jax.vmap(jax.grad(ours))(x), jax.vmap(jax.grad(theirs))(x), atol=2e-6
  )
  # One array is kept for the backward pass.
  _, pull = jax.vjp(ours, x)
  assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [x.shape]


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_to_batch(rows):
  x = draw(rows, 3, 4)
  out, pull = jax.vjp(lambda x: to_batch(x, 6), x)
  np.testing.assert_array_equal(out, np.repeat(x, 6 // rows, axis=0))
  given = draw(6, 3, 4, seed=1)
  want = given.reshape(rows, 6 // rows, 3, 4).sum(1)
  np.testing.assert_allclose(pull(given)[0], want, atol=1e-6)


@pytest.mark.parametrize(
  "shape,layer",
  [
    ((B, Q, 7), layers.Dense(5, dtype=jnp.bfloat16)),
    ((B, Q, 7), layers.DenseGeneral((H, D), dtype=jnp.bfloat16)),
    ((B, Q, H, D), layers.DenseGeneral(5, axis=(-2, -1), dtype=jnp.bfloat16)),
  ],
)
def test_dense_layers_in_bfloat16(shape, layer):
  """Products of bfloat16 with a float32 result, forwards and backwards."""
  x = draw(*shape).astype(jnp.bfloat16)
  params = jax.tree.map(
    lambda leaf: leaf.astype(jnp.bfloat16), layer.init(jax.random.key(1), x)
  )
  wide = jax.tree.map(jnp.float32, (params, x))
  ours, pull = jax.vjp(layer.apply, params, x)
  plain = layer.clone(dtype=jnp.float32, dot_general=None)
  theirs, want = jax.vjp(plain.apply, *wide)
  given = draw(*ours.shape, seed=2).astype(jnp.bfloat16)
  found = [ours, *jax.tree.leaves(pull(given))]
  for a, b in zip(
    found, [theirs, *jax.tree.leaves(want(jnp.float32(given)))], strict=True
  ):
    assert a.dtype == jnp.bfloat16 and a.shape == b.shape
    np.testing.assert_allclose(jnp.float32(a), b, rtol=2**-7, atol=0.02)
  rows = jax.vmap(layer.apply, (None, 0))(params, x)
  np.testing.assert_allclose(
    jnp.float32(rows), jnp.float32(ours), rtol=2**-7, atol=0.02
  )
  # Nothing is computed or kept for a kernel that is frozen.
  backward = lambda x: jax.vjp(lambda x: layer.apply(params, x), x)[1](given)
  program = str(jax.make_jaxpr(backward)(x))
  assert program.count("dot_general[") == 2  # forwards, backwards
  assert program.count("preferred_element_type=float32") == 2
  kept = jax.tree.leaves(jax.vjp(lambda x: layer.apply(params, x), x)[1])
  assert all(leaf.shape != x.shape for leaf in kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_norm(dtype):
  x = (5 + 3 * draw(2, 4, 32)).astype(dtype)
  scale, bias, given = (
    draw(*shape, seed=i) for i, shape in enumerate([(32,), (32,), (2, 4, 32)])
  )
  theirs = nn.LayerNorm(epsilon=1e-3, dtype=jnp.float32)
  ours, pull = jax.vjp(lambda *args: layers.normed(*args, 1e-3), x, scale, bias)
  want, want_pull = jax.vjp(
    lambda x, scale, bias: theirs.apply(
      {"params": {"scale": scale, "bias": bias}}, x
    ),
    x,
    scale,
    bias,
  )
  np.testing.assert_array_equal(ours, want)
  for a, b in zip(pull(given), want_pull(given)):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(
      a.astype("float32"),
      b.astype("float32"),
      atol=2e-6 if a.dtype == jnp.float32 else 0.01,
    )
  # Nothing of x's size is kept but x.
  _, pull = jax.vjp(lambda x: layers.normed(x, scale, bias, 1e-3), x)
  kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
  assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(x.shape, x.dtype)]


def test_layer_norm_has_the_parameters_of_flax():
  of = lambda module: jax.tree.map(
    np.asarray, module.init(jax.random.key(0), draw(2, 32))
  )
  jax.tree.map(
    np.testing.assert_array_equal, of(layers.LayerNorm()), of(nn.LayerNorm())
  )


def test_a_model_with_the_attention_of_the_library(config):
  """The whole way from the config; what can't be is said."""
  config.method, image = "vpt", draw(2, 8, 8, 3)
  ours = models.build(config, 10)
  params = models.init(ours, jax.random.PRNGKey(0))
  config.compute.attention = "xla"
  theirs = models.build(config, 10)
  assert ours.backbone != theirs.backbone
  np.testing.assert_allclose(
    ours.apply({"params": params}, image),
    theirs.apply({"params": params}, image),
    atol=2e-6,
  )
  config.backbone.name = "swin_test"
  with pytest.raises(ValueError, match="not for windows"):
    models.build(config, 10)
  config.compute.attention = "cudnn"
  with pytest.raises(ValueError, match="config.compute.dtype=bfloat16"):
    configs.resolve(config)
  config.backbone.name, config.compute.dtype = "vit_test", "bfloat16"
  with pytest.raises(ValueError, match="is for NVIDIA GPUs"):
    models.build(config, 10)
