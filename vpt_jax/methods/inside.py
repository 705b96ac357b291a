"""Defines baselines that live inside a block: adapters and LoRA."""

import flax.linen as nn
import jax

from vpt_jax.methods import torch_init
from vpt_jax.methods.method import check_options, Method
from vpt_jax.utils import lookup

ZEROS = nn.initializers.zeros
# What W_down of an adapter starts from.
DOWN_INITS = {"near_identity": torch_init.LINEAR_KERNEL, "published": ZEROS}
# What LoRA may change.
PROJECTIONS = ("query", "key", "value")


class Bottleneck(nn.Module):
  """Computes W_up gelu(W_down x + b_down) + b_up, in the type of x."""

  hidden: int
  down_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns an array of the shape of x, [..., D]."""
    down = nn.Dense(
      self.hidden, dtype=x.dtype, kernel_init=self.down_init, name="down"
    )
    up = nn.Dense(x.shape[-1], dtype=x.dtype, kernel_init=ZEROS, name="up")
    return up(nn.gelu(down(x), approximate=False))


class Adapter(Method):
  """Trains adapters (Houlsby et al. 2019; one per block: Pfeiffer et al. 2021).

    x + m + W_up gelu(W_down m + b_down) + b_up,   m = MLP(LayerNorm(x))

  Attributes:
    reduction: r; the hidden layer has D // r units.
    initial: `near_identity`: W_down random, W_up and both biases zero, so that
      training starts from the linear probe. `published`: all zero, as in VPT's
      code, where hence neither matrix ever gets a gradient: b_up is all that
      learns, one vector per block.
  """

  reduction: int = 8
  initial: str = "near_identity"

  def check(self):
    """Raises ValueError for unknown initial values or no hidden unit."""
    check_options(self, "adapter", at_least={"reduction": 1})
    lookup.choose(self.initial, DOWN_INITS, "adapter.initial")
    narrowest = min(self.spec.widths)
    if self.reduction > narrowest:
      raise ValueError(
        f"adapter.reduction={self.reduction} leaves no hidden unit, the "
        f"narrowest block has width {narrowest}"
      )

  def setup(self):
    """Makes one adapter for each block."""
    self.check()
    down_init = DOWN_INITS[self.initial]
    self.adapter = {
      str(i): Bottleneck(width // self.reduction, down_init)
      for i, width in enumerate(self.spec.widths)
    }

  def inside(self, i, layer, x, out):
    """Adds the adapter's change to what the MLP gives."""
    if layer != "mlp":
      return out
    return out + self.adapter[str(i)](out)


class LowRank(nn.Module):
  """Computes W_up W_down x in the type of x, W_up being zero at first."""

  rank: int
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., width] for x [..., D]."""
    down = nn.Dense(
      self.rank,
      use_bias=False,
      dtype=x.dtype,
      kernel_init=torch_init.LINEAR_KERNEL,
      name="down",
    )
    up = nn.Dense(
      self.width, use_bias=False, dtype=x.dtype, kernel_init=ZEROS, name="up"
    )
    return up(down(x))


class LoRA(Method):
  """Trains low-rank changes of attention (Hu et al. 2022, arXiv 2106.09685).

    W x + b + (alpha / r) W_up W_down x,   W_down [r, D], W_up [D, r]

  W_up starts at zero, so training starts from the linear probe.

  Attributes:
    rank: r.
    alpha: scale of the change, over r.
    layers: which of `query`, `key` and `value` are changed.
  """

  rank: int = 8
  alpha: float = 8.0
  layers: tuple[str, ...] = ("query", "value")

  def check(self):
    """Raises ValueError for a rank or layers that cannot be used."""
    check_options(self, "lora", at_least={"rank": 1})
    if not self.layers or not set(self.layers) <= set(PROJECTIONS):
      raise ValueError(
        f"lora.layers={self.layers!r}; expected some of "
        f"{', '.join(PROJECTIONS)}"
      )

  def setup(self):
    """Makes one change for each of these layers of each block."""
    self.check()
    changes = {}
    for i, width in enumerate(self.spec.widths):
      for layer in self.layers:
        changes[f"{layer}_{i}"] = LowRank(self.rank, width)
    self.lora = changes

  def inside(self, i, layer, x, out):
    """Adds the low-rank change to what a projection of attention gives."""
    if layer not in self.layers:
      return out
    change = self.lora[f"{layer}_{i}"](x)
    return out + self.alpha / self.rank * change.reshape(out.shape)
