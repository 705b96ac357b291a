"""Makes names printable, once, where they come in.

Names of files need not be UTF-8: Python keeps the bytes that are not as lone
surrogates (PEP 383), which no file, terminal or page takes later on. Others
have characters that move a terminal's cursor, end a line of the log or turn the
direction of the text around them.
"""

from collections.abc import Sequence
import re
from typing import Any
import unicodedata

_CONTROLS = "\x00-\x1f\x7f-\x9f"
_LINE_ENDS = "\u2028\u2029"
_DIRECTIONS = "\u202a-\u202e\u2066-\u2069"
_SURROGATES = "\ud800-\udfff"
_UNPRINTABLE = re.compile(
  f"[{_CONTROLS}{_LINE_ENDS}{_DIRECTIONS}{_SURROGATES}]"
)
_LONE = re.compile(f"[{_SURROGATES}]")
# Where Python keeps the byte b that is no UTF-8: at 0xDC00 + b.
_FIRST_BYTE = 0xDC80
_LAST_BYTE = 0xDCFF
MOST_SHOWN = 8


def printable(text: str) -> str:
  r"""Returns a text that can be written as UTF-8, on one line.

  A byte that is no UTF-8 becomes `\xNN`, and so do control characters; another
  lone surrogate, an end of a line or of a change of direction becomes `\uNNNN`.
  Any other text stays as it is.
  """
  return _UNPRINTABLE.sub(_escape, text)


def encodable(text: str) -> str:
  """Returns a text that can be written as UTF-8, on as many lines as it has."""
  return _LONE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
  number = ord(match[0])
  if _FIRST_BYTE <= number <= _LAST_BYTE:
    number -= 0xDC00
  if number <= 0xFF:
    return f"\\x{number:02x}"
  return f"\\u{number:04x}"


def printable_values(value: Any) -> Any:
  """Returns a value of JSON with all of its texts printable."""
  if isinstance(value, str):
    return printable(value)
  if isinstance(value, list):
    return [printable_values(item) for item in value]
  if isinstance(value, dict):
    return {
      printable(name): printable_values(item) for name, item in value.items()
    }
  return value


def readable_name(name: str) -> str:
  """Returns a class's name: printable, in Unicode's composed form (NFC).

  So the same name is the same text whichever system wrote its folder.
  """
  return unicodedata.normalize("NFC", printable(name))


def shortened(names: Sequence[str], most: int = MOST_SHOWN) -> str:
  """Returns names as text, the ones in the middle counted where there are many.

  Args:
    names: any number of them.
    most: how many are shown.
  """
  if len(names) <= most:
    return ", ".join(names)
  head = list(names[: most - 1])
  return ", ".join([*head, f"... ({len(names) - most} more)", names[-1]])
