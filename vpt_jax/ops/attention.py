"""Computes attention: softmax(Q K^T + bias) V.

Fast form: the softmax's division comes last, where it is of d numbers for a
query in place of K, and the gradient is written out, so that it needs no
further pass over [Q, K]. On two CPU cores with AVX-512 these passes took 4 % of
a training step of ViT-B/16, VPT-deep with 200 prompts. Without gradients the
context's keys stay apart from the tokens', which saves 3 % of a forward pass
with 200 prompts there: XLA's fused kernel is slower for 397 keys in one piece
than for 197 and 200. On accelerators not measured.
"""

from collections.abc import Callable, Sequence
import functools
from typing import cast, Literal

import jax
import jax.numpy as jnp


def masked_logits(
  query: jax.Array, key: jax.Array, bias: jax.Array | None
) -> jax.Array:
  """Returns Q K^T + bias, [B, H, Q, K] in float32."""
  logits = jnp.einsum(
    "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
  )
  return logits if bias is None else logits + bias


def reference(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None,
  num_tokens: int,
) -> jax.Array:
  """Returns softmax(Q K^T + bias) V.

  Args:
    query: [B, H, Q, d], scaled already.
    key: [B, H, K, d].
    value: [B, H, K, d].
    bias: [..., Q, K], added to the logits, or None.
    num_tokens: how many of the keys are tokens'; a context's follow. It makes
      no difference to the result.

  Returns:
    [B, H, Q, d] in float32.
  """
  del num_tokens
  weights = jax.nn.softmax(masked_logits(query, key, bias))
  return jnp.einsum(
    "bhqk,bhkd->bhqd",
    weights.astype(value.dtype),
    value,
    preferred_element_type=jnp.float32,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def fast(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None,
  num_tokens: int,
) -> jax.Array:
  """Returns the same as `reference`.

    W = exp(S - max),   S = Q K^T + bias,   out = (W V) / sum_k W

  and, for a gradient g of out, with h = g / sum_k W

    dV = W^T h,   dS = W * (h V^T - sum_d(h out)),   dQ = dS K,   dK = dS^T Q
  """
  keys = _tokens_and_context(key, num_tokens, axis=2)
  values = _tokens_and_context(value, num_tokens, axis=2)
  biases: Sequence[jax.Array | None] = [None] * len(keys)
  if bias is not None:
    biases = _tokens_and_context(bias, num_tokens, axis=-1)
  out, _, _ = _softmax_mean(query, keys, values, biases)
  return out


def _tokens_and_context(
  x: jax.Array, num_tokens: int, axis: int
) -> list[jax.Array]:
  """Returns the tokens' part of x, and the context's if there is any."""
  if x.shape[axis] <= num_tokens:
    return [x]
  return jnp.split(x, [num_tokens], axis)


def _combine(
  operation: Callable[[jax.Array, jax.Array], jax.Array],
  parts: Sequence[jax.Array],
) -> jax.Array:
  """Returns one array of the parts: their sum or maximum, for example."""
  return functools.reduce(operation, parts)


def _softmax_mean(
  query: jax.Array,
  keys: Sequence[jax.Array],
  values: Sequence[jax.Array],
  biases: Sequence[jax.Array | None],
) -> tuple[jax.Array, list[jax.Array], jax.Array]:
  """Averages the values of all parts by one softmax.

  Args:
    query: [B, H, Q, d].
    keys: of every part, [B, H, K_i, d].
    values: likewise.
    biases: [..., Q, K_i] or None.

  Returns:
    (mean [B, H, Q, d], weights [B, H, Q, K_i] before the division, their sums
    [B, H, Q, 1]).
  """
  logits = []
  for key, bias in zip(keys, biases, strict=True):
    logits.append(masked_logits(query, key, bias))
  largest = _combine(
    jnp.maximum, [x.max(axis=-1, keepdims=True) for x in logits]
  )
  weights = [jnp.exp(x - largest) for x in logits]
  total = _combine(jnp.add, [x.sum(axis=-1, keepdims=True) for x in weights])
  weights = [x.astype(query.dtype) for x in weights]
  sums = []
  for weight, value in zip(weights, values, strict=True):
    sums.append(
      jnp.einsum(
        "bhqk,bhkd->bhqd", weight, value, preferred_element_type=jnp.float32
      )
    )
  return _combine(jnp.add, sums) / total, weights, total


def _forward(query, key, value, bias, num_tokens):
  # In one piece: with gradients nothing is gained by parts.
  del num_tokens
  out, (weights,), total = _softmax_mean(query, [key], [value], [bias])
  return out, (query, key, value, bias, weights, total, out)


def _backward(num_tokens, kept, grad):
  del num_tokens
  query, key, value, bias, weights, total, out = kept
  dtype = value.dtype
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  grad = (_rows(grad) / _rows(total)).reshape(grad.shape)
  inner = (grad * out).sum(axis=-1, keepdims=True)
  grad = grad.astype(dtype)
  d_logits = weights * (product("bhqd,bhkd->bhqk", grad, value) - inner)
  d_bias = None if bias is None else _sum_like(d_logits, bias)
  d_logits = d_logits.astype(dtype)
  d_query = product("bhqk,bhkd->bhqd", d_logits, key).astype(dtype)
  d_key = product("bhqk,bhqd->bhkd", d_logits, query).astype(dtype)
  d_value = product("bhqk,bhqd->bhkd", weights, grad).astype(dtype)
  return d_query, d_key, d_value, d_bias


def _rows(x: jax.Array) -> jax.Array:
  """Returns x [B, H, Q, n] as [B, H Q, n], see `layer_norm.fast`."""
  return x.reshape(len(x), -1, x.shape[-1])


def _sum_like(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x summed over the axes along which the bias was repeated."""

  def repeat(bias):
    return jnp.broadcast_to(bias, x.shape)

  (total,) = jax.linear_transpose(repeat, bias)(x)
  return total


fast.defvjp(_forward, _backward)


def library(
  implementation: str,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None,
  num_tokens: int,
) -> jax.Array:
  """Returns attention by `jax.nn.dot_product_attention`.

  cuDNN's keeps nothing of size [Q, K]. With a bias this is `fast`: cuDNN trains
  with one for even numbers of rows only.

  Args:
    implementation: `xla` or `cudnn`.
    query: [B, H, Q, d], scaled already.
    key: [B, H, K, d].
    value: [B, H, K, d].
    bias: [..., Q, K] or None.
    num_tokens: see `reference`.

  Returns:
    [B, H, Q, d] in the type of the values.
  """
  if bias is not None:
    return fast(query, key, value, bias, num_tokens)
  out = jax.nn.dot_product_attention(
    query.swapaxes(1, 2),  # rows before heads
    key.swapaxes(1, 2),
    value.swapaxes(1, 2),
    scale=1.0,
    implementation=cast(Literal["xla", "cudnn"], implementation),
  )
  return out.swapaxes(1, 2)
