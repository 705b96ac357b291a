"""What was measured, as Markdown that reads well in a terminal too."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vpt_jax.bench import measure

Row = Mapping[str, Any]

NOTES = """\
Times are medians of {repeats} samples in milliseconds per batch; the sides take
turns, each in a process of its own. "torch" is the fastest variant of PyTorch:
eager (explicit softmax), sdpa (scaled_dot_product_attention), compile (sdpa by
torch.compile). Below 1, ours / torch says that ours is faster. Training steps
draw dropout ({dropout}). Before, logits without dropout were compared: at most
{difference} apart."""

# What is worth a remark: cores that a waiting side uses; slowest by fastest.
BUSY, SPREAD = 0.05, 1.5

WORK_NOTES = """\
GFLOPs of matrix products per image: ours counted in the traced program, torch
by PyTorch's own counter. Peak: these, of the most that either library
reached in one large product ({peaks} GFLOP/s). Memory: peak of {memory}.
Compile: the first run, beyond a usual one (forward + train)."""


def text(report: Mapping[str, Any]) -> str:
  """The whole report: see `__main__.py` for what is in it."""
  host, args = report["host"], report["arguments"]
  out = [
    "# vpt_jax and PyTorch",
    "",
    "; ".join(
      [
        f"{report['device']}, {host['cores']} cores of {host['cpu']}",
        f"load {host['load']:.1f} before",
        report["date"],
        ", ".join(
          f"{name} {version}"
          for name, version in sorted(report["versions"].items())
        ),
      ]
    ),
    "",
  ]
  rows = report["rows"]
  if rows:
    differences = [
      side["difference"]
      for row in rows
      for side in row["sides"].values()
      if "difference" in side
    ]
    out += [
      NOTES.format(
        repeats=args["repeats"],
        dropout=args["dropout"],
        difference=f"{max(differences):.1e}",
      ),
      "",
    ]
    for key, part in grouped(rows).items():
      out += [f"## {key}", "", *grid(*_times(part)), ""]
    dtypes = dict.fromkeys(row["case"]["dtype"] for row in rows)
    peaks = ", ".join(
      f"{dtype}: {measure.peak(rows, dtype):,.0f}" for dtype in dtypes
    )
    memory = (
      "the whole process, compilation included"
      if rows[0]["platform"] == "cpu"
      else "the device, by each library"
    )
    out += [
      "## Work and memory",
      "",
      WORK_NOTES.format(peaks=peaks, memory=memory),
      "",
    ]
    for key, part in grouped(rows).items():
      out += [f"### {key}", "", *grid(*_work(part, rows)), ""]
    out += ["## All variants of PyTorch", "", *grid(*_variants(rows)), ""]
    out += _doubts(rows)
  if report["failed"]:
    out += [
      "## Not measured",
      "",
      *(f"- {name(line['case'])}: {line['why']}" for line in report["failed"]),
      "",
    ]
  if report["start_up"]:
    out += [
      "## From the start of a process to the end of its first step",
      "",
      "Seconds; warm: with a cache of what was compiled before.",
      "",
      *grid(*_start_up(report["start_up"])),
      "",
    ]
  if report["scoring"]:
    out += [
      "## Scoring prompts for condensation",
      "",
      "Seconds, after a first batch that compiles.",
      "",
      *grid(*_scoring(report["scoring"])),
      "",
    ]
  return "\n".join(out)


def group(case: Mapping[str, Any]) -> str:
  """What a line of a table shares with the others in it."""
  attention = case.get("attention", "ours")
  return (
    f"{case['backbone']} at {case['image_size']} px, batch "
    f"{case['batch']}, {case['dtype']}"
    + f", attention {attention}"
    * (attention != "ours")
  )


def name(case: Mapping[str, Any]) -> str:
  """A case in words."""
  return f"{group(case)}, {case['method']} with {case['prompts']} prompts"


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Rows by their `group`."""
  out: dict[str, list[Row]] = {}
  for row in rows:
    out.setdefault(group(row["case"]), []).append(row)
  return out


def line(row: Row) -> str:
  """A row in short."""
  case = row["case"]
  header, cells = _times([row])
  return f"{group(case)}: " + ", ".join(
    f"{name} {value}" for name, value in zip(header, *cells)
  )


def grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Lines of a Markdown table."""
  rows = [header, *rows]
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  lines = [
    "| "
    + " | ".join(
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths))
    )
    + " |"
    for row in rows
  ]
  rule = (
    "|"
    + "|".join(
      "-" * (width + 1) + ("-" if i == 0 else ":")
      for i, width in enumerate(widths)
    )
    + "|"
  )
  return [lines[0], rule, *lines[1:]]


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:.{1 if seconds < 1 else 0}f}"


def _times(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
  header, out = ["method", "prompts"], []
  for command in ("forward", "train"):
    header += [f"{command} ours", "torch", "ours / torch"]
  for row in rows:
    sides = row["sides"]
    cells = [row["case"]["method"], str(row["case"]["prompts"])]
    for command in ("forward", "train"):
      ours, name = (
        measure.median(sides["ours"], command),
        measure.best(sides, command),
      )
      if name is None:
        cells += [_ms(ours), "not available", "-"]
        continue
      theirs = measure.median(sides[name], command)
      cells += [_ms(ours), f"{_ms(theirs)} {name}", f"{ours / theirs:.2f}"]
    out.append(cells)
  return header, out


def _gflops(sides: Mapping[str, Any], name: str, command: str) -> float | None:
  """Counted per image; PyTorch's are counted by its variant `eager` alone."""
  name = "ours" if name == "ours" else "eager"
  return sides.get(name, {}).get("gflops", {}).get(command)


def _work(
  rows: Sequence[Row], all_rows: Sequence[Row]
) -> tuple[list[str], list[list[str]]]:
  header, out = ["method", "prompts"], []
  for command in ("forward", "train"):
    header += [
      f"{command} GFLOPs ours",
      "torch",
      "% of peak ours",
      "torch",
      "MiB ours",
      "torch",
    ]
  header += ["compile s ours", "torch"]
  for row in rows:
    sides, case = row["sides"], row["case"]
    peak = measure.peak(all_rows, case["dtype"])
    cells, compiles = [case["method"], str(case["prompts"])], [0.0, 0.0]
    for command in ("forward", "train"):
      counts, shares, memory = [], [], []
      for i, name in enumerate(("ours", measure.best(sides, command))):
        count = _gflops(sides, name, command) if name else None
        counts.append("-" if count is None else f"{count:.2f}")
        shares.append(
          "-"
          if count is None
          else "{:.0f}".format(
            100
            * count
            * case["batch"]
            / measure.median(sides[name], command)
            / peak
          )
        )
        memory.append(
          f"{sides[name][command]['memory'] / 2**20:,.0f}" if name else "-"
        )
        if name:
          compiles[i] += max(
            0.0,
            sides[name][command]["first"]
            - measure.median(sides[name], command),
          )
      cells += counts + shares + memory
    out.append([*cells, *(f"{seconds:.1f}" for seconds in compiles)])
  return header, out


def _variants(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
  names = [
    name
    for name in dict.fromkeys(name for row in rows for name in row["sides"])
    if name != "ours"
  ]
  header = [
    "case",
    "method",
    "prompts",
    *(
      f"{command} {name}" for command in ("forward", "train") for name in names
    ),
  ]
  out = []
  for row in rows:
    case, sides = row["case"], row["sides"]
    out.append(
      [
        group(case),
        case["method"],
        str(case["prompts"]),
        *(
          _ms(measure.median(sides[name], command))
          if "samples" in sides.get(name, {}).get(command, {})
          else "not available"
          for command in ("forward", "train")
          for name in names
        ),
      ]
    )
  return header, out


def _doubts(rows: Sequence[Row]) -> list[str]:
  """Why variants are missing, and what makes times doubtful."""
  out = {}
  for row in rows:
    where = name(row["case"])
    for who, side in row["sides"].items():
      if "unavailable" in side:
        out[f"- not available: {side['unavailable']}"] = None
        continue
      if side["idle"] > BUSY:
        out[
          f"- {who} used {side['idle']:.0%} of a core while another was "
          f"timed: {where}"
        ] = None
      for command in ("forward", "train"):
        samples = side[command]["samples"]
        if max(samples) > SPREAD * min(samples):
          out[
            f"- {command} of {who} took {_ms(min(samples))} to "
            f"{_ms(max(samples))} ms, was the machine busy? {where}"
          ] = None
  return [*out, ""] if out else []


def _start_up(lines: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
  return ["case", "method", "prompts", "side", "cold", "warm"], [
    [
      group(line["case"]),
      line["case"]["method"],
      str(line["case"]["prompts"]),
      line["side"],
      *(
        f"{line[state]:.1f}" if state in line else "not available"
        for state in ("cold", "warm")
      ),
    ]
    for line in lines
  ]


def _scoring(lines: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
  return [
    "case",
    "method",
    "prompts",
    "score",
    "images",
    "first batch",
    "seconds",
    "images/s",
  ], [
    [
      group(line["case"]),
      line["case"]["method"],
      str(line["case"]["prompts"]),
      score,
      str(line["images"]),
      f"{times['first_batch']:.1f}",
      f"{times['seconds']:.1f}",
      f"{line['images'] / times['seconds']:,.1f}",
    ]
    for line in lines
    for score, times in line["scores"].items()
  ]
