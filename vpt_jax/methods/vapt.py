"""Defines Visual Adaptive Prompt Tuning: prompts as functions of the input.

Named VAPT in its code; arXiv titles "Adaptive Prompt: Unlocking the Power of
Visual Prompt Tuning" and "On the Expressiveness of Visual Prompt Experts".
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from vpt_jax.methods import torch_init
from vpt_jax.methods.method import (
  check_options,
  Method,
  per_image,
  prompt_sets,
  stage_of,
)
from vpt_jax.nn.layers import Dropout, LayerNorm
from vpt_jax.ops.switch import Ops
from vpt_jax.utils import lookup


def exact_gelu(x: jax.Array) -> jax.Array:
  """Returns x Phi(x), with the normal distribution's function Phi."""
  return nn.gelu(x, approximate=False)


def identity(x: jax.Array) -> jax.Array:
  """Returns x."""
  return x


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": nn.relu,
  "gelu": exact_gelu,
  "sigmoid": nn.sigmoid,
  "attention": nn.softmax,  # the published name of softmax over the hidden
  "identity": identity,
}
PROJECTORS = ("shared", "own", "none")


class Projector(nn.Module):
  """Computes x + scale * W_up act(W_down x), without biases."""

  hidden: int
  activation: str
  dropout: float
  learnable_scale: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns an array of the shape of x, [B, P, D]."""
    init = torch_init.LINEAR_KERNEL
    down = nn.Dense(self.hidden, use_bias=False, kernel_init=init, name="down")
    up = nn.Dense(x.shape[-1], use_bias=False, kernel_init=init, name="up")
    hidden = ACTIVATIONS[self.activation](down(x))
    hidden = Dropout(self.dropout)(hidden, deterministic=not train)
    out = up(hidden)
    if self.learnable_scale:
      out = out * self.param("scale", nn.initializers.ones, (1,))
    return x + out


class Generator(nn.Module):
  """Generates prompts [B, P, D] from patches, before the projector.

  X = LayerNorm(patches);  G_p = sum_n a_{p,n} (kernel * X)_n + b_p
  """

  num_tokens: int
  conv: bool
  kernel_size: int
  padding: int
  per_channel: bool
  dropout: float
  ops: Ops

  @nn.compact
  def __call__(
    self, patch: jax.Array, grid: tuple[int, int], train: bool
  ) -> jax.Array:
    """Returns prompts [B, P, D] for patches [B, N, D] on a grid of N."""
    batch, _, width = patch.shape
    # 1e-5, unlike the backbone's 1e-6: the default of the published code.
    x = LayerNorm(1e-5, self.ops, name="norm")(patch)
    if self.conv:
      channels = width if self.per_channel else 1
      kernel = self.param(
        "kernel",
        nn.initializers.normal(1.0),
        (self.kernel_size, self.kernel_size, channels),
      )
      on_grid = x.reshape(batch, *grid, width)
      x = self.ops.depthwise(on_grid, kernel, self.padding)
      x = x.reshape(batch, -1, width)
      # Drops whole channels of an image, so the position axis is shared.
      x = Dropout(self.dropout, broadcast_dims=(1,))(x, deterministic=not train)
    over_positions = nn.Dense(
      self.num_tokens, name="tokens", kernel_init=nn.initializers.zeros
    )
    return over_positions(x.swapaxes(1, 2)).swapaxes(1, 2)


class VAPT(Method):
  """Gives the first blocks static prompts, the others generated ones.

  Attributes:
    num_tokens: P, prompts per block.
    static_layers: blocks with static prompts before the generated ones
      (`VPT_DEPTH` of the published code).
    conv: False leaves out the convolution (and the channel dropout).
    kernel_size: K of the K x K kernel.
    padding: zeros around the grid.
    per_channel: one kernel per channel, instead of one for all of them. The
      published `CHANNELWISE` is the opposite: True means one for all.
    projector: `shared` by all blocks (of a width), `own` per block, or `none`.
    hidden: r, width of the projector's hidden layer.
    activation: of the projector; see `ACTIVATIONS`.
    learnable_scale: learn the factor of the projector's branch.
    dropout: of static prompts, per image (never of generated ones).
    dropout_channel: of whole channels after the convolution.
    dropout_mlp: in the projector, after the activation.
  """

  needs_grid = True

  num_tokens: int = 10
  static_layers: int = 1
  conv: bool = True
  kernel_size: int = 2
  padding: int = 0
  per_channel: bool = False
  projector: str = "shared"
  hidden: int = 8
  activation: str = "relu"
  learnable_scale: bool = False
  dropout: float = 0.1
  dropout_channel: float = 0.1
  dropout_mlp: float = 0.1

  @property
  def generated(self) -> range:
    """Indices of the blocks that get generated prompts."""
    return range(self.static_layers, self.spec.depth)

  def check(self):
    """Raises ValueError if the options do not fit each other."""
    check_options(
      self,
      "vapt",
      at_least={"num_tokens": 1, "hidden": 1, "kernel_size": 1, "padding": 0},
      rates=["dropout", "dropout_channel", "dropout_mlp"],
    )
    lookup.choose(self.projector, PROJECTORS, "vapt.projector")
    lookup.choose(self.activation, ACTIVATIONS, "vapt.activation")
    if not 1 <= self.static_layers <= self.spec.depth:
      raise ValueError(
        f"vapt.static_layers={self.static_layers}, the backbone "
        f"has {self.spec.depth} blocks"
      )
    if self.conv and self.generated:
      grid = min(self.spec.grids[i] for i in self.generated)
      if self.kernel_size > min(grid) + 2 * self.padding:
        raise ValueError(
          f"vapt.kernel_size={self.kernel_size} is larger than the padded "
          f"grid {grid} of {self.spec.image_size} images; nearest: "
          f"{min(grid) + 2 * self.padding}"
        )

  def setup(self):
    """Makes static prompts, a generator for each other block, projectors."""
    self.check()
    self.prompt = prompt_sets(self, range(self.static_layers), self.num_tokens)
    self.prompt_dropout = Dropout(self.dropout)
    self.generator = {str(i): self._make_generator() for i in self.generated}
    if self.projector != "none":
      projectors = {}
      for i in self.generated:
        name = self._projector_of(i)
        if name not in projectors:
          projectors[name] = self._make_projector()
      self.project = projectors

  def _make_generator(self) -> Generator:
    return Generator(
      self.num_tokens,
      self.conv,
      self.kernel_size,
      self.padding,
      self.per_channel,
      self.dropout_channel,
      self.spec.ops,
    )

  def _make_projector(self) -> Projector:
    return Projector(
      self.hidden, self.activation, self.dropout_mlp, self.learnable_scale
    )

  def _projector_of(self, i: int) -> str:
    """Returns the name of block i's projector."""
    if self.projector == "own":
      return str(i)
    if len(self.spec.stages) == 1:
      return "shared"
    # A projector has the width of its blocks: one for each stage.
    return f"shared_{stage_of(self.spec, i)}"

  def context(self, i, tokens, *, train):
    """Returns the prompts of block i: static ones, or made of its patches."""
    if i < self.static_layers:
      return per_image(self.prompt[i], tokens, self.prompt_dropout, train)
    prompt = self.generator[str(i)](tokens.patch, tokens.grid, train)
    if self.projector == "none":
      return prompt
    projector = self.project[self._projector_of(i)]
    return projector(prompt, train)
