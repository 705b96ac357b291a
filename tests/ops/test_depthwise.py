"""Shifted copies of the map sum to a convolution of every channel."""

import pytest

from tests.ops.forms import check_equal, draw
from vpt_jax.ops import depthwise


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("size,padding", [(1, 0), (2, 0), (3, 1), (4, 2)])
def test_the_fast_form_is_the_reference(channels, size, padding):
  check_equal(
    lambda x, kernel: depthwise.reference(x, kernel, padding),
    lambda x, kernel: depthwise.fast(x, kernel, padding),
    (draw(2, 5, 7, 6), draw(size, size, channels, seed=1)),
    atol=1e-5,
    gradient_atol=1e-5,
  )
