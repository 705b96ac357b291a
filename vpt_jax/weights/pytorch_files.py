"""Reads tensors of the files that `torch.save` and TorchScript write.

PyTorch is not needed. Beside a pickle that says where each tensor lies, a file
holds their numbers.
"""

from collections.abc import Callable, Iterator
import contextlib
import io
import itertools
import math
import mmap
from pathlib import Path
import re
import sys
from typing import Any
import zipfile

import numpy as np

from vpt_jax.utils import strange_files
from vpt_jax.weights import unpickle

_MAGIC = 0x1950A86A20F9469CFC6C  # The first object in a file before 1.6 ...
_PROTOCOL = 1001  # ... and the second.

# What a file may ask for, far above what a large one needs.
_MOST_CHARACTERS = 2**22  # Of all names, and 16 more for each.
_FLOOR = 2**26  # Bytes that any file may become, however small it is.
# Of a larger file: how often its size it may be when unpacked, ...
_INFLATED = 20
# ... and how often what is in it its tensors may be, which may share numbers.
_EXPANDED = 4


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a PyTorch file; whatever lies beside them is ignored.

  Names of nested dicts and lists are joined by `/`, those of TorchScript's
  modules by `.`, as in a state dict; a state dict's own names stay.

  Args:
    path: file of `torch.save`, of any version, or of `torch.jit.save`.

  Returns:
    name -> array with the tensor's dtype and shape.

  Raises:
    ValueError: a damaged file, one that asks to run something, or one that
      would become much larger than it is.
  """
  try:
    with strange_files.open_regular(path) as file:
      is_zip = file.read(2) == b"PK"
    return _read_zip(path) if is_zip else _read_legacy(path)
  except ValueError:
    raise
  # Whatever a library says about these bytes: it is the file's fault.
  except Exception as error:
    raise ValueError(
      f"not readable as a PyTorch file ({type(error).__name__}: {error})"
    ) from error


def _read_zip(path: str | Path) -> dict[str, np.ndarray]:
  """Reads files since 1.6, and TorchScript's.

  They are archives of `ROOT/data.pkl` and `ROOT/data/KEY` for each storage.
  """
  with strange_files.open_zip(path, _FLOOR, _INFLATED) as archive:
    root = _root(archive)
    order = _byte_order(archive, root)
    program = strange_files.read_member(archive, f"{root}data.pkl")
    tree, _ = unpickle.run(io.BytesIO(program))
    held = sum(info.file_size for info in archive.infolist())

    def load(key: str) -> bytes:
      """Returns the numbers of a storage."""
      return strange_files.read_member(archive, f"{root}data/{key}")

    return _arrays(tree, load, held, order)


def _root(archive: zipfile.ZipFile) -> str:
  """Returns the name of the archive's one folder, `/` included."""
  roots = []
  for name in archive.namelist():
    if re.fullmatch(r"[^/]+/data\.pkl", name):
      roots.append(name.removesuffix("data.pkl"))
  if len(roots) != 1:
    raise ValueError(f"{len(roots)} files named data.pkl in it, not one")
  return roots[0]


def _byte_order(archive: zipfile.ZipFile, root: str) -> str:
  """Returns "little" or "big"."""
  name = f"{root}byteorder"
  if name not in archive.namelist():
    return "little"
  order = strange_files.read_member(archive, name).decode()
  if order not in ("little", "big"):
    raise ValueError("its byte order is neither little nor big")
  return order


def _read_legacy(path: str | Path) -> dict[str, np.ndarray]:
  """Reads files before 1.6.

  They are five pickles in a row, then (count, numbers) per storage.
  """
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(strange_files.open_regular(path))
    data = stack.enter_context(
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    )
    magic, _ = unpickle.run(data)
    is_ours = magic == _MAGIC
    if is_ours:
      protocol, _ = unpickle.run(data)
      is_ours = protocol == _PROTOCOL
    if not is_ours:
      raise ValueError(
        "a Python pickle that torch.save did not write; pickled "
        "content is never loaded"
      )
    unpickle.run(data)  # Where it was saved; numbers are little-endian anyway.
    tree, storages = unpickle.run(data)
    keys, _ = unpickle.run(data)
    spans = _spans(data, storages, keys)

    def load(key: str) -> bytes:
      """Returns the numbers of a storage."""
      return data[spans[key]]

    return _arrays(tree, load, len(data), "little")


def _spans(
  data: mmap.mmap, storages: dict[str, unpickle.Storage], keys: Any
) -> dict[str, slice]:
  """Returns where the numbers of each storage are, from the file's position."""
  spans = {}
  end = data.tell()
  for key in keys if isinstance(keys, list) else ():
    storage = storages.get(key) if isinstance(key, str) else None
    start = end + 8
    count = int.from_bytes(data[end:start], "little")
    if storage is None or count != storage.size:
      raise ValueError("the list of its storages is damaged")
    end = start + count * storage.dtype.itemsize
    spans[key] = slice(start, end)
  if end > len(data):
    raise ValueError(
      f"truncated: {len(data)} bytes of {end}, download it again"
    )
  return spans


def _leaves(root: Any) -> Iterator[tuple[str, unpickle.Tensor]]:
  """Yields tensors by name.

  Raises:
    ValueError: one budget bounds depth, cycles and repetitions.
  """
  todo = [("", root)]
  spent = 0
  while todo:
    path, node = todo.pop()
    if isinstance(node, unpickle.Tensor):
      yield path, node
      continue
    separator = "/"
    if isinstance(node, unpickle.Module):
      separator = "."
      node = node.state
    # The last is put on top of the others first, so that the first comes next.
    for key, value in reversed(_items(node)):
      if not isinstance(value, _NODES):
        spent += 1
      else:
        spent += 16 + len(path) + len(key)
        todo.append((f"{path}{separator}{key}" if path else key, value))
      if spent > _MOST_CHARACTERS:
        raise ValueError("its objects are too many or contain each other")


_NODES = (unpickle.Tensor, unpickle.Module, dict, list, tuple)


def _items(node: Any) -> list[tuple[str, Any]]:
  """Returns the named parts of a container, [] of anything else."""
  if isinstance(node, dict):
    return list(node.items())
  if isinstance(node, (list, tuple)):
    return [(str(index), value) for index, value in enumerate(node)]
  return []


def _arrays(
  tree: Any, load: Callable[[str], bytes], held: int, order: str
) -> dict[str, np.ndarray]:
  """Returns the arrays of all tensors.

  Args:
    tree: what the pickle describes.
    load: key of a storage -> its numbers. Each is loaded once, one at a time.
    held: bytes of all that is in the file.
    order: of the bytes, "little" or "big".

  Raises:
    ValueError: two tensors of one name, or more numbers than are held.
  """
  leaves = list(_leaves(tree))
  # In the file's order, whatever the order of the storages.
  out: dict[str, Any] = dict.fromkeys(name for name, _ in leaves)
  if len(out) < len(leaves):
    raise ValueError("it holds two tensors of the same name")
  total = 0
  for _, tensor in leaves:
    total += math.prod(tensor.shape) * tensor.storage.dtype.itemsize
  if total > max(_FLOOR, _EXPANDED * held):
    raise ValueError(
      f"its tensors would take {total} bytes, but it holds only {held}"
    )
  leaves.sort(key=_storage_key)
  for key, group in itertools.groupby(leaves, _storage_key):
    data = load(key)
    for name, tensor in group:
      out[name] = _array(name, tensor, data, order)
  return out


def _storage_key(leaf: tuple[str, unpickle.Tensor]) -> str:
  """Returns the key of a named tensor's storage."""
  _, tensor = leaf
  return tensor.storage.key


def _array(
  name: str, tensor: unpickle.Tensor, data: bytes, order: str
) -> np.ndarray:
  """Returns a copy of a tensor's numbers.

  Args:
    name: of the tensor, for errors.
    tensor: where it lies.
    data: of its storage.
    order: of the bytes, "little" or "big".
  """
  dtype = tensor.storage.dtype
  if tensor.storage.size * dtype.itemsize > len(data):
    raise ValueError(f"the numbers of {name!r} are cut short")
  if 0 in tensor.shape:
    return np.zeros(tensor.shape, dtype)
  strides = []
  for stride, length in zip(tensor.strides, tensor.shape, strict=True):
    # A stride along one element means nothing and may be anything.
    strides.append(stride * dtype.itemsize if length > 1 else 0)
  offset = tensor.offset * dtype.itemsize
  array = np.ndarray(tensor.shape, dtype, data, offset, strides)
  return array.copy() if order == sys.byteorder else array.byteswap()
