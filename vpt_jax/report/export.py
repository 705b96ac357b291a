"""The tables as Markdown, LaTeX and CSV."""

from collections.abc import Sequence
import csv
import io
import itertools
import re

from vpt_jax.report import published, result_tables
from vpt_jax.report.rows import Results

LATEX = {
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "\u00b1": r"$\pm$",
  # A line that starts with one would be an option of the line's end.
  "[": "{[}",
  "]": "{]}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  result_tables.MARK: r"\textsuperscript{\dag}",
  **{char: f"\\{char}" for char in "_&%#${}"},
}


def markdown(found: Results) -> str:
  """All tables, and every published number beside ours."""
  out = ["# Results", "", *_notes(result_tables.general(found))]
  for sheet in result_tables.sheets(found):
    out += [
      f"## {sheet.suite.title}",
      "",
      *_grid(
        [*result_tables.HEAD, *map(result_tables.heading, sheet.columns)],
        [[*line.head, *line.cells] for line in sheet.lines],
        2,
      ),
      "",
      *_notes(sheet.notes),
    ]
  lines = [
    [
      one.row.name,
      one.row.backbone,
      one.column.title,
      f"{one.ours:.2f}",
      one.published.text,
      "-" if one.difference is None else f"{one.difference:+.2f}",
      one.published.label,
      one.published.source,
    ]
    for one in result_tables.comparisons(found)
  ]
  if lines:
    out += [
      "## Beside published numbers",
      "",
      *_grid(
        [
          "method",
          "backbone",
          "task",
          "ours",
          "published",
          "difference",
          "method as published",
          "source",
        ],
        lines,
        3,
      ),
      "",
    ]
  return "\n".join(out)


def _notes(notes: Sequence[str]) -> list[str]:
  return [*(f"- {_md(note)}" for note in notes), ""] if notes else []


def _grid(
  labels: Sequence[str], lines: Sequence[Sequence[str]], texts: int
) -> list[str]:
  rule = ["---"] * texts + ["---:"] * (len(labels) - texts)
  cells = [map(_md, labels), rule, *(map(_md, line) for line in lines)]
  return ["| " + " | ".join(line) + " |" for line in cells]


def _md(text: str) -> str:
  return re.sub(r"([\\`*|<\[\]]|\b_|_\b)", r"\\\1", text.strip())


def latex(found: Results) -> str:
  """A tabular of each suite; needs the packages booktabs and graphicx."""
  out = ["% Needs \\usepackage{booktabs,graphicx}."]
  for sheet in result_tables.sheets(found):
    first = len(result_tables.HEAD) + 1
    above, rules = [r"\multicolumn{%d}{c}{}" % (first - 1)], []
    for group, members in itertools.groupby(
      sheet.columns, lambda column: column.group
    ):
      count = len(list(members))
      above.append(r"\multicolumn{%d}{c}{%s}" % (count, _tex(group)))
      rules.append(r"\cmidrule(lr){%d-%d}" % (first, first + count - 1))
      first += count
    labels = [
      *map(_tex, result_tables.HEAD),
      *(r"\rotatebox{90}{%s}" % _tex(column.label) for column in sheet.columns),
    ]
    ours = lambda line: not line.head[0].startswith(" ")
    body = [
      "\\addlinespace\n" * (i > 0 and ours(line))
      + " & ".join(
        [
          _tex(line.head[0]).replace("  ", r"\quad "),
          *map(_tex, line.head[1:]),
          *map(_value, line.cells),
        ]
      )
      + r" \\"
      for i, line in enumerate(sheet.lines)
    ]
    out += [
      "",
      r"\begin{table}",
      r"\centering",
      r"\caption{%s}" % _tex(sheet.suite.title),
      r"\resizebox{\textwidth}{!}{%",
      r"\begin{tabular}{llrr%s}" % ("r" * len(sheet.columns)),
      r"\toprule",
      " & ".join(above) + r" \\",
      "".join(rules),
      " & ".join(labels) + r" \\",
      r"\midrule",
      *body,
      r"\bottomrule",
      r"\end{tabular}}",
      "",
      r"\footnotesize",
      *(_tex(note) + r"\par" for note in sheet.notes),
      r"\end{table}",
    ]
  return "\n".join(
    [*out, *(f"% {note}" for note in result_tables.general(found)), ""]
  )


def _tex(text: str) -> str:
  return "".join(LATEX.get(char, char) for char in text)


def _value(text: str) -> str:
  """A standard deviation is set smaller than its mean."""
  mean, plus, std = text.partition(" \u00b1 ")
  return _tex(mean) + (r"{\scriptsize$\pm$%s}" % _tex(std) if plus else "")


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
)


def table_csv(found: Results) -> str:
  """A line per row, task or mean and published number beside it."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(CSV)
  for sheet in result_tables.sheets(found):
    for row in result_tables.in_suite(found, sheet.suite):
      beside = published.compare(row, sheet.suite)
      for column in sheet.columns:
        value, score = row.value(column), row.scores.get(column.key)
        if value is None and score is None:
          continue
        ours = [
          sheet.suite.name,
          row.name,
          row.backbone,
          column.key,
          *(
            ["", _short(value), "", "", "", ""]
            if score is None
            else [
              score.metric,
              _short(score.mean),
              _short(score.std),
              score.count,
              score.diverged,
              score.trained,
            ]
          ),
        ]
        theirs = [
          [
            one.published.value,
            one.published.std,
            _short(one.difference),
            one.published.weak,
            one.published.source,
          ]
          for one in beside
          if one.column is column
        ]
        writer.writerows([*ours, *line] for line in theirs or [[""] * 5])
  return out.getvalue()


def _short(value: float | None) -> float | None:
  return None if value is None else round(value, 6)
