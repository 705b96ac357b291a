"""Divides labelled rows into the parts train, val and test."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
import dataclasses
import hashlib

import numpy as np

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


class NoImages(ValueError):
  """A source has images, but none for this split."""


@dataclasses.dataclass(frozen=True)
class Selection:
  """The rows of a split, with classes numbered in their sorted order.

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
  parts: Parts, split: str, origin: str, seed: int, num_classes: int = 0
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

  Raises:
    NoImages: there are none for this split.
    ValueError: one class only, or one without training images.
  """
  if "val" not in parts:
    parts = _with_val(parts, origin, seed)
  numbers = _numbered_classes(parts.get("train", []), origin, num_classes)
  _check_classes_are_trained(parts, numbers, origin)
  rows = []
  for part in of(split):
    rows += parts.get(part, [])
  if not rows:
    there = [part for part in parts if part and parts[part]]
    raise NoImages(
      f"{origin} has no images for {split}, only for {', '.join(there)}; "
      "config.data.train_split and test_split name the parts that are used"
    )
  classes = list(numbers)
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


def _with_val(parts: Parts, origin: str, seed: int) -> Parts:
  """Returns the parts with val (and, if nothing is divided, test) taken out."""
  has_train = "train" in parts
  source = "train" if has_train else ""
  taken = ("val",) if has_train else ("val", "test")
  divided = parts | carve(parts.get(source, []), seed, taken)
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


def _numbered_classes(
  rows: Iterable[tuple[str, Label]], origin: str, num_classes: int
) -> dict[Class, int]:
  """Returns {class: number} of all classes that have training images."""
  found: set[Class] = set()
  for _, label in rows:
    found.update(classes_of(label))
  classes = sorted(found)
  if len(classes) < 2:
    raise ValueError(
      f"{origin}: classes with training images: {classes}; expected two or more"
    )
  if num_classes and len(classes) != num_classes:
    raise ValueError(
      f"{origin}: {len(classes)} classes have training images, "
      f"expected {num_classes}"
    )
  return {name: number for number, name in enumerate(classes)}


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
            "which has no training images"
          )


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
