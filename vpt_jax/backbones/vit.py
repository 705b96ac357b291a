"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Parameters have exactly the names and shapes of big_vision's `vit.py`
(`pool_type="tok"`), so its checkpoints go in and out unchanged. The position
of the class token is part of `cls`; `pos_embedding` covers the patches alone.
MAE, MoCo v3, DINO and DeiT are the same network; CLIP's visual tower has one
more norm (`pre_norm`), no bias in the patch embedding, and a projection.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.backbones import positions
from vpt_jax.tokens import Spec, Tokens

Dtype = Any

GELUS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": functools.partial(nn.gelu, approximate=True),  # big_vision
    "exact": functools.partial(nn.gelu, approximate=False),  # PyTorch
    "quick": lambda x: x * nn.sigmoid(1.702 * x),  # CLIP
}


class Attention(nn.Module):
  """Multi-head attention whose keys and values may include a context."""

  num_heads: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, queries: jax.Array, tokens: jax.Array,
               context: jax.Array | None, temperature: jax.Array | float,
               bias: jax.Array | None = None) -> jax.Array:
    """softmax(Q K^T / (sqrt(d) temperature) + bias) V.

    Args:
      queries: [B, Q, D] rows that are asked for.
      tokens: [B, T, D] rows that give keys and values.
      context: [B or 1, P, D] further rows that give keys and values; with a
        leading 1 these are computed once for the whole batch.
      temperature: scalar.
      bias: [..., Q, K], added to the logits (a mask, for example).

    Returns:
      [B, Q, D].
    """
    width = queries.shape[-1]
    to_query, to_key, to_value, to_out = projections(
        self.num_heads, width, self.dtype)
    # Heads before rows: XLA's batched products on CPU are twice as fast so.
    query = to_query(queries).swapaxes(1, 2)
    key, value = to_key(tokens), to_value(tokens)
    if context is not None:
      key = _join(key, to_key(context))
      value = _join(value, to_value(context))
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    scale = (width // self.num_heads)**-0.5 / temperature
    query = query * jnp.asarray(scale, self.dtype)
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key,
                        preferred_element_type=jnp.float32)
    if bias is not None:
      logits = logits + bias
    weights = jax.nn.softmax(logits).astype(self.dtype)
    return to_out(jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2))


def projections(num_heads: int, width: int, dtype: Dtype
                ) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
  """Dense layers `query`, `key`, `value` and `out` of the calling module."""
  init = nn.initializers.xavier_uniform()
  dense = functools.partial(nn.DenseGeneral, (num_heads, width // num_heads),
                            dtype=dtype, kernel_init=init)
  return (dense(name="query"), dense(name="key"), dense(name="value"),
          nn.DenseGeneral(width, axis=(-2, -1), dtype=dtype, name="out",
                          kernel_init=init))


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
    x = GELUS[self.gelu](x)
    return dense(width, name="Dense_1")(x)


class Block(nn.Module):
  """Pre-norm transformer block."""

  num_heads: int
  mlp_dim: int
  gelu: str
  eps: float = 1e-6
  dtype: Dtype = jnp.float32

  def setup(self):
    # Statistics and scale in float32 whatever the compute dtype is.
    norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=jnp.float32)
    self.LayerNorm_0 = norm()
    self.MultiHeadDotProductAttention_0 = Attention(self.num_heads, self.dtype)
    self.LayerNorm_1 = norm()
    self.MlpBlock_0 = Mlp(self.mlp_dim, self.gelu, self.dtype)

  def __call__(self, tokens: Tokens, context: jax.Array | None,
               temperature: jax.Array | float, pool: str | None,
               bias: jax.Array | None = None) -> Tokens:
    normed = tokens.replace(x=self.LayerNorm_0(tokens.x).astype(self.dtype))
    asked, residual = normed, tokens
    if pool is not None:
      asked, residual = normed.rows(pool), tokens.rows(pool)
    if context is not None:
      context = self.LayerNorm_0(context).astype(self.dtype)
    x = residual.x + self.MultiHeadDotProductAttention_0(
        asked.x, normed.x, context, temperature, bias)
    x = x + self.MlpBlock_0(self.LayerNorm_1(x).astype(self.dtype))
    return residual.replace(x=x)


class Encoder(nn.Module):
  """The blocks and the final norm, under big_vision's names."""

  depth: int
  num_heads: int
  mlp_dim: int
  gelu: str
  eps: float = 1e-6
  dtype: Dtype = jnp.float32

  def setup(self):
    for i in range(self.depth):
      setattr(self, f"encoderblock_{i}", Block(
          self.num_heads, self.mlp_dim, self.gelu, self.eps, self.dtype))
    self.encoder_norm = nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32)

  def block(self, i: int, *args) -> Tokens:
    return getattr(self, f"encoderblock_{i}")(*args)

  def norm(self, x: jax.Array) -> jax.Array:
    return self.encoder_norm(x)


class DinoHead(nn.Module):
  """DINO's projection head: an MLP to the unit sphere, then prototypes.

  Caron et al. 2021 (arXiv 2104.14294), appendix C.
  """

  hidden: int = 2048
  bottleneck: int = 256
  prototypes: int = 65536

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features [B, D] -> logits of the prototypes [B, K]."""
    for i, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
      x = nn.Dense(width, name=f"Dense_{i}")(x)
      x = GELUS["exact"](x) if i < 2 else x
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return nn.Dense(self.prototypes, use_bias=False, name="prototypes")(x)


class ViT(nn.Module):
  """A list of blocks over tokens; the loop over them is in `model.py`.

  Attributes:
    image_size, patch_size, num_cls, pool, gelu, eps, normalize: see `Spec`.
    norm_order: the spec's `norm`.
    resize: how positions come to another grid, see `positions.resize`.
    patch_bias: the patch embedding has a bias.
    pre_norm: a norm stands before the first block (CLIP), prompts included.
    projection: what follows the pooled feature, or None.
    dtype: of the matrix products; norms and softmax are always float32.
  """

  image_size: tuple[int, int]
  patch_size: int
  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  num_cls: int = 1
  pool: str = "cls"
  norm_order: str = "before"
  gelu: str = "tanh"
  eps: float = 1e-6
  normalize: str = "imagenet"
  resize: str = "linear"
  patch_bias: bool = True
  pre_norm: bool = False
  projection: nn.Module | None = None
  dtype: Dtype = jnp.float32

  @property
  def spec(self) -> Spec:
    grid = tuple(size // self.patch_size for size in self.image_size)
    return Spec(self.image_size, self.patch_size, (self.width,) * self.depth,
                (grid,) * self.depth, self.num_cls, self.pool, self.norm_order,
                self.gelu, self.eps, self.normalize)

  def setup(self):
    patch = (self.patch_size, self.patch_size)
    self.embedding = nn.Conv(self.width, patch, strides=patch, padding="VALID",
                             use_bias=self.patch_bias, dtype=self.dtype)
    self.pos_embedding = self.param(
        "pos_embedding", positions.initial(self.resize, self.spec.grids[0]),
        (1, math.prod(self.spec.grids[0]), self.width))
    if self.num_cls:
      self.cls = self.param("cls", nn.initializers.zeros,
                            (1, self.num_cls, self.width))
    if self.pre_norm:
      self.embedding_norm = nn.LayerNorm(epsilon=self.eps, dtype=jnp.float32)
    self.Transformer = Encoder(self.depth, self.num_heads, self.mlp_dim,
                               self.gelu, self.eps, self.dtype)

  def embed(self, image: jax.Array) -> Tokens:
    """Images [B, H, W, 3] -> class token and patches with positions.

    Raises:
      ValueError: the image does not have this backbone's size.
    """
    check_size(image, self.spec)
    patch = self.embedding(image.astype(self.dtype))
    batch, rows, columns, _ = patch.shape
    patch = patch.reshape(batch, rows * columns, self.width)
    x = patch + self.pos_embedding.astype(patch.dtype)
    if self.num_cls:
      cls = self.cls.astype(x.dtype)
      cls = jnp.broadcast_to(cls, (batch, *cls.shape[1:]))
      x = jnp.concatenate([cls, x], axis=1)
    return Tokens(x, num_cls=self.num_cls, grid=(rows, columns))

  def enter(self, i: int, tokens: Tokens) -> Tokens:
    """What stands before block i and is no block: CLIP's first norm."""
    if i or not self.pre_norm:
      return tokens
    return tokens.replace(x=self.embedding_norm(tokens.x).astype(self.dtype))

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

  def project(self, feature: jax.Array) -> jax.Array:
    """Pooled and normed features [B, D] -> what the head sees."""
    return feature if self.projection is None else self.projection(feature)


def check_size(image: jax.Array, spec: Spec) -> None:
  """Raises ValueError if images [B, H, W, 3] are of another size."""
  if image.shape[1:3] != tuple(spec.image_size):
    raise ValueError(f"images are {image.shape[1:3]}, the backbone was built "
                     f"for {tuple(spec.image_size)}; set config.image_size")
