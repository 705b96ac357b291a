"""Defines `option`, a field of a config section, and the checks of its values.

A section is a dataclass whose fields say everything about a value in one
place: its default, what it means, and what it may be.

  @dataclasses.dataclass(frozen=True)
  class Optim:
    lr: float = option(1.0, at_least(0), help="Rate for a batch of 256.")

The type of the default is checked too: an int where a float is expected is
converted by `ml_collections`, a list is as good as a tuple (JSON makes lists of
tuples), and no float may be NaN or infinite.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

from vpt_jax.utils import lookup

# (dotted name of a field, its value) -> None, or a ValueError.
Check = Callable[[str, Any], None]

_EXPECTED_TYPE = {
  bool: "True or False",
  int: "an integer",
  float: "a finite number",
  str: "a text",
  tuple: "a tuple",
  dict: "a dictionary",
}


def option(
  default: Any, *checks: Check, help: str = "", since: str = ""
) -> Any:
  """Returns a dataclass field of a config section.

  Args:
    default: its value if nobody says otherwise; the class `dict` stands for an
      empty dictionary.
    *checks: of its value, see below.
    help: what it means, for people.
    since: the version that added it, for fields that the first configs lack.
      With its default such a field does not change a run's identity.
  """
  metadata = {"checks": checks, "help": help, "since": since}
  if default is dict:
    return dataclasses.field(default_factory=dict, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def default_of(field: dataclasses.Field) -> Any:
  """Returns the default of a dataclass field."""
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  raise TypeError(
    f"field {field.name!r} has no default; every option needs one"
  )


def check_fields(
  fields: Iterable[dataclasses.Field], values: Mapping[str, Any], section: str
) -> None:
  """Checks names, types and values of a section.

  Args:
    fields: all that the section has.
    values: of the config; those that are missing are not checked.
    section: its name, "" for the top level.

  Raises:
    ValueError: a field that is not known, or a value that it may not have.
  """
  by_name = {field.name: field for field in fields}
  prefix = f"{section}." if section else ""
  for name, value in values.items():
    if name not in by_name:
      known = [prefix + other for other in by_name]
      lookup.choose(prefix + name, known, "config field")
    field = by_name[name]
    check_type(prefix + name, value, default_of(field))
    for check in field.metadata.get("checks", ()):
      check(prefix + name, value)


def refusal(name: str, value: Any, expected: str) -> ValueError:
  """Returns the error for a value that a field may not have."""
  return ValueError(f"config.{name}={value!r}; expected {expected}")


def check_type(name: str, value: Any, default: Any) -> None:
  """Raises ValueError if a value is not of the type of its field's default."""
  kind = type(default)
  if not _has_type(value, kind):
    expected = _EXPECTED_TYPE.get(kind, f"a {kind.__name__}")
    raise refusal(name, value, expected)


def _has_type(value: Any, kind: type) -> bool:
  if kind is bool:
    return isinstance(value, bool)
  if kind is int:
    return isinstance(value, int) and not isinstance(value, bool)
  if kind is float:
    return is_number(value)
  if kind is tuple:
    return isinstance(value, (tuple, list))
  if kind is dict:
    return isinstance(value, Mapping)
  return isinstance(value, kind)


def is_number(value: Any) -> bool:
  """Returns whether a value is a finite int or float."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  return math.isfinite(value)


def at_least(low: float) -> Check:
  """Returns the check of `value >= low`."""

  def check(name: str, value: Any) -> None:
    if value < low:
      raise refusal(name, value, f"at least {low}")

  return check


def between(low: int, high: int) -> Check:
  """Returns the check of `low <= value <= high`."""

  def check(name: str, value: Any) -> None:
    if not low <= value <= high:
      raise refusal(name, value, f"{low} to {high}")

  return check


def share(name: str, value: Any) -> None:
  """Checks `0 < value <= 1`."""
  if not 0 < value <= 1:
    raise refusal(name, value, "above 0, at most 1")


def rate(name: str, value: Any) -> None:
  """Checks `0 <= value < 1`."""
  if not 0 <= value < 1:
    raise refusal(name, value, "at least 0, below 1")


def one_of(
  known: Collection[str], *, or_empty: bool = False, what: str = ""
) -> Check:
  """Returns the check that a text is a known name.

  Args:
    known: the names; a registry may grow after this.
    or_empty: "" is good too.
    what: is named, for the error: "method"; "": the field.
  """

  def check(name: str, value: Any) -> None:
    if value == "" and or_empty:
      return
    lookup.choose(value, known, what or name)

  return check


def regex(name: str, value: Any) -> None:
  """Checks that a text is a regular expression."""
  try:
    re.compile(value)
  except re.error as error:
    raise refusal(name, value, f"a regular expression ({error})") from None


def each(check_item: Check) -> Check:
  """Returns the check of every item of a tuple."""

  def check(name: str, value: Any) -> None:
    for item in value:
      check_item(name, item)

  return check


def whole_number(name: str, value: Any) -> None:
  """Checks that a value, or an item of a tuple, is an integer of at least 0."""
  if not _has_type(value, int) or value < 0:
    raise refusal(name, value, "integers of at least 0")


def rows_and_columns(name: str, value: Any) -> None:
  """Checks () or two integers of at least 1, as in (9, 16)."""
  expected = "() or (rows, columns), as in (9, 16)"
  if len(value) not in (0, 2):
    raise refusal(name, value, expected)
  for side in value:
    if not _has_type(side, int) or side < 1:
      raise refusal(name, value, expected)


def text(name: str, value: Any) -> None:
  """Checks that an item of a tuple is a text."""
  if not isinstance(value, str):
    raise refusal(name, value, "texts")


def inner_share(name: str, value: Any) -> None:
  """Checks that an item of a tuple is between 0 and 1."""
  if not is_number(value) or not 0 < value < 1:
    raise refusal(name, value, "numbers between 0 and 1")


def groups_of_classes(name: str, value: Any) -> None:
  """Checks tuples of class numbers, as in ((404, 895), (436,))."""
  for group in value:
    if not isinstance(group, (tuple, list)):
      raise refusal(name, value, "tuples of class numbers")
    for number in group:
      whole_number(name, number)


def policies(name: str, value: Any) -> None:
  """Checks an optimizer's table of (regex, factors)."""
  expected = "pairs (regex, {'lr': factor, 'weight_decay': factor})"
  for pair in value:
    if not _is_pair(pair) or not isinstance(pair[0], str):
      raise refusal(name, value, expected)
    pattern, factors = pair
    regex(name, pattern)
    if not isinstance(factors, Mapping):
      raise refusal(name, value, expected)
    for key, factor in factors.items():
      lookup.choose(key, ("lr", "weight_decay"), f"factor in {name}")
      if not is_number(factor) or factor < 0:
        raise refusal(name, value, "factors of at least 0")


def axes(name: str, value: Any) -> None:
  """Checks a grid of (field, (value, ...)), as in `sweep.grid`."""
  for axis in value:
    good = _is_pair(axis) and isinstance(axis[0], str)
    if not good or not isinstance(axis[1], (tuple, list)) or not axis[1]:
      raise ValueError(
        f"config.{name} has {axis!r}; expected (field, (value, ...)), as "
        "('optim.lr', (0.5, 1.0))"
      )


def changes_by_task(name: str, value: Any) -> None:
  """Checks {task: ((field, value), ...)}, as in `sweep.per_task`."""
  for task, changes in value.items():
    for change in changes:
      if not _is_pair(change) or not isinstance(change[0], str):
        raise refusal(f"{name}.{task}", change, "pairs (field, value)")


def _is_pair(value: Any) -> bool:
  is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
  return is_sequence and len(value) == 2
