"""Pretrained weights from a file or an address, whole or not at all.

Whatever the format (`formats.py`) and the names (`layouts.py`), the tree in
memory has the names of google-research/big_vision's `models/vit.py`.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import hashlib
from importlib import resources
import logging
import math
import os
from pathlib import Path
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from vpt_jax.nn import positions
from vpt_jax.nn.tokens import Spec
from vpt_jax.utils import lookup
from vpt_jax.weights import diagnosis, download, file_formats
from vpt_jax.weights.name_maps import EXTRAS
from vpt_jax.weights.translate import (
  Arrays,
  side,
  split_class_position,
  translate,
)

log = logging.getLogger("vpt_jax")

_POSITIONS = "pos_embedding"
_NORM = "Transformer/encoder_norm/"
_SHOWN = 12  # names of a kind that an error lists


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A checkpoint that fits a backbone.

  Attributes:
    backbone: float32 arrays with the names of the backbone's parameters.
    extras: what else it holds under the names of `layouts.EXTRAS`, as in the
      file (`head/kernel` [D, K], ...).
    sha256: of the file.
  """

  backbone: Arrays
  extras: Arrays
  sha256: str


def load(
  url_or_path: str | Path,
  template: Mapping[str, Any],
  spec: Spec,
  *,
  resize: str = "linear",
  checksum: str = "",
  cache: str | Path | None = None,
) -> Loaded:
  """Reads a checkpoint that fits a backbone exactly.

  Args:
    url_or_path: `https://`, `http://` or `gs://` address, `package:NAME` for a
      file of this package, or a local path.
    template: path -> array or ShapeDtypeStruct of the backbone's parameters.
    spec: of the backbone.
    resize: how positions come to another grid, see `positions.resize`.
    checksum: `sha256:HEX` or `md5:HEX` of the file, see `fetch.verify`.
    cache: folder for fetched files, see `fetch.fetch`.

  Raises:
    ValueError: no such file, damaged, another checksum, or not this backbone.
  """
  with (
    local(str(url_or_path), checksum, cache) as path,
    futures.ThreadPoolExecutor(1) as beside,
  ):
    digest = beside.submit(sha256, path)
    backbone, extras = fit(
      file_formats.read(path), template, str(url_or_path), spec, resize
    )
    return Loaded(backbone, extras, digest.result())


@contextlib.contextmanager
def local(
  address: str, checksum: str, cache: str | Path | None
) -> Iterator[Path]:
  """The verified file behind an address, a `package:NAME` or a path."""
  with contextlib.ExitStack() as stack:
    if "://" in address:
      path = download.fetch(address, checksum, cache)
    elif address.startswith("package:"):
      assets = resources.files("vpt_jax") / "assets"
      name = lookup.choose(
        address.removeprefix("package:"),
        [file.name for file in assets.iterdir()],
        "checkpoint of this package",
      )
      path = stack.enter_context(resources.as_file(assets / name))
    else:
      path = Path(address).expanduser()
    if not path.exists():
      raise file_formats.unreadable(path, "no such file")
    if checksum and path.is_dir():
      raise ValueError(f"{path} is a folder; checksums are of files only")
    download.verify(path, checksum, "fetch it again or correct the checksum")
    yield path


def fit(
  flat: Mapping[str, np.ndarray],
  template: Mapping[str, Any],
  source: str,
  spec: Spec,
  resize: str = "linear",
) -> tuple[Arrays, Arrays]:
  """(backbone, extras) of the arrays of a file in any known layout.

  Raises:
    ValueError: see `load`.
  """
  grid = spec.grids[0]
  try:
    found = translate(flat)
    arrays = split_class_position(found, grid)
  except ValueError as error:
    raise ValueError(f"checkpoint {source} can't be used: {error}") from error
  if found.ignored:
    log.info("ignored in the checkpoint: %s", _some(found.ignored))
  after = {name: name.replace("fc_norm", "encoder_norm") for name in arrays}
  if spec.norm != "before" and _NORM + "scale" not in arrays:
    arrays = {after[name]: array for name, array in arrays.items()}
  if spec.norm == "fresh":
    width = spec.widths[-1]
    arrays |= {
      _NORM + "scale": np.ones(width, np.float32),
      _NORM + "bias": np.zeros(width, np.float32),
    }
  extras = {
    name: array
    for name, array in arrays.items()
    if name.startswith(EXTRAS) and name not in template
  }
  arrays = {name: array for name, array in arrays.items() if name not in extras}
  return restore(arrays, template, source, grid, resize), extras


def restore(
  flat: Mapping[str, np.ndarray],
  template: Mapping[str, Any],
  source: str,
  grid: tuple[int, int] | None = None,
  resize: str = "linear",
) -> Arrays:
  """The arrays that `template` asks for, or an error: never a part of them.

  Args:
    flat: path -> array, under our names.
    template: path -> array or ShapeDtypeStruct of the parameters.
    source: name of the checkpoint, for errors.
    grid: (rows, columns) of the backbone; n n positions of another resolution
      are taken for an n x n grid and resized to it.
    resize: see `positions.resize`.

  Returns:
    float32 arrays with the keys of `template`.

  Raises:
    ValueError: names, shapes or kinds of numbers differ; the text lists them
      and names the likely cause.
  """
  flat = {
    name: file_formats.float32(np.asarray(array))
    for name, array in flat.items()
  }
  table = flat.get(_POSITIONS)
  if (
    grid is not None
    and table is not None
    and (table.ndim == 3 and len(table) == 1)
  ):
    n = side(table.shape[1])
    if n and (n, n) != tuple(grid):
      flat[_POSITIONS] = positions.resize(table, (n, n), grid, resize)
  for name in flat.keys() & template.keys():
    shape = tuple(template[name].shape)
    # PyTorch's files do not say how many heads there are.
    if re.search(r"/(query|key|value|out)/(kernel|bias)$", name) and (
      flat[name].ndim == 1 + name.endswith("kernel")
      and flat[name].size == math.prod(shape)
    ):
      flat[name] = flat[name].reshape(shape)

  want = {
    name: f"{name} {tuple(leaf.shape)}" for name, leaf in template.items()
  }
  have = {
    name: f"{name} {array.shape}"
    + (f" of {array.dtype}" * (array.dtype != np.float32))
    for name, array in flat.items()
  }
  wrong = {
    name for name in want.keys() & have.keys() if want[name] != have[name]
  }
  lines = []
  for title, sign, text, names in (
    ("missing in the checkpoint:", "-", want, want.keys() - have.keys()),
    ("unexpected in the checkpoint:", "+", have, have.keys() - want.keys()),
    ("expected shapes:", "-", want, wrong),
    ("found shapes:", "+", have, wrong),
  ):
    if names:
      lines += [
        title,
        *(f"{sign} {text[name]}" for name in sorted(names)[:_SHOWN]),
      ]
      if len(names) > _SHOWN:
        lines.append(f"  ... and {len(names) - _SHOWN} more")
  if lines:
    raise ValueError(
      "\n".join(
        [
          f"checkpoint {source} does not fit this backbone",
          *lines,
          *diagnosis.causes(flat, template),
          "Nothing was loaded; choose the config.backbone.name whose "
          "architecture fits, or another config.backbone.checkpoint",
        ]
      )
    )
  broken = [name for name in template if not np.isfinite(flat[name]).all()]
  if broken:
    raise ValueError(
      f"checkpoint {source} holds NaN or infinite numbers in "
      f"{_some(broken)}; it is damaged, download it again"
    )
  return {name: flat[name] for name in template}


def _some(names: Iterable[str]) -> str:
  """A few of the names, with numbers of blocks as *."""
  kinds = sorted({re.sub(r"\d+", "*", name) for name in names})
  more = f" and {len(kinds) - _SHOWN} more kinds" if len(kinds) > _SHOWN else ""
  return ", ".join(kinds[:_SHOWN]) + more


def save(
  path: str | Path, flat: Mapping[str, Any], dtype: Any = np.float16
) -> None:
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
        raise ValueError(
          f"{name!r} holds numbers too large for "
          f"{np.dtype(dtype)}; save as float32"
        )
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
  """Hash of a file, or of all files of a folder, as hex digits."""
  path = Path(path)
  if not path.is_dir():
    return download.digest(path, "sha256")
  whole = hashlib.sha256()
  for file in sorted(path.rglob("*")):
    if file.is_file():
      whole.update(
        f"{file.relative_to(path)} {download.digest(file, 'sha256')}\n".encode()
      )
  return whole.hexdigest()
