"""Attention: the fast form, and the libraries', are the plain one."""

import functools

import jax
import jax.numpy as jnp
import pytest

from tests.ops.forms import check_equal, compare, draw
from vpt_jax.ops import attention

B, H, Q, K, D = 2, 3, 4, 5, 6
BIASES = [None, (K,), (H, 1, K), (B, 1, Q, K), (B, H, Q, K)]


def inputs(bias_shape, dtype=jnp.float32):
  query = draw(B, H, Q, D, dtype=dtype)
  key = draw(B, H, K, D, seed=1, dtype=dtype)
  value = draw(B, H, K, D, seed=2, dtype=dtype)
  bias = None if bias_shape is None else 3 * draw(*bias_shape, seed=3)
  return query, key, value, bias


# Logits of several hundred: the largest must be taken off first.
@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("num_tokens", [K, 3])
@pytest.mark.parametrize("bias_shape", BIASES, ids=str)
def test_the_fast_form_is_the_reference(bias_shape, num_tokens, scale):
  query, *rest = inputs(bias_shape)
  check_equal(
    lambda *args: attention.reference(*args, num_tokens),
    lambda *args: attention.fast(*args, num_tokens),
    (scale * query, *rest),
    atol=2e-6,
    # Queries are factors of the keys' gradients, whatever these are.
    gradient_atol=2e-6 * scale,
  )


@pytest.mark.parametrize("bias_shape", BIASES[:4], ids=str)
def test_the_form_of_the_library(bias_shape):
  library = functools.partial(attention.library, "xla")
  check_equal(
    lambda *args: attention.reference(*args, K),
    lambda *args: library(*args, K),
    inputs(bias_shape),
    atol=2e-6,
    gradient_atol=5e-6,
  )


def test_bfloat16():
  """Inputs and their gradients are bfloat16, the result is float32."""
  half = inputs(None, jnp.bfloat16)[:3]
  want, pull_reference = jax.vjp(
    lambda *args: attention.reference(*args, None, K), *inputs(None)[:3]
  )
  given = draw(B, H, Q, D, seed=4)
  for form in (attention.fast, attention.reference):
    out, pull = jax.vjp(lambda *args, form=form: form(*args, None, K), *half)
    assert out.dtype == jnp.float32
    compare(out, want, atol=0.03)
    for a, b in zip(pull(given), pull_reference(given), strict=True):
      assert a.dtype == jnp.bfloat16
      compare(a, b, atol=0.05 * jnp.abs(b).max())
