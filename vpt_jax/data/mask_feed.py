"""Feeds views of images with label maps, made ahead of the step in workers.

What an example looks like is a function of the seed, how often it was seen and
its number alone: a resumed run, with any number of workers, processes or
devices, sees the same.
"""

from collections.abc import Iterator
import dataclasses
import functools
import itertools
import os
import threading
import time
from typing import Any

from absl import flags
from jax.sharding import Mesh
import numpy as np

from vpt_jax.data import pipeline
from vpt_jax.data.examples import MaskedSplit
from vpt_jax.data.pipeline import Batch
from vpt_jax.data.transforms import segmentation
from vpt_jax.data.transforms.segmentation import TrainView

THREADS = 8  # that make views, where no processes do
AHEAD = 4  # batches that are ready before they are asked for
_SECONDS_BETWEEN_LOOKS = 1.0
_ENDLESS = 2**31  # examples: more than any training sees

Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Views:
  """Gives the views of a training by their numbers, in the order of steps.

  A process makes `rows` of each batch. The last batch of an epoch that is one
  pass is filled up with copies, whose `mask` is 0.

  Attributes:
    split: images and label maps.
    view: makes a view of an image.
    seed: of order and views.
    batch_size: of all devices together.
    rows: first and end of the rows of a batch that are made here.
    steps_per_epoch: steps.
    images_per_epoch: images.
    first_step: of example 0.
  """

  split: MaskedSplit
  view: TrainView
  seed: int
  batch_size: int
  rows: tuple[int, int]
  steps_per_epoch: int
  images_per_epoch: int
  first_step: int

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, number: int) -> Example:
    """Returns {image, label, size, mask} of an example."""
    first, end = self.rows
    steps, row = divmod(number, end - first)
    row += first
    epoch, step = divmod(self.first_step + steps, self.steps_per_epoch)
    begin = step * self.batch_size
    count = min(self.batch_size, self.images_per_epoch - begin)
    place = epoch * self.images_per_epoch + begin + row % count
    seen, position = divmod(place, len(self.split))
    i = int(_order(len(self.split), self.seed, seen)[position])
    rng = segmentation.random_numbers(self.seed, seen, i)
    image, label, size = self.view(*self.split.decoded(i), rng)
    return {
      "image": image,
      "label": label,
      "size": np.array(size, np.int32),
      "mask": np.array(row < count, np.float32),
    }


@functools.lru_cache(maxsize=4)
def _order(num_images: int, seed: int, seen: int) -> np.ndarray:
  return pipeline.order(num_images, seed, seen)


class MaskFeed(pipeline.BaseFeed):
  """Gives batches {image, label, size, mask} of random views.

  Images are uint8 [B, h, w, 3], label maps uint8 [B, h, w]; `size` [B, 2] says
  how much of a view is no padding. See `pipeline.BaseFeed`.

  Attributes:
    split: images and label maps.
  """

  def __init__(
    self,
    split: MaskedSplit,
    batch_size: int,
    mesh: Mesh,
    view: TrainView,
    steps_per_epoch: int = 0,
    workers: int = 0,
  ):
    """Takes a split; nothing is read yet.

    Args:
      split: images and label maps of any sizes.
      batch_size: of all devices together.
      mesh: from `sharding.make_mesh`.
      view: makes a view of an image.
      steps_per_epoch: see `pipeline.BaseFeed`.
      workers: processes that make views; 0: threads of this one.
    """
    super().__init__(split, batch_size, mesh, steps_per_epoch)
    self.split = split
    self._view = view
    self._workers = workers
    self._stream: Iterator[Example] | None = None
    self._position: tuple[int, int] | None = None  # (seed, step) of the stream

  def epoch(
    self, seed: int, epoch: int, steps_done: int = 0
  ) -> Iterator[Batch]:
    """Yields the training batches of an epoch, see `BaseFeed.epoch`.

    Where it goes on with what was given last, workers have made it already.
    """
    first = epoch * len(self) + steps_done
    if self._stream is None or self._position != (seed, first):
      self._stream = self._from_step(seed, first)
    stream = self._stream
    for step in range(first, (epoch + 1) * len(self)):
      self._position = None  # until the batch is given
      local = next(stream)
      self._position = (seed, step + 1)
      yield {name: self._put(values) for name, values in local.items()}

  def _from_step(self, seed: int, step: int) -> Iterator[Example]:
    """Yields this process's rows of the batches from a step on, without end."""
    import grain  # slow to import

    rows = self._local_rows(self.batch_size)
    views = Views(
      self.split,
      self._view,
      seed,
      self.batch_size,
      (rows.start, rows.stop),
      len(self),
      self.images_per_epoch,
      step,
    )
    count = rows.stop - rows.start
    threads = 1 if self._workers else THREADS
    options = grain.ReadOptions(threads, AHEAD * count)
    source: Any = views
    examples = grain.MapDataset.source(source).to_iter_dataset(options)
    if self._workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's own, which it asks for
      ahead = max(1, AHEAD * count // self._workers)
      examples = examples.mp_prefetch(
        grain.MultiprocessingOptions(self._workers, ahead),
        functools.partial(_end_with, os.getpid()),
      )
    return _batched(iter(examples), count)


def _end_with(parent: int, worker: int, workers: int) -> None:
  """Lets a process that makes views end when its parent is killed.

  It would wait for ever to be asked, with its views in shared memory.

  Args:
    parent: id of the process that it works for.
    worker: its number.
    workers: how many there are.
  """
  del worker, workers

  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _batched(examples: Iterator[Example], count: int) -> Iterator[Example]:
  """Yields so many examples at a time, stacked."""
  while True:
    part = list(itertools.islice(examples, count))
    batch = {}
    for name in part[0]:
      batch[name] = np.stack([example[name] for example in part])
    yield batch
