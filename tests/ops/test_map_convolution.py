"""Convolutions of maps are XLA's, their kernels' gradients are products."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.ops.forms import check_equal, compare, draw
from vpt_jax.distributed import shard_gradients
from vpt_jax.ops import map_convolution

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# (kernel, stride, padding); those of stride 2 are left to `convolution`.
CONVOLUTIONS = [
  ((3, 3), 1, [(1, 1), (1, 1)]),
  ((1, 1), 1, "SAME"),
  ((2, 3), 1, "VALID"),
  ((4, 3), 1, "SAME"),
  ((3, 3), 2, "SAME"),
]


def options(stride, padding):
  return {
    "window_strides": (stride, stride),
    "padding": padding,
    "dimension_numbers": DIMENSIONS,
  }


@pytest.mark.parametrize("window, stride, padding", CONVOLUTIONS)
def test_the_fast_form_is_the_reference(window, stride, padding):
  """Values and gradients."""
  both = options(stride, padding)
  check_equal(
    functools.partial(map_convolution.reference, **both),
    functools.partial(map_convolution.fast, **both),
    (draw(2, 6, 5, 3), draw(*window, 3, 4, seed=1)),
    atol=1e-5,
    gradient_atol=1e-5,
  )


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_are_the_whole_batch(shards):
  """Gradients of kernel and map, every shard's a product of its own."""

  def loss(params, x):
    x = params["scale"] * x  # so that the map needs a gradient
    out = map_convolution.fast(x, params["kernel"], **options(1, "SAME"))
    return jnp.sin(out).sum(), (out.sum(), ())

  params = {"kernel": draw(3, 3, 3, 2, seed=1), "scale": jnp.float32(0.3)}
  x = draw(4, 6, 5, 3)
  _, found = shard_gradients.value_and_grad(loss, shards)(params, x)
  _, want = shard_gradients.value_and_grad(loss, 1)(params, x)
  for name in params:
    compare(found[name], want[name], atol=1e-4)


def test_the_gradient_convolves_no_window_of_the_maps_size():
  """Of the program: a convolution each way, and a product for each place."""

  def loss(x, kernel):
    return map_convolution.fast(x, kernel, **options(1, "SAME")).sum()

  differentiate = jax.grad(loss, argnums=(0, 1))
  program = str(
    jax.make_jaxpr(differentiate)(draw(1, 8, 8, 3), draw(3, 3, 3, 2))
  )
  assert program.count("conv_general_dilated[") == 2
  assert program.count("dot_general[") == 9


def test_bfloat16_stays():
  """Gradients have the types of what they are of, near those of float32."""
  x = draw(2, 6, 5, 3)
  kernel = draw(3, 3, 3, 4, seed=1)

  def loss(kernel, x):
    out = map_convolution.fast(x, kernel, **options(1, "SAME"))
    return jnp.square(out.astype(jnp.float32)).mean()

  want = jax.grad(loss)(kernel, x)
  half = jnp.bfloat16
  found = jax.grad(loss)(kernel.astype(half), x.astype(half))
  assert found.dtype == half
  compare(found, want, atol=0.02 * float(jnp.abs(want).max()))
