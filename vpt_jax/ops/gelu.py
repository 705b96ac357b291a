"""Computes GELU and its approximations.

Fast form: one array is kept for the backward pass, the slope; automatic
differentiation keeps those that the slope is made of. The exact one is by erf,
as PyTorch's; `nn.gelu` takes erfc, which costs twice as much. Both together
took 3 % of a training step of ViT-B/16, VPT-deep with 200 prompts, on two CPU
cores with AVX-512. One array alone is kept on CPU from 4,096 rows of tokens on
(about 21 images); below, XLA keeps two. On accelerators not measured.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Function = Callable[[jax.Array], jax.Array]


def _tanh(x: jax.Array) -> jax.Array:
  """Returns big_vision's GELU, with a tanh in place of erf."""
  return nn.gelu(x, approximate=True)


def _exact(x: jax.Array) -> jax.Array:
  """Returns x (1 + erf(x / sqrt(2))) / 2."""
  erf = jax.lax.erf(x * 0.5**0.5)
  return x * (0.5 + 0.5 * erf)


def _quick(x: jax.Array) -> jax.Array:
  """Returns CLIP's x sigmoid(1.702 x)."""
  return x * nn.sigmoid(1.702 * x)


def keep_slope(function: Function) -> Function:
  """Returns an elementwise function of which training keeps only the slope."""
  out = jax.custom_jvp(function)

  @out.defjvp
  def jvp(primals, tangents):
    (x,) = primals
    (dx,) = tangents
    ones = jnp.ones_like(x)
    y, slope = jax.jvp(function, (x,), (ones,))
    # XLA on CPU puts off sums and products until the matrix product that uses
    # them, and would keep their factors. It does not put off a `where`, whose
    # condition holds for all but NaN.
    slope = jnp.where(x == x, slope, x)
    return y, slope * dx

  return out


_FAST: dict[str, Function] = {
  "tanh": keep_slope(_tanh),
  "exact": keep_slope(_exact),
  "quick": keep_slope(_quick),
}
NAMES = tuple(_FAST)


def reference(x: jax.Array, name: str) -> jax.Array:
  """Returns GELU of x [...], elementwise.

  Args:
    x: [...].
    name: `exact`: x times the normal distribution's cumulative function;
      `tanh` (big_vision) and `quick` (CLIP) approximate it.
  """
  if name == "quick":
    return _quick(x)
  return nn.gelu(x, approximate=name == "tanh")


def fast(x: jax.Array, name: str) -> jax.Array:
  """Returns the same as `reference`."""
  return _FAST[name](x)
