"""Runs commands of the command line, and shows their errors to the user."""

from collections.abc import Callable
import contextlib
import os
import sys
from typing import NoReturn

from vpt_jax.utils import signals, system_errors


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
      sys.stderr.write(f"error: {system_errors.explain(error)}\n")
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


def program(main: Callable[[], int]) -> NoReturn:
  """Runs a command as the whole program, which signals end.

  Args:
    main: the command; it returns the exit status.
  """
  leave(exit_status(signals.listen) or main())


def leave(status: int) -> NoReturn:
  """Ends the process; after an error or a signal without libraries' clean-up.

  XLA goes on compiling when a signal is heard meanwhile. The clean-up waits for
  it, minutes if the model is large, and then crashes. After an error it adds
  others to it, as of files that cannot be written either.

  Args:
    status: that `exit_status` returned.
  """
  if status:
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(status)
  sys.exit(status)
