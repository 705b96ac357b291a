"""Finds the columns of a table: which has the images, which the labels."""

from collections.abc import Callable, Sequence
import re
from typing import NamedTuple

from vpt_jax.data.sources import table_texts
from vpt_jax.data.sources.parts import NAMES
from vpt_jax.data.sources.table_texts import Text

# What the columns are called, most telling names first: of `id,image,label`
# the image is meant. Names in one group tell nothing of each other.
PATHS = (
  ("path",),
  (
    "file",
    "file_name",
    "file_path",
    "filename",
    "filepath",
    "image_file",
    "image_name",
    "image_path",
    "img_name",
    "img_path",
  ),
  ("image", "images", "img"),
  ("id", "image_id", "img_id"),
)
LABELS = (
  ("label",),
  ("category", "class", "labels", "target"),
  ("category_name", "class_label", "class_name", "label_name"),
  ("category_id", "class_id", "label_id"),
)
SPLIT = "split"
# Names of a column of parts, if what is in it are parts.
SPLITS = ("part", "partition", "set", "subset")

EXPECTED = (
  "expected 'path,label' or 'path,label,split', with commas, semicolons or "
  "tabs between them, or say which columns have them: "
  "config.data.columns=image,breed, or =1,2 for a table without a heading"
)


class Columns(NamedTuple):
  """Says where a table has what.

  Attributes:
    path: number of the column of images, from 0 on.
    label: of the labels.
    part: of the parts, train, val and test; None: it has none.
    heading: whether the first row says so.
    delimiter: between two cells.
    width: the number of columns.
  """

  path: int
  label: int
  part: int | None
  heading: bool
  delimiter: str
  width: int


def find(text: Text, named: str, exists: Callable[[str], bool]) -> Columns:
  """Finds the columns of a table.

  Args:
    text: of the table.
    named: `config.data.columns`: two or three names of the heading, or
      numbers from 1 on where there is no heading; "": the usual names.
    exists: tells whether a cell names an image that is there.

  Raises:
    ValueError: they cannot be told.
  """
  if named:
    return _named(text, named)
  found = []
  for delimiter in table_texts.DELIMITERS:
    columns = _by_usual_names(text, delimiter)
    if columns is not None:
      found.append(columns)
  if not found:
    for delimiter in table_texts.DELIMITERS:
      columns = _by_content(text, delimiter, exists)
      if columns is not None:
        found.append(columns)
  if len(found) != 1:
    head = _clean(table_texts.first_row(text, table_texts.DELIMITERS[0]))
    raise ValueError(f"the first line is {head}; {EXPECTED}")
  return found[0]


def _clean(cells: Sequence[str]) -> list[str]:
  """Returns the names of a heading as they are compared."""
  return [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in cells]


def _named(text: Text, named: str) -> Columns:
  """Finds the columns that `config.data.columns` names."""
  wanted = [name.strip() for name in named.split(",")]
  if len(wanted) not in (2, 3) or not all(wanted):
    raise ValueError(
      f"config.data.columns={named!r}; expected the columns of the images, "
      "the labels and, if there are parts, the parts: 'image,label'"
    )
  are_numbers = all(re.fullmatch("[1-9][0-9]*", name) for name in wanted)
  found = []
  for delimiter in table_texts.DELIMITERS:
    cells = table_texts.first_row(text, delimiter)
    if are_numbers:
      places = [int(name) - 1 for name in wanted]
      fits = max(places) < len(cells)
    else:
      head = _clean(cells)
      names = _clean(wanted)
      fits = all(head.count(name) == 1 for name in names)
      places = [head.index(name) for name in names] if fits else []
    if fits:
      part = places[2] if len(places) == 3 else None
      found.append(
        Columns(
          places[0], places[1], part, not are_numbers, delimiter, len(cells)
        )
      )
  if len(found) != 1:
    head = table_texts.first_row(text, table_texts.DELIMITERS[0])
    raise ValueError(
      f"config.data.columns={named!r} does not say which columns of the first "
      f"line are meant, {head}; expected names in it, each of one column, or "
      "numbers from 1 on where there is no heading"
    )
  return found[0]


def _by_usual_names(text: Text, delimiter: str) -> Columns | None:
  """Finds columns with the usual names, if the first row has them."""
  head = _clean(table_texts.first_row(text, delimiter))
  path = _most_telling(head, PATHS)
  label = _most_telling(head, LABELS)
  if path is None or label is None:
    return None
  part = head.index(SPLIT) if SPLIT in head else None
  if part is None:
    part = _column_of_parts(text, delimiter, head)
  return Columns(path, label, part, True, delimiter, len(head))


def _most_telling(
  head: list[str], groups: Sequence[Sequence[str]]
) -> int | None:
  """Returns the column with the most telling name, if there is one.

  Raises:
    ValueError: two columns may be meant.
  """
  for group in groups:
    there = [i for i, name in enumerate(head) if name in group]
    if len(there) > 1:
      names = [head[i] for i in there]
      raise ValueError(
        f"the first line is {head}, where {' and '.join(map(repr, names))} may "
        "be meant; say which columns have images and labels: "
        f"config.data.columns={head[0]},{head[-1]}"
      )
    if there:
      return there[0]
  return None


def _column_of_parts(text: Text, delimiter: str, head: list[str]) -> int | None:
  """Returns a column that is called like one of parts, and holds them."""
  there = [i for i, name in enumerate(head) if name in SPLITS]
  if len(there) != 1:
    return None
  (column,) = there
  for number, row in enumerate(table_texts.rows(text, delimiter)):
    if number == 0:
      continue
    is_part = len(row.cells) > column
    return column if is_part and part_of(row.cells[column]) else None
  return None


def part_of(cell: str) -> str | None:
  """Returns train, val or test for what a table calls them; else None."""
  return NAMES.get(cell.strip().lower())


def _by_content(
  text: Text, delimiter: str, exists: Callable[[str], bool]
) -> Columns | None:
  """Finds the columns of a table without a heading, if its first row tells.

  It does if one of two cells is an image that is there, and the other is the
  label; a third one may be train, val or test.
  """
  cells = table_texts.first_row(text, delimiter)
  images = [i for i, cell in enumerate(cells) if cell and exists(cell)]
  if len(images) != 1 or len(cells) not in (2, 3):
    return None
  others = [i for i in range(len(cells)) if i != images[0]]
  part = None
  if len(cells) == 3:
    parts = [i for i in others if part_of(cells[i])]
    if len(parts) != 1:
      return None
    (part,) = parts
    others.remove(part)
  return Columns(images[0], others[0], part, False, delimiter, len(cells))
