"""Arrays of a checkpoint in any file format, told apart by content."""

import io
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors

from vpt_jax.weights import pytorch_files

Arrays = dict[str, np.ndarray]

# What npz files and Orbax folders, often compressed, may become: bytes, and for
# large ones times their size. Zeros compress better, but who saves only zeros?
_FLOOR = 2**28
_INFLATED = 50

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
  """Arrays of an npz, safetensors or PyTorch file or of an Orbax folder.

  Names of nested parts are joined by `/`; floats of any width become float32;
  some may be read-only. Nothing in it is run: see `unpickle.run` for PyTorch.

  Raises:
    ValueError: not there, damaged, of another format, with anything in it but
      plain arrays, or suspiciously large when unpacked.
  """
  path = Path(path)
  try:
    flat = _read_orbax(path) if path.is_dir() else _read_file(path)
    return {name: float32(array) for name, array in flat.items()}
  # Bytes from anywhere go through four libraries, each with errors of its own.
  except Exception as error:
    raise unreadable(path, str(error) or repr(error)) from error


def unreadable(path: str | Path, why: str) -> ValueError:
  """The error for a checkpoint that is not there or not whole."""
  return ValueError(
    f"cannot read checkpoint {path}: {why}. Expected is an npz, safetensors "
    "or PyTorch file of plain numeric arrays (pickled content is never "
    "loaded) or an Orbax folder; download it again, convert it, or set "
    "config.backbone.checkpoint to another one"
  )


def float32(array: np.ndarray) -> np.ndarray:
  """Any float as float32; numpy reads bfloat16 back as two raw bytes (V2)."""
  if array.dtype == np.dtype("V2"):
    array = array.view(jnp.bfloat16)
  if jnp.issubdtype(array.dtype, jnp.floating):
    return array.astype(np.float32, copy=False)
  return array


def _read_file(path: Path) -> Arrays:
  with open(path, "rb") as file:
    head = file.read(512)
  if head.startswith(b"PK"):
    with pytorch_files.open_zip(path, _FLOOR, _INFLATED) as archive:
      names = archive.namelist()
      if not any(name.endswith("data.pkl") for name in names):
        return {
          name.removesuffix(".npy"): _array(
            name, pytorch_files.read_member(archive, name)
          )
          for name in names
        }
    return pytorch_files.read(path)
  if head[8:9] == b"{":  # After the length of a JSON header.
    return _read_safetensors(path)
  if head.startswith(b"\x80"):
    return pytorch_files.read(path)
  raise ValueError(_looks_like(head))


def _looks_like(head: bytes) -> str:
  """What a file is that is no checkpoint."""
  if not head:
    return "the file is empty"
  if head[257:262] == b"ustar":
    return "a tar archive; unpack it first"
  text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
  for start, name in _LOOKALIKES:
    if text.startswith(start):
      return f"it looks like {name}"
  return f"an unknown format, which begins with {head[:16]!r}"


def _array(name: str, data: bytes) -> np.ndarray:
  """Content of a .npy file; nothing is allocated for more than it holds."""
  stream = io.BytesIO(data)
  if not name.endswith(".npy"):
    raise ValueError(f"{name!r} in the zip archive is no array")
  version = np.lib.format.read_magic(stream)
  if version == (1, 0):
    header = np.lib.format.read_array_header_1_0(stream)
  elif version == (2, 0):
    header = np.lib.format.read_array_header_2_0(stream)
  else:  # For names in records only.
    raise ValueError(f"{name!r} is a .npy file of version {version}")
  shape, is_fortran, dtype = header
  if dtype.hasobject:
    raise ValueError(
      f"{name!r} holds Python objects; pickled content is never loaded"
    )
  needed, offset = math.prod(shape) * dtype.itemsize, stream.tell()
  # Elements of no bytes are free, but to copy 10^12 of them takes for ever.
  if (
    not dtype.itemsize
    or min(shape, default=0) < 0
    or (needed != len(data) - offset)
  ):
    raise ValueError(
      f"{name!r} holds {len(data) - offset} bytes, not the "
      f"{needed} of {dtype} in the shape that it declares"
    )
  array = np.ndarray(
    shape, dtype, data, offset, order="F" if is_fortran else "C"
  )
  return array.astype(dtype.newbyteorder("="), copy=False)


def _read_safetensors(path: Path) -> Arrays:
  flat = {}
  with safetensors.safe_open(path, framework="np") as file:
    for name in file.keys():
      try:
        flat[name] = file.get_tensor(name)
      except AttributeError as error:  # How it asks numpy for a dtype.
        raise ValueError(
          f"{name!r} has numbers of unknown kind: {error}"
        ) from error
  return flat


def _read_orbax(path: Path) -> Arrays:
  """A folder of one tree, or a step's folder that holds it as `default`."""
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
  size = sum(file.stat().st_size for file in path.rglob("*"))
  needed = sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(metadata.tree)
  )
  if needed > max(_FLOOR, _INFLATED * size):
    raise ValueError(f"its {size} bytes declare arrays of {needed}")
  # As numpy arrays: the devices they were saved on need not be here.
  arguments = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree
  )
  leaves = jax.tree_util.tree_flatten_with_path(
    checkpointer.restore(path, restore_args=arguments)
  )[0]
  return {
    jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
    for keys, leaf in leaves
  }
