"""Saving and resuming a run (orbax), and the adapter file (npz)."""

import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vpt_jax.distributed import processes
from vpt_jax.utils import files, trees


class Checkpoints:
  """States of one run, by step; a half-written one is never seen.

  The first process alone reads and writes: whole arrays, so that they come back
  onto any number of devices and processes.
  """

  def __init__(self, folder: Path, keep: int):
    self._manager = (
      ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
          max_to_keep=keep,
          cleanup_tmp_directories=True,
          create=False,
          multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=0,
            active_processes={0},
            barrier_sync_key_prefix="first",
          ),
        ),
      )
      if _made(folder)
      else None
    )
    latest = self._manager.latest_step() if self._manager else None
    latest = int(processes.broadcast_from_primary(np.int32(-1 if latest is None else latest)))
    # Of the newest complete checkpoint when this run began; None: there is none
    self.latest = None if latest < 0 else latest

  def save(self, step: int, state: Any) -> None:
    """Starts to write a copy of a state: the next step donates the state."""
    if self._manager:
      # On CPU `device_get` would give views of what is donated.
      state = jax.tree.map(lambda x: np.array(x, copy=True), state)
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, like: Any) -> Any:
    """The latest state, with the structure and placement of `like`."""
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    if self._manager:
      host = self._manager.restore(
        self.latest, args=ocp.args.StandardRestore(host)
      )
    return jax.tree.map(
      lambda x, to: (
        jax.device_put(x, to.sharding) if isinstance(to, jax.Array) else x
      ),
      processes.broadcast_from_primary(host),
      like,
    )

  def close(self) -> None:
    """Waits until everything is on disk."""
    if self._manager:
      self._manager.wait_until_finished()
      self._manager.close()


def _made(folder: Path) -> bool:
  """Makes the folder, in the first process; whether this is it."""
  if processes.is_primary():
    folder.mkdir(parents=True, exist_ok=True)
  return processes.is_primary()


def save_adapter(path: Path, flat: trees.Flat, meta: dict[str, Any]) -> None:
  """One file with the trained parameters and what they belong to.

  Args:
    path: of the npz.
    flat: flat tree; stored as float32.
    meta: JSON values; see `main.py` for the fields.
  """
  buffer = io.BytesIO()
  arrays = {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}
  np.savez(buffer, meta=json.dumps(meta), **arrays)
  files.write_atomic(path, buffer.getvalue())


def read_adapter(path: str | os.PathLike) -> tuple[trees.Flat, dict[str, Any]]:
  """(trained parameters, meta) of an adapter file; never unpickles.

  Raises:
    ValueError: the file is missing, damaged or no adapter.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays.pop("meta")))
  except FileNotFoundError:
    raise ValueError(f"no adapter at {path}") from None
  except Exception as error:
    raise ValueError(
      f"{path} is not an adapter file of vpt_jax: {error!r}"
    ) from None
  # How attention was computed is not part of the model: any machine reads it.
  if "compute" in meta.get("config", {}):
    meta["config"]["compute"]["attention"] = "ours"
  return arrays, meta


def check_backbone(
  path: str | os.PathLike, trained_on: dict[str, str], builds: dict[str, str]
) -> None:
  """Raises ValueError unless a saved file fits the backbone of a config.

  Args:
    path: of the saved file, for the error.
    trained_on: {name, sha256} of the backbone that it was trained on.
    builds: the same of the backbone at hand.
  """
  if trained_on != builds:
    raise ValueError(
      f"checkpoint {path} was trained on backbone {trained_on['name']} "
      f"(sha256 {trained_on['sha256'][:8]}..), this config builds "
      f"{builds['name']} (sha256 {builds['sha256'][:8]}..)"
    )
