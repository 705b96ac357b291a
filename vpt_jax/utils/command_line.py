"""Runs commands of the command line, and shows their errors to the user."""

from collections.abc import Callable
import contextlib
import errno
import os
import sys
from typing import NoReturn

from vpt_jax.utils import signals

# What to do about errors of the system that a user can mend.
ADVICE = {
  errno.ENOSPC: "make room on this disk, or name a folder on another one",
  errno.EDQUOT: "delete files, or name a folder on a disk with a larger quota",
  errno.EACCES: "change its permissions, or name another path",
  errno.EPERM: "change its permissions, or name another path",
  errno.EROFS: "name a folder that can be written to",
  errno.EMFILE: "raise the limit of open files (`ulimit -n 4096`)",
  errno.ENFILE: "the whole machine has too many open files: end programs",
  errno.ENAMETOOLONG: "give it a shorter name",
  errno.ENOTDIR: "a part of the path is a file; name another path",
  errno.EISDIR: "expected a file, this is a folder",
  errno.ENOMEM: "this machine is out of memory: end programs",
}
_AGAIN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)


def exit_status(work: Callable[[], int]) -> int:
  """Returns the exit status of a command, with its error shown on stderr.

  A mistake of the user, or a file or network that fails, is one line
  `error: ...` rather than a traceback, and so is the end by a signal. Any other
  exception is a bug of the program and is not caught.

  Args:
    work: the command; it returns its exit status.

  Returns:
    What `work` returned; 1 after a ValueError or an OSError; 130 after Ctrl-C,
    143 after SIGTERM.
  """
  _print_any_text()
  try:
    return work()
  except (Exception, KeyboardInterrupt, signals.Preempted) as error:
    number = signals.number_of(error)
    is_error = isinstance(error, (ValueError, OSError))
    if number is None and not is_error:
      raise
    if is_error:
      sys.stderr.write(f"error: {explain(error)}\n")
    if number is None:
      return 1
    # Libraries that are cut off in their middle complain when they are deleted.
    sys.unraisablehook = _say_nothing
    sys.stderr.write(f"{signals.message(number)}\n")
    return 128 + number


def _print_any_text() -> None:
  """Lets stdout escape what the terminal's encoding lacks, as stderr does.

  A path that is no UTF-8 is no reason to stop.
  """
  reconfigure = getattr(sys.stdout, "reconfigure", None)
  if reconfigure is not None:  # what stands for it in a notebook has none
    reconfigure(errors="backslashreplace")


def _say_nothing(_: object) -> None:
  """Takes the place of what writes exceptions that nobody can catch."""


def explain(error: BaseException) -> str:
  """Returns what an error says, and what to do where the system refuses."""
  if not isinstance(error, OSError) or error.errno not in ADVICE:
    return str(error)
  where = error.filename or "a file whose name is not known"
  again = ""
  if error.errno in _AGAIN:
    again = "; the same command resumes"
  return f"{where}: {error.strerror}; {ADVICE[error.errno]}{again}"


def leave(status: int) -> NoReturn:
  """Ends the process; after a signal without the clean-up of Python and JAX.

  XLA goes on compiling when a signal is heard meanwhile. The clean-up waits for
  it, minutes if the model is large, and then crashes.

  Args:
    status: that `exit_status` returned.
  """
  if status > 128:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(status)
  sys.exit(status)
