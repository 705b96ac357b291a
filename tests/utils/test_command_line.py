"""The exit status of commands, and how their errors are shown."""

import errno
import os
from pathlib import Path
import subprocess
import sys

import pytest

from vpt_jax.utils import command_line, system_errors


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_of_a_command_is_passed_on(status, capsys):
  assert command_line.exit_status(lambda: status) == status
  assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_errors_of_the_user_are_one_line(kind, capsys):
  def fails():
    raise kind("no such task")

  assert command_line.exit_status(fails) == 1
  assert capsys.readouterr() == ("", "error: no such task\n")


def test_a_bug_keeps_its_traceback():
  def fails():
    raise KeyError("layer")

  with pytest.raises(KeyError):
    command_line.exit_status(fails)


@pytest.mark.parametrize("number", [*system_errors.ADVICE])
def test_what_the_system_refuses_is_said_with_path_and_advice(number, capsys):
  """Full and read-only disks, permissions, limits: a sentence, never a code."""

  def fails():
    raise OSError(number, os.strerror(number), "/data/a.json")

  assert command_line.exit_status(fails) == 1
  err = capsys.readouterr().err
  start = f"error: /data/a.json: {os.strerror(number)}; "
  assert err.startswith(start + system_errors.ADVICE[number])
  assert "Errno" not in err and err.count("\n") == 1


def test_a_full_disk_without_a_path():
  error = OSError(errno.ENOSPC, "No space left on device")
  assert system_errors.explain(error) == (
    "No space left on device; make room on this disk, or name a folder on "
    "another one; the same command resumes"
  )


def test_errors_of_the_system_hold_no_numbers(tmp_path):
  """Real ones, with the path, also where there is nothing to advise."""
  long = tmp_path / ("x" * 300)
  folder, missing = tmp_path / "folder", tmp_path / "missing"
  folder.mkdir()
  (folder / "file").touch()
  for work in (
    long.touch,
    missing.read_text,
    folder.read_text,
    (folder / "file" / "x").mkdir,
    folder.rmdir,
    lambda: missing.rename(folder),
  ):
    with pytest.raises(OSError) as caught:
      work()
    text = system_errors.explain(caught.value)
    assert str(caught.value.filename) in text and "Errno" not in text
    assert caught.value.strerror in text


# The first runs other modules as themselves, the others work for a command.
OTHER_PROGRAMS = {
  "vpt_jax/__main__.py",
  "vpt_jax/bench/jax_side.py",
  "vpt_jax/bench/pytorch_side.py",
}


def test_every_command_listens_to_signals():
  """As the whole program, so that none is lost and none hangs at the end."""
  package = Path(command_line.__file__).parents[1]
  found = 0
  for path in package.rglob("*.py"):
    _, is_program, end = path.read_text().partition('if __name__ == "__main__"')
    name = str(path.relative_to(package.parent))
    if not is_program or name in OTHER_PROGRAMS:
      continue
    found += 1
    assert "command_line.program(" in end or "exit_with(" in end, name
  assert found > 10


@pytest.mark.parametrize("status", [0, 3])
def test_a_program_ends_with_the_status_of_its_command(status):
  code = (
    "from vpt_jax.utils import command_line\n"
    f"command_line.program(lambda: print('done') or {status})"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stdout) == (status, "done\n")
