"""Parameter trees as flat dicts `path -> array`, matched by path.

A path is the names from the root joined by `/`, for example
`backbone/Transformer/encoderblock_0/LayerNorm_0/scale`. Freezing, optimizer
policies and shardings are all ordered tables of regular expressions over paths.
"""

from collections.abc import Iterable, Mapping, Sequence
import re
from typing import Any

import numpy as np

Tree = Mapping[str, Any]
Flat = dict[str, Any]


def flatten(tree: Tree, prefix: str = "") -> Flat:
  """Nested dicts -> `{path: leaf}`, sorted by path."""
  flat = {}
  for name, value in tree.items():
    path = f"{prefix}{name}"
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{path}/"))
    else:
      flat[path] = value
  return dict(sorted(flat.items()))


def unflatten(flat: Flat) -> dict[str, Any]:
  """`{path: leaf}` -> nested dicts."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def merge(*flats: Flat) -> dict[str, Any]:
  """Puts the parts that `split` took apart back into one nested tree.

  Raises:
    ValueError: a path is in two of the parts.
  """
  whole: Flat = {}
  for flat in flats:
    twice = whole.keys() & flat.keys()
    if twice:
      raise ValueError(f"parameter {min(twice)!r} is in two trees")
    whole.update(flat)
  return unflatten(whole)


def split(params: Tree, pattern: str) -> tuple[Flat, Flat]:
  """Splits nested `params` into (trainable, frozen) flat dicts.

  Args:
    params: nested parameter tree.
    pattern: a leaf is trainable if this regular expression matches its whole
      path.

  Raises:
    ValueError: the pattern is no regular expression or matches no leaf.
  """
  flat = flatten(params)
  try:
    regex = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"config.trainable={pattern!r} is not a regular expression: {error}"
    ) from None
  trainable = {k: v for k, v in flat.items() if regex.fullmatch(k)}
  if not trainable:
    raise ValueError(
      f"config.trainable=r'{pattern}' matches no parameter; top-level names "
      f"are {', '.join(params)}"
    )
  return trainable, {k: v for k, v in flat.items() if k not in trainable}


def match(
  paths: Iterable[str], table: Sequence[tuple[str, Any]], what: str = "table"
) -> dict[str, Any]:
  """First value of an ordered (regex, value) table for every path.

  Raises:
    ValueError: a path that no rule matches, or a rule that matches no path
      (or whose paths all belong to earlier rules).
  """
  unused = {pattern for pattern, _ in table}
  out = {}
  for path in paths:
    for pattern, value in table:
      if re.fullmatch(pattern, path):
        out[path] = value
        unused.discard(pattern)
        break
    else:
      raise ValueError(
        f"{what}: no rule matches parameter {path!r}; rules are "
        f"{[pattern for pattern, _ in table]}"
      )
  for pattern, _ in table:
    if pattern in unused:
      raise ValueError(
        f"{what}: rule r'{pattern}' matches no parameter that an earlier "
        f"rule has left; parameters are {sorted(out)}"
      )
  return out


def count(flat: Flat) -> int:
  """Number of scalars."""
  return sum(int(np.prod(np.shape(leaf))) for leaf in flat.values())
