"""Defines `Method`: the sites at which a prompt method may act.

Every site does nothing unless a method overrides it, so the base class is the
linear probe. `vpt_jax/model.py` shows when each site is called; the README of
this room says how a method is added.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.nn.layers import Dropout
from vpt_jax.nn.tokens import Spec, Tokens
from vpt_jax.utils import trees


class Method(nn.Module):
  """Trains nothing but the head: the linear probe, and the base of all methods.

  The fields of a subclass are its options. Their names, types and defaults are
  those of the config's section for the method: this is the one place of each.

  Attributes:
    spec: what a method may know about its backbone.
    trainable: default of `config.trainable` for this method.
    needs_grid: whether it needs patch tokens on a grid in every block.
    start_options: options that only say where its parameters start from, so
      that runs that differ in them have the same program.
  """

  spec: Spec
  trainable: ClassVar[str] = r"(method|head)/.*"
  needs_grid: ClassVar[bool] = False
  start_options: ClassVar[tuple[str, ...]] = ()

  @property
  def weights(self) -> str:
    """The file or address of weights that it starts from; "": new ones."""
    return ""

  @property
  def input_size(self) -> tuple[int, int]:
    """(height, width) of the images that `image` is given."""
    return self.spec.image_size

  def check(self) -> None:
    """Raises ValueError if the options do not fit each other or the backbone.

    It needs no parameters; `setup` calls it first.
    """

  def image(self, image: jax.Array, *, train: bool) -> jax.Array:
    """Returns the normalised images [B, H, W, 3], edited.

    They come with `input_size` and leave with the backbone's image size.
    """
    return image

  def prompts(
    self, image: jax.Array, tokens: Tokens, *, train: bool
  ) -> jax.Array | None:
    """Returns prompts [B or 1, P, D] that are carried through all blocks."""
    return None

  def patches(self, image: jax.Array) -> jax.Array | None:
    """Returns pixels [B or 1, P, p, p, 3] that are embedded as prompts."""
    return None

  def before(self, i: int, tokens: Tokens, *, train: bool) -> Tokens:
    """Returns the tokens that enter block i, edited."""
    return tokens

  def context(self, i: int, tokens: Tokens, *, train: bool) -> jax.Array | None:
    """Returns prompts [B or 1, P_i, D] that only block i sees."""
    return None

  def prompt_bias(self, i: int) -> jax.Array | None:
    """Returns what is added to the attention logits [P_i] of block i's prompts.

    These are all prompts that the block sees: carried ones, then its context.
    """
    return None

  def temperature(self, i: int) -> jax.Array | float:
    """Returns what the attention logits of block i are divided by."""
    return 1.0

  def inside(
    self, i: int, layer: str, x: jax.Array, out: jax.Array
  ) -> jax.Array:
    """Returns the output of a layer inside block i, edited.

    Args:
      i: index of the block.
      layer: `query`, `key`, `value` (out: [B, T, heads, d]) or `mlp` (out:
        [B, T, D]); on Swin's windows there is one axis more.
      x: the layer's input [B, T, D], after the norm.
      out: its output.
    """
    return out

  def after(
    self, i: int, tokens_in: Tokens, tokens_out: Tokens, *, train: bool
  ) -> Tokens:
    """Returns the tokens that leave block i, edited."""
    return tokens_out

  def pretrained(
    self, flat: Mapping[str, np.ndarray]
  ) -> tuple[trees.Flat, trees.Flat]:
    """Returns (parameters, batch statistics), flat, from those of `weights`."""
    raise NotImplementedError

  def constrain(self, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the method's parameters, projected after an update."""
    return params


class Full(Method):
  """Trains everything: full fine-tuning or training from scratch, no prompt."""

  trainable = ".*"


def check_options(
  method: Method,
  section: str,
  at_least: Mapping[str, int] | None = None,
  rates: Collection[str] = (),
) -> None:
  """Raises ValueError for a count that is too small or a rate out of range.

  Args:
    method: has the options as attributes.
    section: of the config, for the error.
    at_least: option -> smallest value that makes sense.
    rates: options that are dropout rates, in [0, 1).
  """
  for option, smallest in (at_least or {}).items():
    value = getattr(method, option)
    if value < smallest:
      raise ValueError(
        f"{section}.{option}={value}; expected at least {smallest}"
      )
  for option in rates:
    rate = getattr(method, option)
    if isinstance(rate, jax.Array):
      continue  # traced: one of runs that train together, checked one by one
    if not 0 <= rate < 1:
      raise ValueError(f"{section}.{option}={rate}; expected 0 <= rate < 1")


def stage_of(spec: Spec, block: int) -> int:
  """Returns the number of the stage that a block is in."""
  for number, stage in enumerate(spec.stages):
    if block in stage:
      return number
  raise IndexError(f"block {block} of a backbone of {spec.depth} blocks")


def prompt_init(spec: Spec, width: int) -> nn.initializers.Initializer:
  """Returns VPT's initial values (section 3.2 of its paper).

    U(-v, v),   v = sqrt(6 / (3 patch_size^2 + width))

  Args:
    spec: of the backbone.
    width: of the prompts. The published code takes their own width, which
      differs from the backbone's when they are projected.
  """
  bound = (6 / (3 * spec.patch_size**2 + width)) ** 0.5

  def init(key, shape, dtype=None):
    return jax.random.uniform(key, shape, dtype or jnp.float32, -bound, bound)

  return init


def prompt_sets(
  method: Method,
  blocks: range,
  num_tokens: int,
  *,
  shared: bool = False,
  width: int = 0,
  kept: Sequence[Sequence[int]] = (),
) -> list[jax.Array | None]:
  """Makes the parameters for the prompts of some blocks; called in `setup`.

  They are one array `prompt` [L, P, D] of L sets or, where the backbone has
  stages of other widths (Swin), an array `prompt_{s}` for every stage s.

  Args:
    method: whose parameters they are.
    blocks: that get prompts.
    num_tokens: P.
    shared: one set for all blocks of a stage.
    width: of the prompts, if it is not that of their blocks.
    kept: which of its P prompts each set has; (): all. The arrays are packed
      then, [P_1 + ... + P_L, D], and an array without any prompt is left out.

  Returns:
    For every block of the backbone its prompts [1, P_i, D], or None.
  """
  spec = method.spec
  prompts: list[jax.Array | None] = [None] * spec.depth
  # The first stage's width sets the range of all, as published.
  init = prompt_init(spec, width or spec.widths[0])
  first_set = 0  # of the stage, among all sets
  for s, stage in enumerate(spec.stages):
    prompted = [i for i in stage if i in blocks]
    num_sets = min(1, len(prompted)) if shared else len(prompted)
    shape: tuple[int, ...]
    if kept:
      of_stage = kept[first_set : first_set + num_sets]
      sizes = [len(indices) for indices in of_stage]
      shape = (sum(sizes),)
    else:
      sizes = [num_tokens] * num_sets
      shape = (num_sets, num_tokens)
    first_set += num_sets
    if not sum(sizes):
      continue
    name = "prompt" if len(spec.stages) == 1 else f"prompt_{s}"
    prompt_width = width or spec.widths[stage.start]
    prompt = method.param(name, init, (*shape, prompt_width))
    sets = _split_sets(prompt.reshape(1, -1, prompt_width), sizes)
    for number, i in enumerate(prompted):
      prompts[i] = sets[0] if shared else sets[number]
  return prompts


def _split_sets(
  prompts: jax.Array, sizes: Sequence[int]
) -> list[jax.Array | None]:
  """Splits [1, P_1 + ... + P_L, D] into L sets; one without prompts is None."""
  ends = np.cumsum(sizes)
  # Not slices: their gradients would be filled up to the whole and added.
  parts = jnp.split(prompts, ends[:-1], axis=1)
  return [part if part.shape[1] else None for part in parts]


def per_image(
  prompt: jax.Array, tokens: Tokens, dropout: Dropout, train: bool
) -> jax.Array:
  """Returns prompts [1, P, D] after dropout, which is drawn for every image.

  Without dropout the prompts stay the same for the batch ([1, P, D]), so that
  a block computes their keys and values once; else they are [B, P, D].
  """
  if not train or dropout.off:
    return prompt
  prompt = tokens.ops.to_batch(prompt, len(tokens.x))
  return dropout(prompt, deterministic=False)
