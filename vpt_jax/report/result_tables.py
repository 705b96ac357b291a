"""Tables of results in the papers' form, as text and for the terminal."""

from collections.abc import Sequence
import dataclasses

from vpt_jax.report import published, rows, suites
from vpt_jax.report.published import Comparison
from vpt_jax.report.rows import Results, Row
from vpt_jax.report.suites import Column, Suite

WIDTH = 110  # characters of a terminal's line
MARK = "\u2020"  # of a mean without the seeds that diverged


@dataclasses.dataclass(frozen=True)
class Line:
  """Of a table: method, backbone, seeds, percent tuned, a cell per column."""

  head: tuple[str, str, str, str]
  cells: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sheet:
  """A suite's table.

  Attributes:
    columns: with a cell in every line.
    lines: ours, each followed by its published numbers and the differences.
    notes: below it.
  """

  suite: Suite
  columns: tuple[Column, ...]
  lines: list[Line]
  notes: list[str]


HEAD = ("method", "backbone", "seeds", "tuned/total %")


def sheets(found: Results, every: bool = True) -> list[Sheet]:
  """A table of each suite of which there is a result.

  Args:
    found: the rows.
    every: with all columns of a suite; else those that have a number.
  """
  tasks = [task for row in found.rows for task in row.scores]
  return [sheet(found, suite, every) for suite in suites.find(tasks)]


def sheet(found: Results, suite: Suite, every: bool) -> Sheet:
  """The table of one suite."""
  members = in_suite(found, suite)
  columns = tuple(
    column
    for column in suite.columns
    if every
    or any(
      row.value(column) is not None or column.key in row.scores
      for row in members
    )
  )
  lines, sources = [], []
  for row in members:
    lines.append(
      Line(head(row, suite), tuple(cell(row, column) for column in columns))
    )
    best = {}  # a column's first number is the strongest
    for comparison in published.compare(row, suite):
      if not comparison.published.weak:
        best.setdefault(comparison.column.key, comparison)
    if best:
      for comparison in best.values():
        if comparison.published.source not in sources:
          sources.append(comparison.published.source)
      lines += _beside([best.get(column.key) for column in columns], sources)
  return Sheet(
    suite,
    columns,
    lines,
    [
      *notes(found, suite),
      *(f"[{i}] {source}" for i, source in enumerate(sources, 1)),
    ],
  )


def _beside(
  best: Sequence[Comparison | None], sources: list[str]
) -> list[Line]:
  return [
    Line(
      ("  published", "", "", ""),
      tuple(
        f"{one.published.text} [{sources.index(one.published.source) + 1}]"
        if one
        else ""
        for one in best
      ),
    ),
    Line(
      ("  difference", "", "", ""),
      tuple(f"{one.difference:+.2f}" if one else "" for one in best),
    ),
  ]


def in_suite(found: Results, suite: Suite) -> list[Row]:
  """The rows with a task of a suite."""
  return [row for row in found.rows if set(row.scores) & set(suite.tasks)]


def head(row: Row, suite: Suite) -> tuple[str, str, str, str]:
  """What is left of a row's scores; the percentage is a mean over tasks."""
  scores = [row.scores[task] for task in suite.tasks if task in row.scores]
  counts = sorted({score.count for score in scores})
  percent = sum(score.percent for score in scores) / len(scores)
  seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
  return row.name, row.backbone, seeds, f"{percent:.3g}"


def cell(row: Row, column: Column) -> str:
  """A score or mean; of a mean without all of its tasks how many there are."""
  value = row.value(column)
  if column.is_mean:
    if value is not None:
      return f"{value:.2f}"
    there = sum(
      task in row.scores and row.scores[task].mean is not None
      for task in column.tasks
    )
    return f"{there} of {len(column.tasks)}" if there else ""
  score = row.scores.get(column.key)
  if score is None:
    return ""
  if value is None:
    return "diverged"
  std = "" if score.std is None else f" \u00b1 {score.std:.2f}"
  return f"{value:.2f}{std}{MARK if score.diverged else ''}"


def notes(found: Results, suite: Suite) -> list[str]:
  """What has to be said with a suite's table."""
  members = in_suite(found, suite)
  scores = [
    row.scores[task]
    for row in members
    for task in suite.tasks
    if task in row.scores
  ]
  others = sorted(
    {
      task
      for row in members
      for task in suite.tasks
      if task in row.scores and row.scores[task].metric == "mean_per_class"
    }
  )
  out = [
    f"Top-1 on the {found.split} images in percent, mean \u00b1 sample "
    "standard deviation over seeds; without \u00b1: one seed."
  ]
  if others:
    out.append(f"Mean per class instead of top-1: {', '.join(others)}.")
  if any(score.diverged for score in scores):
    out.append(f"{MARK} without the seeds that diverged.")
  means = [column for column in suite.columns if column.is_mean]
  if any(row.value(column) is None for row in members for column in means):
    out.append(
      "Means are shown where all of their tasks are there; else how many are."
    )
  none, weak = [], []
  for row in members:
    compared = published.compare(row, suite)
    if not compared:
      none.append(f"{row.name} on {row.backbone}")
    elif all(one.published.weak for one in compared):
      weak.append(f"{row.name} on {row.backbone}")
    off = published.deviations(row, suite)
    if compared and off:
      out.append(
        f"{row.name} on {row.backbone} leaves the published protocol: "
        f"{some(off)}."
      )
  if none:
    out.append(f"No published numbers to compare with: {some(none)}.")
  if weak:
    out.append(
      f"Published numbers only by third hands, not shown here: {some(weak)}."
    )
  return out


def general(found: Results) -> list[str]:
  """What has to be said of all tables."""
  out = []
  if found.diverged:
    runs = [
      rows.plain(
        f"{record['name']} on {rows.backbone(record)}, "
        f"{record['task']}, seed {record['seed']}"
      )
      for record in found.diverged
    ]
    out.append(
      f"{len(runs)} run{'s' * (len(runs) > 1)} diverged: {some(runs, '; ')}."
    )
  if found.left_out:
    out.append(
      "Left out, as they are not on the split "
      + found.split
      + ": "
      + some(
        [
          f"{count} record{'s' * (count > 1)} on {rows.plain(split)}"
          for split, count in found.left_out.items()
        ]
      )
      + "."
    )
  return out


def heading(column: Column) -> str:
  """Above a column that has no group's heading above it."""
  return column.title if column.is_mean else column.label


def comparisons(found: Results) -> list[Comparison]:
  """Every published number beside ours."""
  tasks = [task for row in found.rows for task in row.scores]
  return [
    one
    for suite in suites.find(tasks)
    for row in in_suite(found, suite)
    for one in published.compare(row, suite)
  ]


def some(names: Sequence[str], comma: str = ", ", most: int = 12) -> str:
  """The first few names."""
  more = [f"and {len(names) - most} more"] if len(names) > most else []
  return comma.join([*names[:most], *more])


def terminal(records: Sequence[rows.Record], split: str = "test") -> str:
  """What a command prints at its end, from all of its records.

  Raises:
    ValueError: a record that is not of the schema.
  """
  found = rows.collect(records, split)
  parts = []
  for table in sheets(found, every=False):
    parts += [table.suite.title, *_aligned(table), *table.notes, ""]
  if not found.rows:
    parts.append(f"no results on the split {split!r}")
  return "\n".join([*parts, *general(found)]).rstrip() + "\n"


def _aligned(table: Sheet) -> list[str]:
  """Blocks of columns that fit a line, each with the methods before them."""
  heads = list(zip(HEAD, *(line.head for line in table.lines)))
  cells = zip(
    map(heading, table.columns), *(line.cells for line in table.lines)
  )
  pad = lambda column, side: [
    f"{text:{side}{max(map(len, column))}}" for text in column
  ]
  left = [
    "  ".join(texts)
    for texts in zip(*(pad(column, "<") for column in heads[:2]))
  ]
  blocks: list[list[list[str]]] = [[]]
  for column in [*heads[2:], *cells]:
    column, block = pad(column, ">"), blocks[-1]
    width = len(left[0]) + sum(len(other[0]) + 2 for other in block)
    if block and width + len(column[0]) + 2 > WIDTH:
      blocks.append([])
    blocks[-1].append(column)
  out = []
  for block in blocks:
    out += [
      "",
      *(
        "  ".join([name, *texts]).rstrip()
        for name, texts in zip(left, zip(*block))
        if any(map(str.strip, texts))
      ),
    ]
  return out[1:]
