"""Examples decoded by many threads at once, to the size of their family.

Threads, because Pillow and NumPy leave the interpreter to others while they
work on pixels.
"""

from collections import deque
from collections.abc import Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import warnings

import numpy as np
from PIL import Image

from vpt_jax.data.examples import Examples, Split, Strips
from vpt_jax.data.transforms import decode, resize
from vpt_jax.utils import lookup

log = logging.getLogger("vpt_jax")


class Unequal(Exception):
  """Images that were to keep their own size do not share it."""


@dataclasses.dataclass(frozen=True)
class Geometry:
  """To which size images come.

  Attributes:
    family: a name in `resize.FAMILIES`.
    image_size: (height, width).
    train: for training, else for evaluation.
  """

  family: str
  image_size: tuple[int, int]
  train: bool

  def __post_init__(self) -> None:
    lookup.choose(self.family, resize.FAMILIES, "data.preprocess")

  @property
  def strips(self) -> bool:
    """Images of unequal length, see `examples.Strips`."""
    return self.train and resize.FAMILIES[self.family].strips

  @property
  def key(self) -> list[int | bool | str]:
    """All that changes the pixels."""
    family = resize.FAMILIES[self.family]
    # Named alike if training and evaluation are.
    return [
      self.family,
      *self.image_size,
      self.train and family.train is not family.test,
    ]

  def own(self, image: np.ndarray) -> tuple[int, int] | None:
    """The size that all images keep if they share that of this first one.

    Small ones of VTAB-1k take less room and are resized on the device, where
    the result is not rounded.
    """
    small = all(n <= m for n, m in zip(image.shape, self.image_size))
    return image.shape[:2] if small and self.family == "vtab" else None

  def fit(self, image: np.ndarray, own: tuple[int, int] | None) -> np.ndarray:
    """Decoded image -> as it is stored.

    Raises:
      Unequal: it has another size than `own`.
      ValueError: it cannot come to this size.
    """
    if own is None:
      image = resize.host(self.family, image, self.image_size, self.train)
    elif image.shape[:2] != own:
      raise Unequal
    return image


def read(examples: Examples, i: int) -> np.ndarray:
  """Image i, decoded: uint8 [H, W, 3].

  Raises:
    ValueError: it is damaged.
    OSError: it cannot be read.
  """
  image = examples.read(i)
  if isinstance(image, bytes):
    return decode.decode_image(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
    raise ValueError(
      f"expected uint8 [H, W, 1 or 3], got {image.dtype} {list(image.shape)}"
    )
  return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def subset(examples: Examples, chosen: Sequence[int]) -> Examples:
  """Those with these numbers, in that order."""
  return dataclasses.replace(
    examples,
    names=[examples.names[i] for i in chosen],
    labels=examples.labels[list(chosen)],
    read=lambda i: examples.read(chosen[i]),
    identity=f"{examples.identity} {list(chosen)}",
  )


def first_good(examples: Examples, geometry: Geometry) -> np.ndarray | None:
  """The first image, decoded, that is not bad, if any."""
  for i in range(len(examples)):
    try:
      image = read(examples, i)
      geometry.fit(image, None)
      return image
    except (OSError, ValueError):
      pass
  return None


def size(examples: Examples, geometry: Geometry) -> int:
  """Bytes of all images if they are like the first good one."""
  with quiet():
    image = first_good(examples, geometry)
  if image is None:
    return 0
  return geometry.fit(image, geometry.own(image)).nbytes * len(examples)


def fitted(
  examples: Examples,
  geometry: Geometry,
  own: tuple[int, int] | None,
  start: int = 0,
  workers: int = 0,
) -> Iterator[np.ndarray | str]:
  """Images from number `start` on, in order; for a bad one, why it is.

  Args:
    examples: what to decode.
    geometry: the size to come to.
    own: the size to keep, see `Geometry.own`.
    start: the first image.
    workers: threads; 0: a few more than there are processors.

  Raises:
    Unequal: see `Geometry.fit`.
  """

  def one(i: int) -> np.ndarray | str:
    try:
      return geometry.fit(read(examples, i), own)
    except FileNotFoundError:
      return f"{examples.origin}: {examples.names[i]} is missing"
    except (OSError, ValueError) as error:
      return f"{examples.origin}: cannot decode {examples.names[i]}: {error}"

  workers = workers or min(32, (os.cpu_count() or 1) + 4)
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  ahead: deque[concurrent.futures.Future] = deque()
  try:
    for i in range(start, len(examples)):
      ahead.append(pool.submit(one, i))
      # Not all at once: the results wait in memory.
      if len(ahead) > 4 * workers:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def as_rows(image: np.ndarray) -> tuple[np.ndarray, bool]:
  """(rows [R, S, 3], whether height and width are swapped), see `Strips`."""
  wide = image.shape[1] > image.shape[0]
  return (image.swapaxes(0, 1) if wide else image), wide


def decode_all(
  examples: Examples,
  geometry: Geometry,
  on_error: str = "raise",
  workers: int = 0,
) -> Split:
  """All of it in memory.

  Args:
    examples: what to decode.
    geometry: the size to come to.
    on_error: `raise`, or `skip` to leave bad images out and count them.
    workers: see `fitted`.

  Raises:
    ValueError: naming the first bad image, and how many there are.
  """
  with quiet():
    first = first_good(examples, geometry)
    own = None if first is None else geometry.own(first)
    try:
      results = list(fitted(examples, geometry, own, workers=workers))
    except Unequal:
      results = list(fitted(examples, geometry, None, workers=workers))
  bad = {i: image for i, image in enumerate(results) if isinstance(image, str)}
  check_bad([*bad.values()], len(results), on_error)
  good = [i for i in range(len(results)) if i not in bad]
  images, strips = [results[i] for i in good], None
  if geometry.strips:
    images, wide = zip(*map(as_rows, images))
    strips = Strips(np.cumsum([0, *map(len, images)]), np.array(wide))
  pixels = np.concatenate(images) if strips else np.stack(images)
  return Split(
    pixels,
    examples.labels[good],
    examples.num_classes,
    len(bad),
    tuple(examples.names[i] for i in good),
    strips,
    examples.class_names,
  )


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
  """Without Pillow's warning of large images: `decode_image` refuses them.

  Around all threads, as filters of warnings belong to the process.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    yield
