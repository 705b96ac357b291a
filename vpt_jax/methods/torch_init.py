"""Defines PyTorch's default initial values, which published methods start from.

A linear layer and a convolution start, weights and biases alike, from

  U(-v, v),   v = 1 / sqrt(fan_in)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Var U(-v, v) = v^2 / 3, hence the scale.
LINEAR_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias(fan_in: int) -> nn.initializers.Initializer:
  """Returns the initial values of the bias of a layer of `fan_in` inputs."""
  bound = fan_in**-0.5

  def init(key, shape, dtype=None):
    return jax.random.uniform(key, shape, dtype or jnp.float32, -bound, bound)

  return init
