"""GELU: the fast form is the plain one, and keeps its slope alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.forms import check_equal
from vpt_jax.ops import gelu


@pytest.mark.parametrize("name", gelu.NAMES)
def test_the_fast_form_is_the_reference(name):
  x = jnp.linspace(-8, 8, 1001)
  check_equal(
    lambda x: gelu.reference(x, name), lambda x: gelu.fast(x, name), (x,)
  )
  # One array is kept for the backward pass.
  _, pull = jax.vjp(lambda x: gelu.fast(x, name), x)
  assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [x.shape]


def test_the_quick_form_is_clips():
  x = jnp.linspace(-8, 8, 1001)
  np.testing.assert_allclose(
    gelu.reference(x, "quick"), x / (1 + jnp.exp(-1.702 * x)), atol=1e-6
  )


def test_nan_stays():
  assert jnp.isnan(jax.grad(lambda x: gelu.fast(x, "exact"))(jnp.nan))
