"""Finds the published numbers that belong beside measured ones.

The numbers are in `assets/published.json`, each with its source; the README
says what is in that file.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from vpt_jax.report import record_fields
from vpt_jax.report.record_fields import Record
from vpt_jax.report.rows import Row
from vpt_jax.report.suites import Column, Suite

ASSETS = Path(__file__).with_name("assets")
Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Number:
  """A published score.

  Attributes:
    value: percent.
    std: over seeds, or None.
    label: of the method, as published.
    source: paper, how we know it, remarks; for people.
    weak: quoted by third hands or from memory; never to be shown as the
      paper's.
    tuned: published percent of tuned parameters, or None.
  """

  value: float
  std: float | None
  label: str
  source: str
  weak: bool
  tuned: float | None

  @property
  def text(self) -> str:
    """As published; in brackets what is weak."""
    std = "" if self.std is None else f" \u00b1 {self.std}"
    return f"({self.value}{std})" if self.weak else f"{self.value}{std}"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A measured score beside a published one.

  Attributes:
    row: whose score it is.
    column: the task or mean.
    measured: percent.
    published: of the same method, backbone and column.
    difference: measured - published; None beside a weak number.
  """

  row: Row
  column: Column
  measured: float
  published: Number
  difference: float | None


@functools.cache
def table() -> Json:
  """Returns what `published.json` holds."""
  return json.loads((ASSETS / "published.json").read_text(encoding="utf-8"))


def conditions(kind: str) -> Json | None:
  """Returns {field of a config: value} that make a published method.

  None for a method that is not in this repository.
  """
  entry = table()["kinds"][kind]
  if entry["where"] is None:
    return None
  out: Json = {}
  for base in entry.get("like", ()):
    out |= table()[base]
  return out | entry["where"]


def numbers(
  backbone: str, records: Sequence[Record] | None = None
) -> dict[str, list[Number]]:
  """Returns {column's key: published numbers}, the strong ones first.

  Args:
    backbone: its name.
    records: only numbers of the method that all of these are of; None: of all
      methods.
  """
  out: dict[str, list[Number]] = {}
  for group in table()["tables"]:
    if backbone not in group["backbones"]:
      continue
    keys = table()["columns"][group["columns"]]
    for line in group["rows"]:
      if records is not None and not _is_method_of(group, line, records):
        continue
      for index, key in enumerate(keys):
        if line["values"][index] is not None:
          number = _number(group, line, index, key)
          out.setdefault(key, []).append(number)
  for found in out.values():
    found.sort(key=lambda number: number.weak)
  return out


def _is_method_of(group: Json, line: Json, records: Sequence[Record]) -> bool:
  """Returns whether all records are of the method of a published line."""
  where = conditions(line["kind"])
  if where is None:
    return False
  of_group = table()[group["like"]] if "like" in group else {}
  where = where | of_group | line.get("where", {})
  return all(fits(record, where) for record in records)


def _number(group: Json, line: Json, index: int, key: str) -> Number:
  """Returns number `index` of a published line, which is of column `key`."""
  doubt = line.get("doubts", {}).get(key)
  remarks = [
    group.get("note"),
    line.get("note"),
    f"{label(line)}, {key}: {doubt}" if doubt else None,
  ]
  paper = table()["papers"][group["paper"]]
  how_known = table()["tags"][group["tag"]].format(paper)
  source = "; ".join([f"{how_known} [{group['tag']}]", *filter(None, remarks)])
  return Number(
    value=line["values"][index],
    std=line["stds"][index] if "stds" in line else None,
    label=label(line),
    source=source,
    weak=group["tag"] in table()["weak"],
    tuned=line.get("tuned"),
  )


def label(line: Mapping[str, Any]) -> str:
  """Returns a published line's method, as its paper calls it."""
  name = line.get("label") or table()["kinds"][line["kind"]]["label"]
  return f"{name}, {line['prompts']} prompts" if "prompts" in line else name


def field_value(config: Mapping[str, Any], field: str) -> Any:
  """Returns a config's value of "vpt.num_tokens"; "-" if there is none."""
  found: Any = config
  for part in field.split("."):
    if not isinstance(found, Mapping):
      return "-"
    found = found.get(part, "-")
  return found


def fits(record: Record, where: Mapping[str, Any]) -> bool:
  """Returns whether a record's config has these values.

  Args:
    record: of a run.
    where: {field: value}; {"any": values} stands for any of several.
  """
  for field, wanted in where.items():
    value = field_value(record["config"], field)
    choices = wanted["any"] if isinstance(wanted, dict) else [wanted]
    if value not in choices:
      return False
  return True


def compare(row: Row, suite: Suite) -> list[Comparison]:
  """Returns all published numbers of a row's method, in the suite's order."""
  records = [record for record in row.records if record["task"] in suite.tasks]
  known = numbers(row.backbone, records)
  out = []
  for column in suite.columns:
    measured = row.value(column)
    if measured is None:
      continue
    for number in known.get(column.key, ()):
      difference = None if number.weak else measured - number.value
      out.append(Comparison(row, column, measured, number, difference))
  return out


def strongest(compared: Sequence[Comparison]) -> dict[str, Comparison]:
  """Returns {column's key: its first comparison}, no weak ones."""
  out: dict[str, Comparison] = {}
  for comparison in compared:
    if not comparison.published.weak:
      out.setdefault(comparison.column.key, comparison)
  return out


def deviations(row: Row, suite: Suite) -> list[str]:
  """Returns where a row's runs leave the published protocol, in words."""
  protocol = table()["protocol"].get(suite.name, {})
  out: dict[str, None] = {}  # in order, each once
  for record in row.records:
    if record["task"] not in suite.tasks:
      continue
    for field, expected in protocol.items():
      value = field_value(record["config"], field)
      if value != expected:
        shown = record_fields.printable(str(value))
        out[f"{field}={shown} (published: {expected})"] = None
  return list(out)
