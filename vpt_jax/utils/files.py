"""Writes files as a whole, and locks files and folders.

All writes are atomic: a reader sees the old file or the new one, never a part
of it.
"""

from collections.abc import Callable, Iterator
import contextlib
import errno
import fcntl
import glob
import json
import os
from pathlib import Path
import secrets
import shutil
from typing import Any, BinaryIO

import filelock

from vpt_jax.utils import system_errors
from vpt_jax.utils.logs import log

# What a file system without locks answers (buckets, some Lustre do).
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

# How the name of a file ends that is not complete yet: `.NAME.TOKEN` and this.
UNFINISHED = ".vpt_jax-part"
# Letters of NAME that are kept there: names of more than 255 bytes are refused.
_NAME_LETTERS = 40

# Folders that this process has locked -> device and inode of the lock file.
_held: dict[Path, tuple[int, int] | None] = {}


class InUse(ValueError):
  """Says that another process has locked a folder."""


class Lost(ValueError):
  """Says that a folder was deleted while this process had it locked."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
  """Locks a folder for this process, and makes it if it is not there.

  The lock ends with the context, or with the process, however it ends. Where
  the file system has no locks a warning is logged and nothing is locked. What
  a killed process has left unfinished is deleted, see `sweep`.

  A lock is on a file: who deletes the folder deletes the lock, and the next
  process may take the folder. Writes of this module therefore look first
  whether the locks of the folders above them are still there.

  Args:
    folder: gets a file `.lock`, which stays.

  Raises:
    InUse: another process has locked the folder.
  """
  with contextlib.ExitStack() as stack:
    is_locked = _acquire_folder(folder, stack)
    if is_locked:
      stack.enter_context(_noted(folder))
    sweep(folder)
    yield


@contextlib.contextmanager
def _noted(folder: Path) -> Iterator[None]:
  """Notes which file the lock of a folder is on, for `check_locks`."""
  key = _absolute(folder)
  # There is one if the folder was deleted, and taken again by this process.
  before = {path: held for path, held in _held.items() if path == key}
  _held[key] = _file_id(folder / ".lock")
  try:
    yield
  finally:
    del _held[key]
    _held.update(before)


def check_locks(path: Path) -> None:
  """Checks that the folders of a path that are locked are still ours.

  Args:
    path: of a file or folder that is to be written.

  Raises:
    Lost: a locked folder at or above it was deleted, or is another one by now.
  """
  path = _absolute(path)
  for folder in (path, *path.parents):
    if folder not in _held:
      continue
    found = _file_id(folder / ".lock")
    if found is None or found != _held[folder]:
      raise Lost(
        f"{folder} was deleted while this process was working in it, and may "
        "be another one's by now; nothing more is written there. Start again, "
        "in another folder or when no other process has this one"
      )


def _absolute(path: Path) -> Path:
  return Path(os.path.abspath(path))


def _file_id(path: Path) -> tuple[int, int] | None:
  """Returns device and inode of a file; None if it is not there."""
  try:
    found = os.stat(path)
  except OSError:
    return None
  return found.st_dev, found.st_ino


def _acquire_folder(folder: Path, stack: contextlib.ExitStack) -> bool:
  """Locks a folder; returns whether the file system has locks."""
  path = folder / ".lock"
  while True:
    folder.mkdir(parents=True, exist_ok=True)
    try:
      return stack.enter_context(_acquired(path, seconds=0))
    except FileNotFoundError:
      pass  # The last owner has just deleted the folder: make it again.
    except filelock.Timeout:
      if path.exists():
        raise InUse(
          f"{folder} is in use by another process; wait for it, "
          "or use another folder"
        ) from None
      # The last owner has just deleted the folder with its lock: try again.


@contextlib.contextmanager
def waiting_lock(
  path: Path, on_wait: Callable[[], None] | None = None
) -> Iterator[bool]:
  """Waits until no other process has locked a file, then locks it.

  The lock ends with the context, or with the process, however it ends. Where
  the file system has no locks a warning is logged and nothing is locked.

  Args:
    path: the lock file, in a folder that exists. It is made, holds nothing and
      stays; do not give the file that is to be protected.
    on_wait: called once if another process has the lock.

  Yields:
    Whether it is locked: False where the file system has no locks.
  """
  with contextlib.ExitStack() as stack:
    try:
      is_locked = stack.enter_context(_acquired(path, seconds=0))
    except filelock.Timeout:
      if on_wait is not None:
        on_wait()
      is_locked = stack.enter_context(_acquired(path, seconds=-1))
    yield is_locked


@contextlib.contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
  """Locks a file, unless another process has locked it.

  Args:
    path: see `waiting_lock`.

  Yields:
    Whether it is locked; False where the file system has no locks, too.
  """
  with contextlib.ExitStack() as stack:
    try:
      is_locked = stack.enter_context(_acquired(path, seconds=0))
    except filelock.Timeout:
      is_locked = False
    yield is_locked


@contextlib.contextmanager
def _acquired(path: Path, seconds: float) -> Iterator[bool]:
  """Holds a lock file, or warns where the file system has no locks.

  Args:
    path: the lock file.
    seconds: how long to wait for another process; negative: without limit.

  Yields:
    Whether it is locked.

  Raises:
    filelock.Timeout: another process still has it.
  """
  # A marker file in place of a lock would outlive a process that is killed.
  file_lock = filelock.FileLock(
    path, timeout=seconds, thread_local=False, fallback_to_soft=False
  )
  try:
    file_lock.acquire()
  except filelock.Timeout:
    raise
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    log.warning(
      "no file locks in %s: make sure that only one process uses it",
      path.parent,
    )
  try:
    yield file_lock.is_locked
  finally:
    file_lock.release()


def clear(folder: Path) -> None:
  """Deletes a folder, unless another process has locked it."""
  if not folder.exists():
    return
  with contextlib.suppress(InUse), lock(folder):
    shutil.rmtree(folder, ignore_errors=True)


def write_atomic(path: Path, data: bytes) -> None:
  """Writes a file as a whole or not at all, and makes its folder.

  Raises:
    Lost: see `check_locks`.
    OSError: see `replacing`.
  """
  with replacing(path) as file:
    file.write(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """Gives a file to write to, which takes the place of `path` at the end.

  Readers see the old file or all of the new one, wherever the context is left
  by an error or a signal. What a killed process has left of the same file is
  deleted.

  Args:
    path: of the file; its folder is made.

  Raises:
    Lost: see `check_locks`.
    OSError: the disk refuses the file; it names `path`.
  """
  check_locks(path)
  with system_errors.naming(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(_unfinished(path, "*")):
      _delete_unless_locked(left)
  with system_errors.naming(path), _open_unfinished(path) as file:
    try:
      yield file
      file.flush()
      os.fsync(file.fileno())
      # While the file is locked, so that no other process sweeps it away.
      os.replace(file.name, path)
    except BaseException:
      # A signal may have come after the file had got its name.
      with contextlib.suppress(OSError):
        os.unlink(file.name)
      raise


def _open_unfinished(path: Path) -> BinaryIO:
  """Opens a new hidden file beside `path`, locked as long as it is open.

  The lock tells `sweep` that its writer lives. On file systems without locks
  there is none.
  """
  while True:
    file = path.with_name(_unfinished(path, secrets.token_hex(8))).open("xb")
    try:
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
      is_there = os.fstat(file.fileno()).st_nlink > 0
    except BaseException:
      file.close()
      raise
    if is_there:
      return file
    file.close()  # Another process has swept it before it was locked.


def _unfinished(path: Path, token: str) -> str:
  """Returns the name of a file until it is complete; of "*" a glob pattern."""
  name = path.name[:_NAME_LETTERS]
  if token == "*":
    name = glob.escape(name)
  return f".{name}.{token}{UNFINISHED}"


def sweep(folder: Path) -> None:
  """Deletes what killed processes have left unfinished.

  Only files of `replacing` in a folder and in those directly below it, and none
  that is being written. Where the file system has no locks all stay, as nothing
  tells whether their writer lives.
  """
  for depth in ("", "*/"):
    for path in folder.glob(f"{depth}.*{UNFINISHED}"):
      _delete_unless_locked(path)


def _delete_unless_locked(path: Path) -> None:
  if path.is_symlink() or not path.is_file():
    return
  # Gone, locked, not ours to write: another process or user looks after it.
  with contextlib.suppress(OSError), path.open("r+b") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path.unlink()


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON atomically; NaN and infinity are refused."""
  text = json.dumps(value, indent=2, allow_nan=False) + "\n"
  write_atomic(path, text.encode())
