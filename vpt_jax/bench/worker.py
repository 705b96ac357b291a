"""Runs a side of the benchmark in a process of its own.

Thread pools of two libraries in one process disturb each other, and its memory
cannot be told apart. So each side has a process, and only one works at a time.

The two ends speak JSON, a line each way. First the parent sends the case. Then
for every {"do": command, "count": n} the process answers {"value": result,
"busy": CPU seconds, "idle": share} or {"error": why}.
"""

from collections.abc import Callable, Mapping
import contextlib
import json
import math
import os
from pathlib import Path
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, cast, IO, Protocol, TextIO

import numpy as np

from vpt_jax.utils import malloc

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20  # seconds that a process has to end


# What a side does on a request with a count; returns JSON values.
Command = Callable[[int], dict[str, Any]]


class Side(Protocol):
  """What runs in a worker.

  Attributes:
    commands: {name: function of a count}, which return JSON values.
  """

  commands: Mapping[str, Command]


class Failed(ValueError):
  """A side could not do what it was asked to do."""


class Worker:
  """A process with a side, as its parent sees it.

  Attributes:
    name: of the side.
    started: `time.perf_counter()` when the process was started.
    busy: CPU seconds that it used for what it was asked last.
    idle: CPU seconds that it used per second while it was not asked.
  """

  def __init__(
    self,
    name: str,
    module: str,
    case: Mapping[str, Any],
    environ: Mapping[str, str],
  ):
    """Starts a process.

    Args:
      name: of the side.
      module: what the process runs, by `python -m`.
      case: what its side is made from.
      environ: variables that it has beside those of this process.
    """
    self.name = name
    self.busy = 0.0
    self.idle = 0.0
    self._errors = tempfile.TemporaryFile()  # noqa: SIM115, `close` closes it
    python_path = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
      python_path.append(os.environ["PYTHONPATH"])
    self.started = time.perf_counter()
    self._process = subprocess.Popen(
      [sys.executable, "-m", module],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env={
        **os.environ,
        **environ,
        "PYTHONPATH": os.pathsep.join(python_path),
      },
    )
    # Both are pipes, as asked for above.
    self._requests = cast(IO[str], self._process.stdin)
    self._replies = cast(IO[str], self._process.stdout)
    self._send(case)

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _send(self, message: Mapping[str, Any]) -> None:
    # If the process has ended the pipe is broken; `ask` says how it ended.
    with contextlib.suppress(BrokenPipeError):
      self._requests.write(json.dumps(message) + "\n")
      self._requests.flush()

  def ask(self, command: str, count: int = 1) -> dict[str, Any]:
    """Has a command done, waits, and returns its result.

    Raises:
      Failed: the side could not, or the process has ended.
    """
    self._send({"do": command, "count": count})
    line = self._replies.readline()
    if not line:
      raise self._ended(command)
    reply = json.loads(line)
    if "error" in reply:
      raise Failed(f"{self.name}, {command!r}: {reply['error']}")
    self.busy = reply["busy"]
    self.idle = reply["idle"]
    return reply["value"]

  def _ended(self, command: str) -> Failed:
    """Returns the error of a process that has ended at a command."""
    status = self._process.wait()
    cause = " (killed: out of memory?)" if status == -signal.SIGKILL else ""
    last_words = self._last_words() or "none"
    return Failed(
      f"{self.name} ended with status {status} at {command!r}{cause}; its last "
      f"words: {last_words}"
    )

  def _last_words(self, lines: int = 3) -> str:
    """Returns the last lines that the process wrote to stderr."""
    self._errors.seek(0)
    text = self._errors.read().decode(errors="replace").strip()
    return " | ".join(text.splitlines()[-lines:])

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):
      self._requests.close()
    try:
      self._process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._replies.close()
    self._errors.close()


def serve(make: Callable[[dict[str, Any]], Side]) -> None:
  """Makes a side and does what the parent asks, until that closes its end.

  Args:
    make: returns the side of a case.
  """
  malloc.keep()  # in the processes of both libraries, as `main` does
  replies = _take_stdout()
  case = json.loads(sys.stdin.readline())
  side = None
  waiting = _Waiting()
  while True:
    # What happens before there is a side is no idle time of its threads.
    line = waiting.for_line() if side is not None else sys.stdin.readline()
    if not line:
      return
    request = json.loads(line)
    start = time.process_time()
    try:
      if side is None:
        side = make(case)
      value = side.commands[request["do"]](request["count"])
      busy = time.process_time() - start
      reply = {"value": value, "busy": busy, "idle": waiting.share}
    except Exception as error:  # whatever it is, the parent must hear of it
      traceback.print_exc()
      reply = {"error": _first_line(error)}
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _take_stdout() -> TextIO:
  """Returns this process' stdout, and has what libraries print go to stderr.

  It would be taken for replies.
  """
  replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  return replies


class _Waiting:
  """How much of a core this process uses while it waits for a request."""

  def __init__(self):
    self.cpu_seconds = 0.0
    self.seconds = 0.0

  def for_line(self) -> str:
    """Returns the next line of stdin."""
    cpu_start = time.process_time()
    start = time.perf_counter()
    line = sys.stdin.readline()
    self.cpu_seconds += time.process_time() - cpu_start
    self.seconds += time.perf_counter() - start
    return line

  @property
  def share(self) -> float:
    """CPU seconds per second of waiting."""
    return self.cpu_seconds / max(self.seconds, 1e-9)


def _first_line(error: Exception) -> str:
  text = str(error).strip() or "no reason given"
  return f"{type(error).__name__}: {text.splitlines()[0]}"


def cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def peak_memory() -> int:
  """Returns the most bytes that this process has had, libraries included."""
  try:
    status = Path("/proc/self/status").read_text()
  except OSError:
    status = ""
  high_water = re.search(r"VmHWM:\s*(\d+) kB", status)
  if high_water:
    return 1024 * int(high_water[1])
  # Where there is no such file; on Linux this would start from the parent's.
  unit = 1 if sys.platform == "darwin" else 1024
  return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(
  run: Callable[[], Any], wait: Callable[[Any], Any], count: int
) -> tuple[float, Any]:
  """Returns (seconds of a run, what the last run returned).

  Args:
    run: starts the work; a device may still be at it when it returns.
    wait: returns when the work is done.
    count: runs in a row, of which the mean is taken.
  """
  start = time.perf_counter()
  for _ in range(count):
    out = run()
  wait(out)
  return (time.perf_counter() - start) / count, out


def matrix(n: int) -> np.ndarray:
  """Returns random [n, n], float32; its square has entries of its own size."""
  values = np.random.default_rng(0).standard_normal((n, n), np.float32)
  return values / np.float32(n**0.5)


def matmul(
  run: Callable[[], Any], wait: Callable[[Any], Any], n: int
) -> dict[str, float]:
  """Returns {"gflops": GFLOP/s} of products of [n, n] matrices.

  It is the best of five. Each time as many in a row as take a fifth of a
  second, so that starting and waiting do not count.

  Args:
    run: starts a product.
    wait: returns when it is done.
    n: rows and columns.
  """
  timed(run, wait, 1)  # compiles
  usual, _ = timed(run, wait, 1)
  count = math.ceil(0.2 / usual)
  best = min(timed(run, wait, count)[0] for _ in range(5))
  return {"gflops": 2 * n**3 / best / 1e9}
