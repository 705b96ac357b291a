"""Makes the page of results: one HTML file that loads nothing else."""

import base64
from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
import statistics
import types
from typing import Any

from vpt_jax.report import (
  class_summaries,
  details,
  galleries,
  published,
  record_fields,
  result_tables,
  suites,
)
from vpt_jax.report.published import Comparison
from vpt_jax.report.record_fields import Record
from vpt_jax.report.rows import Results, Row
from vpt_jax.report.suites import Column, Suite

Json = dict[str, Any]

NO_FOLDERS: Mapping[str, Path] = types.MappingProxyType({})
SCRIPTS = ("charts.js", "page.js", "runs.js")  # joined in this order


def render(
  records: Sequence[Record],
  found: Results,
  folders: Mapping[str, Path] = NO_FOLDERS,
) -> str:
  """Returns the page.

  Args:
    records: all of them, searches too.
    found: the rows of the same records.
    folders: {id of a record: folder of its run}, of which pictures are shown.
  """
  code = "".join(_asset(name) for name in SCRIPTS)
  # No other script than this may run, and nothing may be loaded.
  digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
  page = _asset("page.html")
  for mark, text in (
    ("@DIGEST@", digest),
    ("@STYLE@", _asset("page.css")),
    ("@CODE@", code),
    ("@DATA@", embed(data(records, found, folders))),
  ):
    # A mark is there once; a text that was put in before may hold another.
    before, after = page.split(mark)
    page = before + text + after
  return page


def _asset(name: str) -> str:
  return (published.ASSETS / name).read_text(encoding="utf-8")


def embed(value: Any) -> str:
  """Returns JSON that may stand in a script element, whatever texts it has."""
  text = json.dumps(
    value, separators=(",", ":"), allow_nan=False, ensure_ascii=False
  )
  return text.replace("<", "\\u003c")


def data(
  records: Sequence[Record],
  found: Results,
  folders: Mapping[str, Path] = NO_FOLDERS,
) -> Json:
  """Returns all that the page shows, see `render`."""
  names = labels(found.rows)
  return {
    "overview": overview(records, found),
    "notes": result_tables.general_notes(found),
    "split": found.split,
    "suites": [suite_data(found, suite, names) for suite in found.suites],
    "compared": compared(found, names),
    "known": known(found),
    "curves": details.curves(found.rows, names),
    "searches": details.searches(records),
    "classes": class_summaries.classes(found.rows, names),
    "galleries": galleries.collect(found, names, folders),
    "condensed": details.condensed(records),
    "cost": cost(records),
    "runs": details.runs(records),
  }


def labels(found: Sequence[Row]) -> dict[int, str]:
  """Returns {id of a row: short name}, with what else tells it from others.

  That is its backbone and its problem, if there are several.

  Rows hold dictionaries, so they cannot be keys themselves.
  """
  backbones = {row.backbone for row in found}
  kinds = {row.dense for row in found}
  out = {}
  for row in found:
    parts = [row.name]
    if len(backbones) > 1:
      parts.append(row.backbone)
    if len(kinds) > 1 and row.dense:
      parts.append("segmentation")
    out[id(row)] = " \u00b7 ".join(parts)
  return out


def overview(records: Sequence[Record], found: Results) -> list[list[str]]:
  """Returns (number, what of) for a glance; no zeros but that of results."""
  shown = [record for row in found.rows for record in row.records]
  searched = [record for record in records if record["stage"] == "search"]
  condensed = [record for record in records if record["stage"] == "condense"]
  diverged = [record for record in searched if record["status"] == "diverged"]
  # Several are trained at once: each record has its share of the seconds.
  hours = sum(record["seconds"] for record in records) / 3600
  items = [
    (len(found.diverged), "of them diverged"),
    (len({record["task"] for record in shown}), "tasks"),
    (len({row.name for row in found.rows}), "methods"),
    (len({row.backbone for row in found.rows}), "backbones"),
    (len(searched), "runs of searches"),
    (len(diverged), "of them diverged"),
    (len(condensed), "condensations"),
  ]
  out = [[str(len(shown)), f"results on {found.split}"]]
  out += [[str(number), what] for number, what in items if number]
  return [*out, [f"{hours:.3g}", "hours of all runs"]]


# The tables of suites.


def suite_data(found: Results, suite: Suite, names: Mapping[int, str]) -> Json:
  """Returns a suite's rows, each cell with its strongest published number."""
  in_suite = found.rows_of(suite)
  columns = [column for column in suite.columns if _has_cell(column, in_suite)]
  sources: list[str] = []
  return {
    "title": suite.title,
    "notes": result_tables.suite_notes(found, suite),
    "params": result_tables.PARAMS if suite.dense else [],
    "columns": [
      {
        "label": column.label,
        "title": column.title,
        "mean": len(column.tasks),
        "group": column.group,
        "score": _score_title(in_suite, column),
      }
      for column in columns
    ],
    "rows": [
      _row_data(row, suite, columns, names[id(row)], sources)
      for row in in_suite
    ],
    "sources": sources,
  }


def _has_cell(column: Column, in_suite: Sequence[Row]) -> bool:
  return any(result_tables.cell(row, column) for row in in_suite)


def _score_title(in_suite: Sequence[Row], column: Column) -> str:
  """Returns what the numbers of a column are, for an axis."""
  metrics = set()
  for row in in_suite:
    for task in column.tasks:
      score = row.scores.get(task)
      if not column.is_mean:
        score = row.score(column)
      if score is not None and score.mean is not None:
        metrics.add(score.metric)
  if len(metrics) == 1:
    return details.axis_title(metrics.pop())
  # A mean over tasks that papers score in different ways.
  units = {metric.unit for metric in metrics}
  return f"score, {units.pop()}" if len(units) == 1 else "score"


def _row_data(
  row: Row,
  suite: Suite,
  columns: Sequence[Column],
  label: str,
  sources: list[str],
) -> Json:
  """Returns a line of a suite's table; sources that are new are appended."""
  beside = published.strongest(published.compare(row, suite))
  cells = []
  for column in columns:
    cells.append(_cell_data(row, column, beside.get(column.key), sources))
  scores = [row.scores[task] for task in suite.tasks if task in row.scores]
  mean_trained = statistics.fmean(score.trained for score in scores)
  trained = []
  for column in columns:
    score = row.score(column)
    trained.append(round(mean_trained if score is None else score.trained))
  return {
    "label": label,
    "head": result_tables.head(row, suite),
    "percent": statistics.fmean(score.percent for score in scores),
    "params": result_tables.params(scores[0]) if suite.dense else [],
    "trained": trained,
    "cells": cells,
  }


def _cell_data(
  row: Row, column: Column, beside: Comparison | None, sources: list[str]
) -> Json:
  out: Json = {"text": result_tables.cell(row, column)}
  value = row.value(column)
  if value is not None:
    out["value"] = _rounded(value)
  score = row.score(column)
  if score is not None and score.mean is not None:
    out["std"] = _rounded(score.std)
    out["count"] = score.count
    out["diverged"] = score.diverged
  if beside is not None:
    source = beside.published.source
    if source not in sources:
      sources.append(source)
    out["published"] = beside.published.text
    out["difference"] = _rounded(beside.difference)
    out["source"] = sources.index(source)
  return out


# Published numbers.


def compared(found: Results, names: Mapping[int, str]) -> list[list[Any]]:
  """Returns every published number beside the measured one."""
  out = []
  for comparison in result_tables.comparisons(found):
    score = comparison.row.score(comparison.column)
    number = comparison.published
    out.append(
      [
        names[id(comparison.row)],
        comparison.column.title,
        _rounded(comparison.measured),
        None if score is None else _rounded(score.std),
        number.value,
        number.text,
        _rounded(comparison.difference),
        number.label,
        number.source,
      ]
    )
  return out


def known(found: Results) -> list[list[Any]]:
  """Returns all published numbers of these backbones and suites.

  Weak ones are among them.
  """
  out = []
  for backbone in dict.fromkeys(row.backbone for row in found.rows):
    numbers = published.numbers(backbone)
    for suite in found.suites:
      columns = suite.columns
      if suite.dense:  # whether or not a run was tested at several scales
        columns = suites.of_label_maps(suite.name, True).columns
      for column in columns:
        for number in numbers.get(column.key, ()):
          out.append(_known_number(backbone, suite, column, number))
  return out


def _known_number(
  backbone: str, suite: Suite, column: Column, number: published.Number
) -> list[Any]:
  return [
    backbone,
    suite.title,
    number.label,
    column.title,
    number.value,
    number.text,
    number.tuned,
    number.source,
  ]


def cost(records: Sequence[Record]) -> Json | None:
  """Returns the published cost of prompts.

  None without a condensation of a backbone that it is known of.
  """
  table = published.table()["cost"]
  condensed = {
    record_fields.backbone(record)
    for record in records
    if record["stage"] == "condense"
  }
  if not condensed & set(table["backbones"]):
    return None
  paper = published.table()["papers"][table["paper"]]
  return {
    "prompts": table["prompts"],
    "gmacs": table["gmacs"],
    "backbone": table["backbones"][0],
    "source": f"{paper}, excerpt [{table['tag']}]; {table['note']}",
  }


def _rounded(value: float | None) -> float | None:
  return None if value is None else round(value, 4)
