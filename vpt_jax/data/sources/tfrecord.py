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

from vpt_jax.data.sources import crc32c
from vpt_jax.utils import strange_files

LENGTH = struct.Struct("<Q")
CHECKSUM = struct.Struct("<I")
HEADER_BYTES = LENGTH.size + CHECKSUM.size
FOOTER_BYTES = CHECKSUM.size


class Records:
  """Records of several files, one after another, in any order and thread.

  A file is opened, and the offsets of its records found, on first use. Records
  are compared with their checksums when they are first read.
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
      ValueError: its file is missing, cut short or no TFRecord file, or the
        record has another checksum.
    """
    if not 0 <= i < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    file_number = bisect.bisect_right(self._stops, i)
    data, offsets, is_checked = self._opened(file_number)
    number = i - (self._stops[file_number] - self._lengths[file_number])
    start = offsets[number] + HEADER_BYTES
    stop = offsets[number + 1] - FOOTER_BYTES
    record = data[start:stop]
    if not is_checked[number]:
      (stored,) = CHECKSUM.unpack_from(data, stop)
      if crc32c.masked(record) != stored:
        raise ValueError(
          f"{self._paths[file_number]} is damaged: record {number} has another "
          "checksum"
        )
      is_checked[number] = True
    return record

  def _open(self, file_number: int) -> tuple[mmap.mmap, np.ndarray, np.ndarray]:
    """Opens a file of N records.

    Returns:
      (its bytes, where records start [N + 1], whether each was checked [N]).
    """
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
    return data, np.array(offsets), np.zeros(found, bool)


def _record_offsets(data: mmap.mmap, most: int) -> list[int]:
  """Returns where records start, at most so many, and where the last ends."""
  offsets = [0]
  while offsets[-1] + HEADER_BYTES <= len(data) and len(offsets) <= most:
    (length,) = LENGTH.unpack_from(data, offsets[-1])
    offsets.append(offsets[-1] + HEADER_BYTES + length + FOOTER_BYTES)
  return offsets
