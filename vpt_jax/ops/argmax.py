"""Finds the largest of the last axis, as of each pixel's logits.

Fast form: two maxima, of the values and of the places that have it, counted
backwards in float32. XLA on CPUs goes through a maximum with its place one
entry after the other, while those of numbers alone are of many at a time. Of
512 x 512 pixels and 150 classes in float32 it takes 26 ms of processor time in
place of 160 (an AMD EPYC with AVX-512). On accelerators not measured.
"""

import jax
import jax.numpy as jnp

MOST = 2**24  # integers up to it are exact in float32


def reference(x: jax.Array) -> jax.Array:
  """Returns the first place of the largest entry.

  Args:
    x: [..., K].

  Returns:
    int32 [...].
  """
  return x.argmax(-1).astype(jnp.int32)


def fast(x: jax.Array) -> jax.Array:
  """Returns the same as `reference`; with NaN some place in range."""
  *_, count = x.shape
  if count > MOST:
    return reference(x)
  largest = x.max(-1, keepdims=True)
  is_largest = (x == largest) | jnp.isnan(x)
  places_left = jnp.arange(count, 0, -1, dtype=jnp.float32)
  most_left = jnp.where(is_largest, places_left, 0.0).max(-1)
  return count - most_left.astype(jnp.int32)
