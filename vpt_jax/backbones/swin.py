"""Defines Swin Transformer (Liu et al. 2021, arXiv 2103.14030), with prompts.

Attention is inside windows of the grid, every second block shifts them, and
between stages four neighbours become one patch of twice the width. Every window
sees the prompts; what comes out at a carried prompt is its mean over the
windows (VPT, appendix). The published code pairs prompts and windows of
different images when a batch has more than one; here no image sees another.
"""

from collections.abc import Sequence
from typing import cast, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.nn.layers import LayerNorm
from vpt_jax.nn.tokens import Spec, Tokens
from vpt_jax.nn.transformer import (
  check_size,
  Dtype,
  Edit,
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
from vpt_jax.ops.switch import Ops


class Keys(NamedTuple):
  """What queries in windows see: the patches of the window, or prompts.

  Attributes:
    key: [B, W, T, heads, d] of patches, [B, P, heads, d] of prompts.
    value: likewise.
    bias: added to the logits [B, W, heads, Q, K].
  """

  key: jax.Array
  value: jax.Array
  bias: jax.Array | float = 0.0

  @property
  def axes(self) -> str:
    """Its axes for `einsum`; prompts are the same in all windows."""
    return "bwkhd" if self.key.ndim == 5 else "bkhd"


def attend(query: jax.Array, seen: Sequence[Keys], dtype: Dtype) -> jax.Array:
  """Returns softmax(Q K^T + bias) V over all that is seen, together.

  Args:
    query: [B, W, Q, heads, d], scaled already.
    seen: patches of the window first, then prompts.
    dtype: of the products with the values.

  Returns:
    [B, W, Q, heads, d].
  """
  logits = []
  for keys in seen:
    product = jnp.einsum(
      f"bwqhd,{keys.axes}->bwhqk",
      query,
      keys.key,
      preferred_element_type=jnp.float32,
    )
    logits.append(product + keys.bias)
  ends = np.cumsum([part.shape[-1] for part in logits])[:-1]
  weights = jax.nn.softmax(jnp.concatenate(logits, axis=-1)).astype(dtype)
  means = []
  for weight, keys in zip(jnp.split(weights, ends, axis=-1), seen, strict=True):
    means.append(jnp.einsum(f"bwhqk,{keys.axes}->bwqhd", weight, keys.value))
  patches, *prompts = means
  return patches + sum(prompts)


class WindowAttention(nn.Module):
  """Attention inside windows whose keys and values may include prompts.

  Attributes:
    num_heads: of them.
    window: side of the windows, in patches.
    dtype: of the matrix products; the softmax is always float32.
    ops: form of its operations.
  """

  num_heads: int
  window: int
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

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
    """Returns what attention gives to patches and to carried prompts.

    The heads' logits are Q K^T / (sqrt(d) temperature) + bias + mask. Bias and
    mask are between patches only; prompts have `prompt_bias` alone.

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
    batch, windows, _, width = patch.shape
    to_query, to_key, to_value, to_out = projections(
      self.num_heads, width, self.dtype, self.ops
    )
    scale = (width // self.num_heads) ** -0.5 / temperature

    def project(layer: str, to_heads: nn.Module, x: jax.Array) -> jax.Array:
      return edit(layer, x, to_heads(x))

    def ask(x: jax.Array) -> jax.Array:
      query = project("query", to_query, x)
      return query * jnp.asarray(scale, self.dtype)

    def to_batch(layer: str, to_heads: nn.Module, x: jax.Array) -> jax.Array:
      return self.ops.to_batch(project(layer, to_heads, x), batch)

    query = ask(patch)
    key = project("key", to_key, patch)
    value = project("value", to_value, patch)
    prompts = [x for x in (carried, context) if x is not None]
    biases: Sequence[jax.Array | float] = [0.0] * len(prompts)
    if prompt_bias is not None:
      ends = np.cumsum([x.shape[1] for x in prompts])[:-1]
      biases = jnp.split(prompt_bias, ends)
    prompt_keys = [to_batch("key", to_key, x) for x in prompts]
    prompt_values = [to_batch("value", to_value, x) for x in prompts]
    seen_prompts = [
      Keys(*parts)
      for parts in zip(prompt_keys, prompt_values, biases, strict=True)
    ]

    own = Keys(key, value, self._position_bias(mask))
    out = to_out(attend(query, [own, *seen_prompts], self.dtype))
    if carried is None:
      return out, None
    # A carried prompt asks in every window, without a position.
    asked = ask(carried)[:, None]
    asked = jnp.broadcast_to(asked, (batch, windows, *asked.shape[2:]))
    own = Keys(key, value)
    carried = to_out(
      attend(asked, [own, *seen_prompts], self.dtype).mean(axis=1)
    )
    return out, carried

  def _position_bias(self, mask: np.ndarray | None) -> jax.Array:
    """Returns what patches add to their logits, [heads, T, T] or [W, ...]."""
    offsets = 2 * self.window - 1  # on one axis
    table = self.param(
      "relative_position_bias",
      nn.initializers.normal(0.02),
      (offsets * offsets, self.num_heads),
    )
    bias = table[relative_position(self.window)].transpose(2, 0, 1)
    return bias if mask is None else bias + mask[:, None]


class Block(nn.Module):
  """Pre-norm block on windows of the grid.

  Attributes:
    grid: rows and columns of patches.
    num_heads: of attention.
    window: side of the windows, in patches.
    shift: of the grid before it is cut, in patches; cyclic.
    mlp_dim: width of the MLP's hidden layer.
    gelu: of `ops.gelu.NAMES`.
    eps: of the norms.
    dtype: of the matrix products.
    ops: form of its operations.
  """

  grid: Grid
  num_heads: int
  window: int
  shift: int
  mlp_dim: int
  gelu: str
  eps: float
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

  @nn.compact
  def __call__(
    self,
    tokens: Tokens,
    context: jax.Array | None,
    temperature: jax.Array | float,
    edit: Edit,
    prompt_bias: jax.Array | None,
  ) -> Tokens:
    """Returns the tokens after the block; see `WindowAttention`."""
    norm = LayerNorm(self.eps, self.ops, name="LayerNorm_0")
    attention = WindowAttention(
      self.num_heads,
      self.window,
      self.dtype,
      self.ops,
      name="MultiHeadDotProductAttention_0",
    )
    mlp = Mlp(self.mlp_dim, self.gelu, self.dtype, self.ops, name="MlpBlock_0")

    normed = tokens.replace(x=norm(tokens.x).astype(self.dtype))
    carried = normed.prompt if tokens.num_prompt else None
    if context is not None:
      context = norm(context).astype(self.dtype)
    mask = None
    if self.shift:
      mask = shift_mask(self.grid, self.window, self.shift)
    windows, carried = attention(
      self._cut(normed.patch),
      carried,
      context,
      mask,
      temperature,
      edit,
      prompt_bias,
    )
    change = tokens.replace(x=self._join(windows), num_prompt=0)
    x = tokens.x + change.with_prompt(carried).x
    hidden = LayerNorm(self.eps, self.ops, name="LayerNorm_1")(x)
    hidden = hidden.astype(self.dtype)
    return tokens.replace(x=x + edit("mlp", hidden, mlp(hidden)))

  def _cut(self, patch: jax.Array) -> jax.Array:
    """Returns patches [B, N, D] as shifted windows [B, W, T, D]."""
    batch, _, width = patch.shape
    patch = patch.reshape(batch, *self.grid, width)
    if self.shift:
      patch = jnp.roll(patch, (-self.shift, -self.shift), (1, 2))
    return to_windows(patch, self.window)

  def _join(self, windows: jax.Array) -> jax.Array:
    """Returns shifted windows [B, W, T, D] as patches [B, N, D]."""
    patch = from_windows(windows, self.grid)
    if self.shift:
      patch = jnp.roll(patch, (self.shift, self.shift), (1, 2))
    batch, rows, columns, width = patch.shape
    return patch.reshape(batch, rows * columns, width)


class Merge(nn.Module):
  """Patch merging: 2 x 2 patches of width D -> one of 2 D.

  A carried prompt is repeated four times along the channels, then treated as
  the patches are (VPT's code).

  Attributes:
    eps: of the norm.
    dtype: of the matrix product.
    ops: form of its operations.
  """

  eps: float
  dtype: Dtype = jnp.float32
  ops: Ops = Ops()

  @nn.compact
  def __call__(self, tokens: Tokens) -> Tokens:
    """Returns tokens [B, P + N, D] as [B, P + N / 4, 2 D]."""
    rows, columns = cast(tuple[int, int], tokens.grid)
    batch, _, width = tokens.x.shape
    merged_rows = rows // 2
    merged_columns = columns // 2
    x = tokens.patch.reshape(batch, merged_rows, 2, merged_columns, 2, width)
    # Channels: the pair's column changes slower than its row.
    x = x.transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(batch, merged_rows * merged_columns, 4 * width)
    out = tokens.replace(x=x, num_prompt=0, grid=(merged_rows, merged_columns))
    if tokens.num_prompt:
      out = out.with_prompt(jnp.tile(tokens.prompt, 4))
    x = LayerNorm(self.eps, self.ops, name="norm")(out.x)
    reduction = nn.Dense(
      2 * width, use_bias=False, dtype=self.dtype, name="reduction"
    )
    return out.replace(x=reduction(x.astype(self.dtype)))


class Encoder(nn.Module):
  """The blocks, the merges before each stage but the first, the final norm.

  Attributes:
    spec: of the backbone.
    num_heads: of every stage.
    window: side of the windows, where the grid is not smaller.
    mlp_ratio: width of the MLP's hidden layer over D.
    dtype: of the matrix products.
  """

  spec: Spec
  num_heads: tuple[int, ...]
  window: int
  mlp_ratio: float
  dtype: Dtype = jnp.float32

  def setup(self):
    """Makes them, under the names `encoderblock_{i}` and `merge_{i}`."""
    spec = self.spec
    for num_heads, stage in zip(self.num_heads, spec.stages, strict=True):
      for i in stage:
        block = Block(
          spec.grids[i],
          num_heads,
          min(self.window, *spec.grids[i]),
          self._shift(i, stage),
          int(spec.widths[i] * self.mlp_ratio),
          spec.gelu,
          spec.eps,
          self.dtype,
          spec.ops,
        )
        setattr(self, f"encoderblock_{i}", block)
      if stage.start:
        merge = Merge(spec.eps, self.dtype, spec.ops)
        setattr(self, f"merge_{stage.start}", merge)
    self.encoder_norm = LayerNorm(spec.eps, spec.ops)

  def _shift(self, i: int, stage: range) -> int:
    """Returns by how many patches block i of a stage shifts its windows."""
    grid = cast(tuple[int, int], self.spec.grids[i])
    is_single_window = min(grid) <= self.window
    is_even = (i - stage.start) % 2 == 0
    return 0 if is_single_window or is_even else self.window // 2

  def call(self, name: str, *args) -> Tokens | jax.Array:
    """Returns what the part of this name gives."""
    return getattr(self, name)(*args)


class Swin(nn.Module):
  """A list of blocks over tokens, as `vit.ViT`; it has no class token.

  Attributes:
    image_size: (height, width) of its images.
    width: D of the first stage; each further stage doubles it.
    depths: number of blocks of every stage.
    num_heads: of every stage.
    window: side of the windows, in patches.
    patch_size: side of a patch.
    mlp_ratio: width of the MLP's hidden layer over D.
    pool: the rows that its feature is the mean of, see `tokens.POOLS`.
    norm_order: where the final norm stands, see `tokens.NORMS`.
    gelu: of `ops.gelu.NAMES`.
    eps: of the norms.
    normalize: name of the mean and std that it was trained with.
    dtype: of the matrix products; norms and softmax are always float32.
    absolute_positions: patches have learned positions beside the relative ones
      (the published code's `ape`).
    ops: form of its operations.
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
  ops: Ops = Ops()

  @property
  def spec(self) -> Spec:
    """What methods and heads may know about it."""
    height, width = self.image_size
    widths = []
    grids = []
    for stage, depth in enumerate(self.depths):
      unit = self.patch_size * 2**stage  # pixels
      widths += [self.width * 2**stage] * depth
      grids += [(height // unit, width // unit)] * depth
    return Spec(
      image_size=self.image_size,
      patch_size=self.patch_size,
      widths=tuple(widths),
      grids=tuple(grids),
      num_cls=0,
      pool=self.pool,
      norm=self.norm_order,
      gelu=self.gelu,
      eps=self.eps,
      normalize=self.normalize,
      stem_norm=True,
      ops=self.ops,
    )

  def setup(self):
    """Makes the embedding and the encoder."""
    patch = (self.patch_size, self.patch_size)
    self.embedding = nn.Conv(
      self.width,
      patch,
      strides=patch,
      padding="VALID",
      dtype=self.dtype,
      conv_general_dilated=self.ops.convolution,
    )
    self.embedding_norm = LayerNorm(self.eps, self.ops)
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
    """Returns the patches of images [B, H, W, 3]; see `vit.ViT.embed`."""
    check_size(image, self.spec)
    patch = self.embedding(image.astype(self.dtype))
    batch, rows, columns, width = patch.shape
    x = self.embedding_norm(patch.reshape(batch, rows * columns, width))
    if self.absolute_positions:
      x = x + self.pos_embedding
    return Tokens(
      x.astype(self.dtype), num_cls=0, grid=(rows, columns), ops=self.ops
    )

  def embed_patches(self, pixels: jax.Array) -> jax.Array:
    """Returns tokens [B, P, D] of patches of pixels [B, P, p, p, 3]."""
    batch, patches, *patch = pixels.shape
    flat = pixels.reshape(batch * patches, *patch).astype(self.dtype)
    x = self.embedding(flat).reshape(batch, patches, self.width)
    return self.embedding_norm(x).astype(self.dtype)

  def enter(self, i: int, tokens: Tokens) -> Tokens:
    """Returns what enters block i: a stage begins with patch merging."""
    widths = self.spec.widths
    if i > 0 and widths[i] != widths[i - 1]:
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
    """Returns the tokens after block i; see `vit.ViT.block`."""
    out = self.Transformer.call(
      f"encoderblock_{i}", tokens, context, temperature, edit, prompt_bias
    )
    return out if pool is None else out.rows(pool)

  def norm(self, x: jax.Array) -> jax.Array:
    """Returns the final norm of tokens [B, T, D] or pooled features [B, D]."""
    return self.Transformer.call("encoder_norm", x)

  def project(self, feature: jax.Array) -> jax.Array:
    """Returns features [B, D] as they are: Swin has no projection."""
    return feature
