"""Joins processes to one run: how they meet, who writes, how they end.

Only the primary process, the first one, touches the workdir: it locks, reads,
decides and writes, and the others receive its decisions. So the workdir need
not be on a shared disk.
"""

from collections.abc import Iterator
import contextlib
import re
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

from vpt_jax.utils import signals

# Seconds without a sign of life after which a process counts as lost.
HEARTBEAT_SECONDS = 30
# Seconds for which the others wait at the end for the primary process, which
# writes: to a slow disk that takes long, and when they give up it is aborted.
SHUTDOWN_SECONDS = 3600
EXPECTED = (
  "expected 'auto' (Cloud TPU or SLURM), or HOST:PORT,N,I: the first "
  "process's address, how many there are, which one this is"
)


# Ends a process whose machine is taken away.
Preempted = signals.Preempted


def join(spec: str) -> None:
  """Makes this process one of several; call it before anything else of JAX.

  Args:
    spec: "" for a single process, "auto", or "HOST:PORT,N,I".

  Raises:
    ValueError: the spec is none of these, or the others cannot be found.
  """
  if not spec:
    return
  options: dict[str, Any] = {}
  if spec != "auto":
    options = _parse(spec)
  try:
    jax.distributed.initialize(
      **options,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"--distributed={spec}: {error}; {EXPECTED}") from None


def _parse(spec: str) -> dict[str, Any]:
  """Returns the arguments of JAX for "HOST:PORT,N,I"."""
  parts = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", spec)
  if not parts or int(parts[3]) >= int(parts[2]):
    raise ValueError(f"--distributed={spec}: {EXPECTED}, from 0 on")
  return {
    "coordinator_address": parts[1],
    "num_processes": int(parts[2]),
    "process_id": int(parts[3]),
  }


def is_primary() -> bool:
  """Returns whether this process is the one that reads and writes."""
  return jax.process_index() == 0


def broadcast_from_primary(value: Any) -> Any:
  """Returns the primary process's numbers or arrays, in all processes.

  Args:
    value: a tree of numbers or arrays, of the same shapes in all processes.
  """
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(value)


def check_same(numbers: dict[str, Any], what: str) -> None:
  """Checks that all processes have the same numbers.

  Args:
    numbers: a tree, of the same structure in all processes.
    what: the numbers stand for, for the error.

  Raises:
    ValueError: they differ.
  """
  if jax.process_count() == 1:
    return
  try:
    multihost_utils.assert_equal(numbers)
  except AssertionError:
    raise ValueError(
      f"the processes do not have the same {what}, number "
      f"{jax.process_index()} has {numbers}; give all of them the same "
      "command and files"
    ) from None


class PreemptionNotice:
  """Says whether any process got SIGTERM, at the same step in all processes."""

  def __init__(self):
    self._received = False

  def __call__(self, step: int) -> bool:
    """Returns whether to stop after this step."""
    signals.alive()
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._received

  @contextlib.contextmanager
  def listening(self) -> Iterator["PreemptionNotice"]:
    """Receives SIGTERM within the context; of several processes JAX does."""
    if jax.process_count() > 1:
      yield self
      return

    def receive(*_):
      signals.alive()
      self._received = True

    try:
      previous = signal.signal(signal.SIGTERM, receive)
    except ValueError:  # Only the main thread may receive signals.
      yield self
      return
    try:
      yield self
    finally:
      signal.signal(signal.SIGTERM, previous)
