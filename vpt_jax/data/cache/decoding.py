"""Decodes examples in many threads, to the size in which they are stored.

Threads, because Pillow and NumPy leave the interpreter to others while they
work on pixels.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import errno
import os
from typing import Any
import warnings

import numpy as np
from PIL import Image

from vpt_jax.data.examples import Examples, Split, Strips
from vpt_jax.data.transforms import resize
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.utils.logs import log

# Errors of reading that say nothing of the image: the machine, or its network,
# is out of something. The image is not bad, and must not be left out.
_OF_THE_SYSTEM = frozenset(
  {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
  }
)


class UnequalSizes(Exception):
  """Is raised when images that were to keep their size do not share it."""


@dataclasses.dataclass(frozen=True)
class Layout:
  """Says how the images of a split are stored once they are decoded.

  Attributes:
    preprocess: decodes and fits them. Its `kept_size` is not used: images tell.
    train: for training, else for evaluation.
  """

  preprocess: Preprocess
  train: bool

  @property
  def strips(self) -> bool:
    """Whether images are of unequal length, see `examples.Strips`."""
    return self.train and resize.FAMILIES[self.preprocess.family].strips

  @property
  def key(self) -> dict[str, Any]:
    """All that changes the pixels, as JSON values."""
    preprocess = self.preprocess
    family = resize.FAMILIES[preprocess.family]
    return {
      "family": preprocess.family,
      "image_size": list(preprocess.image_size),
      # Named alike if training and evaluation are.
      "train": self.train and family.train is not family.test,
      "upright": preprocess.upright,
      "grey_range": preprocess.grey_range,
    }

  def read(self, examples: Examples, i: int) -> np.ndarray:
    """Reads and decodes an image.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UnknownGreyRange: it is 16-bit grey, and the data set's range not known.
      ValueError: it is damaged.
      OSError: it cannot be read.
    """
    image = examples.read(i)
    if isinstance(image, bytes):
      return self.preprocess.decode(image, strict=True)
    return resize.as_rgb(image)

  def fit(self, image: np.ndarray, kept_size: resize.Size | None) -> np.ndarray:
    """Brings a decoded image to the size in which it is stored.

    Args:
      image: uint8 [H, W, 3].
      kept_size: size that all images keep, see `Preprocess.size_if_small`;
        None: they are fitted.

    Raises:
      UnequalSizes: it has another size than `kept_size`.
      ValueError: it cannot come to this size.
    """
    if kept_size is None:
      preprocess = self.preprocess
      return resize.fit(
        preprocess.family, image, preprocess.image_size, self.train
      )
    if image.shape[:2] != kept_size:
      raise UnequalSizes
    return image

  def of_split(self, split: Split) -> Preprocess:
    """Returns the preprocessing with which a split of this layout was made."""
    kept_size = None
    size = split.images.shape[1:3]
    if split.strips is None and size != self.preprocess.image_size:
      kept_size = size
    return dataclasses.replace(self.preprocess, kept_size=kept_size)


def subset(examples: Examples, chosen: Sequence[int]) -> Examples:
  """Returns the examples with these numbers, in that order."""

  def read(i: int) -> bytes | np.ndarray:
    return examples.read(chosen[i])

  return dataclasses.replace(
    examples,
    names=[examples.names[i] for i in chosen],
    labels=examples.labels[list(chosen)],
    read=read,
    identity=f"{examples.identity} {list(chosen)}",
  )


def first_good(examples: Examples, layout: Layout) -> np.ndarray | None:
  """Returns the first image, decoded, that is not bad, if there is one."""
  for i in range(len(examples)):
    try:
      image = layout.read(examples, i)
      layout.fit(image, None)
      return image
    except (OSError, ValueError) as error:
      raise_if_of_the_system(error)
  return None


def raise_if_of_the_system(error: Exception) -> None:
  """Raises an error of reading an image that is not the image's fault."""
  if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
    raise error


def size(examples: Examples, layout: Layout) -> int:
  """Returns the bytes of all images if they are like the first good one."""
  with quiet():
    image = first_good(examples, layout)
  if image is None:
    return 0
  stored = layout.fit(image, layout.preprocess.size_if_small(image))
  return stored.nbytes * len(examples)


def default_workers() -> int:
  """Returns the number of threads: a few more than there are processors."""
  return min(32, (os.cpu_count() or 1) + 4)


def fitted(
  examples: Examples,
  layout: Layout,
  kept_size: resize.Size | None,
  start: int = 0,
  workers: int = 0,
) -> Generator[np.ndarray | str, None, None]:
  """Yields images from number `start` on, in order; for a bad one, why it is.

  Args:
    examples: what to decode.
    layout: the size to come to.
    kept_size: the size to keep, see `Layout.fit`.
    start: the first image.
    workers: threads; 0: `default_workers`.

  Raises:
    UnequalSizes: see `Layout.fit`.
    UnknownGreyRange: see `Layout.read`.
    OSError: the machine is out of files or memory, say.
  """

  def decode(i: int) -> np.ndarray | str:
    try:
      return layout.fit(layout.read(examples, i), kept_size)
    except FileNotFoundError:
      return f"{examples.origin}: {examples.names[i]} is missing"
    except (OSError, ValueError) as error:
      raise_if_of_the_system(error)
      return f"{examples.origin}: cannot decode {examples.names[i]}: {error}"

  workers = workers or default_workers()
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  ahead: deque[concurrent.futures.Future] = deque()
  try:
    for i in range(start, len(examples)):
      ahead.append(pool.submit(decode, i))
      # Not all at once: the results wait in memory.
      if len(ahead) > 4 * workers:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def as_rows(image: np.ndarray) -> tuple[np.ndarray, bool]:
  """Returns (rows [R, S, 3], whether height and width are swapped).

  See `examples.Strips`.
  """
  wide = image.shape[1] > image.shape[0]
  return (image.swapaxes(0, 1) if wide else image), wide


def decode_all(
  examples: Examples,
  layout: Layout,
  on_error: str = "raise",
  workers: int = 0,
) -> Split:
  """Decodes all of a split into memory.

  Args:
    examples: what to decode.
    layout: the size to come to.
    on_error: `raise`, or `skip` to leave bad images out and count them.
    workers: see `fitted`.

  Raises:
    UnknownGreyRange: see `Layout.read`.
    ValueError: naming the first bad image, and how many there are.
  """
  with quiet():
    first = first_good(examples, layout)
    kept_size = None
    if first is not None:
      kept_size = layout.preprocess.size_if_small(first)
    try:
      results = list(fitted(examples, layout, kept_size, workers=workers))
    except UnequalSizes:
      results = list(fitted(examples, layout, None, workers=workers))
  good, images, bad = [], [], []
  for i, result in enumerate(results):
    if isinstance(result, str):
      bad.append(result)
    else:
      good.append(i)
      images.append(result)
  check_bad(bad, len(results), on_error)
  strips = None
  if layout.strips:
    rows = [as_rows(image) for image in images]
    images = [row for row, _ in rows]
    first_rows = np.cumsum([0, *(len(image) for image in images)])
    strips = Strips(first_rows, np.array([wide for _, wide in rows]))
  split = Split(
    images=np.concatenate(images) if strips else np.stack(images),
    labels=examples.labels[good],
    num_classes=examples.num_classes,
    skipped=len(bad),
    names=tuple(examples.names[i] for i in good),
    strips=strips,
    class_names=examples.class_names,
  )
  return dataclasses.replace(split, preprocess=layout.of_split(split))


def check_bad(bad: list[str], count: int, on_error: str) -> None:
  """Raises ValueError if bad images are not to be left out, or are all."""
  if bad and (on_error == "raise" or len(bad) == count):
    raise ValueError(
      f"{bad[0]} ({len(bad)} of {count} images fail); "
      "data.on_error='skip' leaves bad images out"
    )
  for why in bad:
    log.warning("skipped: %s", why)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences Pillow's warning of large images: `decode_image` refuses them.

  Around all threads, as filters of warnings belong to the process.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    yield
