"""Tensors of the files that `torch.save` and TorchScript write, without torch.

Beside a pickle that says where each tensor lies, a file holds their numbers.
"""

from collections.abc import Callable, Iterator
import contextlib
import io
import itertools
import math
import mmap
import os
from pathlib import Path
import re
import sys
from typing import Any
import zipfile

import numpy as np

from vpt_jax.weights import unpickle

_MAGIC = 0x1950A86A20F9469CFC6C  # The first object in a file before 1.6 ...
_PROTOCOL = 1001  # ... and the second.

# What a file may ask for, far above what a large one needs.
_NAMES = 2**22  # Characters of all names, and 16 for each.
_FLOOR = 2**26  # Bytes that any file may become, however small it is.
_INFLATED = 20  # Of a larger one: unpacked size to that of the file,
_EXPANDED = 4  # and tensors, which may share numbers, to what is in there.


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Tensors of a PyTorch file, whatever lies beside them ignored.

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
    with open(path, "rb") as file:
      is_zip = file.read(2) == b"PK"
    return _read_zip(path) if is_zip else _read_legacy(path)
  except ValueError:
    raise
  # Whatever a library says about these bytes: it is the file's fault.
  except Exception as error:
    raise ValueError(
      f"not readable as a PyTorch file ({type(error).__name__}: {error})"
    ) from error


@contextlib.contextmanager
def open_zip(
  path: str | Path, floor: int = _FLOOR, factor: int = _INFLATED
) -> Iterator[zipfile.ZipFile]:
  """An archive that is safe to unpack.

  Raises:
    ValueError: it is truncated, or unpacked it would have more than both
      `floor` bytes and `factor` times the file's size.
  """
  if not zipfile.is_zipfile(path):
    raise ValueError(
      "truncated: the end of the zip archive is missing, download it again"
    )
  with zipfile.ZipFile(path) as archive:
    infos, size = archive.infolist(), os.path.getsize(path)
    if sum(info.compress_size for info in infos) > size:
      raise ValueError("members of the zip archive overlap or are cut short")
    if sum(info.file_size for info in infos) > max(floor, factor * size):
      raise ValueError(
        f"its {size} bytes would unpack to a suspiciously large "
        "amount (a zip bomb)"
      )
    yield archive


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
  """Content of a member, never more than the archive declares.

  Raises:
    ValueError: packed in another way than numpy and torch do, or cut short.
  """
  info = archive.getinfo(name)
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f"{name!r} is compressed in an unknown way")
  with archive.open(info) as file:
    data = file.read(info.file_size)  # Without a number: as much as comes.
  if len(data) != info.file_size:
    raise ValueError(f"{name!r} is shorter than declared")
  return data


def _read_zip(path: str | Path) -> dict[str, np.ndarray]:
  """Since 1.6, and TorchScript: `ROOT/data.pkl` and `ROOT/data/KEY`."""
  with open_zip(path) as archive:
    names = archive.namelist()
    roots = [
      name.removesuffix("data.pkl")
      for name in names
      if re.fullmatch(r"[^/]+/data\.pkl", name)
    ]
    if len(roots) != 1:
      raise ValueError(f"{len(roots)} files named data.pkl in it, not one")
    root, order = roots[0], "little"
    if f"{root}byteorder" in names:
      order = read_member(archive, f"{root}byteorder").decode()
      if order not in ("little", "big"):
        raise ValueError("its byte order is neither little nor big")
    tree, _ = unpickle.run(io.BytesIO(read_member(archive, f"{root}data.pkl")))
    held = sum(info.file_size for info in archive.infolist())
    return _arrays(
      tree, lambda key: read_member(archive, f"{root}data/{key}"), held, order
    )


def _read_legacy(path: str | Path) -> dict[str, np.ndarray]:
  """Before 1.6: five pickles in a row, then (count, numbers) per storage."""
  with (
    open(path, "rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
  ):
    if unpickle.run(data)[0] != _MAGIC or unpickle.run(data)[0] != _PROTOCOL:
      raise ValueError(
        "a Python pickle that torch.save did not write; pickled "
        "content is never loaded"
      )
    unpickle.run(data)  # Where it was saved; numbers are little-endian anyway.
    (tree, storages), (keys, _) = unpickle.run(data), unpickle.run(data)
    spans, end = {}, data.tell()
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
    return _arrays(tree, lambda key: data[spans[key]], len(data), "little")


def _leaves(root: Any) -> Iterator[tuple[str, unpickle.Tensor]]:
  """Tensors by name. One budget bounds depth, cycles and repetitions."""
  inner = (unpickle.Tensor, unpickle.Module, dict, list, tuple)
  todo, spent = [("", root)], 0
  while todo:
    path, node = todo.pop()
    if isinstance(node, unpickle.Tensor):
      yield path, node
      continue
    separator = "/"
    if isinstance(node, unpickle.Module):
      separator, node = ".", node.state
    if isinstance(node, (list, tuple)):
      node = {str(index): value for index, value in enumerate(node)}
    elif not isinstance(node, dict):
      continue
    for key, value in reversed(node.items()):
      is_inner = isinstance(value, inner)
      spent += 16 + len(path) + len(key) if is_inner else 1
      if spent > _NAMES:
        raise ValueError("its objects are too many or contain each other")
      if is_inner:
        todo.append((f"{path}{separator}{key}" if path else key, value))


def _arrays(
  tree: Any, load: Callable[[str], bytes], held: int, order: str
) -> dict[str, np.ndarray]:
  """Arrays of all tensors; each storage is loaded once, one at a time."""
  leaves = list(_leaves(tree))
  out: dict[str, Any] = dict.fromkeys(name for name, _ in leaves)
  if len(out) < len(leaves):
    raise ValueError("it holds two tensors of the same name")
  total = sum(
    math.prod(tensor.shape) * tensor.storage.dtype.itemsize
    for _, tensor in leaves
  )
  if total > max(_FLOOR, _EXPANDED * held):
    raise ValueError(
      f"its tensors would take {total} bytes, but it holds only {held}"
    )

  def key_of(leaf):
    return leaf[1].storage.key

  for key, group in itertools.groupby(sorted(leaves, key=key_of), key_of):
    data = load(key)
    for name, tensor in group:
      dtype = tensor.storage.dtype
      if tensor.storage.size * dtype.itemsize > len(data):
        raise ValueError(f"the numbers of {name!r} are cut short")
      if 0 in tensor.shape:
        out[name] = np.zeros(tensor.shape, dtype)
        continue
      # A stride along one element means nothing and may be anything.
      strides = [
        stride * dtype.itemsize * (length > 1)
        for stride, length in zip(tensor.strides, tensor.shape)
      ]
      array = np.ndarray(
        tensor.shape, dtype, data, tensor.offset * dtype.itemsize, strides
      )
      out[name] = array.copy() if order == sys.byteorder else array.byteswap()
  return out
