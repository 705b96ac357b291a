"""Finds images that are the same file, in two parts or under two classes."""

from collections.abc import Iterator, Mapping
import hashlib
import itertools
import os
from typing import NamedTuple

import numpy as np

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import image_files


class Image(NamedTuple):
  """An image of a part.

  Attributes:
    part: its name.
    number: of the image in it.
    label: its class, or all of them.
  """

  part: str
  number: int
  label: tuple[int, ...]


def notes(parts: Mapping[str, Examples], every: bool = False) -> list[str]:
  """Returns sentences on images with the same bytes.

  Files are compared where they have the same size. What a single file or array
  holds is compared only if every image may be read.

  Args:
    parts: train, val and test, as far as they are there.
    every: reads images that are not files of their own, too.
  """
  groups = [group for group in _same_images(parts, every) if len(group) > 1]
  found = []
  for first, second in itertools.combinations(parts, 2):
    pairs = []
    for group in groups:
      twin = next((image for image in group if image.part == first), None)
      if twin is not None:
        pairs += [(image, twin) for image in group if image.part == second]
    if pairs:
      found.append(
        f"{len(pairs)} of {len(parts[second])} images of {second} have the "
        f"same bytes as images of {first}, such as {_named(parts, *pairs[0])}"
      )
  several = []
  for group in groups:
    first_image = group[0]
    others = [image for image in group if image.label != first_image.label]
    several += [(image, first_image) for image in others]
  if several:
    found.append(
      f"{len(several)} images have the same bytes as one of another class, "
      f"such as {_named(parts, *several[0])}"
    )
  return found


def _named(parts: Mapping[str, Examples], image: Image, twin: Image) -> str:
  names = []
  for one in (image, twin):
    names.append(parts[one.part].names[one.number])
  return f"{names[0]} and {names[1]}"


def _same_images(
  parts: Mapping[str, Examples], every: bool
) -> Iterator[list[Image]]:
  """Yields the images of all parts in groups of the same bytes."""
  by_size: dict[int, list[Image]] = {}
  for part, examples in parts.items():
    for number in range(len(examples)):
      size = _size(examples, number, every)
      if size is not None:
        image = Image(part, number, _label(examples.labels[number]))
        by_size.setdefault(size, []).append(image)
  for images in by_size.values():
    if len(images) < 2:
      continue
    by_digest: dict[bytes, list[Image]] = {}
    for image in images:
      digest = _digest(parts[image.part], image.number)
      if digest is not None:
        by_digest.setdefault(digest, []).append(image)
    yield from by_digest.values()


def _label(label: np.ndarray) -> tuple[int, ...]:
  """Returns a label as something to compare."""
  return tuple(np.atleast_1d(label).tolist())


def _size(examples: Examples, number: int, every: bool) -> int | None:
  """Returns the bytes of an image's file; None if it is not to be read.

  Images that are not files of their own count as being of one size.
  """
  read = examples.read
  if not isinstance(read, image_files.Files):
    return -1 if every else None
  try:
    return os.stat(read.base / read.names[number]).st_size
  except (OSError, ValueError):  # told by the other checks
    return None


def _digest(examples: Examples, number: int) -> bytes | None:
  """Returns a hash of an image's bytes; None if it cannot be read."""
  try:
    content = examples.read(number)
  except (OSError, ValueError):
    return None
  if isinstance(content, np.ndarray):
    content = str(content.shape).encode() + content.tobytes()
  return hashlib.sha256(content).digest()
