"""What the system refuses is found in the errors of libraries, and named."""

import errno
import os

import pytest

from vpt_jax.utils import system_errors

TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing "x/0": Failed writing: '
  "No space left on device [os_error_code='28']"
)


def caused(error, cause):
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  "error,number",
  [
    (ValueError(TENSORSTORE), errno.ENOSPC),
    (caused(RuntimeError("save failed"), ValueError(TENSORSTORE)), 28),
    (caused(RuntimeError("save failed"), OSError(errno.EROFS, "ro")), 30),
    (ValueError("no space"), None),
    (OSError("timed out"), None),
    (None, None),
  ],
)
def test_the_number_of_an_error_and_of_what_it_came_from(error, number):
  assert system_errors.number_of(error) == number


def test_errors_of_libraries_become_those_of_the_system(tmp_path):
  with pytest.raises(OSError) as caught, system_errors.of_library(tmp_path):
    raise ValueError(TENSORSTORE)
  assert caught.value.errno == errno.ENOSPC
  assert system_errors.explain(caught.value).startswith(
    f"{tmp_path}: No space left on device; make room on this disk"
  )
  with (
    pytest.raises(ValueError, match="bug"),
    system_errors.of_library(tmp_path),
  ):
    raise ValueError("a bug")


def test_all_bytes_are_written_or_the_file_is_named(tmp_path):
  class Slow:
    """Takes three bytes at a time, and none after ten."""

    def __init__(self):
      self.taken = b""

    def write(self, data):
      if len(self.taken) > 10:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      self.taken += bytes(data[:3])
      return min(3, len(data))

  file = Slow()
  system_errors.append(file, b"12345678", tmp_path)
  assert file.taken == b"12345678"
  with pytest.raises(OSError) as caught:
    system_errors.append(file, b"12345678", tmp_path)
  assert caught.value.filename == str(tmp_path)
