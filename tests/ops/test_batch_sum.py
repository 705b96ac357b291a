"""Rows that images share; their gradient is a sum over these images."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.forms import check_equal, draw
from vpt_jax.ops import batch_sum


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_the_fast_form_is_the_reference(rows, dtype):
  x = draw(rows, 3, 4, dtype=dtype)
  check_equal(
    lambda x: batch_sum.reference(x, 6),
    lambda x: batch_sum.fast(x, 6),
    (x,),
    atol=0,
    gradient_atol=1e-6 if dtype == jnp.float32 else 2**-6,
  )
  np.testing.assert_array_equal(
    batch_sum.fast(x, 6), np.repeat(x, 6 // rows, axis=0)
  )
