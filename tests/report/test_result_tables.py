"""Tests the tables and their notes."""

import csv
import io

import pytest

from tests import report_records as made
from vpt_jax.report import (
  export,
  page,
  result_tables,
  rows,
)


def test_a_mean_without_all_of_its_tasks_is_no_number():
  row = made.a_row([made.record(task=task) for task in made.NATURAL[:3]])
  assert row.value(made.column("natural")) is None
  assert result_tables.cell(row, made.column("natural")) == "3 of 7"
  assert result_tables.cell(row, made.column("specialized")) == ""
  whole = made.a_row(
    [
      made.record(task=task, top1=80.0 + i)
      for i, task in enumerate(made.NATURAL)
    ]
  )
  assert result_tables.cell(whole, made.column("natural")) == "83.00"
  assert result_tables.cell(whole, made.column("vtab_19")) == "7 of 19"


def test_terminal_shows_columns_that_have_something():
  text = result_tables.terminal(
    [made.record(task="eurosat"), made.record("linear", 80.0, task="dtd")]
  )
  head = text.splitlines()[1].split()
  assert head == [
    "method",
    "backbone",
    "seeds",
    "tuned/total",
    "%",
    "DTD",
    "EuroSAT",
  ]
  wide = result_tables.terminal(made.many(made.VTAB.tasks))
  assert (
    max(map(len, wide.split("Top-1")[0].splitlines())) <= result_tables.WIDTH
  )
  assert all(result_tables.heading(one) in wide for one in made.VTAB.columns)
  assert "mean over 19 tasks" in wide and "mean of the 3 group means" in wide


def test_a_strange_name_does_not_steer_the_terminal():
  assert "\x1b" not in result_tables.terminal([made.record("a\x1b[31m\nb")])


def test_scores_of_any_problem_make_rows_and_columns(tags):
  records = made.tagged(tags)
  row = made.a_row(records)
  assert row.scores["photos"].mean == pytest.approx(61.0)
  assert row.scores["photos"].metric.name == "mean_average_precision"
  text = result_tables.terminal(records)
  assert "Mean average precision on the test images in percent" in text
  assert "op-1" not in text
  line = next(line for line in text.splitlines() if line.startswith("vpt_deep"))
  assert line.endswith("61.00 \u00b1 1.00")

  found = rows.collect(records)
  markdown = export.markdown(found)
  assert (
    "Mean average precision" in markdown and "61.00 \u00b1 1.00" in markdown
  )
  latex = export.latex(found)
  assert "Mean average precision" in latex and r"$\pm$1.00" in latex
  lines = list(csv.DictReader(io.StringIO(export.table_csv(found))))
  assert [
    (line["column"], line["metric"], float(line["mean"])) for line in lines
  ] == [
    ("photos", "mean_average_precision", 51.0),
    ("photos", "mean_average_precision", 61.0),
  ]


def test_problems_in_one_report_are_told_apart(tags):
  records = [
    made.record(task="digits"),
    *made.tagged(tags),
    tags(3.25, metric="distance", task="arm"),
  ]
  text = result_tables.terminal(records)
  assert "Top-1 on the test images in percent" in text
  assert "Mean average precision instead of top-1: photos." in text
  assert "Distance (in mm) instead of top-1: arm." in text
  data = page.data(records, rows.collect(records))
  (suite,) = data["suites"]
  assert [column["score"] for column in suite["columns"]] == [
    "top-1, %",
    "mean average precision, %",
    "distance, mm",
  ]
  # What is classification's is shown of classification alone.
  assert [one["task"] for one in data["classes"]] == ["digits"]
  assert {one["task"]: one["score"] for one in data["curves"]} == {
    "digits": "training top-1, %",
    "photos": "training precision, %",
    "arm": "training precision, %",
  }
  assert all(run["score"][0] for one in data["curves"] for run in one["runs"])


def test_a_diverged_task_is_of_its_problem(tags):
  records = [tags(50.0, task="photos", status="diverged")]
  text = result_tables.terminal(records)
  assert "Mean average precision on the test images" in text
  assert "diverged" in text
