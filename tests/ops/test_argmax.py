"""The largest of each row, in both forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.forms import draw
from vpt_jax.ops import argmax


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_fast_form_is_the_reference(dtype):
  """Bit for bit: of equal ones it is the first."""
  x = np.asarray(draw(6, 7, 150)).copy()
  x[0] = 0  # all are equal
  x[1] = x[1].round()  # many are
  x[2, :, 40] = x[2].max() + 1
  x[3, :, 5] = np.inf
  x[4] = -np.inf
  given = jnp.asarray(x, dtype)
  want = argmax.reference(given)
  found = argmax.fast(given)
  assert found.dtype == want.dtype == jnp.int32
  np.testing.assert_array_equal(found, want)
  np.testing.assert_array_equal(found[2], 40)


def test_with_nan_the_place_is_in_range():
  """So that what looks a class up finds one."""
  x = np.asarray(draw(5, 7)).copy()
  x[:3, 2] = np.nan
  x[3] = np.nan
  found = argmax.fast(jnp.asarray(x))
  assert found.min() >= 0 and found.max() < 7
