"""Runs commands of the command line, and shows their errors to the user."""

from collections.abc import Callable
import sys


def exit_status(work: Callable[[], int]) -> int:
  """Returns the exit status of a command, with its error shown on stderr.

  A mistake of the user, or a file or network that fails, is one line
  `error: ...` rather than a traceback. Any other exception is a bug of the
  program and is not caught.

  Args:
    work: the command; it returns its exit status.

  Returns:
    What `work` returned, or 1 after a ValueError or an OSError.
  """
  try:
    return work()
  except (ValueError, OSError) as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
