"""The pool's gradients go to the first maximum of a window, as PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax.ops import pooling


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("height,width", [(8, 8), (7, 8), (9, 5), (1, 2)])
def test_the_fast_form_is_the_reference(height, width, dtype):
  """Exactly; of few values, so that there are many ties."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(0, 3, (2, height, width, 3)), dtype)
  want, pull_reference = jax.vjp(pooling.reference, x)
  found, pull_fast = jax.vjp(pooling.fast, x)
  assert found.dtype == want.dtype
  np.testing.assert_array_equal(found, want)
  given = jnp.asarray(rng.integers(-9, 9, want.shape), dtype)
  np.testing.assert_array_equal(pull_fast(given)[0], pull_reference(given)[0])
