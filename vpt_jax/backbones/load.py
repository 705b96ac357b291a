"""Checkpoints of Vision Transformers as npz, in and out.

Whatever the layout in the file, the tree in memory has the names of
google-research/big_vision's `models/vit.py` with `pool_type="tok"`.
"""

import contextlib
import logging
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from vpt_jax import tree
from vpt_jax.backbones import fetch

log = logging.getLogger("vpt_jax")

Arrays = dict[str, np.ndarray]

_WRAPPERS = ("params/", "opt/target/")  # Where a training state has them.
_DROPPED = ("head/", "pre_logits/", "MAPHead_0/")  # A backbone has none.
_POSITIONS = "pos_embedding"
# The first public checkpoints (2020) counted all layers of a block together.
_BLOCK = r"^(Transformer/encoderblock_\d+)/"
_RENAMES = (
    (_BLOCK + "LayerNorm_2/", r"\1/LayerNorm_1/"),
    (_BLOCK + "(MultiHeadDotProductAttention)_1/", r"\1/\2_0/"),
    (_BLOCK + "MlpBlock_3/", r"\1/MlpBlock_0/"),
    (r"^Transformer/(posembed_input/)?pos_embedding$", _POSITIONS),
)
_STACKED = "Transformer/encoderblock/"


def load(url_or_path: str | Path, template: Mapping[str, Any],
         grid: tuple[int, int] | None, *, checksum: str = "",
         cache: str | Path | None = None) -> tuple[Arrays, str]:
  """Reads a checkpoint that fits a backbone exactly.

  Args:
    url_or_path: `https://`, `http://` or `gs://` address, `package:NAME` for a
      file of this package, or a local path.
    template: path -> array or ShapeDtypeStruct of the backbone's parameters.
    grid: (rows, columns) of patches that the backbone was built for.
    checksum: `sha256:HEX` or `md5:HEX` of the file, see `fetch.verify`.
    cache: folder for fetched files, see `fetch.fetch`.

  Returns:
    float32 arrays with the keys of `template`, and the file's sha256.

  Raises:
    ValueError: no such file, no npz, another checksum, or a wrong tree.
  """
  with _local(str(url_or_path), checksum, cache) as path:
    flat = to_big_vision(read(path), grid)
    return restore(flat, template, str(url_or_path), grid), sha256(path)


@contextlib.contextmanager
def _local(address: str, checksum: str, cache: str | Path | None
           ) -> Iterator[Path]:
  """The verified file behind an address, a `package:NAME` or a path."""
  with contextlib.ExitStack() as stack:
    if "://" in address:
      path = fetch.fetch(address, checksum, cache)
    elif address.startswith("package:"):
      assets = resources.files("vpt_jax") / "assets"
      name = tree.choose(address.removeprefix("package:"),
                         [file.name for file in assets.iterdir()],
                         "checkpoint of this package")
      path = stack.enter_context(resources.as_file(assets / name))
    else:
      path = Path(address).expanduser()
    if not path.is_file():
      raise _unreadable(path, "no such file")
    fetch.verify(path, checksum, "fetch it again or correct the checksum")
    yield path


def read(path: str | Path) -> Arrays:
  """Arrays of an npz file, floats of any width as float32.

  Raises:
    ValueError: no such file, not a whole npz file, or anything in it but plain
      arrays. Pickled content is never loaded.
  """
  flat = {}
  try:
    # Asked first, because np.load takes any other file for a pickle.
    if not zipfile.is_zipfile(path) and Path(path).is_file():
      raise ValueError("not an npz file, or cut short")
    with np.load(path, allow_pickle=False) as npz:
      for name in npz.files:
        array = npz[name]
        if not isinstance(array, np.ndarray):
          raise ValueError(f"{name!r} is no array")
        flat[name] = _float32(array)
  except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile,
          zlib.error) as error:
    raise _unreadable(path, str(error)) from error
  return flat


def _unreadable(path: str | Path, why: str) -> ValueError:
  return ValueError(
      f"cannot read checkpoint {path}: {why}. Expected is an npz file of plain "
      "numeric arrays (pickled content is never loaded); download it again, "
      "convert it, or set config.backbone.checkpoint to another file")


def _float32(array: np.ndarray) -> np.ndarray:
  """Any float as float32; numpy reads bfloat16 back as two raw bytes (V2)."""
  if array.dtype == np.dtype("V2"):
    array = array.view(jnp.bfloat16)
  if jnp.issubdtype(array.dtype, jnp.floating):
    return array.astype(np.float32, copy=False)
  return array


def to_big_vision(flat: Mapping[str, np.ndarray],
                  grid: tuple[int, int] | None = None) -> Arrays:
  """Any known layout of a ViT checkpoint -> today's names of big_vision.

  A training state is unwrapped, names of 2020 are renamed, blocks stacked for
  a scan are taken apart, the classification head is dropped, and of 1 + n n
  positions the first, the class token's, is added to `cls`. Whatever else there
  is stays for `restore` to refuse.

  Args:
    flat: path -> array.
    grid: (rows, columns) of the backbone; if today's layout has just as many
      positions, none is the class token's (5 x 10 is 1 + 7 x 7).

  Raises:
    ValueError: two arrays would get the same name.
  """
  for prefix in _WRAPPERS:
    flat = {name.removeprefix(prefix): array for name, array in flat.items()
            if name.startswith(prefix)} or flat
  out, dropped = {}, []
  for name, array in _unstacked(flat):
    if name.startswith(_DROPPED):
      dropped.append(name)
      continue
    today = name
    for pattern, replacement in _RENAMES:
      today = re.sub(pattern, replacement, today)
    if today in out:
      raise ValueError(f"the checkpoint holds {today!r} twice, in two layouts "
                       f"(the second is {name!r}); it was put together wrongly")
    out[today] = array
  if dropped:
    log.info("ignored in the checkpoint: %s", ", ".join(sorted(dropped)))
  exact = grid is not None and _POSITIONS in flat and (
      out[_POSITIONS].shape[1:2] == (math.prod(grid),))
  return out if exact else _split_class_position(out)


def _unstacked(flat: Mapping[str, np.ndarray]
               ) -> Iterator[tuple[str, np.ndarray]]:
  """Items of `flat` with [L, ...] arrays of all blocks as L arrays."""
  for name, array in flat.items():
    if name.startswith(_STACKED) and array.ndim:
      rest = name.removeprefix(_STACKED)
      for i, part in enumerate(array):
        yield f"Transformer/encoderblock_{i}/{rest}", part
    else:
      yield name, array


def _split_class_position(flat: Arrays) -> Arrays:
  """Adds the first of 1 + n n positions to the class token."""
  cls, positions = flat.get("cls"), flat.get(_POSITIONS)
  if cls is None or positions is None or positions.ndim != 3:
    return flat
  first, rest = positions[:, :1], positions[:, 1:]
  if cls.shape != first.shape or not _side(rest.shape[1]):
    return flat
  return flat | {"cls": cls + first, _POSITIONS: rest}


def _side(count: int) -> int:
  """n if count is n n, else 0."""
  side = math.isqrt(count)
  return side if side * side == count else 0


def resize_positions(positions: np.ndarray, grid_from: tuple[int, int],
                     grid_to: tuple[int, int]) -> np.ndarray:
  """Position embeddings [1, h w, D] -> [1, h' w', D], linear on the grid.

  Corners stay at corners (scipy's zoom), as in big_vision and VPT's code.
  """
  width = positions.shape[-1]
  table = positions.astype(np.float32).reshape(*grid_from, width)
  zoom = (grid_to[0] / grid_from[0], grid_to[1] / grid_from[1], 1)
  table = scipy.ndimage.zoom(table, zoom, order=1)
  return table.reshape(1, -1, width)


def restore(flat: Mapping[str, np.ndarray], template: Mapping[str, Any],
            source: str, grid: tuple[int, int] | None = None) -> Arrays:
  """The arrays that `template` asks for, or an error: never a part of them.

  Args:
    flat: path -> array, in today's names.
    template: path -> array or ShapeDtypeStruct of the backbone's parameters.
    source: name of the checkpoint, for errors.
    grid: (rows, columns) of the backbone; n n positions of another resolution
      are taken for an n x n grid and resized to it.

  Returns:
    float32 arrays with the keys of `template`.

  Raises:
    ValueError: names, shapes or kinds of numbers differ; the text lists all.
  """
  flat = {name: _float32(np.asarray(array)) for name, array in flat.items()}
  positions = flat.get(_POSITIONS)
  if grid is not None and positions is not None and (
      positions.ndim == 3 and len(positions) == 1):
    side = _side(positions.shape[1])
    if side and (side, side) != tuple(grid):
      flat[_POSITIONS] = resize_positions(positions, (side, side), grid)

  want = {name: f"{name} {tuple(leaf.shape)}"
          for name, leaf in template.items()}
  have = {name: f"{name} {array.shape}" + (
      f" of {array.dtype}" * (array.dtype != np.float32))
          for name, array in flat.items()}
  wrong = {name for name in want.keys() & have.keys()
           if want[name] != have[name]}
  lines = []
  for title, sign, text, names in (
      ("missing in the checkpoint:", "-", want, want.keys() - have.keys()),
      ("unexpected in the checkpoint:", "+", have, have.keys() - want.keys()),
      ("expected shapes:", "-", want, wrong),
      ("found shapes:", "+", have, wrong)):
    if names:
      lines += [title, *(f"{sign} {text[name]}" for name in sorted(names))]
  if lines:
    raise ValueError("\n".join([
        f"checkpoint {source} does not fit this backbone", *lines,
        "Nothing was loaded; choose the config.backbone.name whose "
        "architecture fits, or another config.backbone.checkpoint"]))
  return {name: flat[name] for name in template}


def save(path: str | Path, flat: Mapping[str, Any],
         dtype: Any = np.float16) -> None:
  """Writes a backbone's parameters as npz; `load` takes it back.

  The file appears at once and whole; floats are stored as `dtype`. Like other
  checkpoints it does not say how its positions lie: n n of them are taken for
  an n x n grid when loaded.

  Raises:
    ValueError: a number is too large for `dtype`.
  """
  path = Path(path)
  arrays = {}
  for name, array in flat.items():
    array = np.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.floating):
      with np.errstate(over="ignore"):
        stored = array.astype(dtype)
      if (np.isfinite(array) & ~np.isfinite(stored)).any():
        raise ValueError(f"{name!r} holds numbers too large for "
                         f"{np.dtype(dtype)}; save as float32")
      array = stored
    arrays[name] = array
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    with open(part, "wb") as file:
      np.savez_compressed(file, **arrays)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
  """Hash of a file as hex digits."""
  return fetch.digest(path, "sha256")
