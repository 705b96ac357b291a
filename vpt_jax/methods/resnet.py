"""Small residual networks that read an image, for methods that generate.

He et al. 2016 (arXiv 1512.03385), in the two forms of the published prompt
generators.
"""

from collections.abc import Callable
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.nn.layers import BatchNorm, Conv


def conv(
  width: int,
  size: int,
  stride: int,
  name: str,
  bias: nn.initializers.Initializer | None = None,
) -> nn.Conv:
  """A size x size convolution that halves the map at stride 2."""
  # Explicit zeros on both sides: "SAME" would put them on one at stride 2.
  options = {} if bias is None else {"bias_init": bias}
  return Conv(
    width,
    (size, size),
    strides=stride,
    padding=size // 2,
    use_bias=bias is not None,
    name=name,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    **options,
  )


def uniform(fan_in: int) -> nn.initializers.Initializer:
  """U(-v, v) with v = 1 / sqrt(fan_in): torch's default, biases included."""
  v = fan_in**-0.5
  return lambda key, shape, dtype=None: jax.random.uniform(
    key, shape, dtype or jnp.float32, -v, v
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
  """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

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
    y = conv(self.width, 3, self.stride, "conv_0")(x)
    y = nn.relu(BatchNorm(name="norm_0")(y, train))
    y = conv(self.width, 3, 1, "conv_1")(y)
    y = BatchNorm(name="norm_1")(y, train)
    if self.stride > 1:
      bias = None if self.shortcut_norm else uniform(x.shape[-1])
      x = conv(self.width, 1, self.stride, "shortcut", bias)(x)
      if self.shortcut_norm:
        x = BatchNorm(name="shortcut_norm")(x, train)
    return nn.relu(y + x)


class ResNet(nn.Module):
  """Images [B, H, W, 3] -> [B, features].

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
    x = conv(self.width, self.stem, 2, "stem")(image)
    x = nn.relu(BatchNorm(name="stem_norm")(x, train))
    if self.pool:
      x = max_pool(x)
    for g in range(self.groups):
      for b in range(self.blocks):
        x = Block(
          self.width * 2**g,
          2 if g and not b else 1,
          self.shortcut_norm,
          name=f"block_{g * self.blocks + b}",
        )(x, train)
    x = x.mean(axis=(1, 2))
    return nn.Dense(
      self.features,
      name="out",
      bias_init=uniform(x.shape[-1]),
      kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    )(x)


# Torchvision's, with an output layer of another size.
resnet18: Callable[[int], ResNet] = functools.partial(
  ResNet, width=64, groups=4, blocks=2, stem=7, pool=True, shortcut_norm=True
)
