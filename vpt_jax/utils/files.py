"""Files that are written as a whole, and folders that one process has.

All writes are atomic: a reader sees the old file, the new one, never a part.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import json
import logging
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any, IO, TextIO

log = logging.getLogger("vpt_jax")


class InUse(ValueError):
  """Another process has it."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
  """Keeps a folder for this process; made if it is not there.

  Where the file system has no locks nothing is kept.

  Raises:
    InUse: another process has it.
  """
  with _lock_file(folder) as file:
    try:
      flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InUse(
        f"{folder} is in use by another process; wait for it, "
        "or use another folder"
      ) from None
    yield


def flock(file: IO[Any], how: int) -> None:
  """`fcntl.flock`, where the file system has it (buckets, some Lustre do not)."""
  try:
    fcntl.flock(file, how)
  except OSError as error:
    if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
      raise
    log.warning(
      "no file locks in %s: take care that one process alone has it",
      os.path.dirname(file.name),
    )


def _lock_file(folder: Path) -> TextIO:
  while True:
    folder.mkdir(parents=True, exist_ok=True)
    try:
      return (folder / ".lock").open("w")
    except FileNotFoundError:
      pass  # its last owner has just deleted the folder


def clear(folder: Path) -> None:
  """Deletes a folder, unless another process has it."""
  if folder.exists():
    with contextlib.suppress(InUse), lock(folder):
      shutil.rmtree(folder, ignore_errors=True)


def write_atomic(path: Path, data: bytes) -> None:
  """Writes a file as a whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON atomically."""
  text = json.dumps(value, indent=2, allow_nan=False) + "\n"
  write_atomic(path, text.encode())
