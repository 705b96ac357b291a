"""Baselines that live inside a block: adapters and LoRA."""

import flax.linen as nn
import jax

from vpt_jax.methods.method import check_options, Method

# The default of torch's linear layer: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
ZEROS = nn.initializers.zeros


class Bottleneck(nn.Module):
  """W_up gelu(W_down x + b_down) + b_up, in the type of x."""

  hidden: int
  down_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = nn.Dense(
      self.hidden, dtype=x.dtype, kernel_init=self.down_init, name="down"
    )(x)
    hidden = nn.gelu(hidden, approximate=False)
    return nn.Dense(x.shape[-1], dtype=x.dtype, kernel_init=ZEROS, name="up")(
      hidden
    )


class Adapter(Method):
  """Adapters (Houlsby et al. 2019; one per block as in Pfeiffer et al. 2021).

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

  def setup(self):
    check_options("adapter", {"reduction": (self.reduction, 1)}, {})
    inits = {"near_identity": TORCH_LINEAR, "published": ZEROS}
    if self.initial not in inits:
      raise ValueError(
        f"adapter.initial={self.initial!r}; expected one of {', '.join(inits)}"
      )
    widths = self.spec.widths
    if self.reduction > min(widths):
      raise ValueError(
        f"adapter.reduction={self.reduction} leaves no hidden unit, the "
        f"narrowest block has width {min(widths)}"
      )
    self.adapter = {
      str(i): Bottleneck(width // self.reduction, inits[self.initial])
      for i, width in enumerate(widths)
    }

  def inside(self, i, layer, x, out):
    return out + self.adapter[str(i)](out) if layer == "mlp" else out


class LowRank(nn.Module):
  """W_up W_down x in the type of x, W_up being zero at first."""

  rank: int
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden = nn.Dense(
      self.rank,
      use_bias=False,
      dtype=x.dtype,
      kernel_init=TORCH_LINEAR,
      name="down",
    )(x)
    return nn.Dense(
      self.width, use_bias=False, dtype=x.dtype, kernel_init=ZEROS, name="up"
    )(hidden)


class LoRA(Method):
  """Low-rank changes of attention (Hu et al. 2022, arXiv 2106.09685).

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

  def setup(self):
    check_options("lora", {"rank": (self.rank, 1)}, {})
    known = ("query", "key", "value")
    if not self.layers or not set(self.layers) <= set(known):
      raise ValueError(
        f"lora.layers={self.layers!r}; expected some of {', '.join(known)}"
      )
    self.lora = {
      f"{layer}_{i}": LowRank(self.rank, width)
      for i, width in enumerate(self.spec.widths)
      for layer in self.layers
    }

  def inside(self, i, layer, x, out):
    if layer not in self.layers:
      return out
    change = self.lora[f"{layer}_{i}"](x)
    return out + self.alpha / self.rank * change.reshape(out.shape)
