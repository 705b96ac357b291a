"""Looks names up, and suggests the nearest one where there is none."""

from collections.abc import Iterable
import difflib


def choose(name: str, known: Iterable[str], what: str) -> str:
  """Returns `name` if it is known.

  Args:
    name: as the user wrote it.
    known: all that there are.
    what: is named, for the error: "method".

  Raises:
    ValueError: it is not known; with the nearest known name and all of them.
  """
  known = sorted(known)
  if name in known:
    return name
  close = difflib.get_close_matches(name, known, n=3)
  # Two letters in the wrong order are likelier than one left out.
  close.sort(key=lambda other: sorted(other) != sorted(name))
  hint = f"; did you mean {close[0]!r}?" if close else ";"
  raise ValueError(f"unknown {what} {name!r}{hint} known: {', '.join(known)}")
