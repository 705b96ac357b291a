"""Defines the Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929).

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
from vpt_jax.nn.layers import LayerNorm
from vpt_jax.nn.tokens import Spec, Tokens
from vpt_jax.nn.transformer import Block, check_size, Dtype, Edit, no_edit
from vpt_jax.ops.switch import Ops

# JAX traces, differentiates and lowers it once for all blocks that are called
# alike: for a step of ViT-B in half of the time. Static: pool and edit.
_TracedOnce = nn.jit(Block, static_argnums=(4, 6))


class Encoder(nn.Module):
  """The blocks and the final norm, under big_vision's names.

  Attributes:
    depth: number of blocks.
    num_heads: see `Block`, as the following ones.
    mlp_dim: width of the MLPs' hidden layer.
    gelu: of the MLPs.
    eps: of the norms.
    dtype: of the matrix products.
    ops: form of its operations.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  gelu: str
  eps: float = 1e-6
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

  def setup(self):
    """Makes the blocks and the norm."""
    for i in range(self.depth):
      block = _TracedOnce(
        self.num_heads,
        self.mlp_dim,
        self.gelu,
        self.eps,
        self.dtype,
        self.ops,
      )
      setattr(self, f"encoderblock_{i}", block)
    self.encoder_norm = LayerNorm(self.eps, self.ops)

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
    """Returns the tokens after block i, see `Block`."""
    block = getattr(self, f"encoderblock_{i}")
    # `nn.jit` knows nothing of the parameters that an edit reads, and would
    # draw other initial values.
    if self.is_initializing() or edit is not no_edit:
      block = functools.partial(Block.__call__, block)
    return block(tokens, context, temperature, pool, bias, edit, prompt_bias)

  def norm(self, x: jax.Array) -> jax.Array:
    """Returns the final norm of tokens or features, [..., D] in float32."""
    return self.encoder_norm(x)


class DinoHead(nn.Module):
  """DINO's projection head: an MLP to the unit sphere, then prototypes.

  Caron et al. 2021 (arXiv 2104.14294), appendix C.

  Attributes:
    hidden: width of the two hidden layers.
    bottleneck: width of the space that the sphere is in.
    prototypes: K; 0 leaves them out.
    ops: form of its operations.
  """

  hidden: int = 2048
  bottleneck: int = 256
  prototypes: int = 65536
  ops: Ops = Ops()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the prototypes' logits [B, K], or unit vectors, of [B, D]."""
    x = self.ops.gelu(nn.Dense(self.hidden, name="Dense_0")(x), "exact")
    x = self.ops.gelu(nn.Dense(self.hidden, name="Dense_1")(x), "exact")
    x = nn.Dense(self.bottleneck, name="Dense_2")(x)
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    if not self.prototypes:
      return x
    return nn.Dense(self.prototypes, use_bias=False, name="prototypes")(x)


class ViT(nn.Module):
  """A list of blocks over tokens; the loop over them is in `model.py`.

  Attributes:
    image_size: (height, width) of its images.
    patch_size: side of a patch.
    width: D.
    depth: number of blocks.
    num_heads: of attention.
    mlp_dim: width of the MLPs' hidden layer.
    num_cls: class tokens.
    pool: the rows that its feature is the mean of, see `tokens.POOLS`.
    norm_order: where the final norm stands, see `tokens.NORMS`.
    gelu: of `ops.gelu.NAMES`.
    eps: of the norms.
    normalize: name of the mean and std that it was trained with.
    resize: how positions come to another grid, see `positions.resize`.
    patch_bias: the patch embedding has a bias.
    pre_norm: a norm stands before the first block (CLIP), prompts included.
    projection: what follows the pooled feature, or None.
    dtype: of the matrix products; norms and softmax are always float32.
    ops: form of its operations.
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
  ops: Ops = Ops()

  @property
  def spec(self) -> Spec:
    """What methods and heads may know about it."""
    height, width = self.image_size
    grid = (height // self.patch_size, width // self.patch_size)
    return Spec(
      image_size=self.image_size,
      patch_size=self.patch_size,
      widths=(self.width,) * self.depth,
      grids=(grid,) * self.depth,
      num_cls=self.num_cls,
      pool=self.pool,
      norm=self.norm_order,
      gelu=self.gelu,
      eps=self.eps,
      normalize=self.normalize,
      stem_norm=self.pre_norm,
      ops=self.ops,
    )

  def setup(self):
    """Makes the embedding and the encoder."""
    patch = (self.patch_size, self.patch_size)
    grid = self.spec.grids[0]
    self.embedding = nn.Conv(
      self.width,
      patch,
      strides=patch,
      padding="VALID",
      use_bias=self.patch_bias,
      dtype=self.dtype,
      conv_general_dilated=self.ops.convolution,
    )
    self.pos_embedding = self.param(
      "pos_embedding",
      positions.initial(self.resize, grid),
      (1, math.prod(grid), self.width),
    )
    if self.num_cls:
      self.cls = self.param(
        "cls", nn.initializers.zeros, (1, self.num_cls, self.width)
      )
    if self.pre_norm:
      self.embedding_norm = LayerNorm(self.eps, self.ops)
    self.Transformer = Encoder(
      self.depth,
      self.num_heads,
      self.mlp_dim,
      self.gelu,
      self.eps,
      self.dtype,
      self.ops,
    )

  def embed(self, image: jax.Array) -> Tokens:
    """Returns class tokens and patches, with positions.

    Args:
      image: [B, H, W, 3], normalised.

    Raises:
      ValueError: the image does not have this backbone's size.
    """
    check_size(image, self.spec)
    patch = self.embedding(image.astype(self.dtype))
    batch, rows, columns, width = patch.shape
    patch = patch.reshape(batch, rows * columns, width)
    x = patch + self.pos_embedding.astype(patch.dtype)
    if self.num_cls:
      cls = self.cls.astype(x.dtype)
      cls = jnp.broadcast_to(cls, (batch, self.num_cls, width))
      x = jnp.concatenate([cls, x], axis=1)
    return Tokens(x, num_cls=self.num_cls, grid=(rows, columns), ops=self.ops)

  def embed_patches(self, pixels: jax.Array) -> jax.Array:
    """Returns tokens [B, P, D] of pixels [B, P, p, p, 3], without positions."""
    batch, patches, *patch = pixels.shape
    flat = pixels.reshape(batch * patches, *patch).astype(self.dtype)
    return self.embedding(flat).reshape(batch, patches, self.width)

  def enter(self, i: int, tokens: Tokens) -> Tokens:
    """Returns what enters block i: CLIP has a norm before the first one."""
    if i > 0 or not self.pre_norm:
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
    """Returns the tokens after block i.

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
    """Returns the final norm of tokens [B, T, D] or pooled features [B, D]."""
    return self.Transformer.norm(x)

  def project(self, feature: jax.Array) -> jax.Array:
    """Returns what the head sees of pooled and normed features [B, D]."""
    if self.projection is None:
      return feature
    return self.projection(feature)
