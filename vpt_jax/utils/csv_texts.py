"""Writes CSV whose cells a spreadsheet takes for text, never for a command."""

from collections.abc import Iterable, Sequence
import csv
import io
import re
from typing import Any

# A spreadsheet takes a cell that begins with one of these for a formula, which
# may open an address or run a program: `=HYPERLINK(...)`. The last four are
# the same signs as some keyboards write them.
_FORMULA = tuple("=+-@\t\n\uff1d\uff0b\uff0d\uff20")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.I)


def lines(rows: Iterable[Sequence[Any]]) -> str:
  """Returns rows as CSV.

  Args:
    rows: of texts and numbers. A text that a spreadsheet would take for a
      formula gets a `'` before it, which spreadsheets do not show; numbers,
      also those that are texts, stay as they are.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  for row in rows:
    writer.writerow([cell(value) for value in row])
  return text.getvalue()


def cell(value: Any) -> Any:
  """Returns a value as a cell, see `lines`."""
  if not isinstance(value, str):
    return value
  # The `csv` module does not quote it, and then reads a new line.
  value = value.replace("\r", "\\r")
  if not value.startswith(_FORMULA):
    return value
  if _NUMBER.fullmatch(value):
    return value
  return f"'{value}"
