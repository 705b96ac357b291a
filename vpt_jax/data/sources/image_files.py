"""Reads sources that are image files: vtab-1k packs and VPT's lists."""

from collections.abc import Iterator, Sequence
import dataclasses
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import parts as parts_lib
from vpt_jax.data.sources.parts import Label, Parts
from vpt_jax.data.transforms import decode
from vpt_jax.utils import strange_files, texts
from vpt_jax.utils.logs import log

# The protocol's names of the splits -> lists of a vtab-1k pack.
PACK_LISTS = {
  "train": "train800.txt",
  "val": "val200.txt",
  "trainval": "train800val200.txt",
  "test": "test.txt",
}
# Bytes of a list that is read: those of VTAB-1k have a few megabytes.
MOST_LIST = 2**28
# Endings of image files, in lower case.
SUFFIXES = frozenset(
  {
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jpeg",
    ".jpg",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
  }
)


@dataclasses.dataclass(frozen=True)
class Files:
  """Reads image files by number.

  Attributes:
    base: the folder that names are relative to.
    names: of the files.
  """

  base: Path
  names: Sequence[str]

  def __call__(self, i: int) -> bytes:
    """Returns the content of file i."""
    return decode.read_file(self.base / self.names[i])

  def missing(self) -> list[str]:
    """Returns the names of files that do not exist."""
    return [name for name in self.names if not (self.base / name).exists()]


def pack(
  folder: Path, split: str, num_classes: int, class_names: tuple[str, ...] = ()
) -> Examples:
  """Reads a folder in the layout of the vtab-1k packs.

  Raises:
    ValueError: what is missing or wrong, with the file and the line.
  """
  path = folder / PACK_LISTS[split]
  if not path.is_file():
    lists = ",".join(PACK_LISTS.values())
    raise ValueError(
      f"{path} is missing; expected the vtab-1k layout: {folder}/{{{lists}}} "
      "with lines 'PATH LABEL', paths relative to that folder; "
      "config.data.dir names the folder above 'vtab-1k'"
    )
  rows = list(read_list(path, num_classes))
  if not rows:
    raise ValueError(f"{path} lists no image")
  return _from_files(
    [name for name, _ in rows],
    np.array([label for _, label in rows], np.int32),
    num_classes,
    folder,
    str(path),
    class_names,
  )


def read_list(path: Path, num_classes: int) -> Iterator[tuple[str, int]]:
  """Yields (path below the list's folder, label) of lines `PATH LABEL`.

  Raises:
    ValueError: naming the list and the line.
  """
  data = strange_files.read_bytes(path, MOST_LIST)
  text = data.decode(errors="surrogateescape")
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    name, _, label = line.strip().rpartition(" ")
    if not name or "\0" in name or not re.fullmatch("[0-9]{1,9}", label):
      raise ValueError(f"{where}: expected 'PATH LABEL', got {line!r}")
    if int(label) >= num_classes:
      raise ValueError(
        f"{where}: label {label} is out of range 0..{num_classes - 1}"
      )
    yield _checked_path(name, where), int(label)


def _checked_path(name: str, where: str) -> str:
  """Returns the normalised path if it stays in the folder it is relative to.

  By name alone: a link inside the folder may point to another disk.
  """
  path = os.path.normpath(name)
  if os.path.isabs(path) or path.split(os.sep)[0] == "..":
    raise ValueError(f"{where}: {name!r} is outside the pack's folder")
  return path


def json_splits(
  folder: Path,
  split: str,
  num_classes: int,
  seed: int,
  images: str = "",
  class_names: tuple[str, ...] = (),
  multi_label: bool = False,
  as_text: bool = True,
) -> Examples:
  """Reads VPT's FGVC lists: train.json, test.json, maybe val.json.

  Each is {file: class} or, if images may have several, {file: [class, ...]}.
  Files are relative to the subfolder `images`. Without val.json it is a tenth
  of every class of train.json. Classes are numbered in their order as text, as
  VPT does, or, without `as_text`, as `class_names.in_order` has it.

  Raises:
    ValueError: what is missing or wrong, with the file.
  """
  parts: Parts = {}
  for part in ("train", "val", "test"):
    path = folder / f"{part}.json"
    if part != "val" or path.is_file():
      parts[part] = read_json(path, multi_label)
  known: dict[str, Label] = {}
  for part, rows in parts.items():
    for name, label in rows:
      if known.setdefault(name, label) != label:
        raise ValueError(
          f"{folder / part}.json: {name!r} has another class than in the "
          "other files"
        )
  if len(known) < sum(len(rows) for rows in parts.values()):
    log.warning("%s: files are in two of %s", folder, ", ".join(parts))
  return from_parts(
    parts,
    split,
    folder / images,
    str(folder),
    seed,
    num_classes,
    class_names,
    as_text,
  )


def read_json(path: Path, multi_label: bool = False) -> list[tuple[str, Label]]:
  """Returns rows (file, class); classes are all integers or all names.

  Args:
    path: of a file with {file: class}.
    multi_label: it has {file: [class, ...]} instead.

  Raises:
    ValueError: naming the file and the entry.
  """
  try:
    # A list of pairs shows a file that is listed twice.
    rows = strange_files.read_json(path, pairs=tuple)
  except FileNotFoundError:
    raise ValueError(
      f"{path} is missing; expected train.json, test.json and, "
      "if any, val.json there, each {file: class}"
    ) from None
  except (OSError, ValueError) as error:
    raise ValueError(f"cannot read {path}: {error}") from None
  if not isinstance(rows, tuple) or not rows:
    raise ValueError(
      f"{path}: expected {{file: class}}, with one file at least"
    )
  checked: dict[str, Label] = {}
  kinds: set[type] = set()
  for name, value in rows:
    label = _checked_label(value, multi_label)
    if label is None or "\0" in name or not name:
      expected = "a list of classes" if multi_label else "an integer or a name"
      raise ValueError(
        f"{path}: entry {name!r}: {str(value)[:40]!r}; expected a path and "
        f"{expected}"
      )
    kinds.update(type(one) for one in parts_lib.classes_of(label))
    if len(kinds) > 1:
      raise ValueError(f"{path}: some classes are integers, others are names")
    if name in checked:
      raise ValueError(f"{path}: {name!r} is in it twice")
    checked[name] = label
  return [
    (_checked_path(name, str(path)), label) for name, label in checked.items()
  ]


def _checked_label(value: Any, multi_label: bool) -> Label | None:
  """Returns the label of a JSON value; None if it is none."""
  values = value if multi_label else [value]
  # Exactly these types: True is an int too.
  if not isinstance(values, list) or any(
    type(one) not in (int, str) for one in values
  ):
    return None
  return tuple(values) if multi_label else value


def from_parts(
  parts: Parts,
  split: str,
  base: Path,
  origin: str,
  seed: int,
  num_classes: int = 0,
  class_names: tuple[str, ...] = (),
  as_text: bool = False,
) -> Examples:
  """Returns one split of files below `base`; see `parts.select`.

  Args:
    parts: rows (path below `base`, label) by part.
    split: train, val, trainval or test.
    base: the folder.
    origin: what the rows are from, for errors.
    seed: of the division into parts.
    num_classes: expected K; 0: any above one.
    class_names: of the classes; () takes what the labels say.
    as_text: of the classes' order, see `class_names.in_order`.
  """
  origin = texts.printable(origin)
  selected = parts_lib.select(parts, split, origin, seed, num_classes, as_text)
  return _from_files(
    selected.names,
    selected.labels,
    selected.num_classes,
    base,
    origin,
    class_names or selected.class_names,
  )


def _from_files(
  names: Sequence[str],
  labels: np.ndarray,
  num_classes: int,
  base: Path,
  origin: str,
  class_names: tuple[str, ...],
) -> Examples:
  lines = [f"{class_names}"]
  for name, label in zip(names, labels.tolist(), strict=True):
    try:
      stat = os.stat(base / name)
      lines.append(f"{name}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}")
    except (OSError, ValueError):  # reported when it is read
      lines.append(f"{name}\0{label}")
  return Examples(
    [texts.printable(name) for name in names],
    labels,
    num_classes,
    Files(base, names),
    texts.printable(origin),
    parts_lib.digest("\n".join(lines)),
    class_names,
  )
