"""`Tokens`, the packed sequence that travels through the blocks, and `Spec`.

One array [B, C + P + N, D] holds class tokens, carried prompts and patches, in
this order. Prompts have no position embedding and attention does not care for
order, so one order serves VPT (prompts after the class token) and PGN (at the
end) alike. Nobody outside this file writes index arithmetic.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

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
    normalize: mean and std that it was trained with, see `data/preprocess.py`.
    stem_norm: a norm stands between the embedding and the first block.
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

  @property
  def depth(self) -> int:
    """Number of blocks."""
    return len(self.widths)

  @property
  def stages(self) -> list[range]:
    """The runs of blocks of one width; a plain ViT is one stage."""
    starts = [
      i
      for i in range(self.depth)
      if not i or self.widths[i] != self.widths[i - 1]
    ]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], self.depth])]


class Tokens(flax.struct.PyTreeNode):
  """Tokens [B, C + P + N, D] with static sizes C (`num_cls`), P (`num_prompt`).

  N patches lie on `grid` in row-major order, unless `grid` is None.
  """

  x: jax.Array
  num_cls: int = flax.struct.field(pytree_node=False, default=1)
  num_prompt: int = flax.struct.field(pytree_node=False, default=0)
  grid: tuple[int, int] | None = flax.struct.field(
    pytree_node=False, default=None
  )

  @property
  def cls(self) -> jax.Array:
    """Class tokens [B, C, D]."""
    return self.x[:, : self.num_cls]

  @property
  def prompt(self) -> jax.Array:
    """Carried prompts [B, P, D]."""
    return self.x[:, self.num_cls : self.num_cls + self.num_prompt]

  @property
  def patch(self) -> jax.Array:
    """Patches [B, N, D]."""
    return self.x[:, self.num_cls + self.num_prompt :]

  def with_prompt(self, prompt: jax.Array | None) -> "Tokens":
    """The same tokens carrying these prompts [B or 1, P, D] (None: none)."""
    if prompt is None and not self.num_prompt:
      return self
    if prompt is None:
      x, p = jnp.concatenate([self.cls, self.patch], axis=1), 0
    else:
      prompt = to_batch(prompt, len(self.x))
      x = jnp.concatenate(
        [self.cls, prompt.astype(self.x.dtype), self.patch], axis=1
      )
      p = prompt.shape[1]
    return self.replace(x=x, num_prompt=p)

  def spread(self, values: jax.Array) -> jax.Array:
    """Values of prompts at the prompts' places among all keys, 0 elsewhere.

    Args:
      values: [P + P'] of the carried prompts, then of a context's.

    Returns:
      [C + P + N + P'].
    """
    others = jnp.zeros(self.x.shape[1] - self.num_prompt, values.dtype)
    carried, context = jnp.split(values, [self.num_prompt])
    return jnp.concatenate(
      [others[: self.num_cls], carried, others[self.num_cls :], context]
    )

  def mean(self, prompt_bias: jax.Array | None = None) -> jax.Array:
    """Mean of the rows [B, D]; a prompt counts exp(prompt_bias) times."""
    if prompt_bias is None or not self.num_prompt:
      return self.x.mean(axis=1)
    weights = jnp.exp(self.spread(prompt_bias))
    return weights @ self.x / weights.sum()

  def rows(self, pool: str) -> "Tokens":
    """Only the tokens that a pooling reads, as `Tokens` (see `POOLS`)."""
    cls, prompt, patch = POOLS[pool]
    parts = [
      part
      for part, read in zip(
        (self.cls, self.prompt, self.patch), (cls, prompt, patch)
      )
      if read
    ]
    return Tokens(
      x=parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1),
      num_cls=self.num_cls * cls,
      num_prompt=self.num_prompt * prompt,
      grid=self.grid if patch else None,
    )


def to_batch(x: jax.Array, batch: int) -> jax.Array:
  """[n, ...] -> [B, ...], each B / n times; n divides B."""
  return x if len(x) == batch else _repeated(x, batch)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeated(x: jax.Array, batch: int) -> jax.Array:
  parts = jnp.broadcast_to(x[:, None], (len(x), batch // len(x), *x.shape[1:]))
  return parts.reshape(batch, *x.shape[1:])


def _repeated_fwd(x: jax.Array, batch: int) -> tuple[jax.Array, int]:
  return _repeated(x, batch), len(x)


def _repeated_bwd(batch: int, n: int, grad: jax.Array) -> tuple[jax.Array]:
  # A sum over the batch. As a product: XLA's own on CPU takes 20 times as long.
  parts = grad.reshape(n, batch // n, *grad.shape[1:])
  return (
    jnp.einsum(
      "b,nb...->n...",
      jnp.ones(batch // n, grad.dtype),
      parts,
      precision=jax.lax.Precision.HIGHEST,
    ),
  )


_repeated.defvjp(_repeated_fwd, _repeated_bwd)
