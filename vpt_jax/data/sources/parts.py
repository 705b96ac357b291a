"""Divides labelled rows into the parts train, val and test."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

from vpt_jax.data import class_names as class_names_lib
from vpt_jax.utils import texts
from vpt_jax.utils.logs import log

# The class of an image, or all of its classes where it may have several.
Class = int | str
Label = Class | tuple[Class, ...]
# Part ("train", "val", "test"; "" if not divided) -> rows (name, label).
Parts = dict[str, list[tuple[str, Label]]]

# What folders, and columns called split, call the parts.
NAMES = {
  "train": "train",
  "training": "train",
  "trn": "train",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "dev": "val",
  "development": "val",
  "eval": "val",
  "evaluation": "val",
  "test": "test",
  "testing": "test",
  "tst": "test",
  "holdout": "test",
}


# Of the splits of a run these are opened once: what is told, is told there.
TOLD = ("train", "trainval")


class NoImages(ValueError):
  """A source has images, but none for this split."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """The rows of a split, with classes numbered in their order.

  Attributes:
    names: of the N images.
    labels: int32 [N] in 0 .. K - 1; where images may have several classes,
      uint8 [N, K] of zeros and ones.
    num_classes: K.
    class_names: of the classes; () if they are the numbers 0 .. K - 1
      themselves.
  """

  names: list[str]
  labels: np.ndarray
  num_classes: int
  class_names: tuple[str, ...]


def of(split: str) -> tuple[str, ...]:
  """Returns the parts of a split, in order."""
  return ("train", "val") if split == "trainval" else (split,)


def select(
  parts: Parts,
  split: str,
  origin: str,
  seed: int,
  num_classes: int = 0,
  as_text: bool = False,
) -> Selection:
  """Selects the rows of a split.

  Args:
    parts: rows by part, all classes integers or all names. What "" holds is
      divided 80/10/10 % into train, val and test; where only val is missing,
      it is a tenth of train.
    split: train, val, trainval or test.
    origin: what the rows are from, for errors.
    seed: of the division.
    num_classes: expected K; 0: any above one.
    as_text: of the classes' order, see `class_names.in_order`.

  Raises:
    NoImages: there are none for this split.
    ValueError: one class only, or one without training images.
  """
  parts = _with_readable_classes(parts)
  if "val" not in parts:
    parts = _with_val(parts, origin, seed, split in TOLD)
  found = _classes_in(parts.get("train", []))
  _check_classes(found, origin, num_classes)
  if split in TOLD:
    _warn_of_similar(found, origin)
  classes = class_names_lib.in_order(found, as_text)
  numbers = {name: number for number, name in enumerate(classes)}
  _check_classes_are_trained(parts, numbers, origin)
  rows = []
  for part in of(split):
    rows += parts.get(part, [])
  if not rows:
    there = [part for part in parts if part and parts[part]]
    raise NoImages(
      f"{origin} has no images for {split}, only for {', '.join(there)}; "
      "config.data.train_split and config.data.test_split name the parts that "
      "are used, such as train and val"
    )
  are_numbers = classes == list(range(len(classes)))
  return Selection(
    [name for name, _ in rows],
    _encoded([label for _, label in rows], numbers),
    len(classes),
    () if are_numbers else tuple(map(str, classes)),
  )


def classes_of(label: Label) -> tuple[Class, ...]:
  """Returns all classes of a label, of which there may be one or several."""
  return label if isinstance(label, tuple) else (label,)


def _with_val(parts: Parts, origin: str, seed: int, is_told: bool) -> Parts:
  """Returns the parts with val (and, if nothing is divided, test) taken out."""
  has_train = "train" in parts
  source = "train" if has_train else ""
  taken = ("val",) if has_train else ("val", "test")
  divided = parts | carve(parts.get(source, []), seed, taken)
  if not is_told:
    return divided
  listed = "\n".join(name for name, _ in divided["train"])
  log.info(
    "%s: divided with seed %d: a tenth of each class for %s; "
    "%d files stay for training (digest of their names: %s)",
    origin,
    seed,
    " and for ".join(taken),
    len(divided["train"]),
    digest(listed)[:12],
  )
  return divided


def _with_readable_classes(parts: Parts) -> Parts:
  """Returns the rows with classes' names as `texts.readable_name` has them."""
  known: dict[Label, Label] = {}
  readable: Parts = {}
  for part, rows in parts.items():
    readable[part] = []
    for name, label in rows:
      if label not in known:
        known[label] = _readable(label)
      readable[part].append((name, known[label]))
  return readable


def _readable(label: Label) -> Label:
  if isinstance(label, str):
    return texts.readable_name(label)
  if isinstance(label, tuple):
    names = []
    for name in label:
      names.append(texts.readable_name(name) if isinstance(name, str) else name)
    return tuple(names)
  return label


def _classes_in(rows: Iterable[tuple[str, Label]]) -> set[Any]:
  """Returns the classes of rows, all integers or all names."""
  found: set[Class] = set()
  for _, label in rows:
    found.update(classes_of(label))
  return found


def _check_classes(found: set[Any], origin: str, num_classes: int) -> None:
  """Raises ValueError for too few classes, or another number of them."""
  if len(found) < 2:
    raise ValueError(
      f"{origin}: classes with training images: {sorted(found)}; expected two "
      "or more"
    )
  if num_classes and len(found) != num_classes:
    raise ValueError(
      f"{origin}: {len(found)} classes have training images, "
      f"expected {num_classes}"
    )


def _warn_of_similar(found: set[Any], origin: str) -> None:
  """Logs names that are two classes and may be meant to be one."""
  for names in class_names_lib.similar(sorted(map(str, found))):
    log.warning(
      "%s: %s are different classes; if they should be one, give them one name",
      origin,
      " and ".join(map(repr, names)),
    )


def _check_classes_are_trained(
  parts: Parts, numbers: dict[Class, int], origin: str
) -> None:
  """Raises ValueError for an image whose class has no training images."""
  for part, rows in parts.items():
    if not part:  # what was not divided is in the other parts now
      continue
    for name, label in rows:
      for one_class in classes_of(label):
        if one_class not in numbers:
          raise ValueError(
            f"{origin}: {name} of {part} is of class {one_class!r}, "
            f"which has no training images{_twin(one_class, numbers)}"
          )


def _twin(one_class: Class, trained: Iterable[Class]) -> str:
  """Returns words on a trained class that may be the same, if there is one."""
  for other in trained:
    if class_names_lib.similar([str(one_class), str(other)]):
      return f"; {other!r} has: if they are one class, give them one name"
  return ""


def _encoded(labels: Sequence[Label], numbers: dict[Class, int]) -> np.ndarray:
  """Returns labels as numbers [N], or as zeros and ones [N, K]."""
  if not isinstance(labels[0], tuple):
    classes = [one_class for label in labels for one_class in classes_of(label)]
    return np.array([numbers[one_class] for one_class in classes], np.int32)
  encoded = np.zeros((len(labels), len(numbers)), np.uint8)
  for row, label in enumerate(labels):
    for one_class in classes_of(label):
      encoded[row, numbers[one_class]] = 1
  return encoded


def carve(
  rows: Sequence[tuple[str, Label]], seed: int, parts: Sequence[str]
) -> Parts:
  """Takes a tenth of every class (at least one image) for each of `parts`.

  Which images are taken depends on the seed and the images' names alone. A
  class with too few images for that is left whole to train, which has the
  rest. Images that may have several classes are one group here.
  """
  groups: dict[Hashable, list[str]] = defaultdict(list)
  for name, label in rows:
    group = "several" if isinstance(label, tuple) else label
    groups[group].append(name)
  part_of: dict[str, str] = {}
  for names in groups.values():
    share = max(1, round(len(names) / 10))
    if share * len(parts) >= len(names):
      continue
    names.sort(key=lambda name: digest(f"{seed} {name}"))
    for i, part in enumerate(parts):
      for name in names[i * share : (i + 1) * share]:
        part_of[name] = part
  carved: Parts = {part: [] for part in ("train", *parts)}
  for row in rows:
    carved[part_of.get(row[0], "train")].append(row)
  return carved


def digest(text: str) -> str:
  """Returns SHA-256 in hexadecimal digits."""
  # Names of files need not be UTF-8.
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
