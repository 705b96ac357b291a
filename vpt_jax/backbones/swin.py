"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030), with prompts.

Attention is inside windows of the grid, every second block shifts them, and
between stages four neighbours become one patch of twice the width. Every window
sees the prompts; what comes out at a carried prompt is its mean over the
windows (VPT, appendix). The published code pairs prompts and windows of
different images when a batch has more than one; here no image sees another.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.nn.layers import Conv, LayerNorm
from vpt_jax.nn.tokens import Spec, to_batch, Tokens
from vpt_jax.nn.transformer import (
  check_size,
  Dtype,
  Edit,
  edited,
  Mlp,
  no_edit,
  projections,
)
from vpt_jax.nn.windows import (
  from_windows,
  Grid,
  relative_position,
  shift_mask,
  to_windows,
)


class WindowAttention(nn.Module):
  """Attention inside windows whose keys and values may include prompts."""

  num_heads: int
  window: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    patch: jax.Array,
    carried: jax.Array | None,
    context: jax.Array | None,
    mask: np.ndarray | None,
    temperature: jax.Array | float,
    edit: Edit,
    prompt_bias: jax.Array | None,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Heads' logits: Q K^T / (sqrt(d) temperature) + bias + mask.

    Bias and mask are between patches only; prompts have `prompt_bias` alone.

    Args:
      patch: [B, W, T, D] windows.
      carried: [B, P, D] prompts that ask and are asked, in every window.
      context: [n, P', D] prompts that only give keys and values; n divides B.
      mask: [W, T, T] or None.
      temperature: scalar.
      edit: see `vit.ViT.block`; axes are [B, W, T, ...] for patches.
      prompt_bias: [P + P'] or None: zero.

    Returns:
      Windows [B, W, T, D], and the carried prompts' mean over windows
      [B, P, D] (None: none).
    """
    batch, width = len(patch), patch.shape[-1]
    to_query, to_key, to_value, to_out = projections(
      self.num_heads, width, self.dtype
    )
    to_query, to_key, to_value = (
      edited(edit, layer, function)
      for layer, function in (
        ("query", to_query),
        ("key", to_key),
        ("value", to_value),
      )
    )
    scale = (width // self.num_heads) ** -0.5 / temperature
    query = to_query(patch) * jnp.asarray(scale, self.dtype)
    key, value = to_key(patch), to_value(patch)
    given = [x for x in (carried, context) if x is not None]
    given_bias = [0.0] * len(given)
    if prompt_bias is not None:
      given_bias = jnp.split(
        prompt_bias, np.cumsum([x.shape[1] for x in given])[:-1]
      )
    given_key, given_value = (
      [to_batch(to(x), batch) for x in given] for to in (to_key, to_value)
    )

    side = 2 * self.window - 1
    table = self.param(
      "relative_position_bias",
      nn.initializers.normal(0.02),
      (side * side, self.num_heads),
    )
    bias = table[relative_position(self.window)].transpose(2, 0, 1)
    if mask is not None:
      bias = bias + mask[:, None]

    def mix(query, bias):
      """Values [B, W, Q, H, d] by softmax over a window and all prompts."""
      product = lambda axes, key: jnp.einsum(
        f"bwqhd,{axes}->bwhqk", query, key, preferred_element_type=jnp.float32
      )
      logits = [
        product("bwkhd", key) + bias,
        *(product("bkhd", x) + b for x, b in zip(given_key, given_bias)),
      ]
      ends = np.cumsum([x.shape[-1] for x in logits])[:-1]
      weights = jnp.split(
        jax.nn.softmax(jnp.concatenate(logits, axis=-1)).astype(self.dtype),
        ends,
        axis=-1,
      )
      return jnp.einsum("bwhqk,bwkhd->bwqhd", weights[0], value) + sum(
        jnp.einsum("bwhqk,bkhd->bwqhd", weight, x)
        for weight, x in zip(weights[1:], given_value)
      )

    out = to_out(mix(query, bias))
    if carried is None:
      return out, None
    asked = to_query(carried) * jnp.asarray(scale, self.dtype)
    asked = jnp.broadcast_to(
      asked[:, None], (*query.shape[:2], *asked.shape[1:])
    )
    return out, to_out(mix(asked, 0.0).mean(axis=1))


class Block(nn.Module):
  """Pre-norm block on windows of the grid, cyclically shifted by `shift`."""

  grid: Grid
  num_heads: int
  window: int
  shift: int
  mlp_dim: int
  gelu: str
  eps: float
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    tokens: Tokens,
    context: jax.Array | None,
    temperature: jax.Array | float,
    edit: Edit,
    prompt_bias: jax.Array | None,
  ) -> Tokens:
    norm = LayerNorm(self.eps, name="LayerNorm_0")
    normed = tokens.replace(x=norm(tokens.x).astype(self.dtype))
    carried = normed.prompt if tokens.num_prompt else None
    if context is not None:
      context = norm(context).astype(self.dtype)
    patch = normed.patch.reshape(len(tokens.x), *self.grid, -1)
    mask = None
    if self.shift:
      patch = jnp.roll(patch, (-self.shift, -self.shift), (1, 2))
      mask = shift_mask(self.grid, self.window, self.shift)
    patch, carried = WindowAttention(
      self.num_heads,
      self.window,
      self.dtype,
      name="MultiHeadDotProductAttention_0",
    )(
      to_windows(patch, self.window),
      carried,
      context,
      mask,
      temperature,
      edit,
      prompt_bias,
    )
    patch = from_windows(patch, self.grid)
    if self.shift:
      patch = jnp.roll(patch, (self.shift, self.shift), (1, 2))
    patch = patch.reshape(len(patch), -1, patch.shape[-1])
    x = tokens.x + tokens.replace(x=patch, num_prompt=0).with_prompt(carried).x
    normed = LayerNorm(self.eps, name="LayerNorm_1")(x).astype(self.dtype)
    mlp = Mlp(self.mlp_dim, self.gelu, self.dtype, name="MlpBlock_0")
    return tokens.replace(x=x + edited(edit, "mlp", mlp)(normed))


class Merge(nn.Module):
  """Patch merging: 2 x 2 patches of width D -> one of 2 D.

  A carried prompt is repeated four times along the channels, then treated as
  the patches are (VPT's code).
  """

  eps: float
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens: Tokens) -> Tokens:
    rows, columns = tokens.grid
    x = tokens.patch.reshape(len(tokens.x), rows // 2, 2, columns // 2, 2, -1)
    # Channels: the pair's column changes slower than its row.
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(len(x), rows * columns // 4, -1)
    out = tokens.replace(x=x, num_prompt=0, grid=(rows // 2, columns // 2))
    if tokens.num_prompt:
      out = out.with_prompt(jnp.tile(tokens.prompt, 4))
    x = LayerNorm(self.eps, name="norm")(out.x)
    return out.replace(
      x=nn.Dense(
        x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name="reduction"
      )(x.astype(self.dtype))
    )


class Encoder(nn.Module):
  """The blocks, the merges before each stage but the first, the final norm."""

  spec: Spec
  num_heads: tuple[int, ...]  # of every stage
  window: int
  mlp_ratio: float
  dtype: Dtype = jnp.float32

  def setup(self):
    spec = self.spec
    for heads, stage in zip(self.num_heads, spec.stages):
      for i in stage:
        window, shift = min(self.window, *spec.grids[i]), self.window // 2
        if min(spec.grids[i]) <= self.window or (i - stage.start) % 2 == 0:
          shift = 0
        setattr(
          self,
          f"encoderblock_{i}",
          Block(
            spec.grids[i],
            heads,
            window,
            shift,
            int(spec.widths[i] * self.mlp_ratio),
            spec.gelu,
            spec.eps,
            self.dtype,
          ),
        )
      if stage.start:
        setattr(self, f"merge_{stage.start}", Merge(spec.eps, self.dtype))
    self.encoder_norm = LayerNorm(spec.eps)

  def call(self, name: str, *args) -> Tokens:
    return getattr(self, name)(*args)


class Swin(nn.Module):
  """A list of blocks over tokens, as `vit.ViT`; it has no class token.

  Attributes:
    image_size, patch_size, pool, gelu, eps, normalize: see `Spec`.
    width: D of the first stage; each further stage doubles it.
    depths, num_heads: of every stage.
    window: side of the windows, in patches.
    mlp_ratio: width of the MLP's hidden layer over D.
    norm_order: the spec's `norm`.
    dtype: of the matrix products; norms and softmax are always float32.
    absolute_positions: patches have learned positions beside the relative ones
      (the published code's `ape`).
  """

  image_size: tuple[int, int]
  width: int
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  window: int = 7
  patch_size: int = 4
  mlp_ratio: float = 4.0
  pool: str = "imgprompt"
  norm_order: str = "before"
  gelu: str = "exact"
  eps: float = 1e-5
  normalize: str = "imagenet"
  dtype: Dtype = jnp.float32
  absolute_positions: bool = False

  @property
  def spec(self) -> Spec:
    stages = [s for s, depth in enumerate(self.depths) for _ in range(depth)]
    grid = lambda s: tuple(
      size // self.patch_size // 2**s for size in self.image_size
    )
    return Spec(
      self.image_size,
      self.patch_size,
      tuple(self.width * 2**s for s in stages),
      tuple(map(grid, stages)),
      0,
      self.pool,
      self.norm_order,
      self.gelu,
      self.eps,
      self.normalize,
      stem_norm=True,
    )

  def setup(self):
    patch = (self.patch_size, self.patch_size)
    self.embedding = Conv(
      self.width, patch, strides=patch, padding="VALID", dtype=self.dtype
    )
    self.embedding_norm = LayerNorm(self.eps)
    if self.absolute_positions:
      rows, columns = self.spec.grids[0]
      self.pos_embedding = self.param(
        "pos_embedding",
        nn.initializers.truncated_normal(0.02),
        (1, rows * columns, self.width),
      )
    self.Transformer = Encoder(
      self.spec, self.num_heads, self.window, self.mlp_ratio, self.dtype
    )

  def embed(self, image: jax.Array) -> Tokens:
    """Images [B, H, W, 3] -> patches; see `vit.ViT.embed`."""
    check_size(image, self.spec)
    patch = self.embedding(image.astype(self.dtype))
    batch, rows, columns, width = patch.shape
    x = self.embedding_norm(patch.reshape(batch, rows * columns, width))
    if self.absolute_positions:
      x = x + self.pos_embedding
    return Tokens(x.astype(self.dtype), num_cls=0, grid=(rows, columns))

  def embed_patches(self, pixels: jax.Array) -> jax.Array:
    """Patches of pixels [B, P, p, p, 3] -> tokens [B, P, D]."""
    flat = pixels.reshape(-1, *pixels.shape[2:]).astype(self.dtype)
    patch = self.embedding(flat).reshape(*pixels.shape[:2], self.width)
    return self.embedding_norm(patch).astype(self.dtype)

  def enter(self, i: int, tokens: Tokens) -> Tokens:
    """What stands before block i and is no block: patch merging."""
    if i and self.spec.widths[i] != self.spec.widths[i - 1]:
      return self.Transformer.call(f"merge_{i}", tokens)
    return tokens

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
    """Block i; see `vit.ViT.block`."""
    out = self.Transformer.call(
      f"encoderblock_{i}", tokens, context, temperature, edit, prompt_bias
    )
    return out if pool is None else out.rows(pool)

  def norm(self, x: jax.Array) -> jax.Array:
    """The final norm, of tokens [B, T, D] or pooled features [B, D]."""
    return self.Transformer.call("encoder_norm", x)

  def project(self, feature: jax.Array) -> jax.Array:
    """Swin has no projection."""
    return feature
