"""Joins processes to one run: how they meet, who writes, how they end.

Only the primary process, the first one, touches the workdir: it locks, reads,
decides and writes, and the others receive its decisions. So the workdir need
not be on a shared disk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from vpt_jax.utils import signals

# Seconds without a sign of life after which a process counts as lost.
HEARTBEAT_SECONDS = 30
# Seconds for which the others wait at the end for the primary process, which
# writes: to a slow disk that takes long, and when they give up it is aborted.
SHUTDOWN_SECONDS = 3600
# Seconds for which processes wait at the start until all are there.
START_SECONDS = 300
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
    ValueError: the spec is none of these, the port is taken, or the others
      cannot be found.
  """
  if not spec:
    return
  options: dict[str, Any] = {}
  if spec != "auto":
    options = _parse(spec)
    if options["process_id"] == 0:
      _check_free(spec, int(options["coordinator_address"].split(":")[-1]))
  try:
    with _giving_up(spec):
      jax.distributed.initialize(
        **options,
        initialization_timeout=2 * START_SECONDS,
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


def _check_free(spec: str, port: int) -> None:
  """Checks that the first process may listen on its port.

  JAX ends with a segmentation fault if it may not.

  Raises:
    ValueError: it may not.
  """
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  try:
    with socket.socket(family) as probe:
      # What a run has left that ended a moment ago does not count.
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      if family == socket.AF_INET6:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
      probe.bind(("", port))
      probe.listen()
  except (OSError, OverflowError) as error:
    why = getattr(error, "strerror", None) or str(error)
    raise ValueError(
      f"--distributed={spec}: the first process cannot listen on port {port} "
      f"({why}); end what has it, perhaps an earlier run, or give all "
      "processes another port, from 1024 to 65535"
    ) from None


@contextlib.contextmanager
def _giving_up(spec: str) -> Iterator[None]:
  """Ends the process with a sentence if the context lasts too long.

  JAX itself would abort it, with pages of C++.
  """

  def give_up() -> None:
    sys.stderr.write(f"error: {_nobody_there(spec)}\n")
    sys.stderr.flush()
    os._exit(1)

  timer = threading.Timer(START_SECONDS, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _nobody_there(spec: str) -> str:
  """Returns what to say when the processes have not found each other."""
  if spec == "auto":
    return (
      f"--distributed=auto: not all processes were there within "
      f"{START_SECONDS} s; start them all at about the same time, and look "
      "for one that has ended with an error"
    )
  address, count, number = spec.split(",")
  who = f"not all {count} processes were there"
  if number != "0":
    who = f"no answer from the first process at {address}"
  return (
    f"--distributed={spec}: {who} within {START_SECONDS} s; start all "
    "processes at about the same time, with an address of the first one that "
    "the others can reach, and look for one that has ended with an error"
  )


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


def gather_texts(text: str) -> list[str]:
  """Returns the texts of all processes, in all processes.

  Args:
    text: of this process; others may have longer ones.
  """
  content = text.encode()
  if jax.process_count() == 1:
    return [text]
  sizes = multihost_utils.process_allgather(np.int32(len(content)))
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(content)] = np.frombuffer(content, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  texts = []
  for row, size in zip(rows, sizes, strict=True):
    texts.append(np.asarray(row, np.uint8)[:size].tobytes().decode())
  return texts


def check_same(
  value: Mapping[str, Any],
  what: str,
  difference: Callable[[Any, Any], Sequence[str]],
) -> None:
  """Checks that all processes have the same value.

  Args:
    value: as JSON can hold it.
    what: it is, for the error.
    difference: returns lines that say where two of them differ.

  Raises:
    ValueError: they differ; in all processes, with what differs.
  """
  first, *others = map(json.loads, gather_texts(json.dumps(value)))
  for number, other in enumerate(others, 1):
    if other != first:
      lines = "\n  ".join(difference(first, other))
      raise ValueError(
        f"the processes do not have the same {what}; give all of them the same "
        f"command and files. In the first one -> in number {number}:\n  {lines}"
      )


# The process that has started JAX; 0: none has.
_starter = 0


def check_not_forked() -> None:
  """Checks that JAX was not started in a process that this one is a fork of.

  Its threads are not in the fork, which would wait for them for ever. To be
  called by all that starts JAX.

  Raises:
    ValueError: it was.
  """
  global _starter
  if _starter not in (0, os.getpid()):
    raise ValueError(
      f"this process ({os.getpid()}) is a fork of one that has started JAX "
      f"({_starter}), and would wait for ever: JAX does not outlive a fork. "
      "Start processes by 'spawn' (multiprocessing.get_context('spawn'), "
      "DataLoader(multiprocessing_context='spawn')) and load the adapter "
      "there, or predict in the first process"
    )
  _starter = os.getpid()


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
