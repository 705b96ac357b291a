"""`Method`: the sites at which a prompt method may speak.

Every site defaults to "do nothing", so the base class is the linear probe.
A new method is a subclass that overrides the sites it needs, in one file of
its own, and one line in `registry.py`. See `model.py` for when each is called.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.nn.layers import Dropout
from vpt_jax.nn.tokens import Spec, to_batch, Tokens
from vpt_jax.utils import trees


class Method(nn.Module):
  """Linear probe: nothing but the head is trained.

  Attributes:
    spec: what a method may know about its backbone.
    trainable: default of `config.trainable` for this method.
    weights: file or address of weights that it starts from; "": new ones.
    starts: options that only say where its parameters start from.
  """

  spec: Spec
  trainable: ClassVar[str] = r"(method|head)/.*"
  weights: ClassVar[str] = ""
  starts: ClassVar[tuple[str, ...]] = ()

  @property
  def input_size(self) -> tuple[int, int]:
    """(height, width) of the images that `image` is given."""
    return self.spec.image_size

  def image(self, image: jax.Array, *, train: bool) -> jax.Array:
    """Edits the normalised images [B, H, W, 3]; gives the backbone's size."""
    return image

  def prompts(
    self, image: jax.Array, tokens: Tokens, *, train: bool
  ) -> jax.Array | None:
    """Prompts [B or 1, P, D] that are carried through all blocks."""
    return None

  def patches(self, image: jax.Array) -> jax.Array | None:
    """Pixels [B or 1, P, p, p, 3] that the backbone embeds as prompts."""
    return None

  def before(self, i: int, tokens: Tokens, *, train: bool) -> Tokens:
    """Edits the tokens that enter block i."""
    return tokens

  def context(self, i: int, tokens: Tokens, *, train: bool) -> jax.Array | None:
    """Prompts [B or 1, P_i, D] that only block i sees and then forgets."""
    return None

  def prompt_bias(self, i: int) -> jax.Array | None:
    """Added to the attention logits [P_i] of all prompts that block i sees."""
    return None

  def temperature(self, i: int) -> jax.Array | float:
    """What the attention logits of block i are divided by."""
    return 1.0

  def inside(
    self, i: int, layer: str, x: jax.Array, out: jax.Array
  ) -> jax.Array:
    """Edits what a layer inside block i gives.

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
    """Edits the tokens that leave block i."""
    return tokens_out

  def pretrained(
    self, flat: Mapping[str, np.ndarray]
  ) -> tuple[trees.Flat, trees.Flat]:
    """(parameters, batch statistics), flat, from the arrays in `weights`."""
    raise NotImplementedError

  def constrain(self, params: dict[str, Any]) -> dict[str, Any]:
    """Projects this method's parameters after the optimizer's update."""
    return params


class Full(Method):
  """Full fine-tuning, or training from scratch: no prompt, all trained."""

  trainable = ".*"


def check_options(
  section: str, at_least: dict[str, tuple[int, int]], rates: dict[str, float]
) -> None:
  """Raises ValueError for a count that is too small or a rate out of range.

  Args:
    section: of the config, for the error.
    at_least: option -> (value, smallest that makes sense).
    rates: option -> dropout rate, in [0, 1).
  """
  for name, (value, low) in at_least.items():
    if value < low:
      raise ValueError(f"{section}.{name}={value}; expected at least {low}")
  for name, rate in rates.items():
    # A traced one is of a group of runs that were checked one by one.
    if not isinstance(rate, jax.Array) and not 0 <= rate < 1:
      raise ValueError(f"{section}.{name}={rate}; expected 0 <= rate < 1")


def prompt_init(spec: Spec, width: int) -> nn.initializers.Initializer:
  """U(-v, v) with v = sqrt(6 / (3 patch_size^2 + width)): VPT, section 3.2.

  The published code takes the prompts' own width, which differs from the
  backbone's when they are projected.
  """
  v = (6 / (3 * spec.patch_size**2 + width)) ** 0.5

  def init(key, shape, dtype=None):
    return jax.random.uniform(key, shape, dtype or jnp.float32, -v, v)

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
  """Parameters for the prompts of some blocks, to be made in `setup`.

  They are one array `prompt` [L, P, D] or, where the backbone has stages of
  other widths (Swin), `prompt_{s}` for every stage.

  Args:
    method: whose parameters they are.
    blocks: that get prompts.
    num_tokens: P.
    shared: one set for all blocks of a stage.
    width: of the prompts, if it is not that of their blocks.
    kept: which of its P prompts each set has, (): all. The arrays are packed
      then, [P_1 + ... + P_L, D], and an array without any prompt is left out.

  Returns:
    For every block of the backbone its prompts [1, P_i, D], or None.
  """
  spec, sets, packed = method.spec, [None] * method.spec.depth, bool(kept)
  for s, stage in enumerate(spec.stages):
    mine = [i for i in stage if i in blocks]
    n = min(1, len(mine)) if shared else len(mine)
    sizes = [len(indices) for indices in kept[:n]] or [num_tokens] * n
    kept = kept[n:]
    if not sum(sizes):
      continue
    shape = (sum(sizes),) if packed else (n, num_tokens)
    own_width = width or spec.widths[stage.start]
    name = "prompt" if len(spec.stages) == 1 else f"prompt_{s}"
    # The first stage's width sets the range of all, as published.
    prompt = method.param(
      name, prompt_init(spec, width or spec.widths[0]), (*shape, own_width)
    ).reshape(1, -1, own_width)
    # Not slices: their gradients would be filled up to the whole and added.
    parts = jnp.split(prompt, np.cumsum(sizes)[:-1], axis=1)
    for j, i in enumerate(mine):
      j = 0 if shared else j
      if sizes[j]:
        sets[i] = parts[j]
  return sets


def per_image(
  prompt: jax.Array, batch: int, dropout: Dropout, train: bool
) -> jax.Array:
  """Dropout of prompts [1, P, D], drawn for every image as published.

  Without dropout the prompts stay batch-constant ([1, P, D]), so that a block
  computes their keys and values once.
  """
  if not train or dropout.off:
    return prompt
  return dropout(to_batch(prompt, batch), deterministic=False)
