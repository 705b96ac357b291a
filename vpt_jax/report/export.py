"""Writes the tables as Markdown, LaTeX and CSV."""

from collections.abc import Iterable, Sequence
import itertools
import re
from typing import Any

from vpt_jax.report import published, result_tables
from vpt_jax.report.result_tables import Line, SuiteTable
from vpt_jax.report.rows import Results, Row
from vpt_jax.report.suites import Column
from vpt_jax.utils import csv_texts

PLUS_MINUS = "\u00b1"

# What stands for characters that LaTeX takes for commands.
LATEX = {
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  PLUS_MINUS: r"$\pm$",
  # A line that starts with one would be an option of the line's end.
  "[": "{[}",
  "]": "{]}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  result_tables.MARK: r"\textsuperscript{\dag}",
  **{char: f"\\{char}" for char in "_&%#${}"},
}


# Markdown.


def markdown(found: Results) -> str:
  """Returns all tables, and every published number beside the measured one."""
  out = ["# Results", "", *_bullets(result_tables.general_notes(found))]
  for table in result_tables.suite_tables(found):
    headings = map(result_tables.heading, table.columns)
    lines = [[*line.head, *line.cells] for line in table.lines]
    out += [f"## {table.suite.title}", ""]
    out += _grid([*table.head, *headings], lines, result_tables.TEXTS)
    out += ["", *_bullets(table.notes)]
  comparisons = _comparison_lines(found)
  if comparisons:
    out += ["## Beside published numbers", ""]
    out += [*_grid(COMPARISON_HEAD, comparisons, 3), ""]
  return "\n".join(out)


COMPARISON_HEAD = (
  "method",
  "backbone",
  "task",
  "measured",
  "published",
  "difference",
  "method as published",
  "source",
)


def _comparison_lines(found: Results) -> list[list[str]]:
  out = []
  for comparison in result_tables.comparisons(found):
    difference = "-"
    if comparison.difference is not None:
      difference = f"{comparison.difference:+.2f}"
    out.append(
      [
        comparison.row.name,
        comparison.row.backbone,
        comparison.column.title,
        f"{comparison.measured:.2f}",
        comparison.published.text,
        difference,
        comparison.published.label,
        comparison.published.source,
      ]
    )
  return out


def _bullets(notes: Sequence[str]) -> list[str]:
  if not notes:
    return []
  return [*(f"- {_escaped(note)}" for note in notes), ""]


def _grid(
  head: Sequence[str], lines: Sequence[Sequence[str]], texts: int
) -> list[str]:
  """Returns a table whose first `texts` columns are words, not numbers."""
  rule = ["---"] * texts + ["---:"] * (len(head) - texts)
  out = [_grid_line(map(_escaped, head)), _grid_line(rule)]
  for line in lines:
    out.append(_grid_line(map(_escaped, line)))
  return out


def _grid_line(cells: Iterable[str]) -> str:
  return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
  """Returns a text without what Markdown takes for marks."""
  return re.sub(r"([\\`*|<\[\]]|\b_|_\b)", r"\\\1", text.strip())


# LaTeX.


def latex(found: Results) -> str:
  """Returns a table of each suite; it needs booktabs and graphicx."""
  out = ["% Needs \\usepackage{booktabs,graphicx}."]
  for table in result_tables.suite_tables(found):
    out += _latex_table(table)
  out += [f"% {note}" for note in result_tables.general_notes(found)]
  return "\n".join([*out, ""])


def _latex_table(table: SuiteTable) -> list[str]:
  groups, rules = _latex_groups(len(table.head), table.columns)
  labels = [_tex(label) for label in table.head]
  for column in table.columns:
    labels.append(rf"\rotatebox{{90}}{{{_tex(column.label)}}}")
  body = []
  for index, line in enumerate(table.lines):
    if index and line.is_measured:
      body.append(r"\addlinespace")
    body.append(_latex_line(line))
  notes = [_tex(note) + r"\par" for note in table.notes]
  numbers = len(table.head) - result_tables.TEXTS + len(table.columns)
  return [
    "",
    r"\begin{table}",
    r"\centering",
    rf"\caption{{{_tex(table.suite.title)}}}",
    r"\resizebox{\textwidth}{!}{%",
    rf"\begin{{tabular}}{{ll{'r' * numbers}}}",
    r"\toprule",
    " & ".join(groups) + r" \\",
    "".join(rules),
    " & ".join(labels) + r" \\",
    r"\midrule",
    *body,
    r"\bottomrule",
    r"\end{tabular}}",
    "",
    r"\footnotesize",
    *notes,
    r"\end{table}",
  ]


def _latex_groups(
  before: int, columns: Sequence[Column]
) -> tuple[list[str], list[str]]:
  """Returns the headings above the headings, and the rules below them.

  Args:
    before: columns before these.
    columns: of the suite.
  """
  groups = [rf"\multicolumn{{{before}}}{{c}}{{}}"]
  rules = []
  first = before + 1  # LaTeX counts columns from 1
  for group, same in itertools.groupby(columns, lambda column: column.group):
    count = len(list(same))
    groups.append(rf"\multicolumn{{{count}}}{{c}}{{{_tex(group)}}}")
    rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
    first += count
  return groups, rules


def _latex_line(line: Line) -> str:
  name, *rest = line.head
  cells = [_tex(name).replace(result_tables.INDENT, r"\quad ")]
  cells += [_tex(text) for text in rest]
  cells += [_latex_score(text) for text in line.cells]
  return " & ".join(cells) + r" \\"


def _tex(text: str) -> str:
  return "".join(LATEX.get(char, char) for char in text)


def _latex_score(text: str) -> str:
  """Returns a score whose standard deviation is set smaller than its mean."""
  mean, plus, std = text.partition(f" {PLUS_MINUS} ")
  if not plus:
    return _tex(mean)
  return _tex(mean) + rf"{{\scriptsize$\pm${_tex(std)}}}"


# CSV.

CSV = (
  "suite",
  "method",
  "backbone",
  "column",
  "metric",
  "mean",
  "std",
  "seeds",
  "diverged",
  "trainable_params",
  "published",
  "published_std",
  "difference",
  "third_hand",
  "source",
  "trainable_params_without_head",
)
NO_NUMBER = [""] * 5  # from `published` on


def table_csv(found: Results) -> str:
  """Returns a line for each score or mean and published number beside it."""
  lines: list[Sequence[Any]] = [CSV]
  for table in result_tables.suite_tables(found):
    for row in found.rows_of(table.suite):
      lines += _csv_lines(table, row)
  return csv_texts.lines(lines)


def _csv_lines(table: SuiteTable, row: Row) -> list[list[Any]]:
  beside = published.compare(row, table.suite)
  lines = []
  for column in table.columns:
    score = row.score(column)
    if row.value(column) is None and score is None:
      continue
    without_head = None if score is None else score.without_head
    head = [table.suite.name, row.name, row.backbone, column.key]
    head += _csv_score(row, column)
    numbers = [
      _csv_number(comparison)
      for comparison in beside
      if comparison.column is column
    ]
    for number in numbers or [NO_NUMBER]:
      lines.append([*head, *number, without_head])
  return lines


def _csv_score(row: Row, column: Column) -> list[Any]:
  score = row.score(column)
  if score is None:  # a mean over tasks
    return ["", _rounded(row.value(column)), "", "", "", ""]
  return [
    score.metric.name,
    _rounded(score.mean),
    _rounded(score.std),
    score.count,
    score.diverged,
    score.trained,
  ]


def _csv_number(comparison: published.Comparison) -> list[Any]:
  number = comparison.published
  return [
    number.value,
    number.std,
    _rounded(comparison.difference),
    number.weak,
    number.source,
  ]


def _rounded(value: float | None) -> float | None:
  return None if value is None else round(value, 6)
