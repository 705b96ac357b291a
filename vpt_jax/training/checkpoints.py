"""Saves the state of a run and restores it, with orbax."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vpt_jax.distributed import processes


class Checkpoints:
  """States of one run, by step; a half-written one is never seen.

  The primary process alone reads and writes: whole arrays, so that they come
  back onto any number of devices and processes.

  Attributes:
    latest: step of the newest complete checkpoint when this run began; None:
      there is none.
  """

  def __init__(self, folder: Path, keep: int):
    """Opens a folder.

    Args:
      folder: of the checkpoints; made if it is not there.
      keep: how many are kept.
    """
    self._manager: ocp.CheckpointManager | None = None
    newest = None
    if processes.is_primary():
      folder.mkdir(parents=True, exist_ok=True)
      self._manager = _manager(folder, keep)
      newest = self._manager.latest_step()
    # -1 is sent for none: processes share numbers alone.
    step = int(
      processes.broadcast_from_primary(
        np.int32(-1 if newest is None else newest)
      )
    )
    self.latest = None if step < 0 else step

  def save(self, step: int, state: Any) -> None:
    """Starts to write a copy of a state: the next step donates the state."""
    if self._manager is None:
      return
    # On CPU `device_get` would give views of what is donated.
    copied = jax.tree.map(lambda x: np.array(x, copy=True), state)
    self._manager.save(step, args=ocp.args.StandardSave(copied))

  def restore(self, like: Any) -> Any:
    """Returns the latest state, structured and placed on devices as `like`."""
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    if self._manager is not None:
      host = self._manager.restore(
        self.latest, args=ocp.args.StandardRestore(host)
      )
    return jax.tree.map(
      _place_like, processes.broadcast_from_primary(host), like
    )

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._manager is not None:
      self._manager.wait_until_finished()
      self._manager.close()


def _manager(folder: Path, keep: int) -> ocp.CheckpointManager:
  """Returns orbax's manager for the primary process alone."""
  alone = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
  )
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    cleanup_tmp_directories=True,
    create=False,
    multiprocessing_options=alone,
  )
  return ocp.CheckpointManager(folder.absolute(), options=options)


def _place_like(value: Any, like: Any) -> Any:
  """Returns a value on the devices of another one, if that is on devices."""
  if isinstance(like, jax.Array):
    return jax.device_put(value, like.sharding)
  return value
