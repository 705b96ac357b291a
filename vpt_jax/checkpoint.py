"""Saving and resuming a run (orbax), and the adapter file (npz)."""

import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from vpt_jax import files, tree


class Checkpoints:
  """Train states of one run, by step; a half-written one is never seen."""

  def __init__(self, folder: Path, keep: int):
    self._manager = ocp.CheckpointManager(
        folder.absolute(), options=ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True))

  @property
  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any) -> None:
    """Starts to write a copy of a state: the next step donates the state."""
    state = jax.tree.map(jnp.copy, state)
    self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, step: int, like: Any) -> Any:
    """The state of that step, with the structure and placement of `like`."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self._manager.restore(
        step, args=ocp.args.StandardRestore(abstract))

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def save_adapter(path: Path, flat: tree.Flat,
                 meta: dict[str, Any]) -> None:
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


def read_adapter(path: str | os.PathLike) -> tuple[tree.Flat, dict[str, Any]]:
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
    raise ValueError(f"{path} is not an adapter file of vpt_jax: "
                     f"{error!r}") from None
  return arrays, meta


def check_backbone(path: str, trained_on: dict[str, str],
                   builds: dict[str, str]) -> None:
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
        f"{builds['name']} (sha256 {builds['sha256'][:8]}..)")
