"""Seals saved states: who saved them, and a checksum of every array.

What a disk gives back is compared with what was written: a flipped bit in
compressed floats would else be trained on as if it had been learned.
"""

from collections.abc import Mapping
import json
from typing import Any, NamedTuple
import zlib

import jax
import numpy as np

# Path of an array -> its "dtype", "shape" and "crc32".
Arrays = Mapping[str, Mapping[str, Any]]


class Seal(NamedTuple):
  """What is written beside a state.

  Attributes:
    run: the run that saved it, see `run_folder.identity`.
    arrays: what the state holds.
  """

  run: Mapping[str, str]
  arrays: Arrays

  def to_json(self) -> dict[str, Any]:
    """Returns the seal as JSON values, with a checksum of its own."""
    body = json.dumps([self.run, self.arrays], sort_keys=True)
    return {"crc32": zlib.crc32(body.encode()), "seal": body}

  @classmethod
  def from_json(cls, file: Any) -> "Seal":
    """Returns what `to_json` was called on.

    Raises:
      ValueError: it is damaged.
    """
    try:
      body = file["seal"]
      if zlib.crc32(body.encode()) == file["crc32"]:
        return cls(*json.loads(body))
    except (TypeError, KeyError, AttributeError):
      pass
    raise ValueError("its checksums are damaged themselves")


def describe(state: Any) -> dict[str, dict[str, Any]]:
  """Returns type, shape and checksum of every array of a state.

  Args:
    state: a tree of arrays on the host.
  """
  arrays = {}
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  for keys, leaf in leaves:
    array = np.ascontiguousarray(leaf)
    raw = array.reshape(-1).view(np.uint8)
    arrays[jax.tree_util.keystr(keys)] = {
      "dtype": array.dtype.name,
      "shape": list(np.shape(leaf)),
      "crc32": zlib.crc32(raw.data),
    }
  return arrays


def difference(wanted: Arrays, found: Arrays) -> str:
  """Returns which arrays are not those that were saved; "" if all are."""
  wrong = []
  for name in sorted(wanted.keys() | found.keys()):
    if wanted.get(name) != found.get(name):
      wrong.append(name)
  if not wrong:
    return ""
  more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
  return f"{wrong[0]}{more} not as saved"


def layout(arrays: Arrays) -> dict[str, tuple[str, list[int]]]:
  """Returns type and shape of every array, without its content."""
  found = {}
  for name, array in arrays.items():
    found[name] = (array["dtype"], array["shape"])
  return found
