"""Turns parameter trees into flat dicts `path -> array`, and matches paths.

A path is the names from the root joined by `/`, for example
`backbone/Transformer/encoderblock_0/LayerNorm_0/scale`. Freezing, optimizer
policies and shardings are all ordered tables of regular expressions over paths.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
import re
from typing import Any

from flax import traverse_util
import numpy as np

Tree = Mapping[str, Any]
Flat = dict[str, Any]
SEPARATOR = "/"


def flatten(tree: Tree) -> Flat:
  """Returns nested dicts as `{path: leaf}`, sorted by path.

  Empty dicts leave nothing behind.
  """
  flat = traverse_util.flatten_dict(tree, sep=SEPARATOR)
  return dict(sorted(flat.items()))


def unflatten(flat: Flat) -> dict[str, Any]:
  """Returns `{path: leaf}` as nested dicts."""
  return traverse_util.unflatten_dict(flat, sep=SEPARATOR)


def merge(*flats: Flat) -> dict[str, Any]:
  """Returns the one nested tree of the parts that `split` took apart.

  Raises:
    ValueError: a path is in two of the parts.
  """
  merged: Flat = {}
  for flat in flats:
    in_both = merged.keys() & flat.keys()
    if in_both:
      raise ValueError(f"parameter {min(in_both)!r} is in two trees")
    merged.update(flat)
  return unflatten(merged)


def split(params: Tree, pattern: str) -> tuple[Flat, Flat]:
  """Splits nested `params` into (trainable, frozen) flat dicts.

  Args:
    params: nested parameter tree.
    pattern: a leaf is trainable if this regular expression matches its whole
      path.

  Raises:
    ValueError: the pattern is no regular expression or matches no leaf.
  """
  try:
    regex = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"config.trainable={pattern!r} is not a regular expression: {error}"
    ) from None
  trainable: Flat = {}
  frozen: Flat = {}
  for path, leaf in flatten(params).items():
    part = trainable if regex.fullmatch(path) else frozen
    part[path] = leaf
  if not trainable:
    raise ValueError(
      f"config.trainable=r'{pattern}' matches no parameter; top-level names "
      f"are {', '.join(params)}"
    )
  return trainable, frozen


def match(
  paths: Iterable[str], table: Sequence[tuple[str, Any]], what: str = "table"
) -> dict[str, Any]:
  """Returns the value of the first matching rule for every path.

  Args:
    paths: of the parameters.
    table: ordered rules (regular expression over whole paths, value).
    what: the table's name, for the errors.

  Raises:
    ValueError: a path that no rule matches, or a rule that matches no path
      (or whose paths all belong to earlier rules).
  """
  values = {}
  used = set()
  for path in paths:
    pattern, value = _first_rule(path, table, what)
    values[path] = value
    used.add(pattern)
  for pattern, _ in table:
    if pattern not in used:
      raise ValueError(
        f"{what}: rule r'{pattern}' matches no parameter that an earlier "
        f"rule has left; parameters are {sorted(values)}"
      )
  return values


def _first_rule(
  path: str, table: Sequence[tuple[str, Any]], what: str
) -> tuple[str, Any]:
  for pattern, value in table:
    if re.fullmatch(pattern, path):
      return pattern, value
  patterns = [pattern for pattern, _ in table]
  raise ValueError(
    f"{what}: no rule matches parameter {path!r}; rules are {patterns}"
  )


def count(flat: Flat) -> int:
  """Returns the number of scalars in all arrays (or shapes) together."""
  return sum(math.prod(np.shape(leaf)) for leaf in flat.values())
