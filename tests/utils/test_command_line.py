"""The exit status of commands, and how their errors are shown."""

import pytest

from vpt_jax.utils import command_line


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
