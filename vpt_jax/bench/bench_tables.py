"""Writes what was measured as Markdown that reads well in a terminal too."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

from vpt_jax.bench import measure

Row = Mapping[str, Any]  # see `measure.row`
Table = list[list[str]]  # its lines, the heading first

NOTES = """\
Times are medians of {repeats} samples in milliseconds per batch; the sides take
turns, each in a process of its own. "torch" is the fastest variant of PyTorch:
eager (explicit softmax), sdpa (scaled_dot_product_attention), compile (sdpa by
torch.compile). A ratio below 1 says that vpt_jax is faster. Training steps draw
dropout ({dropout}). Before, logits without dropout were compared: at most
{difference} apart."""

BUSY_NOTES = """\
Milliseconds of processor time per batch, of all of a process' threads. Where
other programs run too, with one thread (--threads 1) these wander less than
times; threads that wait awake for others count as well."""

WORK_NOTES = """\
GFLOPs of matrix products per image: of vpt_jax counted in the traced program,
of torch by PyTorch's own counter. Peak: these, of the most that either library
reached in one large product ({peaks} GFLOP/s). Memory: peak of {memory}.
Compile: the first run, beyond a usual one (forward + train)."""

# What is worth a remark: cores that a waiting side uses; slowest by fastest.
BUSY = 0.05
SPREAD = 1.5

MISSING = "not available"


def text(report: Mapping[str, Any]) -> str:
  """Returns the whole report; `__main__.run` says what is in it."""
  rows = report["rows"]
  out = ["# vpt_jax and PyTorch", "", _machine(report), ""]
  if rows:
    out += _times_section(rows, report["arguments"])
    out += _busy_section(rows)
    out += _work_section(rows)
    out += ["## All variants of PyTorch", "", *grid(_variants(rows)), ""]
    out += _doubts(rows)
  if report["failed"]:
    out += ["## Not measured", ""]
    out += [
      f"- {name(line['case'])}: {line['why']}" for line in report["failed"]
    ]
    out.append("")
  if report["start_up"]:
    out += [
      "## From the start of a process to the end of its first step",
      "",
      "Seconds; warm: with a cache of what was compiled before.",
      "",
      *grid(_start_up(report["start_up"])),
      "",
    ]
  if report["scoring"]:
    out += [
      "## Scoring prompts for condensation",
      "",
      "Seconds, after a first batch that compiles.",
      "",
      *grid(_scoring(report["scoring"])),
      "",
    ]
  return "\n".join(out)


def _machine(report: Mapping[str, Any]) -> str:
  host = report["host"]
  versions = [
    f"{package} {version}"
    for package, version in sorted(report["versions"].items())
  ]
  parts = [
    f"{report['device']}, {host['cores']} cores of {host['cpu']}",
    f"load {host['load']:.1f} before",
    report["date"],
    ", ".join(versions),
  ]
  return "; ".join(parts)


def _times_section(
  rows: Sequence[Row], arguments: Mapping[str, Any]
) -> list[str]:
  differences = []
  for row in rows:
    for side in row["sides"].values():
      if "difference" in side:
        differences.append(side["difference"])
  notes = NOTES.format(
    repeats=arguments["repeats"],
    dropout=arguments["dropout"],
    difference=f"{max(differences):.1e}",
  )
  out = [notes, ""]
  for title, part in grouped(rows).items():
    out += [f"## {title}", "", *grid(_times(part)), ""]
  return out


def _busy_section(rows: Sequence[Row]) -> list[str]:
  if rows[0]["platform"] != "cpu":
    return []
  out = ["## Processor time", "", BUSY_NOTES, ""]
  for title, part in grouped(rows).items():
    out += [f"### {title}", "", *grid(_times(part, "busy")), ""]
  return out


def _work_section(rows: Sequence[Row]) -> list[str]:
  dtypes = dict.fromkeys(row["case"]["dtype"] for row in rows)
  peaks = [f"{dtype}: {measure.peak(rows, dtype):,.0f}" for dtype in dtypes]
  memory = "the device, by each library"
  if rows[0]["platform"] == "cpu":
    memory = "the whole process, compilation included"
  notes = WORK_NOTES.format(peaks=", ".join(peaks), memory=memory)
  out = ["## Work and memory", "", notes, ""]
  for title, part in grouped(rows).items():
    out += [f"### {title}", "", *grid(_work(part, rows)), ""]
  return out


# Names of cases.


def group(case: Mapping[str, Any]) -> str:
  """Returns what a line of a table shares with the others in it."""
  out = (
    f"{case['backbone']} at {case['image_size']} px, batch {case['batch']}, "
    f"{case['dtype']}"
  )
  attention = case.get("attention", measure.ATTENTION)
  if attention != measure.ATTENTION:
    out += f", attention {attention}"
  if case.get("segmentation"):
    out += f", segmentation by {case['segmentation']}"
  return out


def name(case: Mapping[str, Any]) -> str:
  """Returns a case in words."""
  return f"{group(case)}, {case['method']} with {case['prompts']} prompts"


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Returns the rows by their `group`."""
  out: dict[str, list[Row]] = {}
  for row in rows:
    out.setdefault(group(row["case"]), []).append(row)
  return out


def line(row: Row) -> str:
  """Returns the times of a row in one line."""
  heading, cells = _times([row])
  pairs = zip(heading, cells, strict=True)
  times = ", ".join(f"{label} {value}" for label, value in pairs)
  return f"{group(row['case'])}: {times}"


# Tables.


def grid(table: Iterable[Sequence[str]]) -> list[str]:
  """Returns the lines of a Markdown table, its columns aligned.

  The first column is of words, the others are of numbers.

  Args:
    table: its lines, the heading first.
  """
  table = list(table)
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = []
  for cells in table:
    aligned = [cells[0].ljust(widths[0])]
    for cell, width in zip(cells[1:], widths[1:], strict=True):
      aligned.append(cell.rjust(width))
    lines.append(f"| {' | '.join(aligned)} |")
  rules = ["-" * (widths[0] + 2)]
  rules += ["-" * (width + 1) + ":" for width in widths[1:]]
  return [lines[0], f"|{'|'.join(rules)}|", *lines[1:]]


def _milliseconds(seconds: float) -> str:
  return f"{1e3 * seconds:.1f}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def _times(rows: Sequence[Row], what: str = "samples") -> Table:
  """Returns the medians of both libraries; see `measure.median`."""
  heading = ["method", "prompts"]
  for command in measure.TIMED:
    heading += [f"{command} vpt_jax", "torch", "ratio"]
  out = [heading]
  for row in rows:
    cells = [row["case"]["method"], str(row["case"]["prompts"])]
    for command in measure.TIMED:
      cells += _times_cells(row["sides"], command, what)
    out.append(cells)
  return out


def _times_cells(
  sides: Mapping[str, Any], command: str, what: str
) -> list[str]:
  """Returns the medians of both libraries, and their ratio."""
  jax_time = measure.median(sides[measure.JAX], command, what)
  variant = measure.best(sides, command)
  if variant is None:
    return [_milliseconds(jax_time), MISSING, "-"]
  torch_time = measure.median(sides[variant], command, what)
  return [
    _milliseconds(jax_time),
    f"{_milliseconds(torch_time)} {variant}",
    f"{jax_time / torch_time:.2f}",
  ]


@dataclasses.dataclass(frozen=True)
class _Work:
  """What a side does for a command.

  Attributes:
    gflops: of an image, in words.
    share: of the peak, percent, in words.
    memory: MiB at most, in words.
    compiling: seconds that the first run took beyond a usual one.
  """

  gflops: str = "-"
  share: str = "-"
  memory: str = "-"
  compiling: float = 0.0


def _side_work(
  row: Row, side_name: str | None, command: str, peak: float
) -> _Work:
  """Returns the work of a side, of which there may be none."""
  if side_name is None:
    return _Work()
  timed = row["sides"][side_name][command]
  median = measure.median(row["sides"][side_name], command)
  gflops = share = "-"
  count = _gflops(row["sides"], side_name, command)
  if count is not None:
    gflops = f"{count:.2f}"
    share = f"{100 * count * row['case']['batch'] / median / peak:.0f}"
  return _Work(
    gflops=gflops,
    share=share,
    memory=f"{timed['memory'] / 2**20:,.0f}",
    compiling=max(0.0, timed["first"] - median),
  )


def _gflops(
  sides: Mapping[str, Any], side_name: str, command: str
) -> float | None:
  """Returns what was counted for an image, if it was.

  PyTorch's are counted by its variant `eager` alone: the others' attention is
  nothing that its counter sees.
  """
  counted_by = measure.JAX if side_name == measure.JAX else "eager"
  return sides.get(counted_by, {}).get("gflops", {}).get(command)


def _work(rows: Sequence[Row], all_rows: Sequence[Row]) -> Table:
  heading = ["method", "prompts"]
  for command in measure.TIMED:
    heading += [f"{command} GFLOPs vpt_jax", "torch"]
    heading += ["% of peak vpt_jax", "torch", "MiB vpt_jax", "torch"]
  heading += ["compile s vpt_jax", "torch"]
  out = [heading]
  for row in rows:
    peak = measure.peak(all_rows, row["case"]["dtype"])
    cells = [row["case"]["method"], str(row["case"]["prompts"])]
    jax_compiling = torch_compiling = 0.0
    for command in measure.TIMED:
      variant = measure.best(row["sides"], command)
      jax_work = _side_work(row, measure.JAX, command, peak)
      torch_work = _side_work(row, variant, command, peak)
      cells += [jax_work.gflops, torch_work.gflops]
      cells += [jax_work.share, torch_work.share]
      cells += [jax_work.memory, torch_work.memory]
      jax_compiling += jax_work.compiling
      torch_compiling += torch_work.compiling
    out.append([*cells, f"{jax_compiling:.1f}", f"{torch_compiling:.1f}"])
  return out


def _variants(rows: Sequence[Row]) -> Table:
  """Returns the times of every variant of PyTorch."""
  variants: dict[str, None] = {}  # in the order in which they were measured
  for row in rows:
    variants |= dict.fromkeys(row["sides"])
  variants.pop(measure.JAX, None)
  heading = ["case", "method", "prompts"]
  for command in measure.TIMED:
    heading += [f"{command} {variant}" for variant in variants]
  out = [heading]
  for row in rows:
    cells = _case_cells(row["case"])
    for command in measure.TIMED:
      for variant in variants:
        side = row["sides"].get(variant, {})
        if "samples" in side.get(command, {}):
          cells.append(_milliseconds(measure.median(side, command)))
        else:
          cells.append(MISSING)
    out.append(cells)
  return out


def _case_cells(case: Mapping[str, Any]) -> list[str]:
  return [group(case), case["method"], str(case["prompts"])]


def _doubts(rows: Sequence[Row]) -> list[str]:
  """Returns why variants are missing, and what makes times doubtful."""
  out: dict[str, None] = {}  # each once
  for row in rows:
    for side_name, side in row["sides"].items():
      doubts = _side_doubts(side_name, side, name(row["case"]))
      out |= dict.fromkeys(f"- {doubt}" for doubt in doubts)
  return [*out, ""] if out else []


def _side_doubts(
  side_name: str, side: Mapping[str, Any], where: str
) -> list[str]:
  if "unavailable" in side:
    return [f"{MISSING}: {side['unavailable']}"]
  out = []
  if side["idle"] > BUSY:
    out.append(
      f"{side_name} used {side['idle']:.0%} of a core while another was "
      f"timed: {where}"
    )
  for command in measure.TIMED:
    samples = side[command]["samples"]
    fastest = min(samples)
    slowest = max(samples)
    if slowest > SPREAD * fastest:
      out.append(
        f"{command} of {side_name} took {_milliseconds(fastest)} to "
        f"{_milliseconds(slowest)} ms, was the machine busy? {where}"
      )
  return out


def _start_up(lines: Sequence[Row]) -> Table:
  out = [["case", "method", "prompts", "side", "cold", "warm"]]
  for line in lines:
    cells = [*_case_cells(line["case"]), line["side"]]
    for state in ("cold", "warm"):
      cells.append(f"{line[state]:.1f}" if state in line else MISSING)
    out.append(cells)
  return out


def _scoring(lines: Sequence[Row]) -> Table:
  heading = ["case", "method", "prompts", "score", "images", "first batch"]
  out = [[*heading, "seconds", "images/s"]]
  for line in lines:
    for score, times in line["scores"].items():
      out.append(
        [
          *_case_cells(line["case"]),
          score,
          str(line["images"]),
          f"{times['first_batch']:.1f}",
          f"{times['seconds']:.1f}",
          f"{line['images'] / times['seconds']:,.1f}",
        ]
      )
  return out
