"""The page of results: one HTML file that loads nothing from elsewhere."""

import base64
from collections.abc import Sequence
import hashlib
import json
import statistics
from typing import Any

from vpt_jax.report import details, published, result_tables, rows, suites
from vpt_jax.report.rows import Record, Results, Row
from vpt_jax.report.suites import Suite

Json = dict[str, Any]


def render(records: Sequence[Record], found: Results) -> str:
  """The page.

  Args:
    records: all of them, searches too.
    found: the rows of the same records.
  """
  read = lambda name: (published.ASSETS / name).read_text(encoding="utf-8")
  code = "".join(map(read, ("charts.js", "page.js", "runs.js")))
  # No other script than this may run, and nothing may be loaded.
  digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
  page = read("page.html")
  for mark, text in (
    ("@DIGEST@", digest),
    ("@STYLE@", read("page.css")),
    ("@CODE@", code),
    ("@DATA@", embed(data(records, found))),
  ):
    before, after = page.split(mark)
    page = before + text + after
  return page


def embed(value: Any) -> str:
  """JSON that may stand in a script element, whatever texts are in it."""
  return json.dumps(
    value, separators=(",", ":"), allow_nan=False, ensure_ascii=False
  ).replace("<", "\\u003c")


def data(records: Sequence[Record], found: Results) -> Json:
  """All that the page shows."""
  names = labels(found.rows)
  return {
    "overview": overview(records, found),
    "notes": result_tables.general(found),
    "split": found.split,
    "suites": [
      suite_table(found, suite, names)
      for suite in suites.find(
        task for row in found.rows for task in row.scores
      )
    ],
    "compared": compared(found, names),
    "known": known(found),
    "curves": details.curves(found.rows, names),
    "searches": details.searches(records),
    "classes": details.classes(found.rows, names),
    "condensed": details.condensed(records),
    "cost": cost(records),
    "runs": details.runs(records),
  }


def labels(found: Sequence[Row]) -> dict[int, str]:
  """{id of a row: short name}; with the backbone where there are several."""
  several = len({row.backbone for row in found}) > 1
  return {
    id(row): f"{row.name} \u00b7 {row.backbone}" if several else row.name
    for row in found
  }


def overview(records: Sequence[Record], found: Results) -> list[list[str]]:
  """(number, what of) for a glance."""
  stages = [record["stage"] for record in records]
  shown = [record for row in found.rows for record in row.records]
  searched = [record for record in records if record["stage"] == "search"]
  lost = [record for record in searched if record["status"] == "diverged"]
  # Several are trained at once: each record has its share of the seconds.
  hours = sum(record["seconds"] for record in records) / 3600
  items = [
    (len(shown), f"results on {found.split}"),
    (len(found.diverged), "of them diverged"),
    (len({record["task"] for record in shown}), "tasks"),
    (len({row.name for row in found.rows}), "methods"),
    (len({row.backbone for row in found.rows}), "backbones"),
    (len(searched), "runs of searches"),
    (len(lost), "of them diverged"),
    (stages.count("condense"), "condensations"),
    (f"{hours:.3g}", "hours of all runs"),
  ]
  return [
    [str(number), what]
    for number, what in items
    if number or what.startswith("results")
  ]


def suite_table(found: Results, suite: Suite, names: dict[int, str]) -> Json:
  """A suite's rows, and beside each cell the first strong published number."""
  sources: list[str] = []
  columns = [
    column
    for column in suite.columns
    if any(
      result_tables.cell(row, column)
      for row in result_tables.in_suite(found, suite)
    )
  ]
  lines = []
  for row in result_tables.in_suite(found, suite):
    beside = {}
    for one in published.compare(row, suite):
      if not one.published.weak:
        beside.setdefault(one.column.key, one)
    cells = []
    for column in columns:
      cell: Json = {"text": result_tables.cell(row, column)}
      if row.value(column) is not None:
        cell["value"] = _round(row.value(column))
      score = row.scores.get(column.key)
      if score and score.mean is not None:
        cell |= {
          "std": _round(score.std),
          "count": score.count,
          "diverged": score.diverged,
        }
      if column.key in beside:
        one = beside[column.key]
        if one.published.source not in sources:
          sources.append(one.published.source)
        cell |= {
          "published": one.published.text,
          "difference": _round(one.difference),
          "source": sources.index(one.published.source),
        }
      cells.append(cell)
    scores = [row.scores[task] for task in suite.tasks if task in row.scores]
    lines.append(
      {
        "label": names[id(row)],
        "head": result_tables.head(row, suite),
        "percent": statistics.fmean(score.percent for score in scores),
        "trained": [
          round(row.scores[column.key].trained)
          if column.key in row.scores
          else round(statistics.fmean(score.trained for score in scores))
          for column in columns
        ],
        "cells": cells,
      }
    )
  return {
    "title": suite.title,
    "notes": result_tables.notes(found, suite),
    "columns": [
      {
        "label": column.label,
        "title": column.title,
        "mean": len(column.tasks),
        "group": column.group,
      }
      for column in columns
    ],
    "rows": lines,
    "sources": sources,
  }


def compared(found: Results, names: dict[int, str]) -> list[list[Any]]:
  """Every published number beside ours."""
  out = []
  for one in result_tables.comparisons(found):
    score = one.row.scores.get(one.column.key)
    out.append(
      [
        names[id(one.row)],
        one.column.title,
        _round(one.ours),
        _round(score.std) if score else None,
        one.published.value,
        one.published.text,
        _round(one.difference),
        one.published.label,
        one.published.source,
      ]
    )
  return out


def known(found: Results) -> list[list[Any]]:
  """All published numbers of our backbones and suites, strong and weak."""
  shown = suites.find(task for row in found.rows for task in row.scores)
  out = []
  for backbone in dict.fromkeys(row.backbone for row in found.rows):
    numbers = published.numbers(backbone)
    out += [
      [
        backbone,
        suite.title,
        number.label,
        column.title,
        number.value,
        number.text,
        number.tuned,
        number.source,
      ]
      for suite in shown
      for column in suite.columns
      for number in numbers.get(column.key, ())
    ]
  return out


def cost(records: Sequence[Record]) -> Json | None:
  """The published cost of prompts, if a condensation is of that backbone."""
  table = published.table()["cost"]
  if not any(
    record["stage"] == "condense"
    and rows.backbone(record) in table["backbones"]
    for record in records
  ):
    return None
  return {
    "prompts": table["prompts"],
    "gmacs": table["gmacs"],
    "backbone": table["backbones"][0],
    "source": f"{published.table()['papers'][table['paper']]}, excerpt "
    f"[{table['tag']}]; {table['note']}",
  }


def _round(value: float | None) -> float | None:
  return None if value is None else round(value, 4)
