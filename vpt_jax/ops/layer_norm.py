"""Normalises the last axis in float32.

Fast form: for the backward pass only x is kept, in its own type, and two
numbers of a row; automatic differentiation keeps three arrays of x's size in
float32. What a training step of ViT-B/16 with 100 prompts keeps on CPU is a
quarter less; the time was not measured alone. Together with GELU's slope (see
`gelu.py`) a step with 32 or 64 images of ViT-B, S and Ti got 1 to 6 % faster on
two CPU cores with AVX-512.
"""

import functools

import jax
import jax.numpy as jnp


def reference(
  x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
  """Returns scale (x - mean) / sqrt(var + eps) + bias over the last axis.

  The variance is mean(x^2) - mean(x)^2, as Flax has it.

  Args:
    x: [..., D].
    scale: [D].
    bias: [D].
    eps: added to the variance.

  Returns:
    [..., D] in float32.
  """
  x = x.astype(jnp.float32)
  mean = x.mean(axis=-1, keepdims=True)
  mean_square = (x * x).mean(axis=-1, keepdims=True)
  var = mean_square - mean * mean
  inverse = jax.lax.rsqrt(jnp.maximum(var, 0) + eps)
  return (x - mean) * (inverse * scale) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fast(
  x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
  """Returns the same as `reference`.

  With u = (x - mean) / sqrt(var + eps) and a gradient g of the result

    dx = (s - mean(s) - u mean(s u)) / sqrt(var + eps),   s = scale g
    dscale = sum g u,   dbias = sum g

  The backward pass has its rows in one axis: if scale were spread over the same
  shape in both passes, XLA on CPU would spread it once and keep that.
  """
  out, _ = _forward(x, scale, bias, eps)
  return out


def _forward(x, scale, bias, eps):
  wide = x.astype(jnp.float32)
  mean = wide.mean(axis=-1, keepdims=True)
  var = (wide * wide).mean(axis=-1, keepdims=True) - mean * mean
  inverse = jax.lax.rsqrt(jnp.maximum(var, 0) + eps)
  out = (wide - mean) * (inverse * scale) + bias
  return out, (x, mean, inverse, scale, bias)


def _backward(eps, kept, grad):
  del eps
  x, mean, inverse, scale, bias = kept
  shape = x.shape
  width = shape[-1]
  x = x.reshape(-1, width)
  grad = grad.reshape(-1, width)
  mean = mean.reshape(-1, 1)
  inverse = inverse.reshape(-1, 1)
  wide = x.astype(jnp.float32)
  unit = (wide - mean) * inverse
  scaled = grad * scale
  average = scaled.mean(axis=-1, keepdims=True)
  inner = (scaled * unit).mean(axis=-1, keepdims=True)
  dx = inverse * (scaled - average - unit * inner)
  dx = dx.astype(x.dtype)
  d_x = dx.reshape(shape)
  d_scale = (grad * unit).sum(0).astype(scale.dtype)
  d_bias = grad.sum(0).astype(bias.dtype)
  return d_x, d_scale, d_bias


fast.defvjp(_forward, _backward)
