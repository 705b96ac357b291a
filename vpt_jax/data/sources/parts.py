"""How labelled rows become the parts train, val and test."""

from collections import defaultdict
from collections.abc import Sequence
import hashlib
import logging

log = logging.getLogger("vpt_jax")

Label = int | str
# Part ("train", "val", "test"; "" if not parted) -> rows (name, label).
Parts = dict[str, list[tuple[str, Label]]]

# What folders, and columns called split, call the parts.
NAMES = {
  "train": "train",
  "training": "train",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "test": "test",
}


class NoImages(ValueError):
  """A source has images, but none for this split."""


def of(split: str) -> tuple[str, ...]:
  """The parts of a split, in order."""
  return ("train", "val") if split == "trainval" else (split,)


def select(
  parts: Parts, split: str, origin: str, seed: int, num_classes: int = 0
) -> tuple[list[tuple[str, int]], int, tuple[str, ...]]:
  """The rows of a split, with classes numbered in their sorted order.

  Args:
    parts: rows by part, all labels integers or all names. What "" holds is
      parted 80/10/10 % into train, val and test; where only val is missing, it
      is a tenth of train.
    split: train, val, trainval or test.
    origin: what the rows are from, for errors.
    seed: of the parts.
    num_classes: expected K; 0: any above one.

  Returns:
    rows (name, 0 .. K - 1); K; the names of the classes, () if they are the
    numbers 0 .. K - 1 themselves.

  Raises:
    NoImages: there are none for this split.
    ValueError: one class only, or one without training images.
  """
  if "val" not in parts:
    whole = "train" if "train" in parts else ""
    parts = parts | carve(
      parts.get(whole, []), seed, ("val",) if whole else ("val", "test")
    )
    listed = "\n".join(name for name, _ in parts["train"])
    log.info(
      "%s: parted by seed %d, a tenth of each class for %s; %d files, "
      "%s, train",
      origin,
      seed,
      "val" if whole else "val and for test",
      len(parts["train"]),
      digest(listed)[:12],
    )
  classes = sorted({label for _, label in parts.get("train", [])})
  if len(classes) < 2:
    raise ValueError(
      f"{origin}: classes with training images: {classes}; expected two or more"
    )
  if num_classes and len(classes) != num_classes:
    raise ValueError(
      f"{origin}: {len(classes)} classes have training images, "
      f"expected {num_classes}"
    )
  number = {label: i for i, label in enumerate(classes)}
  for part, rows in parts.items():
    for name, label in rows:
      if part and label not in number:
        raise ValueError(
          f"{origin}: {name} of {part} is of class {label!r}, "
          "which has no training images"
        )
  rows = [row for part in of(split) for row in parts.get(part, [])]
  if not rows:
    raise NoImages(
      f"{origin} has no images for {split}, only for "
      f"{', '.join(part for part in parts if part and parts[part])}; "
      "config.data.train_split and test_split name the parts that are used"
    )
  names = tuple(map(str, classes))
  return (
    [(name, number[label]) for name, label in rows],
    len(classes),
    (() if classes == list(range(len(classes))) else names),
  )


def carve(
  rows: Sequence[tuple[str, Label]], seed: int, parts: Sequence[str]
) -> Parts:
  """Takes a tenth of every class (at least one image) for each of `parts`.

  Which, depends on the seed and the images' names alone. A class with too few
  images for that is left whole to train, which has the rest.
  """
  of_class = defaultdict(list)
  for name, label in rows:
    of_class[label].append(name)
  part_of = {}
  for names in of_class.values():
    share = max(1, round(len(names) / 10))
    if share * len(parts) < len(names):
      names.sort(key=lambda name: digest(f"{seed} {name}"))
      for i, part in enumerate(parts):
        part_of |= dict.fromkeys(names[i * share : (i + 1) * share], part)
  out: Parts = {part: [] for part in ("train", *parts)}
  for row in rows:
    out[part_of.get(row[0], "train")].append(row)
  return out


def digest(text: str) -> str:
  """SHA-256 in hexadecimal digits."""
  # Names of files need not be UTF-8.
  return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
