"""Defines small residual networks that read an image and give numbers.

He et al. 2016 (arXiv 1512.03385), in the two forms of the published prompt
generators.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.methods import torch_init
from vpt_jax.nn.layers import BatchNorm, Conv


def conv(
  width: int,
  size: int,
  stride: int,
  name: str,
  bias_init: nn.initializers.Initializer | None = None,
) -> nn.Conv:
  """Returns a size x size convolution that halves the map at stride 2.

  Args:
    width: channels of the output.
    size: side of the kernel.
    stride: 1 or 2.
    name: of the layer.
    bias_init: initial values of its bias; None: it has none.
  """
  options = {} if bias_init is None else {"bias_init": bias_init}
  return Conv(
    width,
    (size, size),
    strides=stride,
    # Explicit zeros on both sides: "SAME" would put them on one at stride 2.
    padding=size // 2,
    use_bias=bias_init is not None,
    name=name,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    **options,
  )


def max_pool(x: jax.Array) -> jax.Array:
  """Maxima of 3 x 3 windows at stride 2: [B, H, W, C] -> [B, H/2, W/2, C].

  Gradients go to the first maximum of a window, as PyTorch's. Those of
  `nn.max_pool` do, too, but take XLA on CPU ten times as long.
  """
  return _max_of_three(_max_of_three(x, axis=2), axis=1)


def _max_of_three(x: jax.Array, axis: int) -> jax.Array:
  n = -(-x.shape[axis] // 2)
  pad = [(0, 0)] * x.ndim
  pad[axis] = (1, 2 * n - x.shape[axis])
  x = jnp.pad(x, pad, constant_values=-jnp.inf)
  first, second, third = (
    jax.lax.slice_in_dim(x, k, k + 2 * n - 1, 2, axis) for k in range(3)
  )
  x = jnp.where(second > first, second, first)
  return jnp.where(third > x, third, x)


class Block(nn.Module):
  """Computes relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

  The shortcut is a 1 x 1 convolution where the block subsamples, else nothing.

  Attributes:
    width: channels of the output.
    stride: 2 subsamples.
    shortcut_norm: the shortcut has a norm instead of a bias.
  """

  width: int
  stride: int
  shortcut_norm: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns [B, H / stride, W / stride, width] for x [B, H, W, C]."""
    y = conv(self.width, 3, self.stride, "conv_0")(x)
    y = nn.relu(BatchNorm(name="norm_0")(y, train))
    y = conv(self.width, 3, 1, "conv_1")(y)
    y = BatchNorm(name="norm_1")(y, train)
    if self.stride > 1:
      x = self._shortcut(x, train)
    return nn.relu(y + x)

  def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns the input, subsampled and as wide as the output."""
    if self.shortcut_norm:
      x = conv(self.width, 1, self.stride, "shortcut")(x)
      return BatchNorm(name="shortcut_norm")(x, train)
    bias_init = torch_init.bias(x.shape[-1])
    return conv(self.width, 1, self.stride, "shortcut", bias_init)(x)


class ResNet(nn.Module):
  """Maps images [B, H, W, 3] to numbers [B, features].

  A first convolution of stride 2, groups of blocks each of which but the first
  halves the map, the mean over positions, a dense layer.

  Attributes:
    features: numbers that come out.
    width: channels of the first group; each further one has twice as many.
    groups: G.
    blocks: per group.
    stem: side of the first kernel.
    pool: a 3 x 3 maximum of stride 2 follows it.
    shortcut_norm: see `Block`.
  """

  features: int
  width: int = 16
  groups: int = 4
  blocks: int = 1
  stem: int = 3
  pool: bool = True
  shortcut_norm: bool = False

  @nn.compact
  def __call__(self, image: jax.Array, train: bool) -> jax.Array:
    """Returns [B, features] for images [B, H, W, 3]."""
    x = conv(self.width, self.stem, 2, "stem")(image)
    x = nn.relu(BatchNorm(name="stem_norm")(x, train))
    if self.pool:
      x = max_pool(x)
    for group in range(self.groups):
      width = self.width * 2**group
      for number in range(self.blocks):
        subsamples = group > 0 and number == 0
        stride = 2 if subsamples else 1
        name = f"block_{group * self.blocks + number}"
        x = Block(width, stride, self.shortcut_norm, name=name)(x, train)
    x = x.mean(axis=(1, 2))
    return nn.Dense(
      self.features,
      name="out",
      kernel_init=torch_init.LINEAR_KERNEL,
      bias_init=torch_init.bias(x.shape[-1]),
    )(x)


def resnet18(features: int) -> ResNet:
  """Returns torchvision's ResNet18 with an output layer of this size."""
  return ResNet(
    features,
    width=64,
    groups=4,
    blocks=2,
    stem=7,
    pool=True,
    shortcut_norm=True,
  )
