"""Holds the plain and the fast form of an operation against each other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def draw(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
  """Returns standard normal numbers."""
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def check_equal(
  reference: Callable[..., jax.Array],
  fast: Callable[..., jax.Array],
  args: tuple[jax.Array | None, ...],
  *,
  atol: float = 1e-6,
  gradient_atol: float = 2e-6,
) -> None:
  """Asserts that values and gradients of both forms are equal.

  Args:
    reference: the plain form.
    fast: the other one.
    args: arrays that both are called with; gradients are taken for each.
    atol: of the values, absolute.
    gradient_atol: of the gradients, for those whose largest entry is below 1;
      relative to that entry for others.
  """
  want, pull_reference = jax.vjp(reference, *args)
  found, pull_fast = jax.vjp(fast, *args)
  assert (found.shape, found.dtype) == (want.shape, want.dtype)
  compare(found, want, atol)
  compare(fast(*args), want, atol)  # without gradients
  given = draw(*want.shape, seed=9, dtype=want.dtype)
  pairs = zip(
    jax.tree.leaves(pull_fast(given)),
    jax.tree.leaves(pull_reference(given)),
    strict=True,
  )
  for found, want in pairs:
    assert (found.shape, found.dtype) == (want.shape, want.dtype)
    largest = float(jnp.abs(jnp.float32(want)).max())
    compare(found, want, gradient_atol * max(1.0, largest))


def compare(found: jax.Array, want: jax.Array, atol: float) -> None:
  """Asserts that arrays of any type are equal but for `atol`."""
  np.testing.assert_allclose(
    np.asarray(found, np.float32), np.asarray(want, np.float32), atol=atol
  )
