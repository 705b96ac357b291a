"""Products of bfloat16 with a float32 result, forwards and backwards."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.forms import check_equal, draw
from vpt_jax.ops import dense

B, T, D, H, W = 2, 4, 7, 3, 6
# (shape of x, shape of the kernel, axes that are summed over).
PRODUCTS = [
  ((B, T, D), (D, 5), 1),
  ((B, T, D), (D, H, W), 1),
  ((B, T, H, W), (H, W, 5), 2),
]


def dimensions(x, n):
  """Of a dense layer: the last n axes of x, the first n of the kernel."""
  return (tuple(range(len(x) - n, len(x))), tuple(range(n))), ((), ())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape,kernel_shape,n", PRODUCTS)
def test_the_fast_form_is_the_reference(shape, kernel_shape, n, dtype):
  x = draw(*shape, dtype=dtype)
  kernel = draw(*kernel_shape, seed=1, dtype=dtype)
  axes = dimensions(shape, n)
  is_half = dtype == jnp.bfloat16
  check_equal(
    lambda x, kernel: dense.reference(x, kernel, axes),
    lambda x, kernel: dense.fast(x, kernel, axes),
    (x, kernel),
    atol=0.05 if is_half else 1e-6,
    gradient_atol=2**-7 if is_half else 2e-6,
  )


@pytest.mark.parametrize(
  "shape,layer",
  [
    ((B, T, D), nn.Dense(5, dtype=jnp.bfloat16)),
    ((B, T, D), nn.DenseGeneral((H, W), dtype=jnp.bfloat16)),
    ((B, T, H, W), nn.DenseGeneral(5, axis=(-2, -1), dtype=jnp.bfloat16)),
  ],
)
def test_layers(shape, layer):
  """As Flax calls it, also under vmap; nothing is kept of what is frozen."""
  layer = layer.clone(dot_general=dense.fast)
  x = draw(*shape).astype(jnp.bfloat16)
  params = jax.tree.map(
    lambda leaf: leaf.astype(jnp.bfloat16), layer.init(jax.random.key(1), x)
  )
  wide = jax.tree.map(jnp.float32, (params, x))
  found, pull = jax.vjp(layer.apply, params, x)
  plain = layer.clone(dtype=jnp.float32, dot_general=None)
  want, pull_plain = jax.vjp(plain.apply, *wide)
  given = draw(*found.shape, seed=2).astype(jnp.bfloat16)
  pairs = zip(
    [found, *jax.tree.leaves(pull(given))],
    [want, *jax.tree.leaves(pull_plain(jnp.float32(given)))],
    strict=True,
  )
  for a, b in pairs:
    assert a.dtype == jnp.bfloat16 and a.shape == b.shape
    close(a, b)
  close(jax.vmap(layer.apply, (None, 0))(params, x), found)
  # Nothing is computed or kept for a kernel that is frozen.

  def backward(x):
    return jax.vjp(lambda x: layer.apply(params, x), x)[1](given)

  program = str(jax.make_jaxpr(backward)(x))
  assert program.count("dot_general[") == 2  # forwards, backwards
  assert program.count("preferred_element_type=float32") == 2
  kept = jax.tree.leaves(jax.vjp(lambda x: layer.apply(params, x), x)[1])
  assert all(leaf.shape != x.shape for leaf in kept)


def close(a, b):
  np.testing.assert_allclose(
    jnp.float32(a), jnp.float32(b), rtol=2**-7, atol=0.02
  )
