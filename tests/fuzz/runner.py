"""Runs cases in processes of their own, under limits of time and memory."""

from collections import Counter
from collections.abc import Callable
import multiprocessing
from multiprocessing.connection import Connection
import os
from pathlib import Path
import resource
import tempfile
import traceback
from typing import NamedTuple

import numpy as np

from tests.fuzz import outcomes
from tests.fuzz.outcomes import Outcome

# Above `outcomes.MOST`, so that memory is measured rather than refused.
_ADDRESS_SPACE = 8 * 2**30

KindMaker = Callable[[], "object"]


class Fault(NamedTuple):
  """A case that went wrong."""

  number: int
  outcome: Outcome


def random_numbers(number: int) -> np.random.Generator:
  """Returns the generator of a case: always the same for its number."""
  return np.random.default_rng([number, 2026])


def run(
  make_kind: KindMaker,
  folder: Path,
  count: int,
  first: int = 0,
  longest: float = outcomes.LONGEST,
  most: int = outcomes.MOST,
) -> tuple[Counter[str], list[Fault]]:
  """Runs cases of a kind one after the other.

  Args:
    make_kind: returns the kind; a module's class or function, as it is called
      in another process.
    folder: with the sound files, see `kinds.Kind`.
    count: of cases.
    first: number of the first case.
    longest: seconds that a case may take.
    most: bytes of memory that a process may have.

  Returns:
    (how often each outcome came, the faults).
  """
  counts: Counter[str] = Counter()
  faults = []
  worker = _Worker(make_kind, folder, most)
  try:
    for number in range(first, first + count):
      outcome = worker.run(number, longest)
      counts[outcome.kind] += 1
      if outcome.kind in outcomes.FAULTS:
        faults.append(Fault(number, outcome))
  finally:
    worker.end()
  return counts, faults


class _Worker:
  """A process that runs cases, started anew where one ends or blocks it."""

  def __init__(self, make_kind: KindMaker, folder: Path, most: int):
    self._make_kind = make_kind
    self._folder = folder
    self._most = most
    self._start()

  def _start(self) -> None:
    # A fork of a process that runs JAX could block.
    context = multiprocessing.get_context("spawn")
    self._pipe, pipe_of_worker = context.Pipe()
    self._process = context.Process(
      target=_serve,
      args=(self._make_kind, self._folder, self._most, pipe_of_worker),
      daemon=True,
    )
    self._process.start()
    pipe_of_worker.close()
    ready = self._pipe.recv()  # after imports, which may take long
    if ready is not None:
      raise RuntimeError(ready)

  def run(self, number: int, longest: float) -> Outcome:
    self._pipe.send(number)
    try:
      if self._pipe.poll(longest):
        return self._pipe.recv()
      outcome = Outcome(outcomes.HANG, f"longer than {longest} seconds")
    except EOFError:
      self._process.join()
      outcome = Outcome(outcomes.DEATH, f"exit status {self._process.exitcode}")
    self.end()
    self._start()
    return outcome

  def end(self) -> None:
    self._process.kill()
    self._process.join()
    self._pipe.close()


def _serve(
  make_kind: KindMaker, folder: Path, most: int, pipe: Connection
) -> None:
  """Runs the cases that come through a pipe."""
  with tempfile.TemporaryDirectory() as scratch:
    try:
      kind = make_kind()
      kind.open(folder, Path(scratch))  # type: ignore[attr-defined]
    except Exception:
      pipe.send(traceback.format_exc())
      return
    _limit_address_space()
    pipe.send(None)
    while True:
      try:
        number = pipe.recv()
      except EOFError:
        return
      _reset_peak()
      outcome = kind.run(random_numbers(number))  # type: ignore[attr-defined]
      peak = _peak()
      if peak > most:
        outcome = Outcome(outcomes.MEMORY, f"{peak / 2**30:.1f} GiB")
      pipe.send(outcome)


def _limit_address_space() -> None:
  """Lets this process have so much more, so that the machine stays alive."""
  pages = int(Path("/proc/self/statm").read_text().split()[0])
  limit = pages * os.sysconf("SC_PAGE_SIZE") + _ADDRESS_SPACE
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _reset_peak() -> None:
  Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
  """Returns the most bytes of memory that were used since `_reset_peak`."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith("VmHWM:"):
      return int(line.split()[1]) * 1024
  raise OSError("/proc/self/status has no VmHWM")
