"""Finds the weights in a folder as Hugging Face's hub has them.

A folder holds one file, or shards and an index that says which array is in
which of them. Only files of the folder itself are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpt_jax.utils import strange_files

_SUFFIX = ".index.json"
# In order of trial.
_NAMES = (
  "model.safetensors",
  "model.safetensors" + _SUFFIX,
  "pytorch_model.bin",
  "pytorch_model.bin" + _SUFFIX,
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.bin",
)
_MOST_BYTES = 2**26  # of an index
_MOST_SHARDS = 1000


def weights_in(folder: Path) -> Path | None:
  """Returns the file of weights, or the index of shards; None: no such folder.

  Several are the same model for several libraries; the first is taken.
  """
  for name in _NAMES:
    if (folder / name).is_file():
      return folder / name
  return None


def is_index(path: Path) -> bool:
  """Returns whether a file is an index of shards, by its name."""
  return path.name.endswith(_SUFFIX)


def shards(index: Path) -> dict[Path, list[str]]:
  """Returns {file: names of the arrays in it} of an index.

  Raises:
    ValueError: it is none, names files elsewhere, or some are missing.
  """
  names = _weight_map(index)
  found: dict[Path, list[str]] = {}
  for name, file in names.items():
    if not isinstance(file, str) or Path(file).name != file or "\\" in file:
      raise ValueError(
        f"{index} puts {name!r} into {file!r}; expected the name of a file "
        "beside it"
      )
    found.setdefault(index.parent / file, []).append(name)
  if len(found) > _MOST_SHARDS:
    raise ValueError(f"{index} names {len(found)} files; expected a few")
  missing = [path.name for path in found if not path.is_file()]
  if missing:
    raise ValueError(
      f"{index} names files that are not beside it: "
      f"{', '.join(sorted(missing)[:4])}; download all of them"
    )
  return found


def _weight_map(index: Path) -> Mapping[str, Any]:
  """Returns {name of an array: file} of an index.

  Raises:
    ValueError: it is no index.
  """
  try:
    values = strange_files.read_json(index, _MOST_BYTES)
  except ValueError as error:
    raise ValueError(f"{index} cannot be read: {error}") from None
  names = values.get("weight_map") if isinstance(values, dict) else None
  if not isinstance(names, dict) or not names:
    raise ValueError(f"{index} has no `weight_map` of arrays to files")
  return names
