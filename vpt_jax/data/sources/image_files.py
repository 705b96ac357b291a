"""Sources that are image files: vtab-1k packs, VPT's json splits, folders."""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import json
import logging
import os
from pathlib import Path
import re

import numpy as np

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import parts as parting
from vpt_jax.data.sources.parts import Label, NAMES, Parts
from vpt_jax.data.transforms import decode

log = logging.getLogger("vpt_jax")

# The protocol's names of the splits -> lists of a vtab-1k pack.
PACK_LISTS = {
  "train": "train800.txt",
  "val": "val200.txt",
  "trainval": "train800val200.txt",
  "test": "test.txt",
}
IMAGES = {
  ".avif",
  ".bmp",
  ".gif",
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


@dataclasses.dataclass(frozen=True)
class Files:
  """Reads image files.

  Attributes:
    base: the folder that names are relative to.
    names: of the files.
    upright: images are turned as their EXIF data say.
  """

  base: Path
  names: Sequence[str]
  upright: bool

  def __call__(self, i: int) -> bytes | np.ndarray:
    data = (self.base / self.names[i]).read_bytes()
    return decode.decode_image(data, upright=True) if self.upright else data

  def missing(self) -> list[str]:
    """Names of files that are not there."""
    return [name for name in self.names if not (self.base / name).exists()]


def pack(
  folder: Path, split: str, num_classes: int, class_names: tuple[str, ...] = ()
) -> Examples:
  """A folder in the layout of the vtab-1k packs.

  Raises:
    ValueError: what is missing or wrong, with the file and the line.
  """
  path = folder / PACK_LISTS[split]
  if not path.is_file():
    raise ValueError(
      f"{path} is missing; expected the vtab-1k layout: {folder}/"
      f"{{{','.join(PACK_LISTS.values())}}} with lines 'PATH LABEL', paths "
      "relative to that folder; config.data.dir names the folder above "
      "'vtab-1k'"
    )
  rows = list(read_list(path, num_classes))
  if not rows:
    raise ValueError(f"{path} lists no image")
  names, labels = zip(*rows)
  return _files(names, labels, num_classes, folder, str(path), class_names)


def read_list(path: Path, num_classes: int) -> Iterator[tuple[str, int]]:
  """Lines `PATH LABEL` of a pack's list as (path below its folder, label).

  Raises:
    ValueError: naming the list and the line.
  """
  text = path.read_text(encoding="utf-8", errors="surrogateescape")
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
    yield _inside(name, where), int(label)


def _inside(name: str, where: str) -> str:
  """The normalised path, if it stays in the folder that it is relative to.

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
) -> Examples:
  """VPT's FGVC splits: train.json, test.json, maybe val.json, {file: class}.

  Files are relative to the subfolder `images`. Classes are numbered in their
  sorted order. Without val.json it is a tenth of every class of train.json.

  Raises:
    ValueError: what is missing or wrong, with the file.
  """
  parts: Parts = {
    part: read_json(folder / f"{part}.json")
    for part in ("train", "val", "test")
    if part != "val" or (folder / "val.json").is_file()
  }
  known: dict[str, Label] = {}
  for part, rows in parts.items():
    shared = [
      name for name, label in rows if known.setdefault(name, label) != label
    ]
    if shared:
      raise ValueError(
        f"{folder / part}.json: {shared[0]!r} has another class "
        "than in the other files"
      )
  if len(known) < sum(map(len, parts.values())):
    log.warning("%s: files are in two of %s", folder, ", ".join(parts))
  return files(
    parts, split, folder / images, str(folder), seed, num_classes, class_names
  )


def read_json(path: Path) -> list[tuple[str, Label]]:
  """Rows (file, class) of {file: class}, all integers or all strings.

  Raises:
    ValueError: naming the file and the entry.
  """
  try:
    # A list of pairs shows a file that is listed twice.
    rows = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=tuple)
  except FileNotFoundError:
    raise ValueError(
      f"{path} is missing; expected train.json, test.json and, "
      "if any, val.json there, each {file: class}"
    ) from None
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(f"cannot read {path}: {error}") from None
  if not isinstance(rows, tuple) or not rows:
    raise ValueError(
      f"{path}: expected {{file: class}}, with one file at least"
    )
  names: set[str] = set()
  for name, label in rows:
    # Exactly these: True is an int too.
    if type(label) not in (int, str) or "\0" in name or not name:
      raise ValueError(
        f"{path}: entry {name!r}: {str(label)[:40]!r}; expected "
        "a path and an integer or a name"
      )
    if type(label) is not type(rows[0][1]):
      raise ValueError(f"{path}: some classes are integers, others are names")
    if name in names:
      raise ValueError(f"{path}: {name!r} is in it twice")
    names.add(name)
  return [(_inside(name, str(path)), label) for name, label in rows]


def folder(path: Path, split: str, seed: int, num_classes: int = 0) -> Examples:
  """`folder:PATH`: a subfolder for each class, in sorted order.

  Below train/, val/ and test/ (also training/, validation/, valid/), or
  without them parted at random by `seed`, 80/10/10 % of every class. There are
  `num_classes`, if that is not 0.

  Raises:
    ValueError: no such folder, or its classes cannot be trained on.
  """
  if not path.is_dir():
    raise ValueError(
      f"{path} is no folder; expected folder:PATH with "
      "PATH/CLASS/IMAGE or PATH/{train,val,test}/CLASS/IMAGE"
    )
  path = path.absolute()
  ignored, above = Counter(), Counter()
  tops = _subfolders(path, above)
  names = [top.name.lower() for top in tops]
  if "train" in map(NAMES.get, names) and NAMES.keys() >= set(names):
    parts: Parts = {}
    for top in tops:
      part = NAMES[top.name.lower()]
      if part in parts:
        raise ValueError(f"{path} has two folders for {part}: {names}")
      parts[part] = _classes_below(top, path, ignored)
    ignored += above
    if parts.keys() == {"train"}:
      parts = {"": parts["train"]}
  else:
    parts = {"": _classes_below(path, path, ignored)}
  if ignored:
    log.info(
      "%s: ignored %s",
      path,
      ", ".join(f"{n} {kind}" for kind, n in sorted(ignored.items())),
    )
  return files(parts, split, path, str(path), seed, num_classes, upright=True)


def _subfolders(path: Path, ignored: Counter[str]) -> list[Path]:
  folders = []
  for entry in sorted(path.iterdir()):
    if entry.name.startswith((".", "__MACOSX")):
      ignored["hidden"] += 1
    elif entry.is_dir():
      folders.append(entry)
    else:
      ignored[f"{entry.suffix or entry.name} outside of classes"] += 1
  return folders


def _classes_below(
  top: Path, root: Path, ignored: Counter[str]
) -> list[tuple[str, str]]:
  """Rows (path below the root, class) of TOP/CLASS/.../IMAGE."""
  rows, empty = [], []
  for place in _subfolders(top, ignored):
    files = sorted(_images_below(place, root, ignored))
    rows += [(name, place.name) for name in files]
    if not files:
      empty.append(place.name)
  if empty:
    raise ValueError(
      f"{top}: {len(empty)} class folders without images, such as "
      f"{empty[0]!r}; fill or remove them. Images end in "
      f"{', '.join(sorted(IMAGES))}"
    )
  if not rows:
    raise ValueError(f"{top} has no class folders; expected CLASS/IMAGE in it")
  return rows


def _images_below(
  place: Path, root: Path, ignored: Counter[str]
) -> Iterator[str]:
  """Images anywhere in a class folder; links are followed, but no folder is
  entered twice."""
  seen = {
    (stat.st_dev, stat.st_ino)
    for stat in (path.stat() for path in (place, *place.parents))
  }
  todo = [str(place)]
  while todo:
    for entry in os.scandir(todo.pop()):
      suffix = os.path.splitext(entry.name)[1].lower()
      if entry.name.startswith("."):
        ignored["hidden"] += 1
      elif os.path.isdir(entry.path):
        stat = os.stat(entry.path)
        if (stat.st_dev, stat.st_ino) in seen:
          ignored["folders that links lead to again"] += 1
        else:
          seen.add((stat.st_dev, stat.st_ino))
          todo.append(entry.path)
      # A broken link is an image that is missing; a pipe is none.
      elif suffix in IMAGES and (
        os.path.isfile(entry.path) or not os.path.exists(entry.path)
      ):
        yield entry.path[len(str(root)) + 1 :]
      else:
        ignored[suffix or entry.name] += 1


def files(
  parts: Parts,
  split: str,
  base: Path,
  origin: str,
  seed: int,
  num_classes: int = 0,
  class_names: tuple[str, ...] = (),
  upright: bool = False,
) -> Examples:
  """One split of files below `base`; see `parts.select`.

  Args:
    upright: images are turned as their EXIF data say.
  """
  rows, num_classes, classes = parting.select(
    parts, split, origin, seed, num_classes
  )
  names, labels = zip(*rows)
  return _files(
    names, labels, num_classes, base, origin, class_names or classes, upright
  )


def _files(
  names: Sequence[str],
  labels: Sequence[int],
  num_classes: int,
  base: Path,
  origin: str,
  class_names: tuple[str, ...],
  upright: bool = False,
) -> Examples:
  lines = [f"{upright} {class_names}"]
  for name, label in zip(names, labels):
    try:
      stat = os.stat(base / name)
      lines.append(f"{name}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}")
    except (OSError, ValueError):  # reported when it is read
      lines.append(f"{name}\0{label}")
  return Examples(
    names,
    np.array(labels, np.int32),
    num_classes,
    Files(base, names, upright),
    origin,
    parting.digest("\n".join(lines)),
    class_names,
  )
