"""Reads the text of tables: what it is encoded in, and what parts its cells.

A spreadsheet saves UTF-16 with tabs, or Windows-1252 with semicolons, as soon
as it runs in another country. What can be told is told; the rest is refused.
"""

import codecs
from collections.abc import Iterator
import contextlib
import csv
import io
from pathlib import Path
from typing import NamedTuple

from vpt_jax.utils import strange_files

# Bytes of a table: one of all of ImageNet-21k has nearly as many.
MOST_BYTES = 2**30

# Bytes that are decoded at once.
_CHUNK = 2**20

# What may stand between the cells of a row.
DELIMITERS = (",", ";", "\t")

# A file's first bytes -> its encoding. That of 32 bits begins as that of 16.
MARKS = (
  (codecs.BOM_UTF8, "utf-8-sig"),
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)
# What is no UTF-8: Latin-1 with letters in place of control characters.
LATIN = "windows-1252"


class Text(NamedTuple):
  """The text of a table, as large ones are kept: not decoded.

  Attributes:
    data: the file's bytes.
    encoding: of them, as they tell; all of them are letters of it.
  """

  data: bytes
  encoding: str

  @property
  def is_guessed(self) -> bool:
    """Whether the bytes could mean other letters, too."""
    return self.encoding == LATIN


class Row(NamedTuple):
  """A row of a table: the number of its last line, and its cells."""

  line: int
  cells: list[str]


def read(path: Path) -> Text:
  """Returns the text of a table.

  Raises:
    ValueError: no regular file, too large, or neither Unicode nor Latin-1.
    OSError: it is not there, or cannot be read.
  """
  data = strange_files.read_bytes(path, MOST_BYTES)
  marked = _encoding(data)
  if marked is not None:
    _check_decodes(data, marked)
    return Text(data, marked)
  for encoding in ("utf-8", LATIN):
    with contextlib.suppress(UnicodeDecodeError):
      _check_decodes(data, encoding)
      return Text(data, encoding)
  raise ValueError(
    f"it is neither UTF-8 nor {LATIN} (Latin-1); save it as UTF-8"
  )


def _check_decodes(data: bytes, encoding: str) -> None:
  """Raises UnicodeDecodeError if some bytes are no letters."""
  decoder = codecs.getincrementaldecoder(encoding)()
  for first in range(0, len(data), _CHUNK):
    decoder.decode(data[first : first + _CHUNK])
  decoder.decode(b"", final=True)


def _encoding(data: bytes) -> str | None:
  """Returns the encoding that a file's bytes show, if any."""
  for mark, encoding in MARKS:
    if data.startswith(mark):
      return encoding
  # Letters of two bytes without a mark: of the usual ones every other is zero.
  head = data[:1000]
  for first, encoding in ((0, "utf-16-be"), (1, "utf-16-le")):
    zeros = head[first::2].count(0)
    others = head[1 - first :: 2].count(0)
    if zeros > 0.8 * len(head) / 2 and not others and len(data) % 2 == 0:
      return encoding
  return None


def rows(text: Text, delimiter: str) -> Iterator[Row]:
  """Yields the rows of a table that are not empty.

  Raises:
    csv.Error: quotes that do not fit, or a cell that is far too long.
  """
  stream = io.BytesIO(text.data)
  reader = csv.reader(
    io.TextIOWrapper(stream, text.encoding, newline=""),
    delimiter=delimiter,
    skipinitialspace=True,
    strict=True,
  )
  for cells in reader:
    if cells:
      yield Row(reader.line_num, cells)


def first_row(text: Text, delimiter: str) -> list[str]:
  """Returns the cells of the first row; [] if none is there, or whole."""
  try:
    return next(rows(text, delimiter), Row(0, [])).cells
  except csv.Error:
    return []
