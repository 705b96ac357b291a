"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Parameters have exactly the names and shapes of big_vision's `vit.py`
(`pool_type="tok"`), so its checkpoints go in and out unchanged. The position
of the class token is part of `cls`; `pos_embedding` covers the patches alone.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.tokens import Layout, Tokens

Dtype = Any


class Attention(nn.Module):
  """Multi-head attention whose keys and values may include a context."""

  num_heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, queries: jax.Array, tokens: jax.Array,
               context: jax.Array | None, temperature: jax.Array | float
               ) -> jax.Array:
    """softmax(Q K^T / (sqrt(d) temperature)) V.

    Args:
      queries: [B, Q, D] rows that are asked for.
      tokens: [B, T, D] rows that give keys and values.
      context: [B or 1, P, D] further rows that give keys and values; with a
        leading 1 these are computed once for the whole batch.
      temperature: scalar.

    Returns:
      [B, Q, D].
    """
    width = queries.shape[-1]
    head_dim = width // self.num_heads
    dense = functools.partial(
        nn.DenseGeneral, (self.num_heads, head_dim), dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform())
    to_query, to_key, to_value = (
        dense(name="query"), dense(name="key"), dense(name="value"))
    # Heads before rows: XLA's batched products on CPU are twice as fast so.
    query = to_query(queries).swapaxes(1, 2)
    key, value = to_key(tokens), to_value(tokens)
    if context is not None:
      key = _join(key, to_key(context))
      value = _join(value, to_value(context))
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    query = query * jnp.asarray(head_dim**-0.5 / temperature, self.dtype)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key,
                        preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits).astype(self.dtype)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)
    return nn.DenseGeneral(
        width, axis=(-2, -1), dtype=self.dtype, name="out",
        kernel_init=nn.initializers.xavier_uniform())(mixed)


def _join(tokens: jax.Array, context: jax.Array) -> jax.Array:
  """Concatenates [B, T, ...] and [B or 1, P, ...] along the second axis."""
  context = jnp.broadcast_to(context, (len(tokens), *context.shape[1:]))
  return jnp.concatenate([tokens, context], axis=1)


class Mlp(nn.Module):
  """Dense, GELU, Dense."""

  mlp_dim: int
  gelu: str
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = functools.partial(
        nn.Dense, dtype=self.dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=nn.initializers.normal(1e-6))
    width = x.shape[-1]
    x = dense(self.mlp_dim, name="Dense_0")(x)
    x = nn.gelu(x, approximate=self.gelu == "tanh")
    return dense(width, name="Dense_1")(x)


class Block(nn.Module):
  """Pre-norm transformer block."""

  num_heads: int
  mlp_dim: int
  gelu: str
  dtype: Dtype = jnp.float32

  def setup(self):
    # Statistics and scale in float32 whatever the compute dtype is.
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=jnp.float32)
    self.LayerNorm_0 = norm()
    self.MultiHeadDotProductAttention_0 = Attention(self.num_heads, self.dtype)
    self.LayerNorm_1 = norm()
    self.MlpBlock_0 = Mlp(self.mlp_dim, self.gelu, self.dtype)

  def __call__(self, tokens: Tokens, context: jax.Array | None,
               temperature: jax.Array | float, pool: str | None) -> Tokens:
    normed = tokens.replace(x=self.LayerNorm_0(tokens.x).astype(self.dtype))
    asked, residual = normed, tokens
    if pool is not None:
      asked, residual = normed.rows(pool), tokens.rows(pool)
    if context is not None:
      context = self.LayerNorm_0(context).astype(self.dtype)
    x = residual.x + self.MultiHeadDotProductAttention_0(
        asked.x, normed.x, context, temperature)
    x = x + self.MlpBlock_0(self.LayerNorm_1(x).astype(self.dtype))
    return residual.replace(x=x)


class Encoder(nn.Module):
  """The blocks and the final norm, under big_vision's names."""

  depth: int
  num_heads: int
  mlp_dim: int
  gelu: str
  dtype: Dtype = jnp.float32

  def setup(self):
    for i in range(self.depth):
      setattr(self, f"encoderblock_{i}",
              Block(self.num_heads, self.mlp_dim, self.gelu, self.dtype))
    self.encoder_norm = nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32)

  def block(self, i: int, *args) -> Tokens:
    return getattr(self, f"encoderblock_{i}")(*args)

  def norm(self, x: jax.Array) -> jax.Array:
    return self.encoder_norm(x)


class ViT(nn.Module):
  """A list of blocks over tokens; the loop over them is in `model.py`.

  Attributes:
    gelu: `tanh` (how big_vision trained its weights) or `exact` (what the
      PyTorch repositories of the papers run).
    norm_first: the final norm comes before the pooling (supervised ViT,
      MoCo v3) or after it (MAE).
    dtype: of the matrix products; norms and softmax are always float32.
  """

  image_size: tuple[int, int]
  patch_size: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  gelu: str = "tanh"
  norm_first: bool = True
  dtype: Dtype = jnp.float32

  @property
  def layout(self) -> Layout:
    grid = tuple(size // self.patch_size for size in self.image_size)
    return Layout(self.depth, self.width, self.patch_size, grid,
                  self.image_size)

  def setup(self):
    patch = (self.patch_size, self.patch_size)
    self.embedding = nn.Conv(self.width, patch, strides=patch, padding="VALID",
                             dtype=self.dtype)
    rows, columns = self.layout.grid
    self.pos_embedding = self.param(
        "pos_embedding", nn.initializers.normal(self.width**-0.5),
        (1, rows * columns, self.width))
    self.cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
    self.Transformer = Encoder(self.depth, self.num_heads, self.mlp_dim,
                               self.gelu, self.dtype)

  def embed(self, image: jax.Array) -> Tokens:
    """Images [B, H, W, 3] -> class token and patches with positions.

    Raises:
      ValueError: the image does not have this backbone's size.
    """
    if image.shape[1:3] != tuple(self.image_size):
      raise ValueError(f"images are {image.shape[1:3]}, the backbone was built "
                       f"for {tuple(self.image_size)}; set config.image_size")
    patch = self.embedding(image.astype(self.dtype))
    batch, rows, columns, _ = patch.shape
    patch = patch.reshape(batch, rows * columns, self.width)
    patch = patch + self.pos_embedding.astype(patch.dtype)
    cls = jnp.broadcast_to(self.cls.astype(patch.dtype), (batch, 1, self.width))
    return Tokens(jnp.concatenate([cls, patch], axis=1), num_cls=1,
                  grid=(rows, columns))

  def block(self, i: int, tokens: Tokens, *, context: jax.Array | None = None,
            temperature: jax.Array | float = 1.0, pool: str | None = None
            ) -> Tokens:
    """Block i.

    Args:
      i: index of the block, from 0.
      tokens: [B, T, D].
      context: [B or 1, P, D] tokens that only give keys and values.
      temperature: divides the attention logits.
      pool: if given, only the rows that this pooling reads come back.
    """
    return self.Transformer.block(i, tokens, context, temperature, pool)

  def norm(self, x: jax.Array) -> jax.Array:
    """The final norm, of tokens [B, T, D] or pooled features [B, D]."""
    return self.Transformer.norm(x)
