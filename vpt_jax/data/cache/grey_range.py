"""Finds the range of a data set's 16-bit grey, the same for all its images.

A 16-bit file may hold values 0..255, 0..4095 or 0..65535, and seldom says so.
Scaled one by one, images would lose what tells them apart; hence the training
images decide for all.
"""

from collections.abc import Iterator
import concurrent.futures
import hashlib
from pathlib import Path
from typing import Any

from vpt_jax.data.cache import decoding, writer
from vpt_jax.data.examples import Examples
from vpt_jax.data.transforms import decode
from vpt_jax.utils import files, strange_files
from vpt_jax.utils.logs import log

# From so many images on the range is kept in a file.
REMEMBERED = 2000


def find_grey_range(
  examples: Examples, cache_dir: Path, workers: int = 0
) -> int | None:
  """Returns the largest value that 16-bit grey may have, of all images.

  Of other images only the headers are read. For many images the range is kept
  in the cache's folder.

  Args:
    examples: the training images.
    cache_dir: folder of the prepared caches.
    workers: threads; 0: `decoding.default_workers`.

  Returns:
    The largest of what `decode.measure_grey` says of each image; None if there
    is no 16-bit grey.
  """
  if len(examples) < REMEMBERED:
    return _measure(examples, workers)
  key = hashlib.sha256(examples.identity.encode()).hexdigest()[:16]
  path = cache_dir / f"grey-{key}.json"
  remembered = _read(path)
  if remembered is not None:
    return remembered["grey_range"]
  found = _measure(examples, workers)
  value: dict[str, Any] = {"grey_range": found}
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, value | {"crc32": writer.checksum(value)})
  except OSError as error:  # a full or read-only disk is no reason to stop
    log.warning("the range of 16-bit grey is not remembered: %s", error)
  return found


def _read(path: Path) -> dict[str, Any] | None:
  """Returns what was remembered; None if it is not there, or damaged."""
  try:
    value = strange_files.read_json(path)
    crc = value.pop("crc32")
    is_whole = crc == writer.checksum(value) and "grey_range" in value
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None
  return value if is_whole else None


def _measure(examples: Examples, workers: int) -> int | None:
  with decoding.quiet():
    ranges = [found for found in _ranges(examples, workers) if found]
  if not ranges:
    return None
  log.info(
    "%s: %d of %d images are grey of 16 bits; their values 0 .. %d become "
    "0 .. 255, in all splits (it is what the files state, or else their "
    "largest value rounded up to 8, 10, 12, 14 or 16 bits)",
    examples.origin,
    len(ranges),
    len(examples),
    max(ranges),
  )
  return max(ranges)


def _ranges(examples: Examples, workers: int) -> Iterator[int | None]:
  """Yields the range of each image; None if it is not 16-bit grey, or bad."""

  def measure(i: int) -> int | None:
    try:
      image = examples.read(i)
      return decode.measure_grey(image) if isinstance(image, bytes) else None
    except (OSError, ValueError) as error:
      decoding.raise_if_of_the_system(error)
      return None  # told of when it is decoded

  workers = workers or decoding.default_workers()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    yield from pool.map(measure, range(len(examples)))
