"""Reads files of strangers as data: bounded, and from regular files alone.

A pipe would keep a reader waiting for ever, a device gives bytes without end,
and a small archive may unpack to more than there is memory for. None of these
functions runs anything that it reads.
"""

from collections.abc import Callable, Iterator
import contextlib
import io
import json
import math
import os
from pathlib import Path
import stat
import sys
from typing import Any, BinaryIO, Literal
import zipfile

import numpy as np

# What may be at the end of a path, as `stat` tells it -> what it is called.
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
  (stat.S_ISDIR, "a folder"),
  (stat.S_ISFIFO, "a pipe"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
)

# Bytes of JSON that are read: lists of a million files have a tenth of that.
MOST_JSON = 2**28
# Bytes that any archive may become, however small it is, ...
FLOOR = 2**28
# ... and how often its own size a larger one may become. Zeros compress better,
# but who saves only zeros?
INFLATED = 50


def open_regular(path: str | os.PathLike) -> BinaryIO:
  """Opens a regular file, or a link to one, for reading.

  Raises:
    ValueError: it is a folder, a pipe, a socket or a device.
    OSError: it is not there, or cannot be read.
  """
  # Without waiting for whoever might write into a pipe.
  handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  mode = os.fstat(handle).st_mode
  if not stat.S_ISREG(mode):
    os.close(handle)
    raise ValueError(f"{path} is {_kind(mode)}; expected a regular file")
  return os.fdopen(handle, "rb")


def _kind(mode: int) -> str:
  """Returns what is at a path that is no regular file."""
  for is_kind, name in _KINDS:
    if is_kind(mode):
      return name
  return "no file"


def check(path: str | os.PathLike, most: float = math.inf) -> int:
  """Returns the bytes of a regular file; see `read_bytes`."""
  with open_regular(path) as file:
    return _checked_size(path, file, most)


def _checked_size(path: str | os.PathLike, file: BinaryIO, most: float) -> int:
  """Returns the bytes of an open file, which may have `most` of them."""
  size = os.fstat(file.fileno()).st_size
  if size > most:
    raise ValueError(
      f"{path} has {size:,} bytes; expected at most {most:,} in such a file"
    )
  return size


def read_bytes(path: str | os.PathLike, most: int) -> bytes:
  """Returns the content of a regular file of at most so many bytes.

  Raises:
    ValueError: it is no regular file, or larger.
    OSError: it is not there, or cannot be read.
  """
  with open_regular(path) as file:
    return file.read(_checked_size(path, file, most))


def read_json(
  path: str | os.PathLike,
  most: int = MOST_JSON,
  pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
  """Returns the value in a JSON file.

  Args:
    path: of the file.
    most: bytes that it may have.
    pairs: makes an object's value from its (name, value); None: a dict.

  Raises:
    ValueError: it is no regular file, too large, nested too deep or no JSON.
    OSError: it is not there, or cannot be read.
  """
  data = read_bytes(path, most)
  try:
    return json.loads(data, object_pairs_hook=pairs)
  except RecursionError:
    raise ValueError("its lists or objects are nested too deep") from None


@contextlib.contextmanager
def open_zip(
  path: str | Path, floor: int = FLOOR, factor: int = INFLATED
) -> Iterator[zipfile.ZipFile]:
  """Opens an archive that is safe to unpack.

  Args:
    path: of the file.
    floor: bytes that it may become in any case.
    factor: how often its own size it may become.

  Raises:
    ValueError: it is truncated, or unpacked it would have more than both
      `floor` bytes and `factor` times the file's size.
  """
  with open_regular(path) as stream:
    if stream.read(6) == b"\x93NUMPY":
      raise ValueError(
        "a single array (.npy), whatever its name; save it by "
        "np.savez(path, NAME=array)"
      )
    if not zipfile.is_zipfile(stream):
      raise ValueError(
        "truncated: the end of the zip archive is missing, download it again"
      )
    with zipfile.ZipFile(stream) as archive:
      infos = archive.infolist()
      size = os.fstat(stream.fileno()).st_size
      if sum(info.compress_size for info in infos) > size:
        raise ValueError("members of the zip archive overlap or are cut short")
      if sum(info.file_size for info in infos) > max(floor, factor * size):
        raise ValueError(
          f"its {size} bytes would unpack to a suspiciously large "
          "amount (a zip bomb)"
        )
      yield archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """Returns the content of a member, never more than the archive declares.

  Raises:
    ValueError: packed in another way than numpy and torch do, or cut short.
  """
  info = archive.getinfo(name)
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f"{name!r} is compressed in an unknown way")
  with archive.open(info) as file:
    data = file.read(info.file_size)  # Without a number: as much as comes.
  if len(data) != info.file_size:
    raise ValueError(f"{name!r} is shorter than declared")
  return data


def read_npy(name: str, data: bytes) -> np.ndarray:
  """Reads the content of a .npy file.

  Nothing is allocated for more than it holds.

  Raises:
    ValueError: it is none, holds Python objects, or holds more or less than
      the shape that it declares.
  """
  if not name.endswith(".npy"):
    raise ValueError(f"{name!r} in the zip archive is no array")
  stream = io.BytesIO(data)
  version = np.lib.format.read_magic(stream)
  if version == (1, 0):
    header = np.lib.format.read_array_header_1_0(stream)
  elif version == (2, 0):
    header = np.lib.format.read_array_header_2_0(stream)
  else:  # For names in records only.
    raise ValueError(f"{name!r} is a .npy file of version {version}")
  shape, is_fortran, dtype = header
  if dtype.hasobject:
    raise ValueError(
      f"{name!r} holds Python objects; pickled content is never loaded"
    )
  offset = stream.tell()
  held = len(data) - offset
  needed = math.prod(shape) * dtype.itemsize
  # Elements of no bytes are free, but to copy 10^12 of them takes for ever.
  is_sound = dtype.itemsize > 0 and min(shape, default=0) >= 0
  if not is_sound or needed != held:
    raise ValueError(
      f"{name!r} holds {held} bytes, not the "
      f"{needed} of {dtype} in the shape that it declares"
    )
  order: Literal["F", "C"] = "F" if is_fortran else "C"
  array = np.ndarray(shape, dtype, data, offset, order=order)
  array = array.astype(dtype.newbyteorder("="), copy=False)
  if dtype.kind == "U" and array.size:
    # Python cannot make text of anything else, and numpy does not look.
    codes = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    if codes.max() > sys.maxunicode:
      raise ValueError(f"{name!r} holds text that is none: it is damaged")
  return array


def read_whole_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Returns all arrays of an npz, which may be read-only.

  Raises:
    ValueError: it cannot be read, holds anything else, or is a zip bomb.
  """
  arrays = {}
  try:
    with open_zip(Path(path)) as archive:
      for name in archive.namelist():
        data = read_member(archive, name)
        arrays[name.removesuffix(".npy")] = read_npy(name, data)
  # Bytes from anywhere go through two libraries, with errors of their own.
  except Exception as error:
    why = str(error) or type(error).__name__
    raise ValueError(f"cannot read {path}: {why}") from error
  return arrays


def read_npz(
  path: str | os.PathLike,
  required: tuple[str, ...],
  optional: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
  """Returns the named arrays of an npz, which may be read-only.

  Raises:
    ValueError: it cannot be read, is a zip bomb, or lacks one that is required.
  """
  try:
    with open_zip(Path(path)) as archive:
      there = set(archive.namelist())
      arrays = {}
      for name in (*required, *optional):
        member = f"{name}.npy"
        if member in there:
          arrays[name] = read_npy(member, read_member(archive, member))
  # Bytes from anywhere go through two libraries, with errors of their own.
  except Exception as error:
    why = str(error) or type(error).__name__
    raise ValueError(f"cannot read {path}: {why}") from error
  lacking = [name for name in required if name not in arrays]
  if lacking:
    found = ", ".join(sorted(there)[:9]) or "nothing"
    raise ValueError(
      f"{path} has no array {', '.join(lacking)}; it has {found}"
    )
  return arrays
