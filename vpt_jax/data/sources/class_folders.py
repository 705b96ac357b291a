"""Reads folders of class folders, with or without parts above them."""

from collections import Counter
from collections.abc import Iterator
import os
from pathlib import Path

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import image_files, layouts
from vpt_jax.data.sources.image_files import SUFFIXES
from vpt_jax.data.sources.layouts import Top
from vpt_jax.data.sources.parts import Label, Parts, TOLD
from vpt_jax.utils import texts
from vpt_jax.utils.logs import log

OUTSIDE = "images outside of class folders"


def folder(
  path: Path,
  split: str,
  seed: int,
  num_classes: int = 0,
  layout: str = "auto",
  as_text: bool = False,
) -> Examples:
  """Reads `folder:PATH`: a subfolder for each class.

  Classes are below folders for the parts, such as train/, val/ and test/, or
  without them divided at random by `seed`, 80/10/10 % of each. What the folders
  mean is told by `layouts`.

  Args:
    path: the folder.
    split: train, val, trainval or test.
    seed: of the division.
    num_classes: expected K; 0: any above one.
    layout: see `layouts.find_parts`.
    as_text: of the classes' order, see `class_names.in_order`.

  Raises:
    ValueError: no such folder, its classes cannot be trained on, or it may mean
      several things.
  """
  if not path.is_dir():
    raise ValueError(
      f"{path} is no folder; expected folder:PATH with "
      "PATH/CLASS/IMAGE or PATH/{train,val,test}/CLASS/IMAGE"
    )
  reader = _Reader(path.absolute(), layout, split in TOLD)
  parts = reader.read()
  reader.tell_ignored()
  return image_files.from_parts(
    parts,
    split,
    reader.root,
    reader.origin,
    seed,
    num_classes,
    as_text=as_text,
  )


class _Reader:
  """Reads the rows of a folder.

  Attributes:
    root: the folder.
    origin: its name, for errors and the log.
    layout: see `layouts.find_parts`.
    tells: whether the log says what is found.
    ignored: kinds of what is not read, and how often there is such.
  """

  def __init__(self, root: Path, layout: str, tells: bool):
    self.root = root
    self.origin = texts.printable(str(root))
    self.layout = layout
    self.tells = tells
    self.ignored: Counter[str] = Counter()

  def read(self) -> Parts:
    """Returns the rows by part; "" if the folder is not divided."""
    tops = self._folders_in(self.root)
    found = layouts.find_parts(self.root, tops, self.layout)
    if not found:
      self._check_is_no_wrapper(tops)
      return {"": self._classes_in(self.root, tops)}
    parts = self._labelled_parts(found)
    left_out = [top.name for top in tops if top not in found.values()]
    if left_out:
      self._tell("left out are the folders %s", texts.shortened(left_out))
    if parts.keys() == {"train"}:
      return {"": parts["train"]}
    return parts

  def _labelled_parts(self, found: dict[str, Top]) -> Parts:
    """Returns the rows of all parts that have classes."""
    train = self._unwrapped(found["train"])
    rows = self._classes_below(train)
    classes = {label for _, label in rows}
    places = {"train": train}
    parts: Parts = {"train": rows}
    for part, top in found.items():
      if part == "train":
        continue
      inner = top
      if not classes & {*top.folders}:
        inner = self._unwrapped(top)
      if part == layouts.UNLABELLED or (inner.images and not inner.folders):
        self._tell(
          "images in %s (%s) have no classes and are only for prediction",
          inner.path.relative_to(self.root),
          f"{inner.images:,}",
        )
        continue
      parts[part] = self._classes_below(inner)
      places[part] = inner
    named = []
    for part, top in places.items():
      named.append(f"{part} = {top.path.relative_to(self.root)}")
    self._tell("parts are %s", ", ".join(named))
    return parts

  def _check_is_no_wrapper(self, tops: list[Top]) -> None:
    """Raises ValueError if all is in one folder: one class is none."""
    if len(tops) == 1 and len(tops[0].folders) > 1:
      (top,) = tops
      raise ValueError(
        f"{self.root} has one folder only, {top.name!r}, and in it are "
        f"{texts.shortened(top.folders)}; if these are the classes, or the "
        f"parts, name that one: config.data.source=folder:{top.path}"
      )

  def _unwrapped(self, top: Top) -> Top:
    """Returns the folder that a part's folder is only repeated around."""
    if not layouts.is_wrapper(top):
      return top
    return layouts.look_into(top.path / top.folders[0])

  def _folders_in(self, path: Path) -> list[Top]:
    """Returns the folders in a folder, sorted; counts what else there is."""
    tops = []
    for entry in sorted(path.iterdir()):
      if layouts.is_hidden(entry.name):
        self.ignored["hidden"] += 1
      elif entry.is_dir():
        tops.append(layouts.look_into(entry))
      elif entry.suffix.lower() in SUFFIXES:
        self.ignored[OUTSIDE] += 1
      else:
        kind = entry.suffix or entry.name
        self.ignored[f"{kind} outside of classes"] += 1
    return tops

  def _classes_below(self, top: Top) -> list[tuple[str, Label]]:
    """Returns rows (path below the root, class) of TOP/CLASS/.../IMAGE."""
    return self._classes_in(top.path, self._folders_in(top.path))

  def _classes_in(self, top: Path, tops: list[Top]) -> list[tuple[str, Label]]:
    """Returns the rows of the class folders that are in a folder."""
    if self.layout == "auto":
      layouts.check_classes(top, tops)
    rows: list[tuple[str, str]] = []
    empty = []
    for class_folder in tops:
      names = sorted(self._images_below(class_folder.path))
      rows += [(name, class_folder.name) for name in names]
      if not names:
        empty.append(class_folder.name)
    if empty:
      raise ValueError(
        f"{top}: {len(empty)} class folders without images, such as "
        f"{empty[0]!r}; fill or remove them. Images end in "
        f"{', '.join(sorted(SUFFIXES))}"
      )
    if not rows:
      raise ValueError(
        f"{top} has no class folders; expected CLASS/IMAGE in it, or a table "
        "of the images, config.data.source=csv:FILE with columns path,label"
      )
    if self.layout == "auto":
      layouts.check_depths(self.root, rows)
    labelled: list[tuple[str, Label]] = [*rows]
    return labelled

  def _images_below(self, class_folder: Path) -> Iterator[str]:
    """Yields images anywhere in a class folder, as paths below the root.

    Links are followed, but no folder is entered twice.
    """
    entered = set()
    for path in (class_folder, *class_folder.parents):
      entered.add(_identity(path))
    todo = [str(class_folder)]
    while todo:
      for entry in os.scandir(todo.pop()):
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
          self.ignored["hidden"] += 1
        elif os.path.isdir(entry.path):
          if _identity(entry.path) in entered:
            self.ignored["folders that links lead to again"] += 1
          else:
            entered.add(_identity(entry.path))
            todo.append(entry.path)
        elif suffix in SUFFIXES and _is_file_or_broken_link(entry.path):
          yield entry.path[len(str(self.root)) + 1 :]
        else:
          self.ignored[suffix or entry.name] += 1

  def tell_ignored(self) -> None:
    """Logs what was not read."""
    outside = self.ignored.pop(OUTSIDE, 0)
    if outside and self.tells:
      log.warning(
        "%s: %d images are not in a class folder and are not used",
        self.origin,
        outside,
      )
    if self.ignored:
      kinds = [
        f"{count} {kind}" for kind, count in sorted(self.ignored.items())
      ]
      self._tell("ignored %s", ", ".join(kinds))

  def _tell(self, message: str, *values: object) -> None:
    if self.tells:
      shown = [texts.printable(str(value)) for value in values]
      log.info(f"%s: {message}", self.origin, *shown)


def _identity(path: str | Path) -> tuple[int, int]:
  """Returns what tells a folder from others, whatever links lead to it."""
  stat = os.stat(path)
  return stat.st_dev, stat.st_ino


def _is_file_or_broken_link(path: str) -> bool:
  """Returns True for a file, and for a link to an image that is missing.

  A broken link is an error later; a pipe is no image.
  """
  return os.path.isfile(path) or not os.path.exists(path)
