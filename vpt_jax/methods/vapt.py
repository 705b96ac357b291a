"""Visual Adaptive Prompt Tuning: prompts as functions of the input.

Named VAPT in its code; arXiv titles "Adaptive Prompt: Unlocking the Power of
Visual Prompt Tuning" and "On the Expressiveness of Visual Prompt Experts".
"""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.methods.method import check_options, Method, per_image, prompt_sets
from vpt_jax.nn.layers import Dropout, LayerNorm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": nn.relu,
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "sigmoid": nn.sigmoid,
  "attention": nn.softmax,  # the published name of softmax over the hidden
  "identity": lambda x: x,
}


def depthwise(x: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
  """Correlates every channel with its K x K kernel.

  A sum of K^2 shifted copies, which XLA fuses into one pass over the map.

  Args:
    x: [B, H, W, D].
    kernel: [K, K, D], or [K, K, 1] for one kernel for all channels.
    padding: zeros around the map.

  Returns:
    [B, H', W', D] with H' = H + 2 padding - K + 1.
  """
  x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  size = len(kernel)
  rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
  return sum(
    kernel[i, j] * x[:, i : i + rows, j : j + columns]
    for i in range(size)
    for j in range(size)
  )


class Projector(nn.Module):
  """x + scale * W2 act(W1 x), without biases, on the width axis."""

  hidden: int
  activation: str
  dropout: float
  learnable_scale: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    # The default of torch's linear layer: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    hidden = nn.Dense(
      self.hidden, use_bias=False, kernel_init=init, name="down"
    )(x)
    hidden = ACTIVATIONS[self.activation](hidden)
    hidden = Dropout(self.dropout)(hidden, deterministic=not train)
    out = nn.Dense(x.shape[-1], use_bias=False, kernel_init=init, name="up")(
      hidden
    )
    if self.learnable_scale:
      out = out * self.param("scale", nn.initializers.ones, (1,))
    return x + out


class Generator(nn.Module):
  """Patches on their grid -> prompts [B, P, D] (before the projector).

  X = LayerNorm(patches);  G_p = sum_n a_{p,n} (kernel * X)_n + b_p
  """

  num_tokens: int
  conv: bool
  kernel_size: int
  padding: int
  per_channel: bool
  dropout: float

  @nn.compact
  def __call__(
    self, patch: jax.Array, grid: tuple[int, int], train: bool
  ) -> jax.Array:
    batch, _, width = patch.shape
    # 1e-5, unlike the backbone's 1e-6: the default of the published code.
    x = LayerNorm(1e-5, name="norm")(patch)
    if self.conv:
      channels = width if self.per_channel else 1
      kernel = self.param(
        "kernel",
        nn.initializers.normal(1.0),
        (self.kernel_size, self.kernel_size, channels),
      )
      x = depthwise(x.reshape(batch, *grid, width), kernel, self.padding)
      x = x.reshape(batch, -1, width)
      # Drops whole channels of an image, so the position axis is shared.
      x = Dropout(self.dropout, broadcast_dims=(1,))(x, deterministic=not train)
    over_positions = nn.Dense(
      self.num_tokens, name="tokens", kernel_init=nn.initializers.zeros
    )
    return over_positions(x.swapaxes(1, 2)).swapaxes(1, 2)


class VAPT(Method):
  """The first blocks get static prompts, the others generated ones.

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

  needs_grid: ClassVar[bool] = True

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

  def setup(self):
    spec = self.spec
    self.check()
    self.prompt = prompt_sets(self, range(self.static_layers), self.num_tokens)
    self.prompt_dropout = Dropout(self.dropout)
    generated = range(self.static_layers, spec.depth)
    self.generator = {
      str(i): Generator(
        self.num_tokens,
        self.conv,
        self.kernel_size,
        self.padding,
        self.per_channel,
        self.dropout_channel,
      )
      for i in generated
    }
    if self.projector != "none":
      self.project = {
        name: Projector(
          self.hidden, self.activation, self.dropout_mlp, self.learnable_scale
        )
        for name in dict.fromkeys(map(self._projector, generated))
      }

  def _projector(self, i: int) -> str:
    """Name of block i's projector; a shared one is shared within a stage."""
    stages = self.spec.stages
    if self.projector == "own":
      return str(i)
    s = next(s for s, stage in enumerate(stages) if i in stage)
    return "shared" if len(stages) == 1 else f"shared_{s}"

  def check(self):
    """Raises ValueError if the options do not fit each other."""
    check_options(
      "vapt",
      {
        "num_tokens": (self.num_tokens, 1),
        "hidden": (self.hidden, 1),
        "kernel_size": (self.kernel_size, 1),
        "padding": (self.padding, 0),
      },
      {
        "dropout": self.dropout,
        "dropout_channel": self.dropout_channel,
        "dropout_mlp": self.dropout_mlp,
      },
    )
    if self.projector not in ("shared", "own", "none"):
      raise ValueError(
        f"vapt.projector={self.projector!r}; expected 'shared', 'own' or 'none'"
      )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"vapt.activation={self.activation!r}; expected one of "
        f"{', '.join(ACTIVATIONS)}"
      )
    if not 1 <= self.static_layers <= self.spec.depth:
      raise ValueError(
        f"vapt.static_layers={self.static_layers}, the backbone "
        f"has {self.spec.depth} blocks"
      )
    grid = min(self.spec.grids[self.static_layers :], default=None)
    if self.conv and grid and self.kernel_size > min(grid) + 2 * self.padding:
      raise ValueError(
        f"vapt.kernel_size={self.kernel_size} is larger than the padded grid "
        f"{grid} of {self.spec.image_size} images"
      )

  def context(self, i, tokens, *, train):
    if i < self.static_layers:
      return per_image(
        self.prompt[i], len(tokens.x), self.prompt_dropout, train
      )
    prompt = self.generator[str(i)](tokens.patch, tokens.grid, train)
    if self.projector == "none":
      return prompt
    return self.project[self._projector(i)](prompt, train)
