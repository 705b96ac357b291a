"""Convolves images, also of batches that lie in shards on several devices.

Fast form: XLA does not split the gradients of each shard's own kernel over
devices, it would have each compute all. In a single shard it is `reference`.
Its time on several devices was not measured.
"""

from typing import Any

import jax

from vpt_jax.distributed import shard_gradients

reference = jax.lax.conv_general_dilated


def fast(
  x: jax.Array, kernel: jax.Array, *args: Any, **options: Any
) -> jax.Array:
  """Returns `jax.lax.conv_general_dilated`.

  Args:
    x: [B, H, W, C].
    kernel: [K, K, C, C'].
    *args: of `jax.lax.conv_general_dilated`.
    **options: likewise.

  Returns:
    [B, H', W', C'].
  """

  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, *args, **options)

  if shard_gradients.num_shards() == 1:
    return convolve(x, kernel)
  out = jax.custom_vjp(convolve)

  def forward(x, kernel):
    return convolve(x, kernel), (x, kernel)

  def backward(kept, grad):
    x, kernel = kept
    of_image = jax.linear_transpose(lambda x: convolve(x, kernel), x)

    def kernel_gradient(x, grad):
      of_kernel = jax.linear_transpose(
        lambda kernel: convolve(x, kernel), kernel
      )
      (d_kernel,) = of_kernel(grad)
      return d_kernel

    (d_x,) = of_image(grad)
    return d_x, shard_gradients.in_equal_parts(kernel_gradient)(x, grad)

  out.defvjp(forward, backward)
  return out(x, kernel)
