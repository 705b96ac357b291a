"""Convolutions of a batch in shards are those of the whole batch."""

import jax
import jax.numpy as jnp
import pytest

from tests.ops.forms import check_equal, compare, draw
from vpt_jax.distributed import shard_gradients
from vpt_jax.ops import convolution

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("stride,padding", [(1, "SAME"), (2, "VALID")])
def test_the_fast_form_is_the_reference(stride, padding, shards):
  x = draw(4, 6, 5, 3)
  kernel = draw(3, 3, 3, 2, seed=1)
  options = {
    "window_strides": (stride, stride),
    "padding": padding,
    "dimension_numbers": DIMENSIONS,
  }
  if shards == 1:
    check_equal(
      lambda *args: convolution.reference(*args, **options),
      lambda *args: convolution.fast(*args, **options),
      (x, kernel),
      atol=1e-5,
      gradient_atol=1e-5,
    )
    return

  def loss(convolve, params, x):
    """Of one shard; its images are scaled by a parameter, to need dx."""
    out = convolve(params["scale"] * x, params["kernel"], **options)
    return (jnp.sin(out)).sum(), (out.sum(), ())

  params = {"kernel": kernel, "scale": jnp.float32(0.3)}
  (found, (found_sum, _)), found_gradient = shard_gradients.value_and_grad(
    lambda *args: loss(convolution.fast, *args), shards
  )(params, x)
  (want, (want_sum, _)), want_gradient = jax.value_and_grad(
    lambda *args: loss(convolution.reference, *args), has_aux=True
  )(params, x)
  compare(found, want, atol=1e-4)
  compare(found_sum, want_sum, atol=1e-4)
  for name in params:
    compare(found_gradient[name], want_gradient[name], atol=1e-4)
