"""Looks names up, and suggests the nearest one where there is none."""

from collections.abc import Iterable
import difflib


def choose(name: str, known: Iterable[str], what: str) -> str:
  """Returns `name` if it is known.

  Args:
    name: as the user wrote it.
    known: all that there are.
    what: the kind of thing that has the name, for the error: "method".

  Raises:
    ValueError: it is not known; with the nearest known name and all of them.
  """
  names = sorted(known)
  if name in names:
    return name
  close = difflib.get_close_matches(name, names, n=3)
  # Two letters in the wrong order are likelier than one left out: names of the
  # same letters come first.
  close.sort(key=lambda other: sorted(other) != sorted(name))
  hint = ";"
  if close:
    hint = f"; did you mean {close[0]!r}?"
  known_names = ", ".join(names)
  raise ValueError(f"unknown {what} {name!r}{hint} known: {known_names}")
