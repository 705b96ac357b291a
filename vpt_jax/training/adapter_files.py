"""Saves and reads adapters: npz files of a run's trained parameters."""

from collections.abc import Mapping
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vpt_jax.utils import files, trees


def save_adapter(path: Path, flat: trees.Flat, meta: Mapping[str, Any]) -> None:
  """Writes one file with parameters and what they belong to.

  Args:
    path: of the npz.
    flat: flat tree; stored as float32.
    meta: JSON values, see `run_results.save` for the fields.
  """
  buffer = io.BytesIO()
  arrays: dict[str, Any] = {}
  for name, leaf in flat.items():
    arrays[name] = np.asarray(leaf, np.float32)
  np.savez(buffer, meta=json.dumps(meta), **arrays)
  files.write_atomic(path, buffer.getvalue())


def read_adapter(path: str | os.PathLike) -> tuple[trees.Flat, dict[str, Any]]:
  """Reads an adapter file; nothing in it is unpickled.

  Returns:
    (trained parameters, meta).

  Raises:
    ValueError: the file is missing, damaged or no adapter.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays.pop("meta")))
  except FileNotFoundError:
    raise ValueError(f"no adapter at {path}") from None
  except Exception as error:  # numpy and zipfile have many errors
    raise ValueError(
      f"{path} is not an adapter file of vpt_jax: {error!r}"
    ) from None
  # How attention was computed is not part of the model: any machine reads it.
  if "compute" in meta.get("config", {}):
    meta["config"]["compute"]["attention"] = "ours"
  return arrays, meta


def check_backbone(
  path: str | os.PathLike,
  trained_on: Mapping[str, str],
  built: Mapping[str, str],
) -> None:
  """Raises ValueError unless a saved file fits the backbone of a config.

  Args:
    path: of the saved file, for the error.
    trained_on: {name, sha256} of the backbone that it was trained on.
    built: the same of the backbone at hand.
  """
  if trained_on != built:
    raise ValueError(
      f"checkpoint {path} was trained on backbone {trained_on['name']} "
      f"(sha256 {trained_on['sha256'][:8]}..), this config builds "
      f"{built['name']} (sha256 {built['sha256'][:8]}..)"
    )
