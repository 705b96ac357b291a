"""Reads TFRecord files: length, its checksum, bytes, their checksum, ..."""

import bisect
from collections.abc import Sequence
import functools
import itertools
import mmap
import os
from pathlib import Path
import struct

import numpy as np

from vpt_jax.utils import strange_files

LENGTH = struct.Struct("<Q")
CHECKSUM_BYTES = 4
HEADER_BYTES = LENGTH.size + CHECKSUM_BYTES
FOOTER_BYTES = CHECKSUM_BYTES


class Records:
  """Records of several files, one after another, in any order and thread.

  A file is opened, and the offsets of its records found, on first use.
  Checksums are not verified; damaged images are found when they are decoded.
  """

  def __init__(
    self, paths: Sequence[str | os.PathLike], lengths: Sequence[int]
  ):
    """Reads nothing yet.

    Args:
      paths: of the files.
      lengths: how many records each has.
    """
    self._paths = [Path(path) for path in paths]
    self._lengths = list(lengths)
    # Record i is in the first file whose stop is above i.
    self._stops = list(itertools.accumulate(lengths))
    self._opened = functools.cache(self._open)

  def __len__(self) -> int:
    return self._stops[-1] if self._stops else 0

  def __getitem__(self, i: int) -> bytes:
    """Returns record i.

    Raises:
      IndexError: there is no such record.
      ValueError: its file is missing, cut short or no TFRecord file.
    """
    if not 0 <= i < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    file_number = bisect.bisect_right(self._stops, i)
    data, offsets = self._opened(file_number)
    first_in_file = self._stops[file_number] - self._lengths[file_number]
    start = offsets[i - first_in_file] + HEADER_BYTES
    stop = offsets[i - first_in_file + 1] - FOOTER_BYTES
    return data[start:stop]

  def _open(self, file_number: int) -> tuple[mmap.mmap, np.ndarray]:
    """Returns the bytes of a file, and where its N records start [N + 1]."""
    path = self._paths[file_number]
    try:
      with strange_files.open_regular(path) as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
      raise ValueError(f"cannot read {path}: {error}") from None
    expected = self._lengths[file_number]
    # One more than expected, at most: it is enough to see the damage.
    offsets = _record_offsets(data, expected + 1)
    found = len(offsets) - 1
    if found > expected:
      raise ValueError(f"{path} is damaged: more than {expected} records")
    if offsets[-1] != len(data) or found != expected:
      raise ValueError(
        f"{path} is damaged: {found} records that end at byte {offsets[-1]}; "
        f"expected {expected} and {len(data)}"
      )
    return data, np.array(offsets)


def _record_offsets(data: mmap.mmap, most: int) -> list[int]:
  """Returns where records start, at most so many, and where the last ends."""
  offsets = [0]
  while offsets[-1] + HEADER_BYTES <= len(data) and len(offsets) <= most:
    (length,) = LENGTH.unpack_from(data, offsets[-1])
    offsets.append(offsets[-1] + HEADER_BYTES + length + FOOTER_BYTES)
  return offsets
