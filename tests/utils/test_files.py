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

from vpt_jax.utils import files

ROOT = Path(__file__).resolve().parents[2]

# Holds a lock until it is killed, or until something is written to it.
HOLDER = """
import pathlib, sys
from vpt_jax.utils import files
with files.{lock}(pathlib.Path(sys.argv[1])):
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
