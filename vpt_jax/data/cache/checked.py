"""Maps the images of a cache from disk, and checks them as they are first read.

A bit that flips on a disk would change a result without a word. To read all of
a large cache at every start would take minutes; to check an image when it is
read anyway takes a hundredth of that reading.
"""

from pathlib import Path
from typing import Any, cast
import zlib

import numpy as np


class Damaged(ValueError):
  """Says that an image of a cache has changed since it was written."""


class CheckedImages(np.memmap):
  """A read-only memory map of images, whose checksums are compared.

  What is taken out of it is checked before, image by image and each only once,
  and is a plain array. Whoever reads the file by itself gives what was read to
  `check_image`.
  """

  _sums: np.ndarray | None = None
  _first: np.ndarray
  _is_checked: np.ndarray

  def __getitem__(self, index: Any) -> Any:
    """Returns a part, checked, as a plain array.

    Raises:
      Damaged: an image of it has another checksum.
    """
    if self._sums is not None:
      for i in self._images_at(index):
        if not self._is_checked[i]:
          first, stop = self._first[i : i + 2]
          self.check_image(i, np.ndarray.__getitem__(self, slice(first, stop)))
    part = super().__getitem__(index)
    return part.view(np.ndarray) if isinstance(part, np.ndarray) else part

  def _images_at(self, index: Any) -> np.ndarray:
    """Returns which images an index takes a part of."""
    rows = index
    if isinstance(index, tuple):
      rows = index[0] if index else slice(None)
    length = len(self)
    if isinstance(rows, slice):
      numbers = np.array(range(length)[rows], np.int64)
    elif rows is None or rows is Ellipsis or np.ndim(rows) > 1:
      return np.arange(len(self._first) - 1)  # all: such an index is rare
    else:
      numbers = np.arange(length)[rows]
    images = np.searchsorted(self._first, numbers, side="right") - 1
    return np.unique(images)

  def check_image(self, i: int, content: np.ndarray) -> None:
    """Compares an image that was read with its checksum, the first time.

    Args:
      i: its number.
      content: all of it.

    Raises:
      Damaged: it has another one.
    """
    if self._sums is None or self._is_checked[i]:
      return
    if zlib.crc32(np.ascontiguousarray(content).data) != self._sums[i]:
      path = Path(str(self.filename))
      raise Damaged(
        f"image {i} of {path} has another checksum than when it was written: "
        f"the disk has changed it; delete the folder {path.parent}, and the "
        "cache is made again"
      )
    self._is_checked[i] = True


def open_images(
  path: Path, sums: np.ndarray, first: np.ndarray | None
) -> CheckedImages:
  """Maps images.npy.

  Args:
    path: of the file.
    sums: CRC-32 of each image [N].
    first: where each image begins and the last one ends, of strips; None: each
      is one row.

  Raises:
    ValueError: it is no array, or has not as many images.
  """
  plain = np.load(path, mmap_mode="r", allow_pickle=False)
  if first is None:
    first = np.arange(len(sums) + 1)
  if len(plain) != first[-1] or len(first) != len(sums) + 1:
    raise ValueError(f"it has {len(plain)} rows, not {first[-1]}")
  images = plain.view(CheckedImages)
  images._first = first
  images._is_checked = np.zeros(len(sums), bool)
  images._sums = sums
  return cast(CheckedImages, images)
