"""Batches of a split: whole on the device when it fits, else read ahead."""

from collections.abc import Iterator
import os
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from vpt_jax.data.examples import Split
from vpt_jax.data.transforms import views
from vpt_jax.distributed import memory, sharding

Batch = dict[str, Any]

# Batches that are read ahead, and the threads that read them.
AHEAD, THREADS = 8, 4


def order(n: int, seed: int, epoch: int) -> np.ndarray:
  """The order of an epoch: a function of seed and epoch alone, so that a
  resumed run sees the same batches, on any number of devices."""
  return np.random.default_rng((seed, epoch)).permutation(n)


def places(n: int, seed: int, epoch: int) -> np.ndarray:
  """Where an epoch crops each image, in [0, 1) of the free way: [N, 2].

  The same on any number of devices and wherever the images lie.
  """
  return np.random.default_rng((seed, epoch, 1)).random((n, 2), np.float32)


def room(mesh: Mesh) -> int:
  """Bytes for images that a device has to spare: half of what is free."""
  return memory.free_bytes(mesh) // 2


def read_rows(
  images: np.ndarray, rows: np.ndarray, out: np.ndarray, places: np.ndarray
) -> None:
  """out[places] = images[rows]; of a memory map by reading its file.

  Pages of a map come in small pieces, and where memory is short the system
  takes them away before they are used.
  """
  if not isinstance(images, np.memmap):
    out[places] = images[rows]
    return
  size = images[0].nbytes
  with open(images.filename, "rb", buffering=0) as file:
    for row, place in zip(rows, places):
      if (
        os.preadv(
          file.fileno(),
          [out[place].reshape(-1).view(np.uint8)],
          images.offset + int(row) * size,
        )
        != size
      ):
        raise OSError(
          f"{images.filename} ends before image {row}; it was "
          "changed while it was read"
        )


class Feed:
  """Fixed-size batches {image, label, mask} of a split.

  The last batch of an epoch is filled up with copies that `mask` (float32, 0
  or 1) marks, so every batch has the same shape and all count exactly once.

  Attributes:
    split: its images.
    mesh: of the devices.
    resident: they are all on the device.
  """

  def __init__(
    self,
    split: Split,
    batch_size: int,
    mesh: Mesh,
    device_bytes: float | None = None,
    crop: int = 0,
  ):
    """Puts the split on the device if it fits.

    Args:
      split: images of one size, or strips.
      batch_size: of all devices together.
      mesh: from `shard.make_mesh`.
      device_bytes: what may lie on each device; None: `room`.
      crop: side of the squares that are taken from strips.
    """
    self.split, self.batch_size, self._crop = split, batch_size, crop
    self.mesh, self._sharding = mesh, sharding.batch_sharding(mesh)
    limit = room(mesh) if device_bytes is None else device_bytes
    self.resident = split.images.nbytes <= limit
    if self.resident:
      strips = split.strips
      arrays = sharding.replicate(
        (split.images, split.labels)
        if strips is None
        else (
          split.images,
          split.labels,
          strips.first[:-1].astype(np.int32),
          strips.lengths.astype(np.int32),
          strips.wide,
        ),
        mesh,
      )
      take = jax.jit(self._take, out_shardings=self._sharding)
      self._gather = lambda i, place: take(arrays, i, place)

  def __len__(self) -> int:
    """Batches per epoch."""
    return -(-len(self.split) // self.batch_size)

  def batches(
    self,
    indices: np.ndarray,
    place: np.ndarray | None = None,
    batch_size: int = 0,
  ) -> Iterator[Batch]:
    """Batches of the images at `indices`.

    Args:
      indices: of images, in order.
      place: where each is cropped [len(indices), 2], see `places`; None: in
        the centre.
      batch_size: if not the feed's.
    """
    size = batch_size or self.batch_size
    if place is None:
      place = np.full((len(indices), 2), 0.5, np.float32)
    positions = [
      np.arange(first, min(first + size, len(indices)))
      for first in range(0, len(indices), size)
    ]
    full = [np.resize(part, size) for part in positions]
    parts = [(indices[i], place[i]) for i in full]
    taken = (
      (self._gather(*part) for part in parts)
      if self.resident
      else self._streamed(parts)
    )
    for part, (image, label) in zip(positions, taken):
      mask = (np.arange(size) < len(part)).astype(np.float32)
      yield {
        "image": image,
        "label": label,
        "mask": self._put(mask[self._mine(size)]),
      }

  def _take(
    self, arrays: tuple[jax.Array, ...], i: jax.Array, place: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    images, labels, *strips = arrays
    if not strips:
      return images[i], labels[i]
    first, lengths, wide = (array[i] for array in strips)
    return views.crop_at(
      images, first, lengths, wide, place, self._crop
    ), labels[i]

  def _mine(self, size: int) -> slice:
    """Which rows of a batch are for the devices of this process."""
    rows = [
      index[0].indices(size)[:2]
      for index in self._sharding.addressable_devices_indices_map(
        (size,)
      ).values()
    ]
    return slice(min(row[0] for row in rows), max(row[1] for row in rows))

  def _put(self, local: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(self._sharding, local)

  def _streamed(
    self, parts: list[tuple[np.ndarray, np.ndarray]]
  ) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Reads ahead in threads: each process the rows of its own devices."""
    import grain  # slow to import, needed for large splits only

    mine, split = self._mine(len(parts[0][0])), self.split

    def read(
      part: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
      i, place = (array[mine] for array in part)
      # In the order of the file: a memory map is read from a disk.
      at = np.argsort(i, kind="stable")
      if split.strips is None:
        images = np.empty((len(i), *split.images.shape[1:]), split.images.dtype)
        read_rows(split.images, i[at], images, at)
      else:
        images = np.stack(
          [
            split.strips.crop(split.images, k, at, self._crop)
            for k, at in zip(i, place)
          ]
        )
      return images, split.labels[i]

    ahead = (
      grain.MapDataset.source(parts)
      .map(read)
      .to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
      )
    )
    for images, labels in ahead:
      yield self._put(images), self._put(labels)
