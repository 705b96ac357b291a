"""Orders classes by their names, and tells names that may be one class."""

from collections.abc import Collection, Sequence
import re
from typing import TypeVar

import numpy as np

from vpt_jax.utils.texts import shortened

Class = TypeVar("Class", int, str)

_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")


def in_order(classes: Collection[Class], as_text: bool = False) -> list[Class]:
  """Returns classes in the order in which they are numbered.

  Names are sorted as text; if all of them are numbers, as numbers: 1, 2, 10.

  Args:
    classes: all integers, or all names.
    as_text: names are sorted as text in any case, as in versions before 0.2
      and in the published lists.
  """
  if not as_text and are_numbers(classes):
    return sorted(classes, key=_numeric_key)
  return sorted(classes)


def are_numbers(names: Collection[int | str]) -> bool:
  """Returns whether all names are numbers."""
  return all(_NUMBER.fullmatch(str(name)) for name in names)


def _numeric_key(name: int | str) -> tuple[float, str]:
  return float(name), str(name)


def similar(classes: Collection[str]) -> list[tuple[str, ...]]:
  """Returns groups of names that people may mean to be one: `Cat` and `cat`.

  They differ only in case, blanks, hyphens or zeros before a number.
  """
  groups: dict[str, list[str]] = {}
  for name in classes:
    groups.setdefault(_meaning(name), []).append(name)
  return [tuple(group) for group in groups.values() if len(group) > 1]


def _meaning(name: str) -> str:
  bare = re.sub(r"[\s_-]+", " ", name).strip().casefold()
  if re.fullmatch("[0-9]+", bare):
    return bare.lstrip("0") or "0"
  return bare


def counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns how many images each class has, [K].

  Args:
    labels: [N], or zeros and ones [N, K].
    num_classes: K.
  """
  if labels.ndim == 2:
    return labels.sum(axis=0, dtype=np.int64)
  return np.bincount(labels, minlength=num_classes)


def summary(
  labels: np.ndarray, num_classes: int, names: Sequence[str] = ()
) -> str:
  """Returns a line that says which classes there are, and how many images.

  Such as `20 images of 2 classes: cat (12), dog (8)`.

  Args:
    labels: [N], or zeros and ones [N, K].
    num_classes: K.
    names: K of the classes; () if they are the numbers from 0 on.
  """
  of_class = counts(labels, num_classes)
  names = names or tuple(map(str, range(num_classes)))
  listed = []
  missing = []
  for name, count in zip(names, of_class.tolist(), strict=True):
    if count:
      listed.append(f"{name} ({count:,})")
    else:
      missing.append(name)
  text = (
    f"{len(labels):,} images of {len(listed):,} classes: {shortened(listed)}"
  )
  if missing:
    text += f"; without images: {shortened(missing)}"
  return text
