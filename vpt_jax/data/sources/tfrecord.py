"""TFRecord files: length, its checksum, bytes, their checksum, and so on."""

import bisect
from collections.abc import Sequence
import functools
import itertools
import mmap
import os
from pathlib import Path
import struct

import numpy as np

_LENGTH = struct.Struct("<Q")
_HEADER = _LENGTH.size + 4
_FOOTER = 4


class Records(Sequence[bytes]):
  """Records of several files, one after another, in any order and thread.

  A file is opened, and the places of its records found, on first use.
  Checksums are not verified; damaged images are found when they are decoded.
  """

  def __init__(
    self, paths: Sequence[str | os.PathLike], lengths: Sequence[int]
  ):
    """Nothing is read yet.

    Args:
      paths: of the files.
      lengths: records of each.
    """
    self._paths, self._lengths = list(map(Path, paths)), list(lengths)
    self._stops = list(itertools.accumulate(lengths))
    self._file = functools.cache(self._open)

  def __len__(self) -> int:
    return self._stops[-1] if self._stops else 0

  def __getitem__(self, i: int) -> bytes:
    """Record i.

    Raises:
      IndexError: there is none.
      ValueError: its file is missing, cut short or no TFRecord file.
    """
    if not 0 <= i < len(self):
      raise IndexError(f"record {i} of {len(self)}")
    number = bisect.bisect_right(self._stops, i)
    data, starts = self._file(number)
    at = i - self._stops[number] + self._lengths[number]
    return data[starts[at] + _HEADER : starts[at + 1] - _FOOTER]

  def _open(self, number: int) -> tuple[mmap.mmap, np.ndarray]:
    """(the bytes of a file, where its N records start and end: [N + 1])."""
    path = self._paths[number]
    try:
      with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
      raise ValueError(f"cannot read {path}: {error}") from None
    starts = [0]
    while starts[-1] + _HEADER <= len(data):
      (length,) = _LENGTH.unpack_from(data, starts[-1])
      starts.append(starts[-1] + _HEADER + length + _FOOTER)
    if starts[-1] != len(data) or len(starts) - 1 != self._lengths[number]:
      raise ValueError(
        f"{path} is damaged: {len(starts) - 1} records that end "
        f"at byte {starts[-1]}; expected "
        f"{self._lengths[number]} and {len(data)}"
      )
    return data, np.array(starts)
