"""Files that are written as a whole, and locks of folders and files."""

import errno
import fcntl
import json
import os
from pathlib import Path
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from vpt_jax.utils import files, signals, system_errors

ROOT = Path(__file__).resolve().parents[2]

# Holds a lock, or a file that it writes, until it is killed, or until something
# is written to it.
HOLDER = """
import pathlib, sys
from vpt_jax.utils import files
with files.{lock}(pathlib.Path(sys.argv[1])) as held:
  if hasattr(held, "write"):
    held.write(b"half")
    held.flush()
  print("locked", flush=True)
  sys.stdin.readline()
"""


@pytest.fixture
def hold():
  """A function that starts a process which holds a lock."""
  processes = []

  def start(lock, path):
    process = subprocess.Popen(
      [sys.executable, "-c", HOLDER.format(lock=lock), str(path)],
      cwd=ROOT,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    assert process.stdout.readline() == "locked\n"
    return process

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_has_is_in_use(tmp_path, hold):
  folder = tmp_path / "run"
  holder = hold("lock", folder)
  in_use = pytest.raises(files.InUse, match=f"{folder} is in use by another")
  with in_use, files.lock(folder):
    pass
  files.clear(folder)
  assert (folder / ".lock").exists()

  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with files.lock(folder):
    pass
  files.clear(folder)
  assert not folder.exists()


def test_two_locks_of_one_process_exclude_each_other(tmp_path):
  with files.lock(tmp_path), pytest.raises(files.InUse), files.lock(tmp_path):
    pass
  with files.lock(tmp_path):
    pass


def test_the_error_of_the_work_ends_the_lock(tmp_path):
  with pytest.raises(KeyError), files.lock(tmp_path):
    raise KeyError("work")
  with files.lock(tmp_path):
    pass


def test_a_folder_that_its_owner_deletes_is_made_again(tmp_path, monkeypatch):
  folder = tmp_path / "run"
  deleted = []
  mkdir = Path.mkdir

  def deleted_at_once(self, *args, **options):
    mkdir(self, *args, **options)
    if self == folder and not deleted:
      deleted.append(self)
      shutil.rmtree(self)

  monkeypatch.setattr(Path, "mkdir", deleted_at_once)
  with files.lock(folder):
    assert deleted and (folder / ".lock").exists()


def test_a_lock_of_a_deleted_file_is_not_taken(tmp_path, monkeypatch):
  """Between opening the lock file and locking it, its owner deletes it."""
  folder = tmp_path / "run"
  deleted = []
  flock = fcntl.flock

  def deleted_before(file, how):
    if how & fcntl.LOCK_EX and not deleted:
      deleted.append(file)
      shutil.rmtree(folder)
    return flock(file, how)

  monkeypatch.setattr(fcntl, "flock", deleted_before)
  with files.lock(folder):
    assert deleted
    with pytest.raises(files.InUse), files.lock(folder):
      pass


def test_a_waiting_lock_says_that_it_waits(tmp_path, hold):
  path = tmp_path / "file.lock"
  holder = hold("waiting_lock", path)
  waits = []

  def release():
    waits.append(time.monotonic())
    threading.Timer(0.3, holder.kill).start()

  with files.waiting_lock(path, on_wait=release):
    assert len(waits) == 1
    assert time.monotonic() - waits[0] > 0.2
  with files.waiting_lock(path, on_wait=release):
    assert len(waits) == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_disk_without_locks_is_named(number, tmp_path, monkeypatch, caplog):
  def flock(file, how):
    del file, how
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with (
    caplog.at_level("WARNING", "vpt_jax"),
    files.lock(tmp_path),
    files.waiting_lock(tmp_path / "b"),
  ):
    pass
  assert caplog.text.count(f"no file locks in {tmp_path}") == 2


def test_other_errors_of_the_disk_are_raised(tmp_path, monkeypatch):
  def flock(file, how):
    del file, how
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(fcntl, "flock", flock)
  with pytest.raises(OSError, match="Input/output"), files.lock(tmp_path):
    pass


def test_files_are_written_as_a_whole(tmp_path):
  path = tmp_path / "new" / "a.json"
  files.write_json(path, {"a": [1, None]})
  assert json.loads(path.read_text()) == {"a": [1, None]}
  path.chmod(0o600)
  files.write_json(path, {})
  umask = os.umask(0)
  os.umask(umask)
  assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
  with pytest.raises(ValueError, match="JSON compliant"):
    files.write_json(path, float("nan"))
  assert path.read_text() == "{}\n"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a"
  files.write_atomic(path, b"old")

  def replace(*paths):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "replace", replace)
  with pytest.raises(OSError, match="No space"):
    files.write_atomic(path, b"new")
  assert path.read_bytes() == b"old"
  assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "taken"])
def test_nothing_is_written_into_a_folder_that_was_lost(tmp_path, hold, again):
  """A folder that is deleted under its owner, and maybe taken by another."""
  folder = tmp_path / "run"
  with files.lock(folder):
    files.write_json(folder / "deep" / "a.json", 1)
    shutil.rmtree(folder)
    if again:
      hold("lock", folder)
    for path in (folder / "b.json", folder / "deep" / "b.json"):
      with pytest.raises(files.Lost, match=f"{folder} was deleted while this"):
        files.write_json(path, 2)
    files.write_json(tmp_path / "beside.json", 3)
  assert folder.exists() == again
  assert not list(tmp_path.rglob("b.json"))


STEPS = ["open", "write", "fsync", "flock", "replace", "close"]


def interrupt(monkeypatch, step, after, error):
  """Lets a signal come before or after a step of a write."""

  def interrupted(function):
    def call(*args, **options):
      result = function(*args, **options) if after else None
      del result
      monkeypatch.undo()
      raise error

    return call

  if step in ("fsync", "replace"):
    monkeypatch.setattr(os, step, interrupted(getattr(os, step)))
  elif step == "flock":
    monkeypatch.setattr(fcntl, step, interrupted(fcntl.flock))
  elif step == "open":
    monkeypatch.setattr(
      files, "_open_unfinished", interrupted(files._open_unfinished)
    )
  else:
    opened = files._open_unfinished

    def open_unfinished(path):
      file = opened(path)
      return Interrupted(file, step, interrupted(getattr(file, step)))

    monkeypatch.setattr(files, "_open_unfinished", open_unfinished)


class Interrupted:
  """An open file of which one method is another one."""

  def __init__(self, file, name, method):
    self._file = file
    self._replaced = {name: method}

  def __getattr__(self, name):
    return self._replaced.get(name) or getattr(self._file, name)

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), signals.Preempted()])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_signal_at_any_step_of_a_write(
  step, after, error, tmp_path, monkeypatch
):
  """It stays that signal, the file is old or new, and no part outlives it.

  An `OSError` of the clean-up took its place: status 1 and `[Errno 2]`.
  """
  path = tmp_path / "a.json"
  files.write_atomic(path, b"old")
  interrupt(monkeypatch, step, after, error)
  with pytest.raises(type(error)):
    files.write_atomic(path, b"new")
  is_done = step == "close" or (step == "replace" and after)
  assert path.read_bytes() == (b"new" if is_done else b"old")
  files.sweep(tmp_path)
  assert [*tmp_path.iterdir()] == [path]
  files.write_atomic(path, b"newer")
  assert path.read_bytes() == b"newer"


def test_what_a_killed_process_left_is_swept(tmp_path, hold):
  """When the folder is locked; not what another process is writing."""
  folder = tmp_path / "run"
  alive = hold("replacing", folder / "alive.json")
  dead = hold("replacing", folder / "sub" / "dead.json")
  dead.kill()
  dead.wait()
  strangers = [folder / ".x.vpt_jax-partly", folder / ".mine.tmp"]
  for path in strangers:
    path.touch()
  pattern = f".*{files.UNFINISHED}"
  assert len([*folder.rglob(pattern)]) == 2
  with files.lock(folder):
    (left,) = folder.rglob(pattern)
  assert left.name.startswith(".alive.json.")
  assert all(path.exists() for path in strangers)
  alive.communicate("go on\n")
  assert (folder / "alive.json").read_bytes() == b"half"
  assert not [*folder.rglob(pattern)]


def test_what_a_killed_process_left_is_swept_by_the_next_write(tmp_path, hold):
  """Of the same file, in a folder that nobody locks; not of others."""
  path = tmp_path / "a[1].npz"
  for name in (path, tmp_path / "b"):
    dead = hold("replacing", name)
    dead.kill()
    dead.wait()
  alive = hold("replacing", path)
  files.write_atomic(path, b"new")
  left = sorted(x.name for x in tmp_path.iterdir() if x != path)
  assert [name.split(".")[1] for name in left] == ["a[1]", "b"]
  alive.communicate("go on\n")
  assert path.read_bytes() == b"half"


def test_a_part_that_is_swept_before_it_is_locked_is_begun_anew(
  tmp_path, monkeypatch
):
  """Between opening it and locking it another process sweeps the folder."""
  swept = []
  flock = fcntl.flock

  def sweep_before(file, how):
    if not swept:
      swept.append(file)
      files.sweep(tmp_path)
    return flock(file, how)

  monkeypatch.setattr(fcntl, "flock", sweep_before)
  files.write_atomic(tmp_path / "a", b"new")
  assert swept and (tmp_path / "a").read_bytes() == b"new"


def test_nothing_is_swept_where_there_are_no_locks(tmp_path, monkeypatch):
  part = tmp_path / f".a.0123{files.UNFINISHED}"
  part.touch()

  def flock(file, how):
    del file, how
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  files.sweep(tmp_path)
  files.write_atomic(tmp_path / "b", b"new")
  assert part.exists() and (tmp_path / "b").read_bytes() == b"new"


def test_errors_of_the_disk_name_the_file_that_was_to_be_written(tmp_path):
  """Not the hidden part; also where the system names none, as in a write."""
  path = tmp_path / "a.json"
  path.mkdir()
  with pytest.raises(OSError) as caught:
    files.write_atomic(path, b"")
  assert caught.value.filename == str(path)
  with pytest.raises(OSError) as caught, system_errors.naming(path):
    raise OSError(errno.ENOSPC, "No space left on device")
  assert caught.value.filename == str(path)
  long = tmp_path / ("n" * 250)  # at most 255 bytes are a name
  files.write_atomic(long, b"long")
  assert long.read_bytes() == b"long"
