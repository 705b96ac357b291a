"""Ends a process by a signal: with its status, and saying what is saved.

Python runs the handler of a signal in the main thread, between two of its own
instructions. While that thread is in a long call of a library nothing is heard:
XLA compiles a large model for minutes. A part of the handler that is in C runs
at once, though, and writes the signal's number to a socket
(`signal.set_wakeup_fd`), which a thread reads. If the main thread gives no sign
of life, this watcher ends the process. It saves nothing, and nothing is lost:
files are written as a whole or not at all.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

# How long the main thread may give no sign of life after a signal. Clouds,
# Kubernetes and SLURM kill after 30 seconds.
SECONDS = 25.0
VARIABLE = "VPT_JAX_STOP_SECONDS"
# Two Ctrl-C within this time are one, which a launcher has passed on as well.
_SAME_SECONDS = 0.5
_LOOK_SECONDS = 0.1  # between two looks at the main thread
_TELL_SECONDS = 2.0  # for looking what is saved

CAUSES = {signal.SIGTERM: "stopped by SIGTERM", signal.SIGINT: "interrupted"}


class Preempted(SystemExit):
  """Ends a process whose machine is taken away (SIGTERM).

  Attributes:
    code: the exit status.
  """

  code: int

  def __init__(self):
    super().__init__(128 + signal.SIGTERM)


class _State:
  """What this process has told of itself.

  Attributes:
    sign_of_life: when the main thread gave the last one.
    step: when the latest step of training was done; 0: none was.
    step_seconds: how long that step took.
    saving: a token for each context `saving` that is open.
    lost: a signal whose exception went no further, and when; None: there is
      none.
    describe_saved: returns what is saved, see `tell_saved`; None: not known.
  """

  def __init__(self) -> None:
    self.sign_of_life = 0.0
    self.step = 0.0
    self.step_seconds = 0.0
    self.saving: set[object] = set()
    self.lost: tuple[int, float] | None = None
    self.describe_saved: Callable[[], str] | None = None


_state = _State()


def alive() -> None:
  """Says that the main thread hears and gets on."""
  _state.sign_of_life = time.monotonic()


def step_done() -> None:
  """Says that a step of training is done: the next one may take as long."""
  now = time.monotonic()
  if _state.step:
    _state.step_seconds = now - _state.step
  _state.step = now
  alive()


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Keeps the watcher from ending the process within the context."""
  token = object()
  try:
    _state.saving.add(token)
    yield
  finally:
    alive()
    _state.saving.discard(token)


def tell_saved(describe: Callable[[], str] | None) -> None:
  """Takes a function that returns at any time what is saved, "" for nothing."""
  _state.describe_saved = describe


def message(number: int) -> str:
  """Returns what the user is told when a signal ends this process."""
  cause = CAUSES[signal.Signals(number)]
  if _state.describe_saved is None:
    return f"{cause}; the same command may be given again"
  try:
    saved = _state.describe_saved()
  except Exception as error:  # of whatever kind: it must not take its place
    return f"{cause}; the same command resumes ({error})"
  if not saved:
    return f"{cause}; nothing was saved yet, the same command begins again"
  return f"{cause}; saved: {saved}; the same command resumes"


def number_of(error: BaseException | None) -> int | None:
  """Returns the signal that an exception is of, or is a consequence of.

  Clean-up that a signal began may fail in its turn. Then it is the signal that
  ends the process nevertheless.
  """
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    if isinstance(error, Preempted):
      return signal.SIGTERM
    if isinstance(error, KeyboardInterrupt):
      return signal.SIGINT
    seen.add(id(error))
    error = error.__context__
  return None


def listen() -> int:
  """Ends this process on SIGTERM wherever it is; call it in the main thread.

  In training `PreemptionNotice` takes over and saves first. Without a handler
  the first process of a container would ignore the signal.

  Returns:
    The exit status, 0.

  Raises:
    ValueError: the variable VPT_JAX_STOP_SECONDS is no number of seconds.
  """

  def stop(*_):
    alive()
    raise Preempted

  seconds = _seconds()
  signal.signal(signal.SIGTERM, stop)
  sys.unraisablehook = _noting_lost(sys.unraisablehook)
  ear, mouth = socket.socketpair()
  mouth.setblocking(False)
  signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
  # A forked process shares the socket: what it hears is not for this one.
  os.register_at_fork(after_in_child=_close_mouth)
  threading.Thread(
    target=_watch, args=(ear, mouth, seconds), name="signals", daemon=True
  ).start()
  return 0


def _noting_lost(show: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """Returns a `sys.unraisablehook` that notes signals which were lost.

  An exception that a handler raises in a callback of the garbage collector or
  of a weak reference, or in a `__del__`, goes no further, and JAX has many of
  them. The watcher sends the signal once more.

  Args:
    show: the hook for all other exceptions.
  """

  def hook(raised: Any) -> None:
    if isinstance(raised.exc_value, (KeyboardInterrupt, Preempted)):
      number = number_of(raised.exc_value) or signal.SIGINT
      _state.lost = (number, time.monotonic())
    else:
      show(raised)

  return hook


def _seconds() -> float:
  text = os.environ.get(VARIABLE, "")
  try:
    seconds = float(text or SECONDS)
  except ValueError:
    seconds = -1.0
  if not seconds > 0:
    raise ValueError(
      f"{VARIABLE}={text} in the environment; expected how many seconds a "
      f"process may take to hear SIGTERM, more than 0, by default {SECONDS:g}"
    )
  return seconds


def _close_mouth() -> None:
  with contextlib.suppress(ValueError):  # Not in the main thread.
    signal.set_wakeup_fd(-1)


def _watch(ear: socket.socket, mouth: socket.socket, seconds: float) -> None:
  """Ends the process if a signal stays unheard; the watcher's whole life.

  Args:
    ear: gives a byte for each signal, its number.
    mouth: its other end, which must stay open as long.
    seconds: how long the main thread may give no sign of life.
  """
  del mouth
  first: dict[int, float] = {}  # signal -> when it came first
  sent_again: list[int] = []  # and not yet heard
  while True:
    ready, _, _ = select.select([ear], [], [], _LOOK_SECONDS if first else None)
    now = time.monotonic()
    for number in ear.recv(64) if ready else b"":
      if number in sent_again:
        sent_again.remove(number)
        continue
      if number not in CAUSES:
        continue
      is_again = now - first.setdefault(number, now) > _SAME_SECONDS
      if number == signal.SIGINT and is_again:
        _end(number)
    # Not while the main thread is still in the hook, which would lose it, too.
    if _state.lost is not None and now - _state.lost[1] > _LOOK_SECONDS:
      number, _ = _state.lost
      _state.lost = None
      sent_again.append(number)
      signal.pthread_kill(threading.main_thread().ident or 0, number)
    if _state.saving:
      continue
    patience = max(seconds, 2 * _state.step_seconds)
    for number, came in first.items():
      silent_since = max(came, _state.sign_of_life)
      if now - silent_since > patience:
        _end(number)


def _end(number: int) -> None:
  """Ends the process at once; nothing of it is cleaned up."""
  texts = [f"{CAUSES[signal.Signals(number)]}; the same command resumes"]
  # A disk that hangs must not keep it.
  teller = threading.Thread(
    target=lambda: texts.append(message(number)), daemon=True
  )
  teller.start()
  teller.join(_TELL_SECONDS)
  with contextlib.suppress(OSError):
    os.write(2, f"\n{texts[-1]}\n".encode())
  os._exit(128 + number)
