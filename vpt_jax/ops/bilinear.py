"""Resizes maps bilinearly, as PyTorch's `interpolate` does.

Fast form: a map that is enlarged a whole number of times is made of weighted
sums of neighbours, whose gradients are sums of slices; those of the plain form
are scatters of rows. Value and gradient of two float32 maps of 64 x 64 x 256 to
twice the size take 90 ms in place of 157 (two cores); in bfloat16 CPUs are
slower so, 212 in place of 125. On accelerators not measured.
"""

import jax
import jax.numpy as jnp
import numpy as np


def reference(
  x: jax.Array, size: tuple[int, int], align_corners: bool = False
) -> jax.Array:
  """Returns maps of another size; each value lies between two neighbours.

  A map that shrinks is not smoothed before, as in PyTorch.

  Args:
    x: [B, H, W, C].
    size: (H', W').
    align_corners: the centres of the corner pixels stay where they are; False:
      the corners of the map do.

  Returns:
    [B, H', W', C].
  """
  for axis, length in zip((1, 2), size, strict=True):
    x = _resize_axis(x, axis, length, align_corners)
  return x


def fast(
  x: jax.Array, size: tuple[int, int], align_corners: bool = False
) -> jax.Array:
  """Returns the same as `reference`."""
  for axis, length in zip((1, 2), size, strict=True):
    times, rest = divmod(length, x.shape[axis])
    if rest or align_corners:
      x = _resize_axis(x, axis, length, align_corners)
    elif times > 1:
      x = _enlarge_axis(x, axis, times)
  return x


def _resize_axis(
  x: jax.Array, axis: int, length: int, align_corners: bool
) -> jax.Array:
  """Returns `x` with an axis of another length, by gathering neighbours."""
  old = x.shape[axis]
  if length == old:
    return x
  place = _places(old, length, align_corners)
  first = np.floor(place).astype(np.int32)
  second = np.minimum(first + 1, old - 1)
  shape = [1] * x.ndim
  shape[axis] = length
  weight = jnp.asarray((place - first).reshape(shape), x.dtype)
  before = jnp.take(x, first, axis)
  after = jnp.take(x, second, axis)
  return before * (1 - weight) + after * weight


def _places(old: int, new: int, align_corners: bool) -> np.ndarray:
  """Returns where in the old axis each place of the new one lies, [new]."""
  place = np.arange(new, dtype=np.float64)
  if not align_corners:
    return np.clip((place + 0.5) * (old / new) - 0.5, 0, old - 1)
  if new == 1:
    return np.zeros(1)
  return np.minimum(place * ((old - 1) / (new - 1)), old - 1)


def _enlarge_axis(x: jax.Array, axis: int, times: int) -> jax.Array:
  """Returns `x` with an axis that is a whole number of times as long.

  New pixel r of old pixel i lies (r + 1/2) / times - 1/2 beside its centre.
  """
  length = x.shape[axis]
  first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
  last = jax.lax.slice_in_dim(x, length - 1, length, axis=axis)
  left = jax.lax.slice_in_dim(x, 0, length - 1, axis=axis)
  right = jax.lax.slice_in_dim(x, 1, length, axis=axis)
  before = jnp.concatenate([first, left], axis)
  after = jnp.concatenate([right, last], axis)
  parts = []
  for r in range(times):
    beside = (r + 0.5) / times - 0.5
    neighbour = before if beside < 0 else after
    share = abs(beside)
    parts.append(x * (1 - share) + neighbour * share)
  shape = list(x.shape)
  shape[axis] *= times
  return jnp.stack(parts, axis + 1).reshape(shape)
