"""Feeds batches of a split, from the device if it fits there."""

from collections.abc import Iterator
import math
import os
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np

from vpt_jax.data.cache.checked import CheckedImages
from vpt_jax.data.examples import MaskedSplit, Split
from vpt_jax.data.transforms import views
from vpt_jax.distributed import memory, sharding

Batch = dict[str, Any]
# Of the images of a batch: their numbers [B], where they are cropped [B, 2].
Part = tuple[np.ndarray, np.ndarray]

AHEAD = 8  # batches that are read ahead
THREADS = 4  # that read them


def order(n: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of an epoch's images, [N].

  It depends on seed and epoch alone, so that a resumed run sees the same
  batches, on any number of devices.
  """
  return np.random.default_rng((seed, epoch)).permutation(n)


def crop_positions(n: int, seed: int, epoch: int) -> np.ndarray:
  """Returns where an epoch crops each image, in [0, 1) of the free way: [N, 2].

  The same on any number of devices and wherever the images lie.
  """
  return np.random.default_rng((seed, epoch, 1)).random((n, 2), np.float32)


class Visits(NamedTuple):
  """Images in the order in which a training sees them.

  Attributes:
    images: their numbers, [M].
    passes: how many times each was seen before, [M].
  """

  images: np.ndarray
  passes: np.ndarray


def visits(num_images: int, seed: int, first: int, count: int) -> Visits:
  """Returns a piece of an endless order: pass after pass, each shuffled anew.

  Args:
    num_images: N.
    seed: see `order`.
    first: place where the piece begins; the first pass has places 0 .. N - 1.
    count: length of the piece.
  """
  places = np.arange(first, first + count)
  passes = places // num_images
  images = np.empty(count, np.int64)
  for number in np.unique(passes).tolist():
    is_of_pass = passes == number
    places_in_pass = places[is_of_pass] % num_images
    images[is_of_pass] = order(num_images, seed, number)[places_in_pass]
  return Visits(images, passes)


def spare_bytes(mesh: Mesh) -> int:
  """Returns the bytes for images that a device has to spare.

  That is half of what is free.
  """
  return memory.free_bytes(mesh) // 2


def read_rows(
  images: np.ndarray, rows: np.ndarray, out: np.ndarray, targets: np.ndarray
) -> None:
  """Does out[targets] = images[rows]; of a memory map by reading its file.

  Pages of a map come in small pieces, and where memory is short the system
  takes them away before they are used.

  Raises:
    OSError: the file ends too early.
    ValueError: an image of a cache has changed since it was written.
  """
  if not isinstance(images, np.memmap):
    out[targets] = images[rows]
    return
  size = images[0].nbytes
  if images.filename is None:
    raise ValueError("the memory map has no file")
  with open(images.filename, "rb", buffering=0) as file:
    for row, target in zip(rows, targets, strict=True):
      buffer = out[target].reshape(-1).view(np.uint8)
      start = images.offset + int(row) * size
      if os.preadv(file.fileno(), [buffer], start) != size:
        raise OSError(
          f"{images.filename} ends before image {row}; it was "
          "changed while it was read"
        )
      if isinstance(images, CheckedImages):
        images.check_image(int(row), buffer)


class BaseFeed:
  """Knows the order of a training's images, and the rows of each process.

  Attributes:
    batch_size: of all devices together.
    mesh: of the devices.
  """

  def __init__(
    self,
    split: Split | MaskedSplit,
    batch_size: int,
    mesh: Mesh,
    steps_per_epoch: int = 0,
  ):
    """Takes a split.

    Args:
      split: images.
      batch_size: of all devices together.
      mesh: from `sharding.make_mesh`.
      steps_per_epoch: steps of an epoch of an endless order; 0: an epoch is one
        pass.
    """
    self.batch_size = batch_size
    self.mesh = mesh
    self._num_images = len(split)
    self._steps_per_epoch = steps_per_epoch
    self._sharding = sharding.batch_sharding(mesh)

  def __len__(self) -> int:
    """Returns the number of batches per epoch."""
    if self._steps_per_epoch:
      return self._steps_per_epoch
    return math.ceil(self._num_images / self.batch_size)

  @property
  def images_per_epoch(self) -> int:
    """How many images an epoch sees."""
    if self._steps_per_epoch:
      return self._steps_per_epoch * self.batch_size
    return self._num_images

  def epoch(
    self, seed: int, epoch: int, steps_done: int = 0
  ) -> Iterator[Batch]:
    """Yields the training batches of an epoch, without its first steps.

    Args:
      seed: of the order.
      epoch: its number.
      steps_done: of this epoch.
    """
    raise NotImplementedError

  def visits(self, seed: int, epoch: int, steps_done: int = 0) -> Visits:
    """Returns the images of an epoch, without those of its first steps."""
    done = steps_done * self.batch_size
    first = epoch * self.images_per_epoch + done
    return visits(self._num_images, seed, first, self.images_per_epoch - done)

  def _local_rows(self, size: int) -> slice:
    """Returns which rows of a batch are for the devices of this process."""
    of_device = self._sharding.addressable_devices_indices_map((size,))
    rows = []
    for index in of_device.values():
      if index is not None:  # only of devices of other processes
        rows.append(index[0].indices(size))
    return slice(min(row[0] for row in rows), max(row[1] for row in rows))

  def _put(self, local: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(self._sharding, local)


class Feed(BaseFeed):
  """Gives fixed-size batches {image, label, mask} of a split.

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
    steps_per_epoch: int = 0,
  ):
    """Puts the split on the device if it fits.

    Args:
      split: images of one size, or strips.
      batch_size: of all devices together.
      mesh: from `sharding.make_mesh`.
      device_bytes: what may lie on each device; None: `spare_bytes`.
      crop: side of the squares that are taken from strips.
      steps_per_epoch: see `BaseFeed`.
    """
    super().__init__(split, batch_size, mesh, steps_per_epoch)
    self.split = split
    self._crop = crop
    limit = spare_bytes(mesh) if device_bytes is None else device_bytes
    self.resident = split.images.nbytes <= limit
    if self.resident:
      self._arrays = sharding.replicate(_arrays(split), mesh)
      self._take_on_device = jax.jit(self._take, out_shardings=self._sharding)

  def epoch(
    self, seed: int, epoch: int, steps_done: int = 0
  ) -> Iterator[Batch]:
    """Yields the training batches of an epoch, see `BaseFeed.epoch`."""
    found = self.visits(seed, epoch, steps_done)
    return self.batches(found.images, self.places(seed, found))

  def places(self, seed: int, found: Visits) -> np.ndarray:
    """Returns where images are cropped, [M, 2]; see `crop_positions`."""
    places = np.empty((len(found.images), 2), np.float32)
    for number in np.unique(found.passes).tolist():
      is_of_pass = found.passes == number
      of_pass = crop_positions(len(self.split), seed, number)
      places[is_of_pass] = of_pass[found.images[is_of_pass]]
    return places

  def batches(
    self,
    indices: np.ndarray,
    place: np.ndarray | None = None,
    batch_size: int = 0,
  ) -> Iterator[Batch]:
    """Yields batches of the images at `indices`.

    Args:
      indices: of images, in order.
      place: where each is cropped [len(indices), 2], see `crop_positions`;
        None: in the centre.
      batch_size: if not the feed's.
    """
    size = batch_size or self.batch_size
    if place is None:
      place = np.full((len(indices), 2), 0.5, np.float32)
    counts = []
    parts = []
    for first in range(0, len(indices), size):
      numbers = np.arange(first, min(first + size, len(indices)))
      counts.append(len(numbers))
      filled = np.resize(numbers, size)
      parts.append((indices[filled], place[filled]))
    read = self._resident if self.resident else self._streamed
    local_rows = self._local_rows(size)
    for count, (image, label) in zip(counts, read(parts), strict=True):
      mask = (np.arange(size) < count).astype(np.float32)
      yield {
        "image": image,
        "label": label,
        "mask": self._put(mask[local_rows]),
      }

  def _resident(
    self, parts: list[Part]
  ) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields the images and labels of batches from the device."""
    for indices, place in parts:
      yield self._take_on_device(self._arrays, indices, place)

  def _take(
    self, arrays: tuple[jax.Array, ...], i: jax.Array, place: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the images and labels with numbers i [B], in a program."""
    images, labels, *strips = arrays
    if not strips:
      return images[i], labels[i]
    first, lengths, wide = strips
    squares = views.crop_at(
      images, first[i], lengths[i], wide[i], place, self._crop
    )
    return squares, labels[i]

  def _streamed(
    self, parts: list[Part]
  ) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields the images and labels of batches, read ahead in threads.

    Each process reads the rows of its own devices.
    """
    import grain  # slow to import, needed for large splits only

    local_rows = self._local_rows(len(parts[0][0]))

    def read(part: Part) -> tuple[np.ndarray, np.ndarray]:
      indices, place = part
      return self._read(indices[local_rows], place[local_rows])

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    source = grain.MapDataset.source(parts).map(read)
    for images, labels in source.to_iter_dataset(options):
      yield self._put(images), self._put(labels)

  def _read(
    self, indices: np.ndarray, place: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads images and labels, on the host."""
    split = self.split
    if split.strips is not None:
      squares = []
      for i, position in zip(indices, place, strict=True):
        square = split.strips.crop(split.images, i, position, self._crop)
        squares.append(square)
      return np.stack(squares), split.labels[indices]
    images = np.empty(
      (len(indices), *split.images.shape[1:]), split.images.dtype
    )
    # In the order of the file: a memory map is read from a disk.
    sorted_rows = np.argsort(indices, kind="stable")
    read_rows(split.images, indices[sorted_rows], images, sorted_rows)
    return images, split.labels[indices]


def _arrays(split: Split) -> tuple[np.ndarray, ...]:
  """Returns what `Feed._take` takes from a split."""
  strips = split.strips
  images = split.images[:]  # those of a cache are checked by that
  if strips is None:
    return images, split.labels
  return (
    images,
    split.labels,
    strips.first[:-1].astype(np.int32),
    strips.lengths.astype(np.int32),
    strips.wide,
  )
