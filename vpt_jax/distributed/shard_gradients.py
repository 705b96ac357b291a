"""Gradients of a batch that lies on several devices, in shards.

The loss is mapped over the shards, each of which is differentiated for itself;
their gradients are summed last. So devices send each parameter's gradient once.
XLA alone would send at every product that sees the batch: for a parameter that
blocks share once a block, for prompts that images share the gradients of keys
and values.

What a shard must know of the others it asks for: `total`, `drawn`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp

# Name of the axis that is mapped over.
SHARDS = "shards"


def value_and_grad(loss: Callable[..., Any], shards: int) -> Callable[..., Any]:
  """Like `jax.value_and_grad`, see above.

  Args:
    loss: (trained, batch, *rest) -> (loss, (sums, same)) of one shard. `loss`
      and the tree `sums` are added up over the shards, the tree `same` is alike
      in all.
    shards: equal parts of the batch, by its first axis; 1: nothing is mapped.

  Returns:
    (trained, batch, *rest) -> ((loss, (sums, same)), gradients), of the whole.
  """
  each = jax.value_and_grad(loss, has_aux=True)
  if shards == 1:
    return each

  def whole(trained, batch, *rest):
    split = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), batch)
    (loss, (sums, same)), grads = jax.vmap(
      lambda batch: each(trained, batch, *rest),
      axis_name=SHARDS,
      out_axes=((0, (0, None)), 0),
    )(split)
    loss, sums, grads = jax.tree.map(lambda x: x.sum(0), (loss, sums, grads))
    return (loss, (sums, same)), grads

  return whole


def count() -> int:
  """The shards that are mapped over here; 1: none are."""
  try:
    return jax.lax.axis_size(SHARDS)
  except NameError:
    return 1


def total(x: jax.Array) -> jax.Array:
  """A sum over the images of this shard -> that over the whole batch."""
  return x if count() == 1 else jax.lax.psum(x, SHARDS)


def drawn(
  draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """`draw(key, shape)`, the first axis being the images of this shard.

  As if it were drawn for the whole batch: what an image gets does not depend on
  the number of devices.
  """
  n = count()
  if n == 1:
    return draw(key, shape)
  whole = draw(key, (n * shape[0], *shape[1:])).reshape(n, *shape)
  return _own(whole, jax.lax.axis_index(SHARDS))


@custom_vmap
def _own(whole: jax.Array, index: jax.Array) -> jax.Array:
  return whole[index]


@_own.def_vmap
def _own_of_all(n, mapped, whole, index):
  # Every index there is, in order. A gather would have every device draw all.
  del n, mapped, index
  return whole, True


def in_equal_parts(
  function: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
  """A sum over images, as the n-th part of that over the whole batch.

  For what is only added up over shards, and which XLA can't compute for each.

  Args:
    function: (array with the images first, ...) -> their sum.
  """
  part = custom_vmap(function)

  @part.def_vmap
  def of_whole(n, mapped, *arrays):
    whole = [
      x if is_mapped else jnp.broadcast_to(x, (n, *x.shape))
      for x, is_mapped in zip(arrays, mapped)
    ]
    return function(*(x.reshape(-1, *x.shape[2:]) for x in whole)) / n, False

  return part
