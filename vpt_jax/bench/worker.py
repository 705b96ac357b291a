"""A side of the benchmark: a process of its own that does one thing when asked.

Thread pools of two libraries in one process disturb each other, and its memory
can't be told apart. So each side has a process, and only one works at a time.
They speak JSON, a line each way: {"do": command, "count": n} and its result.
"""

from collections.abc import Callable, Mapping
import json
import math
import os
from pathlib import Path
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any, Protocol

import numpy as np

from vpt_jax.utils import malloc

ROOT = Path(__file__).resolve().parents[2]


class Side(Protocol):
  """What runs in a worker: commands that take a count and give JSON values."""

  commands: Mapping[str, Callable[[int], dict[str, Any]]]


class Failed(ValueError):
  """A side could not do what it was asked; says why."""


class Worker:
  """The parent's end.

  Attributes:
    name: of the side.
    started: `time.perf_counter()` when the process was started.
    idle: CPU seconds that it used per second while it was not asked.
  """

  def __init__(
    self,
    name: str,
    module: str,
    case: Mapping[str, Any],
    environ: Mapping[str, str],
  ):
    """Starts `python -m MODULE`, whose side is made from `case`."""
    self.name, self.idle = name, 0.0
    self._errors = tempfile.TemporaryFile()
    path = os.pathsep.join(
      filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    )
    self.started = time.perf_counter()
    self._process = subprocess.Popen(
      [sys.executable, "-m", module],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env={**os.environ, **environ, "PYTHONPATH": path},
    )
    self._send(case)

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _send(self, message: Mapping[str, Any]) -> None:
    try:
      self._process.stdin.write(json.dumps(message) + "\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # it has ended; `ask` says how

  def ask(self, command: str, count: int = 1) -> dict[str, Any]:
    """Has it done, and waits.

    Raises:
      Failed: it could not, or the process has ended.
    """
    self._send({"do": command, "count": count})
    line = self._process.stdout.readline()
    if not line:
      status = self._process.wait()
      raise Failed(
        f"{self.name} ended with status {status} at {command!r}"
        f"{' (killed: out of memory?)' * (status == -9)}; its last "
        f"words: {self._last_words() or 'none'}"
      )
    reply = json.loads(line)
    if "error" in reply:
      raise Failed(f"{self.name}, {command!r}: {reply['error']}")
    self.idle = reply["idle"]
    return reply["value"]

  def _last_words(self, lines: int = 3) -> str:
    self._errors.seek(0)
    text = self._errors.read().decode(errors="replace").strip()
    return " | ".join(text.splitlines()[-lines:])

  def close(self) -> None:
    """Ends the process."""
    try:
      self._process.stdin.close()
    except BrokenPipeError:
      pass
    try:
      self._process.wait(20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._errors.close()


def serve(make: Callable[[dict[str, Any]], Side]) -> None:
  """The process' end: makes its side and does what it is asked."""
  malloc.keep()  # both sides, as `main` does
  # What libraries write to stdout would be taken for replies.
  replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  case, side, idle = json.loads(sys.stdin.readline()), None, [0.0, 0.0]
  while True:
    since = time.process_time(), time.perf_counter()
    line = sys.stdin.readline()
    if not line:
      return
    if side is not None:
      idle[0] += time.process_time() - since[0]
      idle[1] += time.perf_counter() - since[1]
    asked = json.loads(line)
    try:
      side = side or make(case)
      reply = {
        "value": side.commands[asked["do"]](asked["count"]),
        "idle": idle[0] / max(idle[1], 1e-9),
      }
    except Exception as error:  # whatever it is, the parent must hear of it
      traceback.print_exc()
      text = str(error).strip() or "no reason given"
      reply = {"error": f"{type(error).__name__}: {text.splitlines()[0]}"}
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def cores() -> int:
  """How many this process may use."""
  return (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1
  )


def peak_memory() -> int:
  """Most bytes of memory that this process has had, libraries included."""
  try:
    status = Path("/proc/self/status").read_text()
    # Not `ru_maxrss`: that starts from the parent's.
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
  except (OSError, TypeError):
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(
  run: Callable[[], Any], wait: Callable[[Any], Any], count: int
) -> tuple[float, Any]:
  """(seconds of one of `count` runs in a row, what the last one gave).

  Args:
    run: starts the work; a device may go on after it has returned.
    wait: returns when the work is done.
    count: of runs.
  """
  start = time.perf_counter()
  for _ in range(count):
    out = run()
  wait(out)
  return (time.perf_counter() - start) / count, out


def matrix(n: int) -> np.ndarray:
  """Random [n, n] whose square has entries of its own size, float32."""
  return np.random.default_rng(0).standard_normal(
    (n, n), np.float32
  ) / np.float32(n**0.5)


def matmul(
  run: Callable[[], Any], wait: Callable[[Any], Any], n: int
) -> dict[str, float]:
  """{"gflops": GFLOP/s} of products of [n, n] matrices: the best of five.

  Each time as many in a row as take a fifth of a second, so that starting and
  waiting do not count.
  """
  timed(run, wait, 1)
  count = math.ceil(0.2 / timed(run, wait, 1)[0])
  best = min(timed(run, wait, count)[0] for _ in range(5))
  return {"gflops": 2 * n**3 / best / 1e9}
