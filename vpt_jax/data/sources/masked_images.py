"""Defines images with masks, before they are decoded.

`mask_folders` lists folders of one's own, `mask_layouts` known data sets.
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vpt_jax.data.sources import masks, parts
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.data.transforms import decode
from vpt_jax.utils import texts


class Pair(NamedTuple):
  """An image's file and its mask's, as paths below the root."""

  image: str
  mask: str


@dataclasses.dataclass(frozen=True)
class MaskedImages:
  """Holds images with masks that are not decoded yet.

  Attributes:
    root: the folder that paths begin at.
    pairs: paths of the images and of their masks.
    meaning: of the masks' pixels.
    origin: where they are from, for errors.
    upright: images are turned as their EXIF orientation says, see
      `decode.decode_image`.
  """

  root: Path
  pairs: Sequence[Pair]
  meaning: Meaning
  origin: str
  upright: bool

  def __len__(self) -> int:
    return len(self.pairs)

  @property
  def names(self) -> list[str]:
    """The images' paths, printable: for errors and files of predictions."""
    return [texts.printable(pair.image) for pair in self.pairs]

  @functools.cached_property
  def identity(self) -> str:
    """Changes whenever names, sizes or times of the files do."""
    lines = []
    for pair in self.pairs:
      for path in pair:
        try:
          stat = os.stat(self.root / path)
          lines.append(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}")
        except (OSError, ValueError):  # told of when it is read
          lines.append(path)
    return parts.digest("\n".join(lines))

  def read_image(self, i: int) -> bytes:
    """Returns the content of image i.

    Raises:
      ValueError: see `decode.read_file`; or it cannot be read.
    """
    return _content(self.root / self.pairs[i].image)

  def mask(self, i: int) -> np.ndarray:
    """Returns the labels of image i, uint8 [H, W].

    Raises:
      ValueError: see `masks.decode_mask`; or it cannot be read.
    """
    path = self.root / self.pairs[i].mask
    name = texts.printable(str(path))
    return masks.decode_mask(_content(path), name, self.meaning)

  def decoded(
    self, i: int, grey_range: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns image i and its labels: uint8 [H, W, 3] and uint8 [H, W].

    Args:
      i: which image.
      grey_range: of the data set's 16-bit grey, see `decode.decode_image`.

    Raises:
      UnknownGreyRange: the image is 16-bit grey, and there is no range.
      ValueError: with the file's name: one of both is damaged, labels are out
        of range, or their sizes differ.
    """
    pair = self.pairs[i]
    image_name = texts.printable(str(self.root / pair.image))
    data = self.read_image(i)
    try:
      image = decode.decode_image(data, self.upright, grey_range, strict=True)
    except ValueError as error:
      raise ValueError(f"image {image_name}: {error}") from error
    mask = self.mask(i)
    height, width, _ = image.shape
    mask_name = texts.printable(str(self.root / pair.mask))
    masks.check_size(mask, (height, width), mask_name, image_name)
    return image, mask


def _content(path: Path) -> bytes:
  """Returns the content of a file; no file is a ValueError, too."""
  try:
    return decode.read_file(path)
  except (OSError, ValueError) as error:
    raise ValueError(texts.printable(str(error))) from error
