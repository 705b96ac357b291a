"""Defines what the backbones' blocks are made of: attention, MLP, block."""

from collections.abc import Callable
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.nn.layers import LayerNorm
from vpt_jax.nn.tokens import Spec, Tokens
from vpt_jax.ops import attention
from vpt_jax.ops.switch import Ops

Dtype = Any

# What a method changes in a block: (layer, its input, its output) -> output.
Edit = Callable[[str, jax.Array, jax.Array], jax.Array]


def no_edit(layer: str, x: jax.Array, out: jax.Array) -> jax.Array:
  """Returns a layer's output as it is."""
  del layer, x
  return out


def projections(
  num_heads: int, width: int, dtype: Dtype, ops: Ops
) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
  """Returns the layers `query`, `key`, `value`, `out` of the calling module.

  The first three map [..., D] to [..., heads, d], the last one maps back.
  """
  dense = functools.partial(
    nn.DenseGeneral,
    dtype=dtype,
    kernel_init=nn.initializers.xavier_uniform(),
    dot_general=ops.dot_general,
  )
  heads = (num_heads, width // num_heads)
  to_query = dense(heads, name="query")
  to_key = dense(heads, name="key")
  to_value = dense(heads, name="value")
  to_out = dense(width, axis=(-2, -1), name="out")
  return to_query, to_key, to_value, to_out


class Attention(nn.Module):
  """Multi-head attention whose keys and values may include a context.

  Attributes:
    num_heads: of them.
    dtype: of the matrix products; the softmax is always float32.
    ops: form of its operations.
  """

  num_heads: int
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

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
    """Returns softmax(Q K^T / (sqrt(d) temperature) + bias) V, projected.

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
      self.num_heads, width, self.dtype, self.ops
    )

    def project(layer: str, to_heads: nn.Module, x: jax.Array) -> jax.Array:
      out = edit(layer, x, to_heads(x))
      # Heads before rows: XLA's batched products on CPU are twice as fast so.
      return out.swapaxes(1, 2)

    query = project("query", to_query, queries)
    key = project("key", to_key, tokens)
    value = project("value", to_value, tokens)
    if context is not None:
      key = self._append(key, project("key", to_key, context))
      value = self._append(value, project("value", to_value, context))
    scale = (width // self.num_heads) ** -0.5 / temperature
    query = query * jnp.asarray(scale, self.dtype)
    if self.is_mutable_collection("intermediates"):
      weights = jax.nn.softmax(attention.masked_logits(query, key, bias))
      self.sow("intermediates", "weights", weights)
    out = self.ops.attention(query, key, value, bias, tokens.shape[1])
    return to_out(out.astype(self.dtype).swapaxes(1, 2))

  def _append(self, tokens: jax.Array, context: jax.Array) -> jax.Array:
    """Returns [B, H, T, d] and [n, H, P, d] as [B, H, T + P, d]."""
    context = self.ops.to_batch(context, len(tokens))
    return jnp.concatenate([tokens, context], axis=2)


class Mlp(nn.Module):
  """Dense, GELU, Dense.

  Attributes:
    mlp_dim: width of the hidden layer.
    gelu: of `ops.gelu.NAMES`.
    dtype: of the matrix products.
    ops: form of its operations.
  """

  mlp_dim: int
  gelu: str
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., D] -> [..., D]."""
    dense = functools.partial(
      nn.Dense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(1e-6),
      dot_general=self.ops.dot_general,
    )
    hidden = dense(self.mlp_dim, name="Dense_0")(x)
    hidden = self.ops.gelu(hidden, self.gelu)
    return dense(x.shape[-1], name="Dense_1")(hidden)


class Block(nn.Module):
  """Pre-norm transformer block.

    y = x + Attention(LayerNorm(x), LayerNorm(context))
    out = y + MLP(LayerNorm(y))

  Attributes:
    num_heads: of attention.
    mlp_dim: width of the MLP's hidden layer.
    gelu: of `ops.gelu.NAMES`.
    eps: of the norms.
    dtype: of the matrix products; norms and softmax are always float32.
    ops: form of its operations.
  """

  num_heads: int
  mlp_dim: int
  gelu: str
  eps: float = 1e-6
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

  def setup(self):
    """Makes the layers, under big_vision's names."""
    self.LayerNorm_0 = LayerNorm(self.eps, self.ops)
    self.MultiHeadDotProductAttention_0 = Attention(
      self.num_heads, self.dtype, self.ops
    )
    self.LayerNorm_1 = LayerNorm(self.eps, self.ops)
    self.MlpBlock_0 = Mlp(self.mlp_dim, self.gelu, self.dtype, self.ops)

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
    """Returns the tokens after the block; see `vit.ViT.block`.

    Args:
      tokens: [B, T, D].
      context: [n, P, D] or None.
      temperature: scalar.
      pool: if given, only the rows that this pooling reads come back.
      bias: [..., T, T + P], added to the attention logits, or None.
      edit: changes outputs of layers inside.
      prompt_bias: [P' + P] of the carried prompts and those of the context, or
        None.
    """
    if prompt_bias is not None:
      prompt_bias = tokens.spread(prompt_bias)
      bias = prompt_bias if bias is None else bias + prompt_bias
    # Norms compute in float32 whatever the type of the products is.
    normed = tokens.replace(x=self.LayerNorm_0(tokens.x).astype(self.dtype))
    asked = normed
    residual = tokens
    if pool is not None:
      asked = normed.rows(pool)
      residual = tokens.rows(pool)
    if context is not None:
      context = self.LayerNorm_0(context).astype(self.dtype)
    x = residual.x + self.MultiHeadDotProductAttention_0(
      asked.x, normed.x, context, temperature, bias, edit
    )
    hidden = self.LayerNorm_1(x).astype(self.dtype)
    x = x + edit("mlp", hidden, self.MlpBlock_0(hidden))
    return residual.replace(x=x)


def check_size(image: jax.Array, spec: Spec) -> None:
  """Raises ValueError if images [B, H, W, 3] are of another size."""
  if image.shape[1:3] != tuple(spec.image_size):
    raise ValueError(
      f"images are {image.shape[1:3]}, the backbone was built "
      f"for {tuple(spec.image_size)}; set config.image_size"
    )
