"""Reads JSON that the package has written: a damaged file is named.

Who calls says which fields it will take from an object, and of which kind; all
are checked before one is taken.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NoReturn

from vpt_jax.utils import strange_files

# No file of one object that the package writes comes near this many bytes.
MOST_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Kind:
  """What the value of a field has to be.

  Attributes:
    expected: is said in the error for any other value.
    accepts: returns whether a value is of this kind.
  """

  expected: str
  accepts: Callable[[Any], bool]


Fields = Mapping[str, Kind]


def of_type(expected: str, kind: type) -> Kind:
  """Returns the kind of all values of a type."""
  return Kind(expected, lambda value: isinstance(value, kind))


def one_of(choices: Sequence[str]) -> Kind:
  """Returns the kind of these texts."""
  # A list, as in JSON, cannot be looked up in a set.
  return Kind(f"one of {', '.join(choices)}", lambda value: value in choices)


def or_null(kind: Kind) -> Kind:
  """Returns a kind that takes null, too."""

  def accepts(value: Any) -> bool:
    return value is None or kind.accepts(value)

  return Kind(f"{kind.expected} or null", accepts)


def object_of(fields: Fields) -> Kind:
  """Returns the kind of objects that have these fields."""

  def accepts(value: Any) -> bool:
    return isinstance(value, dict) and not fault(value, fields)

  return Kind(f"an object with {', '.join(fields)}", accepts)


def is_whole(value: Any) -> bool:
  """Returns whether a value is a whole number of at most 64 bits."""
  is_int = isinstance(value, int) and not isinstance(value, bool)
  return is_int and abs(value) < 2**63


def is_number(value: Any) -> bool:
  """Returns whether a value is a finite number."""
  return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_texts(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(text, str) for text in value.values()
  )


TEXT = of_type("a text", str)
LIST = of_type("a list", list)
OBJECT = of_type("an object {...}", dict)
WHOLE = Kind("a whole number", is_whole)
POSITIVE = Kind(
  "a whole number of at least 1", lambda value: is_whole(value) and value >= 1
)
NUMBER = Kind("a finite number", is_number)
TEXTS = Kind("an object of texts", _is_texts)

# What names the backbone of a run, and the file that it came from.
BACKBONE = object_of({"name": TEXT, "sha256": TEXT})


def fault(part: Any, fields: Fields) -> str:
  """Returns what is wrong with the fields of an object; "" if nothing is.

  Args:
    part: that should be the object.
    fields: that it must have; it may have others.
  """
  for name, kind in fields.items():
    if not isinstance(part, dict) or name not in part:
      return f"field {name!r} is missing, expected {kind.expected}"
    if not kind.accepts(part[name]):
      shown = f"{part[name]!r:.40}"
      return f"field {name!r} is {shown}, expected {kind.expected}"
  return ""


def read(path: Path, fields: Fields, remedy: str) -> dict[str, Any]:
  """Reads a file of one object.

  Args:
    path: of the file.
    fields: that the object must have.
    remedy: what to do about a damaged file: "delete it".

  Raises:
    ValueError: the file is no regular one, is damaged, or lacks a field.
    OSError: it is not there, or may not be read.
  """
  data = strange_files.read_bytes(path, MOST_BYTES)
  return parse(data, str(path), fields, remedy)


def parse(
  data: bytes,
  where: str,
  fields: Fields,
  remedy: str,
  expected: str = "an object {...}",
  infinite: bool = False,
) -> dict[str, Any]:
  """Parses one object.

  Args:
    data: its text, UTF-8.
    where: it is from, for the error.
    fields: see `read`.
    remedy: see `read`.
    expected: what the object is, for the error.
    infinite: takes NaN and infinities in other fields.

  Raises:
    ValueError: see `read`.
  """
  try:
    value = json.loads(
      data.decode(), parse_constant=float if infinite else _refuse
    )
  except RecursionError:
    raise ValueError(f"{where}: nested too deep; {remedy}") from None
  except ValueError as error:
    why = error if data.strip() else "it is empty"
    raise ValueError(f"{where}: not JSON ({why}); {remedy}") from None
  if not isinstance(value, dict):
    raise ValueError(
      f"{where}: expected {expected}, found {value!r:.40}; {remedy}"
    )
  wrong = fault(value, fields)
  if wrong:
    raise ValueError(f"{where}: {wrong}; {remedy}")
  return value


def _refuse(constant: str) -> NoReturn:
  """Refuses NaN and infinities, which JSON does not have."""
  raise ValueError(f"{constant} is no finite number")
