"""What the backbones' blocks are made of."""

from collections.abc import Callable
import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.nn.layers import Dense, DenseGeneral, LayerNorm
from vpt_jax.nn.tokens import Spec, to_batch, Tokens

Dtype = Any


def activation(
  function: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
  """An elementwise function of which training keeps one array, its slope.

  Automatic differentiation would keep the arrays that the slope is made of. XLA
  on CPU would too: it puts off sums and products until the matrix product that
  uses them, but not a `where`, whose condition holds for all but NaN.
  """
  out = jax.custom_jvp(function)

  @out.defjvp
  def jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
    return y, jnp.where(x == x, slope, x) * dx

  return out


GELUS: dict[str, Callable[[jax.Array], jax.Array]] = {
  # big_vision
  "tanh": activation(functools.partial(nn.gelu, approximate=True)),
  # By erf, as PyTorch; `nn.gelu` takes erfc, which costs twice as much.
  "exact": activation(lambda x: x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))),
  "quick": activation(lambda x: x * nn.sigmoid(1.702 * x)),  # CLIP
}

# What a method changes in a block: (layer, its input, its output) -> output.
Edit = Callable[[str, jax.Array, jax.Array], jax.Array]


def no_edit(layer: str, x: jax.Array, out: jax.Array) -> jax.Array:
  """Leaves a layer's output as it is."""
  return out


def edited(
  edit: Edit, layer: str, function: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
  """The function, its output edited."""
  return lambda x: edit(layer, x, function(x))


class Attention(nn.Module):
  """Multi-head attention whose keys and values may include a context."""

  num_heads: int
  dtype: Dtype = jnp.float32
  attention: str = "ours"  # of ATTENTION

  @nn.compact
  def __call__(
    self,
    queries: jax.Array,
    tokens: jax.Array,
    context: jax.Array | None,
    temperature: jax.Array | float,
    bias: jax.Array | None = None,
    edit: Edit = no_edit,
  ) -> jax.Array:
    """softmax(Q K^T / (sqrt(d) temperature) + bias) V.

    Args:
      queries: [B, Q, D] rows that are asked for.
      tokens: [B, T, D] rows that give keys and values.
      context: [n, P, D] further rows that give keys and values, each of them
        for B / n images; with n = 1 computed once for the whole batch.
      temperature: scalar.
      bias: [..., Q, K], added to the logits (a mask, for example).
      edit: sees "query", "key" and "value" [B, T, heads, d].

    Returns:
      [B, Q, D].
    """
    width = queries.shape[-1]
    to_query, to_key, to_value, to_out = projections(
      self.num_heads, width, self.dtype
    )
    # Heads before rows: XLA's batched products on CPU are twice as fast so.
    split = lambda layer, to: lambda x: edit(layer, x, to(x)).swapaxes(1, 2)
    to_key, to_value = split("key", to_key), split("value", to_value)
    query = split("query", to_query)(queries)
    key, value = to_key(tokens), to_value(tokens)
    if context is not None:
      key = _join(key, to_key(context))
      value = _join(value, to_value(context))
    scale = (width // self.num_heads) ** -0.5 / temperature
    query = query * jnp.asarray(scale, self.dtype)
    if self.is_mutable_collection("intermediates"):
      self.sow(
        "intermediates", "weights", jax.nn.softmax(_logits(query, key, bias))
      )
    out = ATTENTION[self.attention](query, key, value, bias, tokens.shape[1])
    return to_out(out.astype(self.dtype).swapaxes(1, 2))


def _logits(
  query: jax.Array, key: jax.Array, bias: jax.Array | None
) -> jax.Array:
  logits = jnp.einsum(
    "bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32
  )
  return logits if bias is None else logits + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def mixed(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None,
  first: int,
) -> jax.Array:
  """softmax(Q K^T + bias) V: [B, H, Q, d] and [B, H, K, d] -> [B, H, Q, d].

  In float32. The softmax's division comes last, where it is of d numbers for a
  query in place of K, and its gradient needs no further pass over [Q, K]:

    dV = W^T g,   dS = W * (g V^T - sum_d(g out)),   W = exp(S - max) / sum

  Without gradients, the first keys and those after them (a context's) are apart
  to XLA, which on CPU takes a fifth less time for 200 prompts so.
  """
  split = lambda x, axis: (
    jnp.split(x, [first], axis) if (first < key.shape[2]) else [x]
  )
  biases = itertools.repeat(None) if bias is None else split(bias, -1)
  return _softmax_mean(query, split(key, 2), split(value, 2), biases)[0]


def _softmax_mean(query, keys, values, biases):
  """(mean of the values, its weights, their sums [B, H, Q, 1]), by parts."""
  logits = [_logits(query, *part) for part in zip(keys, biases)]
  largest = functools.reduce(
    jnp.maximum, [x.max(axis=-1, keepdims=True) for x in logits]
  )
  weights = [jnp.exp(x - largest) for x in logits]
  total = functools.reduce(
    jnp.add, [x.sum(axis=-1, keepdims=True) for x in weights]
  )
  weights = [x.astype(query.dtype) for x in weights]
  out = (
    functools.reduce(
      jnp.add,
      [
        jnp.einsum("bhqk,bhkd->bhqd", *part, preferred_element_type=jnp.float32)
        for part in zip(weights, values)
      ],
    )
    / total
  )
  return out, weights, total


def _mixed_fwd(query, key, value, bias, first):
  out, (weights,), total = _softmax_mean(query, [key], [value], [bias])
  return out, (query, key, value, bias, weights, total, out)


def _mixed_bwd(first, kept, grad):
  query, key, value, bias, weights, total, out = kept
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  dtype, flat = value.dtype, lambda x: x.reshape(len(x), -1, x.shape[-1])
  grad = (flat(grad) / flat(total)).reshape(grad.shape)  # flat: see `normed`
  inner = (grad * out).sum(axis=-1, keepdims=True)
  grad = grad.astype(dtype)
  d_logits = weights * (product("bhqd,bhkd->bhqk", grad, value) - inner)
  d_bias = (
    None
    if bias is None
    else jax.linear_transpose(
      lambda bias: jnp.broadcast_to(bias, d_logits.shape), bias
    )(d_logits)[0]
  )
  d_logits = d_logits.astype(dtype)
  return (
    product("bhqk,bhkd->bhqd", d_logits, key).astype(dtype),
    product("bhqk,bhqd->bhkd", d_logits, query).astype(dtype),
    product("bhqk,bhqd->bhkd", weights, grad).astype(dtype),
    d_bias,
  )


mixed.defvjp(_mixed_fwd, _mixed_bwd)


def _library(
  implementation: str,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | None,
  first: int,
) -> jax.Array:
  """`mixed` by `jax.nn.dot_product_attention`, in the type of the values."""
  if bias is not None:  # cuDNN trains with one for even numbers of rows only
    return mixed(query, key, value, bias, first)
  rows = lambda x: x.swapaxes(1, 2)
  return rows(
    jax.nn.dot_product_attention(
      rows(query),
      rows(key),
      rows(value),
      scale=1.0,
      implementation=implementation,
    )
  )


# What computes it. cuDNN's keeps nothing of size [Q, K]; on GPUs, bfloat16.
ATTENTION: dict[str, Callable[..., jax.Array]] = {
  "ours": mixed,
  "xla": functools.partial(_library, "xla"),
  "cudnn": functools.partial(_library, "cudnn"),
}


def projections(
  num_heads: int, width: int, dtype: Dtype
) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
  """Dense layers `query`, `key`, `value` and `out` of the calling module."""
  init = nn.initializers.xavier_uniform()
  dense = functools.partial(DenseGeneral, dtype=dtype, kernel_init=init)
  heads = (num_heads, width // num_heads)
  return (
    dense(heads, name="query"),
    dense(heads, name="key"),
    dense(heads, name="value"),
    dense(width, axis=(-2, -1), name="out"),
  )


def _join(tokens: jax.Array, context: jax.Array) -> jax.Array:
  """Concatenates [B, H, T, d] and [n, H, P, d] along the third axis."""
  return jnp.concatenate([tokens, to_batch(context, len(tokens))], axis=2)


class Mlp(nn.Module):
  """Dense, GELU, Dense."""

  mlp_dim: int
  gelu: str
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(
      Dense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(1e-6),
    )
    width = x.shape[-1]
    x = dense(self.mlp_dim, name="Dense_0")(x)
    x = GELUS[self.gelu](x)
    return dense(width, name="Dense_1")(x)


class Block(nn.Module):
  """Pre-norm transformer block."""

  num_heads: int
  mlp_dim: int
  gelu: str
  eps: float = 1e-6
  dtype: Dtype = jnp.float32
  attention: str = "ours"

  def setup(self):
    # Statistics and scale in float32 whatever the compute dtype is.
    norm = functools.partial(LayerNorm, self.eps)
    self.LayerNorm_0 = norm()
    self.MultiHeadDotProductAttention_0 = Attention(
      self.num_heads, self.dtype, self.attention
    )
    self.LayerNorm_1 = norm()
    self.MlpBlock_0 = Mlp(self.mlp_dim, self.gelu, self.dtype)

  def __call__(
    self,
    tokens: Tokens,
    context: jax.Array | None,
    temperature: jax.Array | float,
    pool: str | None,
    bias: jax.Array | None = None,
    edit: Edit = no_edit,
    prompt_bias: jax.Array | None = None,
  ) -> Tokens:
    if prompt_bias is not None:
      prompt_bias = tokens.spread(prompt_bias)
      bias = prompt_bias if bias is None else bias + prompt_bias
    normed = tokens.replace(x=self.LayerNorm_0(tokens.x).astype(self.dtype))
    asked, residual = normed, tokens
    if pool is not None:
      asked, residual = normed.rows(pool), tokens.rows(pool)
    if context is not None:
      context = self.LayerNorm_0(context).astype(self.dtype)
    x = residual.x + self.MultiHeadDotProductAttention_0(
      asked.x, normed.x, context, temperature, bias, edit
    )
    x = x + edited(edit, "mlp", self.MlpBlock_0)(
      self.LayerNorm_1(x).astype(self.dtype)
    )
    return residual.replace(x=x)


def check_size(image: jax.Array, spec: Spec) -> None:
  """Raises ValueError if images [B, H, W, 3] are of another size."""
  if image.shape[1:3] != tuple(spec.image_size):
    raise ValueError(
      f"images are {image.shape[1:3]}, the backbone was built "
      f"for {tuple(spec.image_size)}; set config.image_size"
    )
