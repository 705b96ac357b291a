"""LayerNorm: the fast form is the plain one and Flax's, and keeps only x."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.forms import check_equal, draw
from vpt_jax.ops import layer_norm


@pytest.mark.parametrize("shape", [(2, 32), (2, 4, 32), (2, 3, 4, 32)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fast_form_is_the_reference(dtype, shape):
  x = (5 + 3 * draw(*shape)).astype(dtype)
  scale = draw(32, seed=1)
  bias = draw(32, seed=2)
  flax = nn.LayerNorm(epsilon=1e-3, dtype=jnp.float32)
  variables = {"params": {"scale": scale, "bias": bias}}
  np.testing.assert_array_equal(
    layer_norm.fast(x, scale, bias, 1e-3), flax.apply(variables, x)
  )
  check_equal(
    lambda *args: layer_norm.reference(*args, 1e-3),
    lambda *args: layer_norm.fast(*args, 1e-3),
    (x, scale, bias),
    gradient_atol=2e-6 if dtype == "float32" else 0.01,
  )
  # Nothing of x's size is kept but x.
  _, pull = jax.vjp(lambda x: layer_norm.fast(x, scale, bias, 1e-3), x)
  kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
  assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(x.shape, x.dtype)]
