"""Computes gradients of a batch that lies on several devices, in shards.

The loss is mapped over the shards, each of which is differentiated by itself;
their gradients are summed last. So devices send each parameter's gradient once.
XLA alone would send at every product that sees the batch: for a parameter that
blocks share once a block, for prompts that images share the gradients of keys
and values.

Code within the loss asks for what it needs of other shards:
`sum_over_shards`, `draw_for_shard`, `in_equal_parts`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp

# Name of the axis that is mapped over.
SHARDS = "shards"


def value_and_grad(loss: Callable[..., Any], shards: int) -> Callable[..., Any]:
  """Returns a function like that of `jax.value_and_grad`, see the module.

  Args:
    loss: (trained, batch, *rest) -> (loss, (sums, same)) of one shard. `loss`
      and the tree `sums` are added up over the shards, the tree `same` is alike
      in all.
    shards: equal parts of the batch, by its first axis; 1: nothing is mapped.

  Returns:
    (trained, batch, *rest) -> ((loss, (sums, same)), gradients), of the whole
    batch.
  """
  of_shard = jax.value_and_grad(loss, has_aux=True)
  if shards == 1:
    return of_shard

  def of_batch(trained, batch, *rest):
    split = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), batch)
    mapped = jax.vmap(
      lambda part: of_shard(trained, part, *rest),
      axis_name=SHARDS,
      out_axes=((0, (0, None)), 0),
    )
    (losses, (sums, same)), grads = mapped(split)
    loss, sums, grads = jax.tree.map(lambda x: x.sum(0), (losses, sums, grads))
    return (loss, (sums, same)), grads

  return of_batch


def num_shards() -> int:
  """Returns how many shards are mapped over here; 1 where none are."""
  try:
    return jax.lax.axis_size(SHARDS)
  except NameError:
    return 1


def sum_over_shards(x: jax.Array) -> jax.Array:
  """Returns a sum over this shard's images as that over the whole batch."""
  if num_shards() == 1:
    return x
  return jax.lax.psum(x, SHARDS)


def draw_for_shard(
  draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """Returns `draw(key, shape)`, the first axis being the images of this shard.

  It is drawn for the whole batch, so that what an image gets does not depend on
  the number of devices.
  """
  shards = num_shards()
  if shards == 1:
    return draw(key, shape)
  batch = draw(key, (shards * shape[0], *shape[1:])).reshape(shards, *shape)
  return _take_own(batch, jax.lax.axis_index(SHARDS))


@custom_vmap
def _take_own(batch: jax.Array, index: jax.Array) -> jax.Array:
  return batch[index]


@_take_own.def_vmap
def _take_all(size, is_mapped, batch, index):
  # Every index there is, in order. A gather would have every device draw all.
  del size, is_mapped, index
  return batch, True


def in_equal_parts(
  function: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
  """Returns a sum over images as an equal part of that over the whole batch.

  Every shard gets 1 / shards of the batch's sum, in place of the sum over its
  own images. It serves what is only added up over shards, and which XLA cannot
  compute for each of them.

  Args:
    function: (arrays with the images first, ...) -> their sum.
  """
  of_shard = custom_vmap(function)

  @of_shard.def_vmap
  def of_batch(shards, are_mapped, *arrays):
    joined = []
    for x, is_mapped in zip(arrays, are_mapped, strict=True):
      if not is_mapped:
        x = jnp.broadcast_to(x, (shards, *x.shape))
      joined.append(x.reshape(-1, *x.shape[2:]))
    return function(*joined) / shards, False

  return of_shard
