"""Saves the state of a run and restores it, with orbax.

A checkpoint is a folder `N/` for step N, which is there as a whole or not at
all. It holds the state, `N/default/`, and `N/seal/`: checksums of all arrays,
and the run that they are of (`state_sums.py`). Versions before 0.2 wrote no
seal.
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import logging
import os
from pathlib import Path
import shutil
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vpt_jax.distributed import processes
from vpt_jax.training import run_folder, state_sums
from vpt_jax.utils import files, signals, system_errors
from vpt_jax.utils.logs import log

# What says nothing about a checkpoint: its file could not be opened at all.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)

# Part of the name of a checkpoint that is not complete; orbax gives it.
UNFINISHED = ".orbax-checkpoint-tmp"

# Seconds after an error in which a folder that is being deleted loses its lock.
WHILE_DELETED = 0.5

WITHOUT_SEAL = """\
checkpoint %s is of a version that wrote no checksums: it is taken unchecked"""

NONE_LEFT = """\
no good checkpoint is left in %s: the run starts from the beginning, and ends \
with the same result as it would have"""


class OtherRun(ValueError):
  """Says that a checkpoint is of another run."""


class OtherLayout(ValueError):
  """Says that a checkpoint is whole, but has other arrays than this version."""


class Checkpoints:
  """States of one run, by step; a half-written one is never seen.

  The primary process alone reads and writes: whole arrays, so that they come
  back onto any number of devices and processes.
  """

  def __init__(
    self, folder: Path, keep: int, run: Mapping[str, str] | None = None
  ):
    """Opens a folder.

    Args:
      folder: of the checkpoints; made if it is not there.
      keep: how many are kept.
      run: that the states are of, see `run_folder.identity`; checkpoints of
        another one are not taken.
    """
    self._folder = folder.absolute()
    self._keep = keep
    self._run = dict(run or {})
    self._orbax: ocp.AsyncCheckpointer | None = None
    self._open = contextlib.ExitStack()
    if processes.is_primary():
      self._folder.mkdir(parents=True, exist_ok=True)
      self._open.enter_context(_without_noise())
      self._orbax = _orbax_for_primary()
      for path in self._folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)  # a kill has left it

  @signals.saving()
  def save(self, step: int, state: Any) -> None:
    """Starts to write a copy of a state: the next step donates the state."""
    if self._orbax is None:
      return
    files.check_locks(self._folder)
    with self._or_lost(), system_errors.of_library(self._folder):
      self._finish(self._orbax)
      self._start_to_write(self._orbax, step, state)

  def _start_to_write(
    self, orbax: ocp.AsyncCheckpointer, step: int, state: Any
  ) -> None:
    # On CPU `device_get` would give views of what is donated.
    copied = jax.tree.map(lambda x: np.array(x, copy=True), state)
    seal = state_sums.Seal(self._run, state_sums.describe(copied))
    orbax.save(
      self._folder / str(step),
      args=ocp.args.Composite(
        default=ocp.args.StandardSave(copied),
        seal=ocp.args.JsonSave(seal.to_json()),
      ),
    )

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """Restores the newest checkpoint that is as it was saved.

    One that is not is named in the log, and kept aside under another name.

    Args:
      like: a state; what is restored has its structure and its devices.

    Returns:
      (step, state), or None if there is no checkpoint to go on from.

    Raises:
      OtherLayout: a checkpoint is whole, but of a version with other states.
      OSError: a checkpoint cannot be opened.
    """
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    step = -1  # stands for none: processes share numbers alone
    if self._orbax is not None:
      step, host = self._newest_good(self._orbax, host)
    step = int(processes.broadcast_from_primary(np.int32(step)))
    if step < 0:
      return None
    host = processes.broadcast_from_primary(host)
    return step, jax.tree.map(_place_like, host, like)

  def _newest_good(
    self, orbax: ocp.AsyncCheckpointer, like: Any
  ) -> tuple[int, Any]:
    """Returns (step, state on the host), or (-1, like) if none is good."""
    steps = self._steps()
    for step in reversed(steps):
      try:
        return step, self._read(orbax, step, like)
      except OtherRun as error:
        self._set_aside("other-run", step, error)
      except (OtherLayout, MemoryError):
        raise
      # A damaged file goes through orbax, tensorstore and json, each of which
      # has errors of its own.
      except Exception as error:
        if system_errors.number_of(error) in _NOT_DAMAGE:
          raise
        self._set_aside("damaged", step, error)
    if steps:
      log.warning(NONE_LEFT, self._folder)
    return -1, like

  def _read(self, orbax: ocp.AsyncCheckpointer, step: int, like: Any) -> Any:
    """Returns the state of a step, on the host.

    Raises:
      OtherRun: it is of another run.
      OtherLayout: it was saved with other arrays than `like` has.
      Exception: it is damaged.
    """
    path = self._folder / str(step)
    read_state = ocp.args.Composite(default=ocp.args.StandardRestore(like))
    if not (path / "seal").exists():
      log.warning(WITHOUT_SEAL, path)
      return orbax.restore(path, args=read_state)["default"]
    read_seal = ocp.args.Composite(seal=ocp.args.JsonRestore())
    saved = orbax.restore(path, args=read_seal)["seal"]
    seal = state_sums.Seal.from_json(saved)
    self._check_run(seal.run)
    self._check_layout(path, seal.arrays, like)
    state = orbax.restore(path, args=read_state)["default"]
    wrong = state_sums.difference(seal.arrays, state_sums.describe(state))
    if wrong:
      raise ValueError(wrong)
    return state

  def _check_run(self, run: Mapping[str, str]) -> None:
    differs = run_folder.difference(run, self._run)
    if differs:
      raise OtherRun(f"it is of a run with {differs}")

  def _check_layout(
    self, path: Path, saved: state_sums.Arrays, like: Any
  ) -> None:
    wanted = state_sums.layout(state_sums.describe(like))
    found = state_sums.layout(saved)
    for name in sorted(wanted.keys() | found.keys()):
      if wanted.get(name) != found.get(name):
        raise OtherLayout(
          f"checkpoint {path} is whole, but of a version whose states differ: "
          f"{name} is {found.get(name)}, expected {wanted.get(name)}; go on "
          "with that version, or start again in another --workdir"
        )

  def _set_aside(self, prefix: str, step: int, why: Exception) -> None:
    """Renames a checkpoint, so that it is neither read nor deleted."""
    name = f"{prefix}-{step}"
    count = 1
    while (self._folder / name).exists():
      count += 1
      name = f"{prefix}-{step}-{count}"
    aside = self._folder / name
    path = self._folder / str(step)
    files.check_locks(path)
    os.rename(path, aside)
    reason = str(why).strip() or repr(why)
    log.warning(
      "checkpoint %s cannot be taken: %s; %s, this one is kept as %s",
      path,
      reason.splitlines()[0][:160],
      "the one before is taken" if self._steps() else "no other is there",
      aside,
    )

  def _steps(self) -> list[int]:
    """Returns the steps of the checkpoints that are there, in order."""
    names = [path.name for path in self._folder.iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())

  def _finish(self, orbax: ocp.AsyncCheckpointer) -> None:
    """Waits for the newest checkpoint, then deletes those that are too many."""
    orbax.wait_until_finished()
    files.check_locks(self._folder)
    for step in self._steps()[: -self._keep]:
      path = self._folder / str(step)
      # Renamed first: a kill leaves no half of a checkpoint.
      deleted = path.with_name(f"{step}{UNFINISHED}-deleted")
      os.rename(path, deleted)
      shutil.rmtree(deleted, ignore_errors=True)

  @contextlib.contextmanager
  def _or_lost(self) -> Iterator[None]:
    """Says that the folder was deleted in place of what orbax cannot find then.

    Raises:
      files.Lost: see `files.check_locks`.
    """
    try:
      yield
    except Exception:
      time.sleep(WHILE_DELETED)
      files.check_locks(self._folder)
      raise

  @signals.saving()
  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._orbax is not None:
      # The last one first: what is lost is no error of the system.
      with (
        self._open,
        self._or_lost(),
        system_errors.of_library(self._folder),
      ):
        try:
          self._finish(self._orbax)
        finally:
          self._orbax.close()


def _orbax_for_primary() -> ocp.AsyncCheckpointer:
  """Returns orbax's checkpointer for the primary process alone."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
  )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
  )
  return ocp.AsyncCheckpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
  """Drops what orbax's threads say of errors of the system.

  They log pages of traceback of what they raise as well, and of callbacks that
  come too late, at any time until they end.
  """
  logger = logging.getLogger("absl")
  show = sys.unraisablehook

  def show_others(raised: Any) -> None:
    if str(raised.exc_value) != "Event loop is closed":
      show(raised)

  logger.addFilter(_is_news)
  sys.unraisablehook = show_others
  try:
    yield
  finally:
    logger.removeFilter(_is_news)
    if sys.unraisablehook is show_others:
      sys.unraisablehook = show


def _is_news(record: logging.LogRecord) -> bool:
  """Returns whether a line of orbax's log is not of an error that it raises."""
  error = record.exc_info[1] if record.exc_info else None
  if error is not None and record.levelno >= logging.ERROR:
    return False  # of a thread; who waits for it gets it
  number = system_errors.number_of(error)
  if number is None:
    number = system_errors.number_in(record.getMessage())
  return number is None


def _place_like(value: Any, like: Any) -> Any:
  """Returns a value on the devices of another one, if that is on devices."""
  if isinstance(like, jax.Array):
    return jax.device_put(value, like.sharding)
  return value
