"""Defines the layers that backbones, methods and heads share."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.distributed import shard_gradients
from vpt_jax.ops.switch import Ops


class LayerNorm(nn.Module):
  """Flax's `nn.LayerNorm` in float32, of which training keeps less.

  Attributes:
    epsilon: added to the variance.
    ops: form of its operations.
  """

  epsilon: float = 1e-6
  ops: Ops = Ops()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., D] -> [..., D], float32."""
    width = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, width)
    bias = self.param("bias", nn.initializers.zeros, width)
    return self.ops.layer_norm(x, scale, bias, self.epsilon)


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, by PyTorch's rule.

    y = scale (x - mean) / sqrt(var + eps) + bias

  In training mean and variance are the batch's (of the global batch, when it is
  sharded), and the running ones in the collection `batch_stats` move a tenth of
  the way to them; the variance that is stored is the unbiased one, n / (n - 1)
  times that of the formula. (Flax's own stores the biased one.) Copies that
  fill a batch up do not count: the model is applied to variables with
  `{"batch": {"mask": [B]}}`, 0 for them.

  Attributes:
    momentum: how far the running statistics move.
    eps: added to the variance.
  """

  momentum: float = 0.1
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns [..., D] -> [..., D]."""
    width = (x.shape[-1],)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
    running_var = self.variable("batch_stats", "var", jnp.ones, width)
    scale = self.param("scale", nn.initializers.ones, width)
    bias = self.param("bias", nn.initializers.zeros, width)
    mean = running_mean.value
    var = running_var.value
    if train:
      mean, var, count = self._statistics(x)
      if self._moves():
        running_mean.value = self._moved(running_mean.value, mean)
        unbiased = var * count / jnp.maximum(count - 1, 1)
        running_var.value = self._moved(running_var.value, unbiased)
    centred = x - mean
    inverse = jax.lax.rsqrt(var + self.eps)
    return centred * inverse * scale + bias

  def _statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (mean [D], biased variance [D], how many rows) of the batch."""
    *rows, _ = x.shape
    axes = tuple(range(len(rows)))
    everything = jnp.ones(len(x))
    scope: Any = self.scope  # there is one: the module is being applied
    mask = scope.root.get_variable("batch", "mask", everything)
    is_real = jnp.expand_dims(mask > 0, range(1, x.ndim))
    is_real = jnp.broadcast_to(is_real, (*rows, 1))
    count = shard_gradients.sum_over_shards(is_real.sum())

    def average(values: jax.Array) -> jax.Array:
      total = values.sum(axes, where=is_real)
      return shard_gradients.sum_over_shards(total) / count

    mean = average(x)
    var = average((x - mean) ** 2)
    return mean, var, count

  def _moves(self) -> bool:
    """Returns whether the running statistics are to be changed."""
    is_mutable = self.is_mutable_collection("batch_stats")
    return is_mutable and not self.is_initializing()

  def _moved(self, old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns a running statistic after a batch."""
    return old + self.momentum * (new - old)


HEAD_INITS = {
  # As published: normal over fan-out. With 10 classes the first logits of a
  # ViT are then of size 10, so that training starts from confident errors.
  "kaiming": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
  "zeros": nn.initializers.zeros,  # as big_vision: it starts from no opinion
}
# A prior of 1 % for every class (focal loss' trick): -log(0.99 / 0.01).
PRIOR_LOGIT = -4.59511985


class Dropout(nn.Module):
  """Flax's dropout (the same draws), whose rate may be traced too.

  Runs that are trained together under `vmap` may differ in it.

  Attributes:
    rate: number in [0, 1), or traced scalar.
    broadcast_dims: axes that share a draw.
  """

  rate: float | jax.Array
  broadcast_dims: Sequence[int] = ()

  @property
  def off(self) -> bool:
    """Whether the rate is known to be 0."""
    return not isinstance(self.rate, jax.Array) and self.rate == 0

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    """Returns x with a share of its entries 0, the others scaled up."""
    if deterministic or self.off:
      return x
    shape = list(x.shape)
    for axis in self.broadcast_dims:
      shape[axis] = 1
    keep = 1 - self.rate

    def draw(key, shape):
      return jax.random.bernoulli(key, keep, shape)

    kept = shard_gradients.draw_for_shard(
      draw, self.make_rng("dropout"), tuple(shape)
    )
    return jnp.where(kept, x / keep, 0)


class Head(nn.Module):
  """Classifier `kernel` [D, K], `bias` [K] after hidden layers.

  Each hidden layer is Dense, ReLU, BatchNorm, Dropout: VPT's MLP heads.

  Attributes:
    num_classes: K.
    kernel_init: of the classifier's kernel, a key of `HEAD_INITS`.
    hidden_layers: of width D.
    dropout: rate after each hidden layer.
  """

  num_classes: int
  kernel_init: str = "kaiming"
  hidden_layers: int = 0
  dropout: float = 0.1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Returns logits [B, K] of features [B, D]."""
    width = x.shape[-1]
    for i in range(self.hidden_layers):
      x = nn.Dense(
        width, kernel_init=HEAD_INITS["kaiming"], name=f"hidden_{i}"
      )(x)
      x = BatchNorm(name=f"norm_{i}")(nn.relu(x), train)
      x = Dropout(self.dropout)(x, deterministic=not train)
    kernel = self.param(
      "kernel", HEAD_INITS[self.kernel_init], (width, self.num_classes)
    )
    bias = self.param(
      "bias", nn.initializers.constant(PRIOR_LOGIT), (self.num_classes,)
    )
    return x @ kernel + bias
