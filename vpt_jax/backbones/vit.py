"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

Parameters have exactly the names and shapes of big_vision's `vit.py`
(`pool_type="tok"`), so its checkpoints go in and out unchanged. The position
of the class token is part of `cls`; `pos_embedding` covers the patches alone.
MAE, MoCo v3, DINO and DeiT are the same network; CLIP's visual tower has one
more norm (`pre_norm`), no bias in the patch embedding, and a projection.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.nn import positions
from vpt_jax.nn.layers import Conv, LayerNorm
from vpt_jax.nn.tokens import Spec, Tokens
from vpt_jax.nn.transformer import (
  Block,
  check_size,
  Dtype,
  Edit,
  GELUS,
  no_edit,
)

# JAX traces, differentiates and lowers it once for all blocks that are called
# alike: for a step of ViT-B in half of the time. Static: pool and edit.
_TracedOnce = nn.jit(Block, static_argnums=(4, 6))


class Encoder(nn.Module):
  """The blocks and the final norm, under big_vision's names."""

  depth: int
  num_heads: int
  mlp_dim: int
  gelu: str
  eps: float = 1e-6
  dtype: Dtype = jnp.float32
  attention: str = "ours"

  def setup(self):
    for i in range(self.depth):
      setattr(
        self,
        f"encoderblock_{i}",
        _TracedOnce(
          self.num_heads,
          self.mlp_dim,
          self.gelu,
          self.eps,
          self.dtype,
          self.attention,
        ),
      )
    self.encoder_norm = LayerNorm(self.eps)

  def block(
    self,
    i: int,
    tokens: Tokens,
    context: jax.Array | None,
    temperature: jax.Array | float,
    pool: str | None,
    bias: jax.Array | None = None,
    edit: Edit = no_edit,
    prompt_bias: jax.Array | None = None,
  ) -> Tokens:
    """See `Block`."""
    block = getattr(self, f"encoderblock_{i}")
    # `nn.jit` knows nothing of the parameters that an edit reads, and would
    # draw other initial values.
    if self.is_initializing() or edit is not no_edit:
      block = functools.partial(Block.__call__, block)
    return block(tokens, context, temperature, pool, bias, edit, prompt_bias)

  def norm(self, x: jax.Array) -> jax.Array:
    return self.encoder_norm(x)


class DinoHead(nn.Module):
  """DINO's projection head: an MLP to the unit sphere, then prototypes.

  Caron et al. 2021 (arXiv 2104.14294), appendix C.

  Attributes:
    hidden: width of the two hidden layers.
    bottleneck: width of the space that the sphere is in.
    prototypes: K; 0 leaves them out.
  """

  hidden: int = 2048
  bottleneck: int = 256
  prototypes: int = 65536

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features [B, D] -> logits of the prototypes [B, K], or the unit vector."""
    for i, width in enumerate((self.hidden, self.hidden, self.bottleneck)):
      x = nn.Dense(width, name=f"Dense_{i}")(x)
      x = GELUS["exact"](x) if i < 2 else x
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    if not self.prototypes:
      return x
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
    attention: what computes it, a key of `blocks.ATTENTION`.
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
  attention: str = "ours"

  @property
  def spec(self) -> Spec:
    grid = tuple(size // self.patch_size for size in self.image_size)
    return Spec(
      self.image_size,
      self.patch_size,
      (self.width,) * self.depth,
      (grid,) * self.depth,
      self.num_cls,
      self.pool,
      self.norm_order,
      self.gelu,
      self.eps,
      self.normalize,
      self.pre_norm,
    )

  def setup(self):
    patch = (self.patch_size, self.patch_size)
    self.embedding = Conv(
      self.width,
      patch,
      strides=patch,
      padding="VALID",
      use_bias=self.patch_bias,
      dtype=self.dtype,
    )
    self.pos_embedding = self.param(
      "pos_embedding",
      positions.initial(self.resize, self.spec.grids[0]),
      (1, math.prod(self.spec.grids[0]), self.width),
    )
    if self.num_cls:
      self.cls = self.param(
        "cls", nn.initializers.zeros, (1, self.num_cls, self.width)
      )
    if self.pre_norm:
      self.embedding_norm = LayerNorm(self.eps)
    self.Transformer = Encoder(
      self.depth,
      self.num_heads,
      self.mlp_dim,
      self.gelu,
      self.eps,
      self.dtype,
      self.attention,
    )

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

  def embed_patches(self, pixels: jax.Array) -> jax.Array:
    """Patches of pixels [B, P, p, p, 3] -> tokens [B, P, D] without positions."""
    flat = pixels.reshape(-1, *pixels.shape[2:]).astype(self.dtype)
    return self.embedding(flat).reshape(*pixels.shape[:2], self.width)

  def enter(self, i: int, tokens: Tokens) -> Tokens:
    """What stands before block i and is no block: CLIP's first norm."""
    if i or not self.pre_norm:
      return tokens
    return tokens.replace(x=self.embedding_norm(tokens.x).astype(self.dtype))

  def block(
    self,
    i: int,
    tokens: Tokens,
    *,
    context: jax.Array | None = None,
    temperature: jax.Array | float = 1.0,
    pool: str | None = None,
    edit: Edit = no_edit,
    prompt_bias: jax.Array | None = None,
  ) -> Tokens:
    """Block i.

    Args:
      i: index of the block, from 0.
      tokens: [B, T, D].
      context: [n, P, D] tokens that only give keys and values; n divides B.
      temperature: divides the attention logits.
      pool: if given, only the rows that this pooling reads come back.
      edit: changes outputs of layers inside: `query`, `key`, `value`
        [B, T, heads, d], `mlp` [B, T, D].
      prompt_bias: [P + P'], added to the attention logits of the carried
        prompts and those of the context.
    """
    return self.Transformer.block(
      i, tokens, context, temperature, pool, None, edit, prompt_bias
    )

  def norm(self, x: jax.Array) -> jax.Array:
    """The final norm, of tokens [B, T, D] or pooled features [B, D]."""
    return self.Transformer.norm(x)

  def project(self, feature: jax.Array) -> jax.Array:
    """Pooled and normed features [B, D] -> what the head sees."""
    return feature if self.projection is None else self.projection(feature)
