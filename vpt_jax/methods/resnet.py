"""Defines small residual networks that read an image and give numbers.

He et al. 2016 (arXiv 1512.03385), in the two forms of the published prompt
generators.
"""

from typing import Any

import flax.linen as nn
import jax

from vpt_jax.methods import torch_init
from vpt_jax.nn.layers import BatchNorm
from vpt_jax.ops.switch import Ops

_DEFAULT_OPS = Ops()


def conv(
  width: int,
  size: int,
  stride: int,
  name: str,
  ops: Ops,
  bias_init: nn.initializers.Initializer | None = None,
) -> nn.Conv:
  """Returns a size x size convolution that halves the map at stride 2.

  Args:
    width: channels of the output.
    size: side of the kernel.
    stride: 1 or 2.
    name: of the layer.
    ops: form of its operations.
    bias_init: initial values of its bias; None: it has none.
  """
  options: dict[str, Any] = {}
  if bias_init is not None:
    options["bias_init"] = bias_init
  return nn.Conv(
    width,
    (size, size),
    strides=stride,
    # Explicit zeros on both sides: "SAME" would put them on one at stride 2.
    padding=size // 2,
    use_bias=bias_init is not None,
    name=name,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=ops.convolution,
    **options,
  )


class Block(nn.Module):
  """Computes relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

  The shortcut is a 1 x 1 convolution where the block subsamples, else nothing.

  Attributes:
    width: channels of the output.
    stride: 2 subsamples.
    shortcut_norm: the shortcut has a norm instead of a bias.
    ops: form of its operations.
  """

  width: int
  stride: int
  shortcut_norm: bool
  ops: Ops

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns [B, H / stride, W / stride, width] for x [B, H, W, C]."""
    y = conv(self.width, 3, self.stride, "conv_0", self.ops)(x)
    y = nn.relu(BatchNorm(name="norm_0")(y, train))
    y = conv(self.width, 3, 1, "conv_1", self.ops)(y)
    y = BatchNorm(name="norm_1")(y, train)
    if self.stride > 1:
      x = self._shortcut(x, train)
    return nn.relu(y + x)

  def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns the input, subsampled and as wide as the output."""
    if self.shortcut_norm:
      x = conv(self.width, 1, self.stride, "shortcut", self.ops)(x)
      return BatchNorm(name="shortcut_norm")(x, train)
    bias_init = torch_init.bias(x.shape[-1])
    return conv(self.width, 1, self.stride, "shortcut", self.ops, bias_init)(x)


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
    ops: form of its operations.
  """

  features: int
  width: int = 16
  groups: int = 4
  blocks: int = 1
  stem: int = 3
  pool: bool = True
  shortcut_norm: bool = False
  ops: Ops = Ops()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool) -> jax.Array:
    """Returns [B, features] for images [B, H, W, 3]."""
    x = conv(self.width, self.stem, 2, "stem", self.ops)(image)
    x = nn.relu(BatchNorm(name="stem_norm")(x, train))
    if self.pool:
      x = self.ops.max_pool(x)
    for group in range(self.groups):
      width = self.width * 2**group
      for number in range(self.blocks):
        subsamples = group > 0 and number == 0
        stride = 2 if subsamples else 1
        name = f"block_{group * self.blocks + number}"
        block = Block(width, stride, self.shortcut_norm, self.ops, name=name)
        x = block(x, train)
    x = x.mean(axis=(1, 2))
    return nn.Dense(
      self.features,
      name="out",
      kernel_init=torch_init.LINEAR_KERNEL,
      bias_init=torch_init.bias(x.shape[-1]),
    )(x)


def resnet18(features: int, ops: Ops = _DEFAULT_OPS) -> ResNet:
  """Returns torchvision's ResNet18 with an output layer of this size."""
  return ResNet(
    features,
    width=64,
    groups=4,
    blocks=2,
    stem=7,
    pool=True,
    shortcut_norm=True,
    ops=ops,
  )
