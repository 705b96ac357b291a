"""Layers that backbones, methods and heads share."""

from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.distributed import shard_gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normed(
  x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
  """scale (x - mean) / sqrt(var + eps) + bias over the last axis, in float32.

  For the backward pass x is kept, in its own type, and two numbers of a row;
  automatic differentiation would keep three arrays of x's size in float32.

  The backward pass has its rows in one axis: if scale were spread over the same
  shape in both, XLA on CPU would spread it once and keep that.
  """
  return _normed_fwd(x, scale, bias, eps)[0]


def _normed_fwd(x, scale, bias, eps):
  wide = x.astype(jnp.float32)
  mean = wide.mean(axis=-1, keepdims=True)
  var = (wide * wide).mean(axis=-1, keepdims=True) - mean * mean
  inverse = jax.lax.rsqrt(jnp.maximum(var, 0) + eps)
  return (
    (wide - mean) * (inverse * scale) + bias,
    (x, mean, inverse, scale, bias),
  )


def _normed_bwd(eps, kept, grad):
  x, mean, inverse, scale, bias = kept
  shape, width = x.shape, x.shape[-1:]
  x, grad = x.reshape(-1, *width), grad.reshape(-1, *width)
  mean, inverse = mean.reshape(-1, 1), inverse.reshape(-1, 1)
  unit = (x.astype(jnp.float32) - mean) * inverse
  scaled = grad * scale
  inner = (scaled * unit).mean(axis=-1, keepdims=True)
  dx = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - unit * inner)
  return (
    dx.astype(x.dtype).reshape(shape),
    (grad * unit).sum(0).astype(scale.dtype),
    grad.sum(0).astype(bias.dtype),
  )


normed.defvjp(_normed_fwd, _normed_bwd)


class LayerNorm(nn.Module):
  """Flax's `nn.LayerNorm`, of which training keeps less; see `normed`.

  Attributes:
    epsilon: added to the variance.
  """

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., D], float32."""
    width = (x.shape[-1],)
    return normed(
      x,
      self.param("scale", nn.initializers.ones, width),
      self.param("bias", nn.initializers.zeros, width),
      self.epsilon,
    )


def product(
  x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any
) -> jax.Array:
  """A dense layer's `jax.lax.dot_general`, fast on CPUs with bfloat16, too.

  There XLA multiplies bfloat16 in hardware if the result is float32, and else
  makes float32 of the factors first, which takes twice as long. So this rounds
  the result, as the others do, and has a backward pass of the same kind.
  """
  if x.dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
    return jax.lax.dot_general(x, kernel, dimensions, **options)
  (axes, _), _ = dimensions
  return _rounded(x, kernel, len(axes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x: jax.Array, kernel: jax.Array, n: int) -> jax.Array:
  """Sums over the last n axes of x and the first n of the kernel."""
  return _sums(x, kernel, range(x.ndim - n, x.ndim), range(n))


def _sums(a, b, a_axes, b_axes):
  return jax.lax.dot_general(
    a,
    b,
    ((tuple(a_axes), tuple(b_axes)), ((), ())),
    preferred_element_type=jnp.float32,
  ).astype(a.dtype)


def _rounded_fwd(x, kernel, n):
  # What is frozen needs no gradient, for which more would be kept.
  return _rounded(x.value, kernel.value, n), (
    x.value if kernel.perturbed else None,
    kernel.value if x.perturbed else None,
  )


def _rounded_bwd(n, kept, grad):
  (x, kernel), dx, d_kernel = kept, None, None
  if kernel is not None:
    rows = grad.ndim - (kernel.ndim - n)
    dx = _sums(grad, kernel, range(rows, grad.ndim), range(n, kernel.ndim))
  if x is not None:
    d_kernel = _sums(x, grad, range(x.ndim - n), range(x.ndim - n))
  return dx, d_kernel


_rounded.defvjp(_rounded_fwd, _rounded_bwd, symbolic_zeros=True)
Dense = functools.partial(nn.Dense, dot_general=product)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=product)


def convolution(
  x: jax.Array, kernel: jax.Array, *args: Any, **options: Any
) -> jax.Array:
  """`jax.lax.conv_general_dilated` [B, H, W, C] -> [B, H', W', C'], for batches
  in shards, too.

  XLA does not split the gradients of each shard's own kernel over devices: it
  would have each compute all.
  """
  apply = lambda x, kernel: jax.lax.conv_general_dilated(
    x, kernel, *args, **options
  )
  if shard_gradients.num_shards() == 1:
    return apply(x, kernel)
  out = jax.custom_vjp(apply)

  def backward(kept, grad):
    x, kernel = kept
    of_kernel = lambda x, grad: jax.linear_transpose(
      lambda kernel: apply(x, kernel), kernel
    )(grad)[0]
    return (
      *jax.linear_transpose(lambda x: apply(x, kernel), x)(grad),
      shard_gradients.in_equal_parts(of_kernel)(x, grad),
    )

  out.defvjp(lambda x, kernel: (apply(x, kernel), (x, kernel)), backward)
  return out(x, kernel)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolution)


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
    """[..., D] -> [..., D]."""
    width = (x.shape[-1],)
    mean = self.variable("batch_stats", "mean", jnp.zeros, width)
    var = self.variable("batch_stats", "var", jnp.ones, width)
    scale = self.param("scale", nn.initializers.ones, width)
    bias = self.param("bias", nn.initializers.zeros, width)
    now = mean.value, var.value
    if train:
      axes = tuple(range(x.ndim - 1))
      mask = self.scope.root.get_variable("batch", "mask", jnp.ones(len(x)))
      real = jnp.broadcast_to(
        jnp.expand_dims(mask > 0, tuple(range(1, x.ndim))), (*x.shape[:-1], 1)
      )
      n = shard_gradients.sum_over_shards(real.sum())
      mean_of = lambda x: shard_gradients.sum_over_shards(x.sum(axes, where=real)) / n
      batch_mean = mean_of(x)
      now = batch_mean, mean_of((x - batch_mean) ** 2)
      if not self.is_initializing() and self.is_mutable_collection(
        "batch_stats"
      ):
        move = lambda old, new: old + self.momentum * (new - old)
        mean.value = move(mean.value, now[0])
        var.value = move(var.value, now[1] * n / jnp.maximum(n - 1, 1))
    return (x - now[0]) * jax.lax.rsqrt(now[1] + self.eps) * scale + bias


HEAD_INITS = {
  # As published: normal over fan-out. With 10 classes the first logits of a
  # ViT are then of size 10, so that training starts from confident errors.
  "kaiming": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
  "zeros": nn.initializers.zeros,  # as big_vision: it starts from no opinion
}


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
    """The rate is known to be 0."""
    return not isinstance(self.rate, jax.Array) and self.rate == 0

  @nn.compact
  def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
    if deterministic or self.off:
      return x
    shape = tuple(
      1 if axis in self.broadcast_dims else n for axis, n in enumerate(x.shape)
    )
    keep = 1 - self.rate
    kept = shard_gradients.draw_for_shard(
      lambda key, shape: jax.random.bernoulli(key, keep, shape),
      self.make_rng("dropout"),
      shape,
    )
    return jnp.where(kept, x / keep, 0)


class Head(nn.Module):
  """Classifier `kernel` [D, K], `bias` [K] after hidden layers.

  Each hidden layer is Dense, ReLU, BatchNorm, Dropout: VPT's MLP heads.

  Attributes:
    num_classes: K.
    init: of the classifier's kernel, a key of `HEAD_INITS`.
    hidden_layers: of width D.
    dropout: rate after each hidden layer.
  """

  num_classes: int
  init: str = "kaiming"
  hidden_layers: int = 0
  dropout: float = 0.1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Features [B, D] -> logits [B, K]."""
    init = HEAD_INITS["kaiming"]
    width = x.shape[-1]
    for i in range(self.hidden_layers):
      x = nn.relu(nn.Dense(width, kernel_init=init, name=f"hidden_{i}")(x))
      x = BatchNorm(name=f"norm_{i}")(x, train)
      x = Dropout(self.dropout)(x, deterministic=not train)
    kernel = self.param(
      "kernel", HEAD_INITS[self.init], (width, self.num_classes)
    )
    # A prior of 1 % for every class (focal loss' trick): -log(0.99 / 0.01).
    bias = self.param(
      "bias", nn.initializers.constant(-4.59511985), (self.num_classes,)
    )
    return x @ kernel + bias
