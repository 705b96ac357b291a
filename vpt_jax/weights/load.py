"""Loads pretrained weights from a file or an address, whole or not at all.

Whatever the format (`file_formats.py`) and the names (`name_maps.py`), the tree
in memory has the names of google-research/big_vision's `models/vit.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
from importlib import resources
import math
from pathlib import Path
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from vpt_jax.nn.tokens import Spec
from vpt_jax.utils import files, lookup
from vpt_jax.utils.logs import log
from vpt_jax.weights import (
  agreement,
  diagnosis,
  download,
  facts,
  families,
  file_formats,
  grids,
  hub_folders,
)
from vpt_jax.weights.agreement import Told
from vpt_jax.weights.facts import Facts
from vpt_jax.weights.name_maps import EXTRAS
from vpt_jax.weights.translate import (
  Arrays,
  translate,
  Translated,
)

_NORM = "Transformer/encoder_norm/"
_NUM_SHOWN = 12  # names of a kind that an error lists


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A checkpoint that fits a backbone.

  Attributes:
    backbone: float32 arrays with the names of the backbone's parameters.
    extras: what else the file holds under the names of `name_maps.EXTRAS`, as
      in the file (`head/kernel` [D, K], ...).
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
  told: Told = agreement.NOTHING,
) -> Loaded:
  """Reads a checkpoint that fits a backbone exactly.

  Args:
    url_or_path: `https://`, `http://` or `gs://` address, `package:NAME` for a
      file of this package, or a local path.
    template: path -> array or ShapeDtypeStruct of the backbone's parameters.
    spec: of the backbone.
    resize: how positions are resized to another grid, see `positions.resize`.
    checksum: `sha256:HEX` or `md5:HEX` of the file, see `download.verify`.
    cache: folder for fetched files, see `download.fetch`.
    told: what the user said of the file.

  Raises:
    ValueError: no such file, damaged, another checksum, or not this backbone.
  """
  source = str(url_or_path)
  with contextlib.ExitStack() as stack:
    path = stack.enter_context(local(source, checksum, cache))
    # A large file takes seconds to hash and to read: both at the same time.
    beside = stack.enter_context(futures.ThreadPoolExecutor(1))
    digest = beside.submit(sha256, path)
    flat = file_formats.read(path)
    known = facts.beside(path)
    backbone, extras = fit(flat, template, source, spec, resize, known, told)
    return Loaded(backbone, extras, digest.result())


def is_local(source: str) -> bool:
  """Returns whether a checkpoint is named by a path of this machine."""
  return "://" not in source and not source.startswith("package:")


@contextlib.contextmanager
def local(
  address: str, checksum: str, cache: str | Path | None
) -> Iterator[Path]:
  """Gives the verified file behind an address, a `package:NAME` or a path.

  Args:
    address: see `load`.
    checksum: see `load`.
    cache: see `load`.

  Raises:
    ValueError: no such file, or another checksum.
  """
  with contextlib.ExitStack() as stack:
    if "://" in address:
      path = download.fetch(address, checksum, cache)
    elif address.startswith("package:"):
      asset = _asset(address.removeprefix("package:"))
      path = stack.enter_context(asset)
    else:
      path = Path(address).expanduser()
    if not path.exists():
      raise file_formats.unreadable(path, "no such file")
    if checksum and path.is_dir():
      raise ValueError(f"{path} is a folder; checksums are of files only")
    download.verify(path, checksum, "fetch it again or correct the checksum")
    yield path


def _asset(name: str) -> contextlib.AbstractContextManager[Path]:
  """Returns a context that gives a checkpoint of this package as a file."""
  assets = resources.files("vpt_jax") / "assets"
  known = [file.name for file in assets.iterdir()]
  name = lookup.choose(name, known, "checkpoint of this package")
  return resources.as_file(assets / name)


def fit(
  flat: Mapping[str, np.ndarray],
  template: Mapping[str, Any],
  source: str,
  spec: Spec,
  resize: str = "linear",
  beside: Sequence[Facts] = (),
  told: Told = agreement.NOTHING,
) -> tuple[Arrays, Arrays]:
  """Returns what a file in any known layout holds of a backbone.

  Args:
    flat: name -> array, as `file_formats.read` gives it.
    template: see `load`.
    source: name of the checkpoint, for errors.
    spec: of the backbone.
    resize: see `load`.
    beside: what the configs beside the file say.
    told: see `load`.

  Returns:
    (the backbone's parameters, what else the file holds; see `Loaded`).

  Raises:
    ValueError: see `load`.
  """
  grid = spec.grids[0]
  try:
    found, known = understood(flat, beside, told)
    file_grid = told.grid or facts.grid_of(known, patch_size(found.arrays))
    arrays = grids.split_class_position(found, grid, file_grid)
    if not told.all or told.grid:
      who_says = "config.backbone.grid" if told.grid else known.source
      grids.check(arrays, file_grid, who_says)
  except ValueError as error:
    raise ValueError(f"checkpoint {source} can't be used: {error}") from error
  if found.ignored:
    log.info("ignored in the checkpoint: %s", _kinds(found.ignored))
  if found.heads:
    log.info("heads in the checkpoint, left out: %s", _kinds(found.heads))
  arrays = _with_final_norm(arrays, spec)
  extras: dict[str, np.ndarray] = {}
  own: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    # A projection may be part of the backbone.
    is_extra = name.startswith(EXTRAS) and name not in template
    part = extras if is_extra else own
    part[name] = array
  restored = restore(own, template, source, grid, resize, file_grid)
  try:
    agreement.check(known, told, spec, template, arrays)
  except ValueError as error:
    raise ValueError(f"checkpoint {source} can't be used: {error}") from error
  return restored, extras


def understood(
  flat: Mapping[str, np.ndarray], beside: Sequence[Facts], told: Told
) -> tuple[Translated, Facts]:
  """Returns a file's arrays under our names, and what is known beside them.

  Args:
    flat: see `fit`.
    beside: what the configs beside the file say.
    told: what the user said.

  Raises:
    ValueError: no known layout, or a network that cannot be run.
  """
  flat, of_file = facts.take(flat)
  families.refuse(flat.keys(), may_pool=told.pool)
  found = translate(flat, told.pool)
  if of_file is not None:  # `convert` looked at all of this.
    return found, of_file
  if told.all:
    return found, facts.NOTHING
  by_names = facts.by_names(found.layout, flat.keys())
  of_config = facts.for_layout(beside, found.layout)
  return found, facts.merged(of_config, by_names)


def patch_size(arrays: Mapping[str, Any]) -> int:
  """Returns the side of a patch, 0 if there is no embedding of patches."""
  return diagnosis.shape_of(arrays).get("patch_size", 0)


def _with_final_norm(arrays: Arrays, spec: Spec) -> Arrays:
  """Returns the arrays with the final norm that a backbone asks for.

  A norm after the pooling may be called `fc_norm` in the file. A fresh one has
  scale 1 and bias 0 whatever the file holds (MAE in VPT's and VAPT's code).
  """
  if spec.norm == "before":
    return arrays
  if _NORM + "scale" not in arrays:
    arrays = {
      name.replace("fc_norm", "encoder_norm"): array
      for name, array in arrays.items()
    }
  if spec.norm == "fresh":
    width = spec.widths[-1]
    arrays = arrays | {
      _NORM + "scale": np.ones(width, np.float32),
      _NORM + "bias": np.zeros(width, np.float32),
    }
  return arrays


def restore(
  flat: Mapping[str, np.ndarray],
  template: Mapping[str, Any],
  source: str,
  grid: tuple[int, int] | None = None,
  resize: str = "linear",
  file_grid: tuple[int, int] | None = None,
) -> Arrays:
  """Returns the arrays that `template` asks for, never only a part of them.

  Args:
    flat: path -> array, under our names.
    template: path -> array or ShapeDtypeStruct of the parameters.
    source: name of the checkpoint, for errors.
    grid: (rows, columns) of the backbone; positions of another grid are resized
      to it.
    resize: see `positions.resize`.
    file_grid: of the file's positions, if it is known.

  Returns:
    float32 arrays with the keys of `template`.

  Raises:
    ValueError: names, shapes or kinds of numbers differ, or numbers are not
      finite; the text lists them and names the likely cause.
  """
  arrays = {}
  for name, array in flat.items():
    arrays[name] = file_formats.float32(np.asarray(array))
  if grid is not None:
    grids.resize(arrays, grid, resize, file_grid)
  _split_heads(arrays, template)

  differences = _differences(arrays, template)
  if differences:
    lines = [
      f"checkpoint {source} does not fit this backbone",
      *differences,
      *diagnosis.causes(arrays, template),
      "Nothing was loaded; choose the config.backbone.name whose "
      "architecture fits, or another config.backbone.checkpoint",
    ]
    raise ValueError("\n".join(lines))
  broken = [name for name in template if not np.isfinite(arrays[name]).all()]
  if broken:
    raise ValueError(
      f"checkpoint {source} holds NaN or infinite numbers in "
      f"{_kinds(broken)}; it is damaged, download it again"
    )
  return {name: arrays[name] for name in template}


def _split_heads(arrays: Arrays, template: Mapping[str, Any]) -> None:
  """Gives attention's arrays their axis of heads, in place.

  PyTorch's files do not say how many heads there are.
  """
  for name in arrays.keys() & template.keys():
    found = re.search(r"/(query|key|value|out)/(kernel|bias)$", name)
    if not found:
      continue
    shape = tuple(template[name].shape)
    num_axes = 2 if found[2] == "kernel" else 1
    array = arrays[name]
    if array.ndim == num_axes and array.size == math.prod(shape):
      arrays[name] = array.reshape(shape)


def _differences(flat: Arrays, template: Mapping[str, Any]) -> list[str]:
  """Returns lines that say where file and backbone differ, [] if nowhere."""
  wanted = {}
  for name, leaf in template.items():
    wanted[name] = f"{name} {tuple(leaf.shape)}"
  held = {}
  for name, array in flat.items():
    held[name] = f"{name} {array.shape}"
    if array.dtype != np.float32:
      held[name] += f" of {array.dtype}"
  both = wanted.keys() & held.keys()
  unlike = {name for name in both if wanted[name] != held[name]}
  return [
    *_listed(
      "missing in the checkpoint:", "-", wanted, wanted.keys() - held.keys()
    ),
    *_listed(
      "unexpected in the checkpoint:", "+", held, held.keys() - wanted.keys()
    ),
    *_listed("expected shapes:", "-", wanted, unlike),
    *_listed("found shapes:", "+", held, unlike),
  ]


def _listed(
  title: str, sign: str, texts: Mapping[str, str], names: Iterable[str]
) -> list[str]:
  """Returns a title and one line a name, or [] where there are no names."""
  names = sorted(names)
  if not names:
    return []
  lines = [title]
  for name in names[:_NUM_SHOWN]:
    lines.append(f"{sign} {texts[name]}")
  if len(names) > _NUM_SHOWN:
    lines.append(f"  ... and {len(names) - _NUM_SHOWN} more")
  return lines


def _kinds(names: Iterable[str]) -> str:
  """Returns a few of the names as text, with numbers of blocks as *."""
  kinds = sorted({re.sub(r"\d+", "*", name) for name in names})
  text = ", ".join(kinds[:_NUM_SHOWN])
  if len(kinds) > _NUM_SHOWN:
    text += f" and {len(kinds) - _NUM_SHOWN} more kinds"
  return text


def save(
  path: str | Path,
  flat: Mapping[str, Any],
  dtype: Any = np.float16,
  known: Facts = facts.NOTHING,
) -> None:
  """Writes a backbone's parameters as npz; `load` reads it again.

  The file appears at once and whole.

  Args:
    path: of the file.
    flat: path -> array.
    dtype: how floats are stored.
    known: what the arrays do not say, to be kept in the file. Where it names
      no image size, n n positions are taken for an n x n grid when loaded.

  Raises:
    ValueError: a number is too large for `dtype`.
  """
  path = Path(path)
  arrays: dict[str, Any] = {}
  for name, array in flat.items():
    arrays[name] = _stored(name, array, dtype)
  if known != facts.NOTHING:
    arrays[facts.FACTS] = known.to_array()
  with files.replacing(path) as file:
    np.savez_compressed(file, **arrays)


def _stored(name: str, array: Any, dtype: Any) -> np.ndarray:
  """Returns an array as it is stored: floats as `dtype`, others unchanged.

  Raises:
    ValueError: a number is too large for `dtype`.
  """
  array = np.asarray(array)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return array
  with np.errstate(over="ignore"):
    stored = array.astype(dtype)
  if (np.isfinite(array) & ~np.isfinite(stored)).any():
    raise ValueError(
      f"{name!r} holds numbers too large for {np.dtype(dtype)}; save as float32"
    )
  return stored


def sha256(path: str | Path) -> str:
  """Returns the hash of a checkpoint as hex digits.

  That of a folder with one file of weights is the file's; of several files it
  is of all names and contents.

  Raises:
    ValueError: a folder whose index of shards is damaged.
  """
  path = Path(path)
  weights = hub_folders.weights_in(path) if path.is_dir() else path
  if weights is not None and not hub_folders.is_index(weights):
    return download.digest(weights, "sha256")
  folder = path if path.is_dir() else path.parent
  whole = hashlib.sha256()
  for file in file_formats.files_of(path):
    digest = download.digest(file, "sha256")
    whole.update(f"{file.relative_to(folder)} {digest}\n".encode())
  return whole.hexdigest()
