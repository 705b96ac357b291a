"""Defines `Tokens`, what travels through the blocks, `Reads` and `Spec`.

One array [B, C + P + N, D] holds class tokens, carried prompts and patches, in
this order. Prompts have no position embedding and attention does not care for
order, so one order serves VPT (prompts after the class token) and PGN (at the
end) alike. Nobody outside this file writes index arithmetic.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from vpt_jax.ops.switch import Ops

_DEFAULT_OPS = Ops()

# Which rows each pooling reads: (class tokens, prompts, patches).
POOLS = {
  "cls": (True, False, False),
  "prompt": (False, True, False),
  "img": (False, False, True),
  "imgprompt": (False, True, True),
}


# Where the final norm stands: before the pooling (supervised ViT, MoCo v3),
# after it (MAE in Gated Prompt Tuning), or after it with fresh weights (scale
# 1, bias 0) in place of the checkpoint's (MAE in VPT's and VAPT's code).
NORMS = ("before", "after", "fresh")


@dataclasses.dataclass(frozen=True)
class Reads:
  """What a head reads.

  Attributes:
    blocks: indices of the blocks whose patches [B, N, D] it reads, in the order
      in which it gets them; (): the pooled feature [B, D] instead.
    final_norm: whether the backbone's final norm is applied to the patches of
      its last block where it stands before the pooling; False: heads with a
      norm of their own read them as the block gives them.
  """

  blocks: tuple[int, ...] = ()
  final_norm: bool = True

  @property
  def patches(self) -> bool:
    """Whether patches are read, not the pooled feature."""
    return bool(self.blocks)

  def last_block(self, depth: int) -> int:
    """Returns the last block of `depth` that is needed.

    Raises:
      ValueError: there is no such block.
    """
    for i in self.blocks:
      if not 0 <= i < depth:
        raise ValueError(
          f"the head reads block {i}; this backbone has blocks 0 to {depth - 1}"
        )
    return max(self.blocks, default=depth - 1)


@dataclasses.dataclass(frozen=True)
class Spec:
  """What methods, heads and users may know about a backbone.

  Attributes:
    image_size: (height, width) that it was built for.
    patch_size: side of a patch in pixels.
    widths: D of every block.
    grids: (rows, columns) of patches in every block; None: no grid.
    num_cls: C, class tokens.
    pool: the rows that its feature is the mean of, unless a config says else.
    norm: see `NORMS`.
    gelu: `tanh`, `exact` or `quick`.
    eps: of its LayerNorms.
    normalize: name of the mean and std that it was trained with, see
      `data/transforms`.
    stem_norm: a norm stands between the embedding and the first block.
    ops: form of its operations, to be that of the method's too.
  """

  image_size: tuple[int, int]
  patch_size: int
  widths: tuple[int, ...]
  grids: tuple[tuple[int, int] | None, ...]
  num_cls: int = 1
  pool: str = "cls"
  norm: str = "before"
  gelu: str = "tanh"
  eps: float = 1e-6
  normalize: str = "imagenet"
  stem_norm: bool = False
  ops: Ops = _DEFAULT_OPS

  @property
  def depth(self) -> int:
    """Number of blocks."""
    return len(self.widths)

  @property
  def stages(self) -> list[range]:
    """The runs of blocks of one width; a plain ViT is one stage."""
    stages = []
    start = 0
    for i in range(1, self.depth + 1):
      if i == self.depth or self.widths[i] != self.widths[start]:
        stages.append(range(start, i))
        start = i
    return stages


class Tokens(flax.struct.PyTreeNode):
  """Tokens with static sizes C (`num_cls`) and P (`num_prompt`).

  Attributes:
    x: [B, C + P + N, D].
    num_cls: C.
    num_prompt: P.
    grid: that the N patches lie on in row-major order, or None.
    ops: form of its operations.
  """

  x: jax.Array
  num_cls: int = flax.struct.field(pytree_node=False, default=1)
  num_prompt: int = flax.struct.field(pytree_node=False, default=0)
  grid: tuple[int, int] | None = flax.struct.field(
    pytree_node=False, default=None
  )
  ops: Ops = flax.struct.field(pytree_node=False, default=_DEFAULT_OPS)

  @property
  def cls(self) -> jax.Array:
    """Class tokens [B, C, D]."""
    return self.x[:, : self.num_cls]

  @property
  def prompt(self) -> jax.Array:
    """Carried prompts [B, P, D]."""
    start = self.num_cls
    end = start + self.num_prompt
    return self.x[:, start:end]

  @property
  def patch(self) -> jax.Array:
    """Patches [B, N, D]."""
    start = self.num_cls + self.num_prompt
    return self.x[:, start:]

  def with_prompt(self, prompt: jax.Array | None) -> "Tokens":
    """Returns the tokens with these prompts [n, P, D] instead, or with none.

    Each of the n is for B / n images.
    """
    if prompt is None and not self.num_prompt:
      return self
    if prompt is None:
      x = jnp.concatenate([self.cls, self.patch], axis=1)
      return self.replace(x=x, num_prompt=0)
    prompt = self.ops.to_batch(prompt, len(self.x))
    x = jnp.concatenate(
      [self.cls, prompt.astype(self.x.dtype), self.patch], axis=1
    )
    return self.replace(x=x, num_prompt=prompt.shape[1])

  def spread(self, values: jax.Array) -> jax.Array:
    """Returns values of prompts in the prompts' rows among all keys, else 0.

    Args:
      values: [P + P'] of the carried prompts, then of a context's.

    Returns:
      [C + P + N + P'].
    """
    _, rows, _ = self.x.shape
    others = jnp.zeros(rows - self.num_prompt, values.dtype)
    carried, context = jnp.split(values, [self.num_prompt])
    of_cls = others[: self.num_cls]
    of_patches = others[self.num_cls :]
    return jnp.concatenate([of_cls, carried, of_patches, context])

  def mean(self, prompt_bias: jax.Array | None = None) -> jax.Array:
    """Returns the mean of the rows [B, D].

    Args:
      prompt_bias: [P]; a prompt counts exp(prompt_bias) times. None: once.
    """
    if prompt_bias is None or not self.num_prompt:
      return self.x.mean(axis=1)
    bias = self.spread(prompt_bias)
    weights = jnp.exp(bias)
    return weights @ self.x / weights.sum()

  def rows(self, pool: str) -> "Tokens":
    """Returns only the tokens that a pooling reads, see `POOLS`."""
    with_cls, with_prompt, with_patch = POOLS[pool]
    parts = []
    if with_cls:
      parts.append(self.cls)
    if with_prompt:
      parts.append(self.prompt)
    if with_patch:
      parts.append(self.patch)
    return self.replace(
      x=parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1),
      num_cls=self.num_cls if with_cls else 0,
      num_prompt=self.num_prompt if with_prompt else 0,
      grid=self.grid if with_patch else None,
    )
