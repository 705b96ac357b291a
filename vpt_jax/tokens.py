"""`Tokens`: the packed sequence that travels through the blocks.

One array [B, C + P + N, D] holds class tokens, carried prompts and patches, in
this order. Prompts have no position embedding and attention does not care for
order, so one order serves VPT (prompts after the class token) and PGN (at the
end) alike. Nobody outside this file writes index arithmetic.
"""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a prompt method may know about its backbone."""

  depth: int
  width: int
  patch_size: int
  grid: tuple[int, int] | None  # rows and columns of patches; None: no grid
  image_size: tuple[int, int]


class Tokens(flax.struct.PyTreeNode):
  """Tokens [B, C + P + N, D] with static sizes C (`num_cls`), P (`num_prompt`).

  N patches lie on `grid` in row-major order, unless `grid` is None.
  """

  x: jax.Array
  num_cls: int = flax.struct.field(pytree_node=False, default=1)
  num_prompt: int = flax.struct.field(pytree_node=False, default=0)
  grid: tuple[int, int] | None = flax.struct.field(
      pytree_node=False, default=None)

  @property
  def cls(self) -> jax.Array:
    """Class tokens [B, C, D]."""
    return self.x[:, :self.num_cls]

  @property
  def prompt(self) -> jax.Array:
    """Carried prompts [B, P, D]."""
    return self.x[:, self.num_cls:self.num_cls + self.num_prompt]

  @property
  def patch(self) -> jax.Array:
    """Patches [B, N, D]."""
    return self.x[:, self.num_cls + self.num_prompt:]

  def with_prompt(self, prompt: jax.Array | None) -> "Tokens":
    """The same tokens carrying these prompts [B or 1, P, D] (None: none)."""
    if prompt is None and not self.num_prompt:
      return self
    if prompt is None:
      x, p = jnp.concatenate([self.cls, self.patch], axis=1), 0
    else:
      prompt = jnp.broadcast_to(prompt, (len(self.x), *prompt.shape[1:]))
      x = jnp.concatenate(
          [self.cls, prompt.astype(self.x.dtype), self.patch], axis=1)
      p = prompt.shape[1]
    return self.replace(x=x, num_prompt=p)

  def rows(self, pool: str) -> "Tokens":
    """Only the tokens that a pooling reads, as `Tokens` (see `POOLS`)."""
    cls, prompt, patch = POOLS[pool]
    parts = [part for part, read in
             zip((self.cls, self.prompt, self.patch), (cls, prompt, patch))
             if read]
    return Tokens(
        x=parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1),
        num_cls=self.num_cls * cls,
        num_prompt=self.num_prompt * prompt,
        grid=self.grid if patch else None)
