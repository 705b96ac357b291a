"""Reads a source that is a CSV of paths and labels."""

import csv
import os
from pathlib import Path
import re
from typing import NamedTuple

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import (
  image_files,
  table_columns,
  table_paths,
  table_texts,
)
from vpt_jax.data.sources.parts import Label, Parts, TOLD
from vpt_jax.data.sources.table_columns import Columns
from vpt_jax.utils import texts
from vpt_jax.utils.logs import log

# Between the classes of an image that may have several.
SEPARATOR = "|"

# Of Hugging Face's folders of images.
METADATA = "metadata.csv"

# Between the cells of a row -> what to call it.
DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


class Row(NamedTuple):
  """An image of a table: its path, label and part, as text, and its line."""

  name: str
  label: str
  part: str
  where: str


def read_csv(
  path: Path,
  split: str,
  seed: int,
  multi_label: bool = False,
  as_text: bool = False,
  columns: str = "",
) -> Examples:
  """Reads `csv:PATH`: columns path, label and, if there are parts, split.

  Paths are relative to the CSV's folder, or absolute. Classes are integers or
  names. Without a column split the rows are divided as those of a folder. For
  other names of columns, other text and other paths see `table_columns`,
  `table_texts` and `table_paths`.

  Args:
    path: of the CSV, or of a folder of Hugging Face's, see `_tables`.
    split: train, val, trainval or test.
    seed: of the division into parts.
    multi_label: a label is any number of classes, `a|b|c`; an empty one is an
      image of none.
    as_text: of the classes' order, see `class_names.in_order`.
    columns: `config.data.columns`, see `table_columns.find`.

  Raises:
    ValueError: naming the file and the line.
  """
  rows: list[Row] = []
  for table, part in _tables(path):
    try:
      rows += _read_table(
        table, path, part, multi_label, columns, split in TOLD
      )
    except FileNotFoundError:
      raise ValueError(f"{table} is missing; expected csv:PATH") from None
    except (OSError, ValueError, csv.Error) as error:
      raise ValueError(f"{table}: {error}") from None
  base = path if path.is_dir() else path.parent
  parts: Parts = {}
  labels = _parsed_labels([row.label for row in rows], multi_label)
  for row, label in zip(rows, labels, strict=True):
    parts.setdefault(row.part, []).append((row.name, label))
  if split in TOLD:
    _tell_what_is_one_class([row.label for row in rows], labels, path)
  return image_files.from_parts(
    parts, split, base, str(path), seed, as_text=as_text
  )


def _tables(path: Path) -> list[tuple[Path, str]]:
  """Returns (table, part) of a path; "" where the table itself tells parts.

  A folder is one of Hugging Face's, with a `metadata.csv` in it or, for each
  part, in its folder.
  """
  if not path.is_dir():
    return [(path, "")]
  tables = []
  for folder in sorted(path.iterdir()):
    part = table_columns.part_of(folder.name)
    if part and (folder / METADATA).exists():
      tables.append((folder / METADATA, part))
  parts = [part for _, part in tables]
  has_own = (path / METADATA).exists()
  if tables and not has_own and len(set(parts)) == len(parts):
    return tables
  if has_own and not tables:
    return [(path / METADATA, "")]
  there = sorted(table.name for table in path.glob("*.csv"))
  raise ValueError(
    f"{path} is a folder with {', '.join(there) or 'no table'} in it, and "
    f"{', '.join(str(table) for table, _ in tables) or 'none'} below; expected "
    f"csv:PATH of one table, or a folder with {METADATA} in it or in "
    "each of train, validation and test"
  )


def has_metadata(path: Path) -> bool:
  """Returns whether a folder has a Hugging Face table, or its folders do."""
  return any(path.glob(METADATA)) or any(path.glob(f"*/{METADATA}"))


def _read_table(
  table: Path,
  path: Path,
  part: str,
  multi_label: bool,
  columns: str,
  is_told: bool,
) -> list[Row]:
  """Returns the rows of a table.

  Args:
    table: its path.
    path: of the source: the table, or a folder above it.
    part: of all rows; "": each row tells its own, or none does.
    multi_label: see `read_csv`.
    columns: see `read_csv`.
    is_told: warns of what was guessed.

  Raises:
    ValueError: naming the line.
  """
  base = table.parent
  text = table_texts.read(table)
  finder = table_paths.Finder(base)
  found = table_columns.find(text, columns, finder.exists)
  rows = _read_rows(text, found, multi_label)
  if is_told:
    _tell_what_is_left_out(text, found, table)
  names = finder.all([row.name for row in rows])
  if text.is_guessed:
    names = [table_paths.undo_guess(base, name) for name in names]
    if is_told:
      log.warning(
        "%s is no UTF-8 and was read as %s (Latin-1): see whether the names of "
        "the classes are right",
        table,
        text.encoding,
      )
  above = "" if table == path else os.path.relpath(base, path)
  placed = []
  for row, name in zip(rows, names, strict=True):
    name = name if above in ("", ".") else os.path.join(above, name)
    placed.append(row._replace(name=name, part=row.part or part))
  return _without_repetitions(placed, path if above else base)


def _tell_what_is_left_out(
  text: table_texts.Text, columns: Columns, table: Path
) -> None:
  """Logs which columns are read, if there are others."""
  used = [columns.path, columns.label]
  if columns.part is not None:
    used.append(columns.part)
  head = table_texts.first_row(text, columns.delimiter)
  if not columns.heading or len(head) <= len(used):
    return
  head = [repr(texts.printable(cell.strip())) for cell in head]
  others = [cell for i, cell in enumerate(head) if i not in used]
  log.info(
    "%s: images are in column %s, labels in %s, parts in %s; left out: %s",
    table,
    head[columns.path],
    head[columns.label],
    "none" if columns.part is None else head[columns.part],
    texts.shortened(others),
  )


def _tell_what_is_one_class(
  written_as: list[str], labels: list[Label], path: Path
) -> None:
  """Warns of labels that are read as one number: `7` and `007`."""
  written: dict[Label, set[str]] = {}
  for text, label in zip(written_as, labels, strict=True):
    if isinstance(label, int):
      written.setdefault(label, set()).add(text.strip())
  for label, forms in written.items():
    if len(forms) > 1:
      log.warning(
        "%s: labels %s are read as one class, %s",
        path,
        " and ".join(map(repr, sorted(forms))),
        label,
      )


def _parsed_labels(cells: list[str], multi_label: bool) -> list[Label]:
  """Returns labels with classes as integers, if all are; else as names."""
  lists = []
  for text in cells:
    classes = text.split(SEPARATOR) if multi_label else [text]
    lists.append([name.strip() for name in classes if name.strip()])
  is_number = re.compile("[0-9]{1,9}").fullmatch
  integers = all(is_number(name) for classes in lists for name in classes)
  labels: list[Label] = []
  for classes in lists:
    values = tuple(int(name) if integers else name for name in classes)
    labels.append(values if multi_label else values[0])
  return labels


def _read_rows(
  text: table_texts.Text, columns: Columns, multi_label: bool
) -> list[Row]:
  """Returns the rows below the heading.

  Raises:
    ValueError: naming the line.
  """
  rows = []
  heading: list[str] = []
  for number, row in enumerate(table_texts.rows(text, columns.delimiter)):
    if number == 0 and columns.heading:
      heading = [cell.strip().lower() for cell in row.cells]
      continue
    rows.append(_read_row(heading, row, columns, multi_label))
  return rows


def _read_row(
  heading: list[str], row: table_texts.Row, columns: Columns, multi_label: bool
) -> Row:
  where = f"line {row.line}"
  cells = row.cells
  if len(cells) != columns.width:
    raise ValueError(
      f"{where}: {len(cells)} columns, expected {columns.width}; "
      f"quote a path that has {DELIMITERS[columns.delimiter]}"
    )
  name = cells[columns.path]
  label = cells[columns.label].strip()
  part: str | None = ""
  if columns.part is not None:
    part = table_columns.part_of(cells[columns.part])
  has_label = bool(label) or multi_label
  if not name or "\0" in name or not has_label or part is None:
    shown = dict(zip(heading, cells, strict=True)) if heading else cells
    raise ValueError(
      f"{where}: {shown}; expected a path, a label and, if "
      "there is a split, train, val or test"
    )
  if re.fullmatch("-[0-9]+", label):
    raise ValueError(f"{where}: label {label} is negative")
  return Row(name, label, part, where)


def _without_repetitions(rows: list[Row], base: Path) -> list[Row]:
  """Returns the rows, each file once.

  Raises:
    ValueError: a file with two labels or parts, naming the line.
  """
  kept: dict[str, Row] = {}
  for row in rows:
    first = kept.setdefault(os.path.normpath(base / row.name), row)
    if (first.label, first.part) != (row.label, row.part):
      raise ValueError(
        f"{row.where}: {row.name!r} has label {row.label!r}, part "
        f"{row.part!r}; further up it has {first.label!r}, {first.part!r}"
      )
  return list(kept.values())
