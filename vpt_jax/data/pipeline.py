"""Batches of a split: decoded once, kept on the device when they fit."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vpt_jax import shard
from vpt_jax.data.sources import Split

Batch = dict[str, Any]


def order(n: int, seed: int, epoch: int) -> np.ndarray:
  """The order of an epoch: a function of seed and epoch alone, so that a
  resumed run sees the same batches."""
  return np.random.default_rng((seed, epoch)).permutation(n)


class Feed:
  """Fixed-size batches {image, label, mask} of a split.

  The last batch of an epoch is filled up with copies that `mask` (float32, 0
  or 1) marks, so every batch has the same shape and all count exactly once.
  """

  def __init__(self, split: Split, batch_size: int, mesh: Mesh,
               device_bytes: float):
    self.split = split
    self.batch_size = batch_size
    self._sharding = shard.batch_sharding(mesh)
    self._take = None
    if split.images.nbytes <= device_bytes:
      images, labels = shard.replicate((split.images, split.labels), mesh)
      take = jax.jit(lambda images, labels, i: (images[i], labels[i]),
                     out_shardings=self._sharding)
      self._take = lambda i: take(images, labels, i)

  def __len__(self) -> int:
    """Batches per epoch."""
    return -(-len(self.split) // self.batch_size)

  def batches(self, indices: np.ndarray) -> Iterator[Batch]:
    """Batches of the images at `indices`."""
    for first in range(0, len(indices), self.batch_size):
      part = indices[first:first + self.batch_size]
      mask = np.arange(self.batch_size) < len(part)
      part = np.resize(part, self.batch_size)
      if self._take is not None:
        image, label = self._take(part)
      else:
        image, label = jax.device_put(
            (self.split.images[part], self.split.labels[part]), self._sharding)
      yield {"image": image, "label": label,
             "mask": jax.device_put(mask.astype(np.float32), self._sharding)}
