"""This process and others: how they meet, who writes, how they end.

Only the first process touches the workdir: it locks, reads, decides and writes;
the others hear of it. So the workdir need not be on a shared disk.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import os
from pathlib import Path
import platform
import re
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

# Seconds without a sign of life after which a process counts as lost, and for
# which the others wait at the end for the first one, which writes: to a slow
# disk that takes long, and at the wait's end it would be aborted.
LOST, GOODBYE = 30, 3600
EXPECTED = (
  "expected 'auto' (Cloud TPU or SLURM), or HOST:PORT,N,I: the first "
  "process's address, how many there are, which one this is"
)


class Preempted(SystemExit):
  """The machine is taken away (SIGTERM); everything is saved."""

  def __init__(self):
    super().__init__(128 + signal.SIGTERM)


def join(spec: str) -> None:
  """Makes this process one of several; before anything else of JAX.

  Args:
    spec: "" for a single process, "auto", or "HOST:PORT,N,I".

  Raises:
    ValueError: none of these, or the others cannot be found.
  """
  if not spec:
    return
  options: dict[str, Any] = {}
  if spec != "auto":
    parts = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", spec)
    if not parts or not int(parts[3]) < int(parts[2]):
      raise ValueError(f"--distributed={spec}: {EXPECTED}, from 0 on")
    options = {
      "coordinator_address": parts[1],
      "num_processes": int(parts[2]),
      "process_id": int(parts[3]),
    }
  try:
    jax.distributed.initialize(
      **options,
      heartbeat_timeout_seconds=LOST,
      shutdown_timeout_seconds=GOODBYE,
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"--distributed={spec}: {error}; {EXPECTED}") from None


def cache_programs() -> None:
  """Keeps compiled programs on disk; a variable of JAX's own goes first.

  In `$VPT_JAX_CACHE/programs`, or ~/.cache/vpt_jax/programs, for every kind of
  processor apart: JAX does not tell them apart, and a program for another one
  may crash. The folder may be deleted at any time.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  try:
    found = re.search(
      r"^(flags|Features)\s*:.*",
      Path("/proc/cpuinfo").read_text(),
      re.MULTILINE,
    )
  except OSError:
    found = None
  kind = hashlib.sha256(
    (found[0] if found else platform.processor()).encode()
  ).hexdigest()[:12]
  root = os.environ.get("VPT_JAX_CACHE") or "~/.cache/vpt_jax"
  jax.config.update(
    "jax_compilation_cache_dir",
    str(Path(root).expanduser() / "programs" / f"{platform.machine()}-{kind}"),
  )
  # The many small ones of a start take longer than the few large ones.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def heed_sigterm() -> None:
  """Ends this process on SIGTERM wherever it is, as `Notice` does in training.

  The first process of a container would not hear of it otherwise.
  """

  def stop(*_):
    raise Preempted

  signal.signal(signal.SIGTERM, stop)


def first() -> bool:
  """This process is the one that reads and writes."""
  return jax.process_index() == 0


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
  """A device had no memory left."""
  return "RESOURCE_EXHAUSTED" in str(error)


def agreed(value: Any) -> Any:
  """The first process's numbers or arrays, in all processes."""
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(value)


def check_same(numbers: dict[str, Any], what: str) -> None:
  """Raises ValueError if the processes' trees of numbers are not the same."""
  if jax.process_count() > 1:
    try:
      multihost_utils.assert_equal(numbers)
    except AssertionError:
      raise ValueError(
        f"the processes do not have the same {what}, number "
        f"{jax.process_index()} has {numbers}; give all of them the same "
        "command and files"
      ) from None


class Notice:
  """Tells whether SIGTERM has come: of any process, at the same step in all."""

  def __init__(self):
    self._given = False

  def __call__(self, step: int) -> bool:
    """Whether to stop after this step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._given

  @contextlib.contextmanager
  def listening(self) -> Iterator["Notice"]:
    """Hears SIGTERM until it is left; JAX does where processes are several."""
    if jax.process_count() > 1:
      yield self
      return

    def hear(*_):
      self._given = True

    try:
      before = signal.signal(signal.SIGTERM, hear)
    except ValueError:  # not the main thread: no signals
      yield self
      return
    try:
      yield self
    finally:
      signal.signal(signal.SIGTERM, before)
