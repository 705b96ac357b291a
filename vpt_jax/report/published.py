"""Published numbers beside ours, each with its source."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from vpt_jax.report.rows import plain, Row
from vpt_jax.report.suites import Column, Suite
from vpt_jax.training import records as results

ASSETS = Path(__file__).with_name("assets")
Record = results.Record


@dataclasses.dataclass(frozen=True)
class Number:
  """A published score.

  Attributes:
    value: percent.
    std: over seeds, or None.
    label: of the method, as published.
    source: paper, how we know it, remarks; for people.
    weak: quoted by third hands; never to be shown as the paper's.
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
    """As published; in brackets what third hands say."""
    std = "" if self.std is None else f" \u00b1 {self.std}"
    return f"({self.value}{std})" if self.weak else f"{self.value}{std}"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A number of ours beside a published one.

  Attributes:
    difference: ours - published; None beside a weak number.
  """

  row: Row
  column: Column
  ours: float
  published: Number
  difference: float | None


@functools.cache
def table() -> dict[str, Any]:
  """What `published.json` holds."""
  return json.loads((ASSETS / "published.json").read_text(encoding="utf-8"))


def conditions(kind: str) -> dict[str, Any] | None:
  """{field of a config: value} of a published method; None: not one of ours."""
  entry, where = table()["kinds"][kind], {}
  if entry["where"] is None:
    return None
  for base in entry.get("like", ()):
    where |= table()[base]
  return where | entry["where"]


def numbers(
  backbone: str, records: Sequence[Record] | None = None
) -> dict[str, list[Number]]:
  """{column's key: published numbers} with a backbone; strong ones first.

  Args:
    backbone: its name.
    records: only of the method that all of them are of; None: of all.
  """
  out: dict[str, list[Number]] = {}
  for group in table()["tables"]:
    if backbone not in group["backbones"]:
      continue
    keys, weak = (
      table()["columns"][group["columns"]],
      (group["tag"] in table()["weak"]),
    )
    for line in group["rows"]:
      where = conditions(line["kind"])
      if records is not None and (
        where is None
        or not all(
          fits(record, where | line.get("where", {})) for record in records
        )
      ):
        continue
      for i, key in enumerate(keys):
        if line["values"][i] is None:
          continue
        doubt = line.get("doubts", {}).get(key)
        notes = [
          group.get("note"),
          line.get("note"),
          doubt and f"{label(line)}, {key}: {doubt}",
        ]
        out.setdefault(key, []).append(
          Number(
            line["values"][i],
            line["stds"][i] if "stds" in line else None,
            label(line),
            "; ".join(
              [
                table()["tags"][group["tag"]].format(
                  table()["papers"][group["paper"]]
                )
                + f" [{group['tag']}]",
                *filter(None, notes),
              ]
            ),
            weak,
            line.get("tuned"),
          )
        )
  return {
    key: sorted(found, key=lambda number: number.weak)
    for key, found in out.items()
  }


def label(line: Mapping[str, Any]) -> str:
  """A published row's method, as its paper calls it."""
  name = table()["kinds"][line["kind"]]["label"]
  return f"{name}, {line['prompts']} prompts" if "prompts" in line else name


def lookup(config: Mapping[str, Any], field: str) -> Any:
  """Value of "vpt.num_tokens"; "-" if there is none."""
  for part in field.split("."):
    config = config.get(part, "-") if isinstance(config, Mapping) else "-"
  return config


def fits(record: Record, where: Mapping[str, Any]) -> bool:
  """Whether a record's config has these values."""
  return all(
    lookup(record["config"], field) == value for field, value in where.items()
  )


def compare(row: Row, suite: Suite) -> list[Comparison]:
  """All published numbers of a row's method in a suite, in its order."""
  records = [record for record in row.records if record["task"] in suite.tasks]
  known = numbers(row.backbone, records)
  out = []
  for column in suite.columns:
    ours = row.value(column)
    if ours is None:
      continue
    out += [
      Comparison(
        row, column, ours, number, None if number.weak else ours - number.value
      )
      for number in known.get(column.key, ())
    ]
  return out


def deviations(row: Row, suite: Suite) -> list[str]:
  """Where a row's runs leave the published protocol, for people."""
  protocol = table()["protocol"].get(suite.name, {})
  return list(
    dict.fromkeys(
      f"{field}={plain(str(lookup(record['config'], field)))} "
      f"(published: {value})"
      for record in row.records
      if record["task"] in suite.tasks
      for field, value in protocol.items()
      if lookup(record["config"], field) != value
    )
  )
