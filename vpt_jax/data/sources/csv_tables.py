"""Reads a source that is a CSV of paths and labels."""

from collections.abc import Iterable
import csv
import os
from pathlib import Path
import re

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import image_files
from vpt_jax.data.sources.parts import Label, NAMES, Parts, TOLD
from vpt_jax.utils.logs import log

# Between the classes of an image that may have several.
SEPARATOR = "|"

# (path, label, part), as text.
Row = tuple[str, str, str]


def read_csv(
  path: Path,
  split: str,
  seed: int,
  multi_label: bool = False,
  as_text: bool = False,
) -> Examples:
  """Reads `csv:PATH`: columns path, label and, if there are parts, split.

  Paths are relative to the CSV's folder, or absolute. Classes are integers or
  names. Without a column split the rows are divided as those of a folder.

  Args:
    path: of the CSV.
    split: train, val, trainval or test.
    seed: of the division into parts.
    multi_label: a label is any number of classes, `a|b|c`; an empty one is an
      image of none.
    as_text: of the classes' order, see `class_names.in_order`.

  Raises:
    ValueError: naming the file and the line.
  """
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      rows = _read_rows(file, path.parent, multi_label)
  except FileNotFoundError:
    raise ValueError(f"{path} is missing; expected csv:PATH") from None
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(f"{path}: {error}") from None
  parts: Parts = {}
  labels = _parsed_labels([label for _, label, _ in rows], multi_label)
  for (name, _, part), label in zip(rows, labels, strict=True):
    parts.setdefault(part, []).append((name, label))
  if split in TOLD:
    _tell_what_is_one_class([label for _, label, _ in rows], labels, path)
  return image_files.from_parts(
    parts, split, path.parent, str(path), seed, as_text=as_text
  )


def _tell_what_is_one_class(
  texts: list[str], labels: list[Label], path: Path
) -> None:
  """Warns of labels that are read as one number: `7` and `007`."""
  written: dict[Label, set[str]] = {}
  for text, label in zip(texts, labels, strict=True):
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


def _parsed_labels(texts: list[str], multi_label: bool) -> list[Label]:
  """Returns labels with classes as integers, if all are; else as names."""
  lists = []
  for text in texts:
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
  lines: Iterable[str], base: Path, multi_label: bool
) -> list[Row]:
  """Returns the rows, each path once.

  Raises:
    ValueError: naming the line.
  """
  reader = csv.reader(lines, skipinitialspace=True, strict=True)
  head = [name.strip().lower() for name in next(reader, [])]
  if not {"path", "label"} <= set(head):
    raise ValueError(
      f"the first line is {head}; expected 'path,label' or 'path,label,split'"
    )
  rows: dict[str, Row] = {}
  for cells in reader:
    if not cells:  # an empty line
      continue
    where = f"line {reader.line_num}"
    row = _read_row(head, cells, where, multi_label)
    name, label, part = row
    first = rows.setdefault(os.path.normpath(base / name), row)
    if first[1:] != (label, part):
      raise ValueError(
        f"{where}: {name!r} has label {label!r}, part {part!r}; "
        f"further up it has {first[1]!r}, {first[2]!r}"
      )
  return list(rows.values())


def _read_row(
  head: list[str], cells: list[str], where: str, multi_label: bool
) -> Row:
  if len(cells) != len(head):
    raise ValueError(
      f"{where}: {len(cells)} columns, expected {len(head)}; "
      "quote a path that has a comma"
    )
  row = dict(zip(head, cells, strict=True))
  name = row["path"]
  label = row["label"].strip()
  part: str | None = ""
  if "split" in row:
    part = NAMES.get(row["split"].strip().lower())
  has_label = bool(label) or multi_label
  if not name or "\0" in name or not has_label or part is None:
    raise ValueError(
      f"{where}: {row}; expected a path, a label and, if "
      "there is a split, train, val or test"
    )
  if re.fullmatch("-[0-9]+", label):
    raise ValueError(f"{where}: label {label} is negative")
  return name, label, part
