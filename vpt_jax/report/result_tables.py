"""Makes tables of results in the papers' form, and prints them."""

from collections.abc import Sequence
import dataclasses

from vpt_jax import problems
from vpt_jax.report import published, record_fields, rows
from vpt_jax.report.published import Comparison
from vpt_jax.report.record_fields import Record
from vpt_jax.report.rows import Results, Row, TaskScore
from vpt_jax.report.suites import Column, Suite
from vpt_jax.utils import text_tables

WIDTH = 110  # characters of a terminal's line
GAP = 2  # spaces between two columns there
MARK = "\u2020"  # of a mean without the seeds that diverged
HEAD = ("method", "backbone", "seeds", "tuned/total %")
# What tables of label maps have besides: heads there are large.
PARAMS = ("params", "without head")
TEXTS = 2  # columns of HEAD that are words; the others are numbers
INDENT = "  "  # of lines that belong to the one above


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a table.

  Attributes:
    head: method, backbone, seeds and percent of tuned parameters; of label
      maps also trained parameters, with and without the head.
    cells: one for each column.
  """

  head: tuple[str, ...]
  cells: tuple[str, ...]

  @property
  def is_measured(self) -> bool:
    """Whether it is a row's, not the published numbers below one."""
    return not self.head[0].startswith(INDENT)


@dataclasses.dataclass(frozen=True)
class SuiteTable:
  """The table of a suite.

  Attributes:
    suite: the benchmark.
    head: headings of the columns before these.
    columns: those shown.
    lines: of each row, followed by its published numbers and the differences.
    notes: below the table.
  """

  suite: Suite
  head: tuple[str, ...]
  columns: tuple[Column, ...]
  lines: list[Line]
  notes: list[str]


def suite_tables(found: Results, every: bool = True) -> list[SuiteTable]:
  """Returns a table of each suite of which there is a result.

  Args:
    found: the rows.
    every: with all columns of a suite; else those that have a number.
  """
  return [suite_table(found, suite, every) for suite in found.suites]


def suite_table(found: Results, suite: Suite, every: bool) -> SuiteTable:
  """Returns the table of one suite."""
  in_table = found.rows_of(suite)
  columns = suite.columns
  if not every:
    columns = tuple(
      column for column in columns if _has_number(column, in_table)
    )
  lines: list[Line] = []
  sources: list[str] = []
  for row in in_table:
    cells = tuple(cell(row, column) for column in columns)
    lines.append(Line(head(row, suite), cells))
    beside = published.strongest(published.compare(row, suite))
    if not beside:
      continue
    for comparison in beside.values():
      if comparison.published.source not in sources:
        sources.append(comparison.published.source)
    comparisons = [beside.get(column.key) for column in columns]
    blank = ("",) * (len(lines[-1].head) - 1)
    lines.append(_published_line(comparisons, sources, blank))
    lines.append(_difference_line(comparisons, blank))
  notes = suite_notes(found, suite)
  notes += [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
  return SuiteTable(suite, headings(suite), columns, lines, notes)


def headings(suite: Suite) -> tuple[str, ...]:
  """Returns the headings before the columns of a suite, see `head`."""
  return (*HEAD, *PARAMS) if suite.dense else HEAD


def _has_number(column: Column, in_table: Sequence[Row]) -> bool:
  return any(
    row.value(column) is not None or row.score(column) is not None
    for row in in_table
  )


def _published_line(
  comparisons: Sequence[Comparison | None],
  sources: list[str],
  blank: tuple[str, ...],
) -> Line:
  cells = []
  for comparison in comparisons:
    if comparison is None:
      cells.append("")
    else:
      number = comparison.published
      cells.append(f"{number.text} [{sources.index(number.source) + 1}]")
  return Line((f"{INDENT}published", *blank), tuple(cells))


def _difference_line(
  comparisons: Sequence[Comparison | None], blank: tuple[str, ...]
) -> Line:
  cells = []
  for comparison in comparisons:
    cells.append("" if comparison is None else f"{comparison.difference:+.2f}")
  return Line((f"{INDENT}difference", *blank), tuple(cells))


def head(row: Row, suite: Suite) -> tuple[str, ...]:
  """Returns the first cells of a row's line; the percentage is over tasks."""
  scores = [row.scores[task] for task in suite.tasks if task in row.scores]
  counts = sorted({score.count for score in scores})
  percent = sum(score.percent for score in scores) / len(scores)
  seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
  out = row.name, row.backbone, seeds, f"{percent:.3g}"
  if suite.dense:  # of one task
    return (*out, *map(_counted_params, params(scores[0])))
  return out


def params(score: TaskScore) -> tuple[float, float | None]:
  """Returns trained parameters, with and without the head; see `TaskScore`."""
  return score.trained, score.without_head


def _counted_params(count: float | None) -> str:
  """Returns a number of parameters in words; "-" if it is not known."""
  if count is None:
    return "-"
  for unit, letter in ((1e6, "M"), (1e3, "k")):
    if count >= unit:
      return f"{count / unit:.2f}{letter}"
  return f"{count:.0f}"


def cell(row: Row, column: Column) -> str:
  """Returns a score or a mean in words.

  Of a mean without all of its tasks: how many there are.
  """
  if column.is_mean:
    return _mean_cell(row, column)
  score = row.score(column)
  if score is None:
    return ""
  if score.mean is None:
    return "diverged"
  std = "" if score.std is None else f" \u00b1 {score.std:.2f}"
  mark = MARK if score.diverged else ""
  return f"{score.mean:.2f}{std}{mark}"


def _mean_cell(row: Row, column: Column) -> str:
  value = row.value(column)
  if value is not None:
    return f"{value:.2f}"
  count = 0
  for task in column.tasks:
    if task in row.scores and row.scores[task].mean is not None:
      count += 1
  return f"{count} of {len(column.tasks)}" if count else ""


def suite_notes(found: Results, suite: Suite) -> list[str]:
  """Returns what has to be said with a suite's table."""
  in_table = found.rows_of(suite)
  out = _metric_notes(found, suite)
  if suite.dense:
    out += _dense_notes(in_table, suite)
  if any(_has_diverged(row, suite) for row in in_table):
    out.append(f"{MARK} without the seeds that diverged.")
  if any(_lacks_a_mean(row, suite) for row in in_table):
    out.append(
      "Means are shown where all of their tasks are there; else how many are."
    )
  return out + _published_notes(in_table, suite)


def _metric_notes(found: Results, suite: Suite) -> list[str]:
  """Returns which scores the numbers of a suite's table are."""
  scores: list[tuple[str, TaskScore]] = []
  for row in found.rows_of(suite):
    for task in suite.tasks:
      if task in row.scores:
        scores.append((task, row.scores[task]))
  usual = scores[0][1].usual_metric
  out = [
    f"{_capitalised(usual.title)} on the {found.split} images in "
    f"{_unit_in_words(usual)}, mean \u00b1 sample standard deviation over "
    "seeds; without \u00b1: one seed."
  ]
  others: dict[problems.Score, set[str]] = {}
  for task, score in scores:
    # Where all seeds diverged the metric is not known, and there is no number.
    if score.metric != usual and score.mean is not None:
      others.setdefault(score.metric, set()).add(task)
  for metric, tasks in others.items():
    unit = ""
    if metric.unit != usual.unit:
      unit = f" (in {_unit_in_words(metric)})"
    out.append(
      f"{_capitalised(metric.title)}{unit} instead of {usual.title}: "
      f"{', '.join(sorted(tasks))}."
    )
  return out


def _dense_notes(in_table: Sequence[Row], suite: Suite) -> list[str]:
  """Returns what has to be said of a table of label maps."""
  out = []
  (task,) = suite.tasks
  if any(column.multi_scale for column in suite.columns):
    out.append(
      "SS: at one scale; MS: the mean of several scales, as "
      "config.segmentation.multi_scale says."
    )
  for row in in_table:
    tested = row.multi_scale.get(task)
    finished = row.scores[task].count
    if tested is not None and tested.count < finished:
      out.append(
        f"{row.name} on {row.backbone}: MS of {tested.count} of {finished} "
        "seeds."
      )
  out.append(
    "params: what is trained, prompts and head together, as VPT counts; "
    "without head: the prompts alone, or what else is trained."
  )
  return out


def _capitalised(text: str) -> str:
  if text[1:2].isupper():  # mIoU
    return text
  return text[:1].upper() + text[1:]


def _unit_in_words(score: problems.Score) -> str:
  return "percent" if score.unit == "%" else score.unit


def _has_diverged(row: Row, suite: Suite) -> bool:
  return any(
    task in row.scores and row.scores[task].diverged for task in suite.tasks
  )


def _lacks_a_mean(row: Row, suite: Suite) -> bool:
  return any(
    column.is_mean and row.value(column) is None for column in suite.columns
  )


def _published_notes(in_table: Sequence[Row], suite: Suite) -> list[str]:
  """Returns which rows are compared with what, and which are not."""
  out = []
  without = []
  only_weak = []
  for row in in_table:
    title = f"{row.name} on {row.backbone}"
    compared = published.compare(row, suite)
    if not compared:
      without.append(title)
      continue
    if all(comparison.published.weak for comparison in compared):
      only_weak.append(title)
    deviations = published.deviations(row, suite)
    if deviations:
      out.append(
        f"{title} leaves the published protocol: {first_few(deviations)}."
      )
  if without:
    out.append(f"No published numbers to compare with: {first_few(without)}.")
  if only_weak:
    out.append(
      "Published numbers only by third hands or from memory, not shown here: "
      f"{first_few(only_weak)}."
    )
  return out


def general_notes(found: Results) -> list[str]:
  """Returns what has to be said of all tables."""
  out = []
  if found.diverged:
    runs = []
    for record in found.diverged:
      runs.append(
        record_fields.printable(
          f"{record['name']} on {record_fields.backbone(record)}, "
          f"{record['task']}, seed {record['seed']}"
        )
      )
    counted = _counted(len(runs), "run")
    out.append(f"{counted} diverged: {first_few(runs, '; ')}.")
  if found.left_out:
    parts = []
    for split, count in found.left_out.items():
      name = record_fields.printable(split)
      parts.append(f"{_counted(count, 'record')} on {name}")
    out.append(
      f"Left out, as they are not on the split {found.split}: "
      f"{first_few(parts)}."
    )
  return out


def _counted(count: int, noun: str) -> str:
  return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def heading(column: Column) -> str:
  """Returns the heading of a column that has no group's heading above it."""
  return column.title if column.is_mean else column.label


def comparisons(found: Results) -> list[Comparison]:
  """Returns every published number beside the measured one."""
  out = []
  for suite in found.suites:
    for row in found.rows_of(suite):
      out += published.compare(row, suite)
  return out


def first_few(names: Sequence[str], comma: str = ", ", most: int = 12) -> str:
  """Returns the first few names, and how many more there are."""
  shown = list(names[:most])
  if len(names) > most:
    shown.append(f"and {len(names) - most} more")
  return comma.join(shown)


def terminal(records: Sequence[Record], split: str = "test") -> str:
  """Returns what a command prints at its end, from all of its records.

  Raises:
    ValueError: a record that is not of the schema.
  """
  found = rows.collect(records, split)
  lines = []
  for table in suite_tables(found, every=False):
    lines += [table.suite.title, _aligned(table), *table.notes, ""]
  if not found.rows:
    lines.append(f"no results on the split {split!r}")
  lines += general_notes(found)
  return "\n".join(lines).rstrip() + "\n"


def _aligned(table: SuiteTable) -> str:
  """Returns a table as text: blocks of columns that fit a terminal's line.

  Each block has the methods and backbones before its columns.
  """
  lines = [[*table.head, *map(heading, table.columns)]]
  lines += [[*line.head, *line.cells] for line in table.lines]
  blocks = []
  for block in _blocks(lines):
    block_lines = []
    for line in lines:
      cells = [line[index] for index in block]
      if any(cells):  # a row may have no published numbers in this block
        block_lines.append([*line[:TEXTS], *cells])
    right = range(TEXTS, TEXTS + len(block))
    blocks.append(text_tables.align(block_lines, right))
  return "\n\n".join(blocks)


def _blocks(lines: Sequence[Sequence[str]]) -> list[list[int]]:
  """Returns the columns of each block, at least one in each."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  names = widths[0] + GAP + widths[1]
  blocks: list[list[int]] = [[]]
  taken = names
  for index in range(TEXTS, len(widths)):
    needed = GAP + widths[index]
    if blocks[-1] and taken + needed > WIDTH:
      blocks.append([])
      taken = names
    blocks[-1].append(index)
    taken += needed
  return blocks
