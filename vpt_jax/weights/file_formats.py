"""Reads the arrays of checkpoints; formats are told apart by content."""

import math
from pathlib import Path
from typing import Any
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors

from vpt_jax.utils import strange_files
from vpt_jax.weights import hub_folders, msgpack_files, pytorch_files

Arrays = dict[str, np.ndarray]

# First bytes -> what people download instead of weights.
_LOOKALIKES = (
  (
    b"version https://git-lfs",
    "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
  ),
  (b"\x1f\x8b", "a gzip archive; unpack it first"),
  (b"BZh", "a bzip2 archive; unpack it first"),
  (b"\x89HDF", "an HDF5 file, as Keras writes them"),
  (b"\x93NUMPY", "a single array (.npy) without names"),
  (b"{", "a JSON text; if it is an index, name the weights file itself"),
  (b"<", "a web page, as a failed download leaves it"),
)


def read(path: str | Path) -> Arrays:
  """Reads an npz, safetensors, PyTorch or msgpack file, or a folder.

  A folder is Orbax's, or one of Hugging Face's hub. Nothing in it is run: see
  `unpickle.run` for PyTorch.

  Args:
    path: of the file or folder.

  Returns:
    name -> array. Names of nested parts are joined by `/`; floats of any width
    become float32; some arrays may be read-only.

  Raises:
    ValueError: not there, damaged, of another format, with anything in it but
      plain arrays, or suspiciously large when unpacked.
  """
  path = Path(path)
  try:
    weights = hub_folders.weights_in(path) if path.is_dir() else path
    if weights is None:
      flat = _read_orbax(path)
    elif hub_folders.is_index(weights):
      flat = _read_shards(weights)
    else:
      flat = _read_file(weights)
    return {name: float32(array) for name, array in flat.items()}
  # Bytes from anywhere go through four libraries, each with errors of its own.
  except Exception as error:
    raise unreadable(path, str(error) or repr(error)) from error


def files_of(path: Path) -> list[Path]:
  """Returns the files that a checkpoint is read from.

  Raises:
    ValueError: an index of shards that is damaged.
  """
  weights = hub_folders.weights_in(path) if path.is_dir() else path
  if weights is None:
    return sorted(file for file in path.rglob("*") if file.is_file())
  if hub_folders.is_index(weights):
    return [weights, *sorted(hub_folders.shards(weights))]
  return [weights]


def unreadable(path: str | Path, why: str) -> ValueError:
  """Returns the error for a checkpoint that is not there or not whole."""
  return ValueError(
    f"cannot read checkpoint {path}: {why}. Expected is an npz, safetensors, "
    "PyTorch or msgpack file of plain numeric arrays (pickled content is never "
    "loaded) or a folder of Orbax or Hugging Face; download it again, convert "
    "it, or set config.backbone.checkpoint to another one"
  )


def float32(array: np.ndarray) -> np.ndarray:
  """Returns floats of any width as float32, other numbers unchanged.

  numpy reads bfloat16 back as two raw bytes (V2).
  """
  if array.dtype == np.dtype("V2"):
    array = array.view(jnp.bfloat16)
  if jnp.issubdtype(array.dtype, jnp.floating):
    return array.astype(np.float32, copy=False)
  return array


def _read_file(path: Path) -> Arrays:
  """Reads a file by what it begins with."""
  with strange_files.open_regular(path) as file:
    head = file.read(512)
  if head.startswith(b"PK"):
    return _read_zip(path)
  if head[8:9] == b"{":  # After the length of a JSON header.
    return _read_safetensors(path)
  if head.startswith(b"\x80"):
    return pytorch_files.read(path)
  if head[:1] and head[0] in msgpack_files.STARTS:
    return msgpack_files.read(path)
  raise ValueError(_looks_like(head))


def _looks_like(head: bytes) -> str:
  """Returns what a file is that is no checkpoint."""
  if not head:
    return "the file is empty"
  if head[257:262] == b"ustar":
    return "a tar archive; unpack it first"
  text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
  for start, name in _LOOKALIKES:
    if text.startswith(start):
      return f"it looks like {name}"
  return f"an unknown format, which begins with {head[:16]!r}"


def _read_zip(path: Path) -> Arrays:
  """Reads an npz, or PyTorch's format, which is an archive as well."""
  with strange_files.open_zip(path) as archive:
    names = archive.namelist()
    if not any(name.endswith("data.pkl") for name in names):
      return _read_npz(archive, names)
  return pytorch_files.read(path)


def _read_npz(archive: zipfile.ZipFile, names: list[str]) -> Arrays:
  """Reads the arrays of an npz file."""
  arrays = {}
  for name in names:
    data = strange_files.read_member(archive, name)
    arrays[name.removesuffix(".npy")] = strange_files.read_npy(name, data)
  return arrays


def is_npz(path: Path) -> bool:
  """Returns whether a file is an archive of arrays, not PyTorch's."""
  with strange_files.open_regular(path) as file:
    if file.read(2) != b"PK":
      return False
  try:
    with zipfile.ZipFile(path) as archive:
      return all(name.endswith(".npy") for name in archive.namelist())
  except (OSError, ValueError, zipfile.BadZipFile):
    return False  # Which `read` says.


def read_from_npz(path: Path, name: str) -> np.ndarray | None:
  """Returns one array of an npz file; None if it has none of this name.

  Raises:
    ValueError: a damaged file.
  """
  try:
    with strange_files.open_zip(path) as archive:
      member = f"{name}.npy"
      if member not in archive.namelist():
        return None
      data = strange_files.read_member(archive, member)
      return strange_files.read_npy(member, data)
  except Exception as error:  # As in `read`.
    raise unreadable(path, str(error) or repr(error)) from error


def _read_shards(index: Path) -> Arrays:
  """Reads the arrays of several files, each from the one the index names."""
  arrays = {}
  for file, names in hub_folders.shards(index).items():
    held = _read_file(file)
    missing = sorted(set(names) - held.keys())
    if missing:
      raise ValueError(
        f"{file.name} does not hold {missing[0]!r}, as the index says; "
        "download it again"
      )
    for name in names:
      arrays[name] = held[name]
  return arrays


def _read_safetensors(path: Path) -> Arrays:
  """Reads the tensors of a safetensors file."""
  arrays = {}
  with safetensors.safe_open(path, framework="np") as file:
    # It is no dict: it has keys, but cannot be iterated over.
    for name in list(file.keys()):
      try:
        arrays[name] = file.get_tensor(name)
      except AttributeError as error:  # How it asks numpy for a dtype.
        raise ValueError(
          f"{name!r} has numbers of unknown kind: {error}"
        ) from error
  return arrays


def _read_orbax(path: Path) -> Arrays:
  """Reads a folder of one tree, or a step's folder that has it as `default`."""
  path = path.absolute()
  if (path / "default").is_dir():
    path /= "default"
  checkpointer = ocp.PyTreeCheckpointer()
  metadata = checkpointer.metadata(path).item_metadata
  if metadata is None:
    names = sorted(child.name for child in path.iterdir())
    raise ValueError(
      "a folder, but not of one Orbax checkpoint; it holds "
      f"{', '.join(names[:9]) or 'nothing'}"
    )
  _check_declared_size(path, metadata.tree)
  # As numpy arrays: the devices they were saved on need not be here.
  arguments = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
  )
  tree = checkpointer.restore(path, restore_args=arguments)
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  arrays = {}
  for keys, leaf in leaves:
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    arrays[name] = np.asarray(leaf)
  return arrays


def _check_declared_size(path: Path, tree: Any) -> None:
  """Raises ValueError if a folder declares far more than it holds."""
  size = sum(file.stat().st_size for file in path.rglob("*"))
  needed = 0
  for leaf in jax.tree.leaves(tree):
    needed += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
  if needed > max(strange_files.FLOOR, strange_files.INFLATED * size):
    raise ValueError(f"its {size} bytes declare arrays of {needed}")
