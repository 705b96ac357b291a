"""A source that is a CSV of paths and labels."""

from collections.abc import Iterator
import csv
import os
from pathlib import Path
import re

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import image_files
from vpt_jax.data.sources.parts import NAMES, Parts


def read_csv(path: Path, split: str, seed: int) -> Examples:
  """`csv:PATH`: columns path, label and, if the parts are given, split.

  Paths are relative to the CSV's folder, or absolute. Labels are integers or
  names. Without column split the rows are parted as those of `folder`.

  Raises:
    ValueError: naming the file and the line.
  """
  try:
    with path.open(encoding="utf-8-sig", newline="") as file:
      rows = _read_table(
        csv.reader(file, skipinitialspace=True, strict=True), path.parent
      )
  except FileNotFoundError:
    raise ValueError(f"{path} is missing; expected csv:PATH") from None
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(f"{path}: {error}") from None
  integers = all(re.fullmatch("[0-9]{1,9}", label) for _, label, _ in rows)
  parts: Parts = {}
  for name, label, part in rows:
    parts.setdefault(part, []).append((name, int(label) if integers else label))
  return image_files.files(
    parts, split, path.parent, str(path), seed, upright=True
  )


def _read_table(
  reader: Iterator[list[str]], base: Path
) -> list[tuple[str, str, str]]:
  """Rows (path, label, part), each path once."""
  head = [name.strip().lower() for name in next(reader, [])]
  if not {"path", "label"} <= set(head):
    raise ValueError(
      f"the first line is {head}; expected 'path,label' or 'path,label,split'"
    )
  rows: dict[str, tuple[str, str, str]] = {}
  for cells in filter(None, reader):
    where = f"line {reader.line_num}"
    if len(cells) != len(head):
      raise ValueError(
        f"{where}: {len(cells)} columns, expected {len(head)}; "
        "quote a path that has a comma"
      )
    row = dict(zip(head, cells))
    name, label = row["path"], row["label"].strip()
    part = NAMES.get(row["split"].strip().lower()) if "split" in row else ""
    if not name or "\0" in name or not label or part is None:
      raise ValueError(
        f"{where}: {row}; expected a path, a label and, if "
        "there is a split, train, val or test"
      )
    if re.fullmatch("-[0-9]+", label):
      raise ValueError(f"{where}: label {label} is negative")
    first = rows.setdefault(os.path.normpath(base / name), (name, label, part))
    if first[1:] != (label, part):
      raise ValueError(
        f"{where}: {name!r} has label {label!r}, part {part!r}; "
        f"further up it has {first[1]!r}, {first[2]!r}"
      )
  return list(rows.values())
