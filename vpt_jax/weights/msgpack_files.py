"""Reads the arrays of msgpack files, as `flax.serialization` writes them.

vision_transformer's own fine-tuning and flax's checkpoints are such files. They
are data alone; what is bounded here is how much becomes of them.
"""

from collections.abc import Iterator
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax's numbers of its types
_CHUNKED = "__msgpack_chunked_array__"

# Far above what a large model needs. An item takes a byte there and up to 64 in
# memory.
_MOST_ITEMS = 2**20
_MOST_AXES = 16

# First bytes: a map of 1 to 15, of 2^16 and of 2^32 items. (One of none is
# 0x80, as pickles begin.)
STARTS = (*range(0x81, 0x90), 0xDE, 0xDF)


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a file; names of nested parts are joined by `/`.

  Raises:
    ValueError: damaged, of other types, or of too many items.
  """
  tree = _Reader().tree(Path(path).read_bytes())
  if not isinstance(tree, dict):
    raise ValueError("a msgpack file of something else than named arrays")
  return dict(_leaves(tree, ""))


class _Reader:
  """Makes a tree of bytes, and counts its items."""

  def __init__(self):
    self._num_items = 0

  def tree(self, data: bytes) -> Any:
    """Returns the value in a file.

    Raises:
      ValueError: see `read`.
    """
    try:
      return msgpack.unpackb(
        data,
        ext_hook=self._extension,
        object_pairs_hook=self._map,
        list_hook=self._list,
        raw=False,
        strict_map_key=True,
        max_array_len=_MOST_ITEMS,
        max_map_len=_MOST_ITEMS,
      )
    except (RecursionError, msgpack.exceptions.UnpackException) as error:
      raise ValueError(
        f"damaged or no msgpack of flax: {error or type(error).__name__}"
      ) from None

  def _count(self, items: int) -> None:
    """Raises ValueError if there are more items than any model has."""
    self._num_items += items + 1
    if self._num_items > _MOST_ITEMS:
      raise ValueError(f"more than {_MOST_ITEMS} items, no model has as many")

  def _map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Returns a map; two items of one name are damage."""
    self._count(len(pairs))
    out = dict(pairs)
    if len(out) != len(pairs):
      raise ValueError("two arrays of one name")
    return out

  def _list(self, items: list[Any]) -> list[Any]:
    """Returns a list."""
    self._count(len(items))
    return items

  def _extension(self, code: int, data: bytes) -> np.ndarray:
    """Returns an array, or a scalar as one."""
    if code not in (_ARRAY, _SCALAR):
      kind = "complex" if code == _COMPLEX else "unknown"
      raise ValueError(f"numbers of {kind} type (code {code})")
    return _array(data)


def _array(data: bytes) -> np.ndarray:
  """Returns the array of (shape, name of the dtype, numbers).

  Nothing is allocated for more than it holds.

  Raises:
    ValueError: it is none.
  """
  parts = msgpack.unpackb(
    data, raw=False, max_array_len=_MOST_AXES, max_map_len=0
  )
  is_array = (
    isinstance(parts, list)
    and len(parts) == 3
    and isinstance(parts[0], list)
    and all(isinstance(n, int) and n >= 0 for n in parts[0])
    and isinstance(parts[1], str)
    and isinstance(parts[2], bytes)
  )
  if not is_array:
    raise ValueError("an array without shape, dtype and numbers")
  shape, name, numbers = parts
  dtype = _dtype(name)
  needed = math.prod(shape) * dtype.itemsize
  if needed != len(numbers):
    raise ValueError(
      f"{len(numbers)} bytes, not the {needed} of {name} in the shape "
      f"{tuple(shape)} that is declared"
    )
  return np.frombuffer(numbers, dtype).reshape(shape)


def _dtype(name: str) -> np.dtype:
  """Returns a dtype of plain numbers.

  Raises:
    ValueError: it is none.
  """
  if name == "bfloat16":
    return np.dtype(jnp.bfloat16)
  try:
    dtype = np.dtype(name)
  except (TypeError, ValueError, SyntaxError):
    dtype = np.dtype(object)
  if dtype.kind not in "fiub" or dtype.name != name:
    raise ValueError(f"numbers of unknown kind {name[:40]!r}")
  return dtype


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (name, array); what is no array is left out."""
  if isinstance(tree, np.ndarray):
    yield name, tree
  elif isinstance(tree, dict) and _CHUNKED in tree:
    yield name, _joined(tree, name)
  elif isinstance(tree, dict):
    for key, value in tree.items():
      yield from _leaves(value, f"{name}/{key}" if name else str(key))
  elif isinstance(tree, list):
    for i, value in enumerate(tree):
      yield from _leaves(value, f"{name}/{i}" if name else str(i))


def _joined(tree: dict[str, Any], name: str) -> np.ndarray:
  """Returns a large array of the chunks that flax cuts it into.

  Raises:
    ValueError: they are not whole.
  """
  try:
    sides = tree["shape"]
    chunks = tree["chunks"]
    shape = [int(sides[str(i)]) for i in range(len(sides))]
    parts = [chunks[str(i)] for i in range(len(chunks))]
    return np.concatenate(parts).reshape(shape)
  except (LookupError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(f"{name!r} is cut into chunks wrongly: {error}") from None
