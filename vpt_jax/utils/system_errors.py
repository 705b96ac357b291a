"""Says what the system refuses, such as room on a disk, and what to do."""

from collections.abc import Iterator
import contextlib
import errno
import io
import os
from pathlib import Path
import re

# What to do about errors of the system that a user can mend.
ADVICE = {
  errno.ENOSPC: "make room on this disk, or name a folder on another one",
  errno.EDQUOT: "delete files, or name a folder on a disk with a larger quota",
  errno.EFBIG: "name a folder on a disk that takes larger files",
  errno.EACCES: "change its permissions, or name another path",
  errno.EPERM: "change its permissions, or name another path",
  errno.EROFS: "name a folder that can be written to",
  errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`)",
  errno.ENFILE: "the whole machine has too many open files: end programs",
  errno.ENAMETOOLONG: "give it a shorter name",
  errno.ENOENT: "expected a file or folder that is there",
  errno.ENOTDIR: "a part of the path is a file; name another path",
  errno.EISDIR: "expected a file, this is a folder",
  errno.ENOMEM: "this machine is out of memory: end programs",
}
# Nothing more can be written until the user has done something.
NO_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# After these the same command goes on where it was.
_AGAIN = (*NO_WRITES, errno.EMFILE, errno.ENFILE)


def explain(error: BaseException) -> str:
  """Returns what an error says, and what to do where the system refuses."""
  if not isinstance(error, OSError) or not error.strerror:
    return str(error)
  text = error.strerror
  if error.filename is not None:
    text = f"{error.filename}: {text}"
  if error.filename2 is not None:
    text = f"{text} ({error.filename2})"
  number = error.errno
  if number in ADVICE:
    text += f"; {ADVICE[number]}"
  if number in _AGAIN:
    text += "; the same command resumes"
  return text


def number_of(error: BaseException | None) -> int | None:
  """Returns the errno of an error, or of one that it is a consequence of.

  That of tensorstore's errors is in their text.
  """
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    if isinstance(error, OSError) and error.errno is not None:
      return error.errno
    found = number_in(str(error))
    if found is not None:
      return found
    seen.add(id(error))
    error = error.__cause__ or error.__context__
  return None


def number_in(text: str) -> int | None:
  """Returns the errno that a text of tensorstore names, if it names one."""
  found = re.search(r"os_error_code='(\d+)'", text)
  return int(found[1]) if found else None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Gives errors of the disk within the context the name of the file."""
  try:
    yield
  except OSError as error:
    if error.errno is not None:
      error.filename = str(path)
      error.filename2 = None
    raise


@contextlib.contextmanager
def of_library(path: Path) -> Iterator[None]:
  """Turns what a library raises where the system refuses into an OSError.

  Args:
    path: that the library writes; the error names it.

  Raises:
    OSError: with one of the numbers of `ADVICE`.
  """
  try:
    yield
  except Exception as error:
    number = number_of(error)
    if number not in ADVICE:
      raise
    raise OSError(number, os.strerror(number), str(path)) from error


def append(file: io.FileIO, data: bytes, path: Path) -> None:
  """Writes all of some bytes; nothing of them waits in a buffer.

  Args:
    file: open without buffer.
    data: bytes.
    path: of the file, for errors.
  """
  left = memoryview(data)
  with naming(path):
    while left:
      left = left[file.write(left) :]
