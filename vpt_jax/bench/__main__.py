"""Times vpt_jax against PyTorch, in one run: `python -m vpt_jax.bench`.

Writes bench.md, bench.json (every sample) and bench.png.
"""

import argparse
from collections.abc import Sequence
import datetime
import importlib.util
import os
from pathlib import Path
import platform
import re
import sys
import tempfile
from typing import Any

from vpt_jax.analysis import figures
from vpt_jax.bench import bench_cases, bench_tables, measure, plot, worker
from vpt_jax.bench.measure import Case
from vpt_jax.utils import command_line, files


def host() -> dict[str, Any]:
  """Returns what the machine is, as far as its processors go."""
  try:
    cpu_info = Path("/proc/cpuinfo").read_text()
  except OSError:
    cpu_info = ""
  model = re.search(r"model name\s*:\s*(.*)", cpu_info)
  return {
    "cpu": model[1] if model else platform.processor() or "unknown",
    "cores": worker.cores(),
    "load": os.getloadavg()[0],
    "system": platform.platform(),
    "python": platform.python_version(),
  }


def _limit_cores(threads: int) -> None:
  """Leaves so many cores to this process and its workers; 0: all."""
  if not threads:
    return
  if not hasattr(os, "sched_setaffinity"):
    raise ValueError("--threads needs Linux; leave it out to use all cores")
  cores = sorted(os.sched_getaffinity(0))
  if threads > len(cores):
    raise ValueError(f"--threads {threads}; there are {len(cores)}")
  os.sched_setaffinity(0, cores[:threads])


def _check_packages() -> None:
  for name in ("torch", "timm"):
    if importlib.util.find_spec(name) is None:
      raise ValueError(
        f"{name} is not installed; pip install -e '.[bench,analyze]'"
      )


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures, writes the files, and returns the report.

  Returns:
    {arguments, host, date, device, versions, rows (see `measure.row`), failed:
    [{case, why}], start_up (see `measure.start_up`), scoring (see
    `measure.scoring`)}; it is what bench.json holds.

  Raises:
    ValueError: arguments that do not fit, a missing package, sides that
      compute different things, or nothing that could be measured.
    OSError: nothing can be written there.
  """
  args = bench_cases.with_defaults(args)
  planned = bench_cases.cases(args)
  _check_packages()
  out = Path(args.out)
  picture = figures.check(str(out / "bench.png"))
  _limit_cores(args.threads)
  report = _empty_report(args)
  if report["host"]["load"] > 1:
    _say(
      f"load {report['host']['load']:.1f}: something else is running, which "
      "makes these times worth less"
    )
  with tempfile.TemporaryDirectory() as folder:
    _measure_rows(planned, args, report, Path(folder))
    if not report["rows"]:
      raise ValueError(
        f"nothing could be measured: {report['failed'][0]['why']}"
      )
    if args.start_up:
      _measure_start_up(args, report, Path(folder))
    if args.scoring:
      _measure_scoring(args, report, Path(folder))
  files.write_json(out / "bench.json", report)
  files.write_atomic(out / "bench.md", bench_tables.text(report).encode())
  plot.draw(report["rows"], picture)
  return report


def _empty_report(args: argparse.Namespace) -> dict[str, Any]:
  return {
    "arguments": vars(args),
    "host": host(),
    "date": datetime.date.today().isoformat(),
    "device": "",
    "versions": {},
    "rows": [],
    "failed": [],
    "start_up": [],
    "scoring": [],
  }


def _measure_rows(
  planned: Sequence[Case],
  args: argparse.Namespace,
  report: dict[str, Any],
  folder: Path,
) -> None:
  """Adds rows to the report; of cases that fail, why."""
  for number, case in enumerate(planned, 1):
    progress = f"{number}/{len(planned)}"
    try:
      row = measure.row(case, args.repeats, args.variants, folder)
    except worker.Failed as error:  # out of memory, say: others may do
      report["failed"].append({"case": dict(case), "why": str(error)})
      _say(f"{progress} {bench_tables.name(case)}: {error}")
      continue
    report["rows"].append(row)
    for side in row["sides"].values():
      report["versions"] |= side.pop("versions", {})
    report["device"] = row["sides"][measure.JAX]["device"]
    _say(f"{progress} {bench_tables.line(row)}")
    # If it is killed, it leaves what it has measured.
    files.write_json(Path(args.out) / "bench.json", report)


def _measured(report: dict[str, Any], method: str) -> list[Case]:
  return [
    row["case"] for row in report["rows"] if row["case"]["method"] == method
  ]


def _measure_start_up(
  args: argparse.Namespace, report: dict[str, Any], folder: Path
) -> None:
  """Adds the starts of one case of each backbone: the last of vpt_deep."""
  candidates = _measured(report, "vpt_deep")
  if not candidates:
    candidates = [row["case"] for row in report["rows"]]
  by_backbone = {case["backbone"]: case for case in candidates}
  for case in by_backbone.values():
    with tempfile.TemporaryDirectory(dir=folder) as empty:
      report["start_up"] += measure.start_up(
        case, report["rows"][0]["platform"], args.variants, Path(empty)
      )
    _say(f"start-up of {bench_tables.group(case)}: done")


def _measure_scoring(
  args: argparse.Namespace, report: dict[str, Any], folder: Path
) -> None:
  for case in _measured(report, "vpt_deep"):
    report["scoring"].append(measure.scoring(case, args.scoring, folder))
    _say(f"scoring {bench_tables.group(case)}, {case['prompts']} prompts: done")


def _say(line: str) -> None:
  sys.stderr.write(f"{line}\n")


def run_and_print(args: argparse.Namespace) -> int:
  """Runs the benchmark, prints its tables; returns the exit status."""
  report = run(args)
  out = Path(args.out) / "bench"
  sys.stdout.write(f"{bench_tables.text(report)}\n{out}.md, .json, .png\n")
  return 1 if report["failed"] else 0


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit status."""
  args = bench_cases.parser().parse_args(argv)
  return command_line.exit_status(lambda: run_and_print(args))


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv[1:]))
