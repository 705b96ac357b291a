"""Times vpt_jax against PyTorch, in one run: `python -m vpt_jax.bench`.

Writes bench.md, bench.json (every sample) and bench.png.
"""

import argparse
from collections.abc import Iterator, Sequence
import datetime
import importlib.util
import itertools
import os
from pathlib import Path
import platform
import re
import sys
import tempfile
from typing import Any

from vpt_jax.analysis import figures
from vpt_jax.bench import bench_tables, measure, plot, worker
from vpt_jax.bench.measure import Case
from vpt_jax.utils import command_line, files, lookup

CLASSES = 100
SEED = 0


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(",")))


# argparse names a type in its errors: "invalid list of numbers value: 'a'".
_words.__name__ = "list of names"
_numbers.__name__ = "list of numbers"


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  out = argparse.ArgumentParser(
    prog="python -m vpt_jax.bench",
    description="Times vpt_jax against PyTorch, in one run.",
  )
  _add_cases(out)
  _add_measuring(out)
  return out


def _add_cases(out: argparse.ArgumentParser) -> None:
  """Adds what is measured."""
  out.add_argument(
    "--backbones",
    type=_words,
    default=("vit_ti16", "vit_b16"),
    metavar="A,B",
    help="plain ViTs of `python -m vpt_jax.backbones` "
    "(default vit_ti16,vit_b16)",
  )
  out.add_argument(
    "--methods",
    type=_words,
    default=measure.METHODS,
    metavar="A,B",
    help=f"of {','.join(measure.METHODS)} (default: all)",
  )
  out.add_argument(
    "--prompts",
    type=_numbers,
    default=(0, 10, 50, 100, 200),
    metavar="N,M",
    help="per block; 0 is for linear alone (default 0,10,50,100,200)",
  )
  out.add_argument(
    "--batch",
    type=_numbers,
    default=(8,),
    metavar="N,M",
    help="images (default 8)",
  )
  out.add_argument(
    "--dtype",
    type=_words,
    default=("float32",),
    metavar="A,B",
    help="float32,bfloat16 (default float32)",
  )
  out.add_argument(
    "--image_size", type=int, default=224, help="pixels (default %(default)s)"
  )
  out.add_argument(
    "--dropout",
    type=float,
    default=0.1,
    help="of prompts in training steps (default %(default)s)",
  )
  out.add_argument(
    "--variants",
    type=_words,
    default=measure.VARIANTS,
    metavar="A,B",
    help="of PyTorch (default eager,sdpa,compile)",
  )
  out.add_argument(
    "--attention",
    default=measure.ATTENTION,
    metavar="A",
    help="config.compute.attention of vpt_jax: ours, xla, cudnn (GPUs, "
    "bfloat16) (default %(default)s)",
  )


def _add_measuring(out: argparse.ArgumentParser) -> None:
  """Adds how it is measured, and what is written."""
  out.add_argument(
    "--repeats", type=int, default=5, help="samples (default %(default)s)"
  )
  out.add_argument(
    "--threads",
    type=int,
    default=0,
    help="cores to use (default: all that there are)",
  )
  out.add_argument(
    "--start_up",
    action="store_true",
    help="also time the start of a process, with and without a cache",
  )
  out.add_argument(
    "--scoring",
    type=int,
    nargs="?",
    const=64,
    default=0,
    metavar="N",
    help="also time scoring the prompts of vpt_deep on N images (64)",
  )
  out.add_argument(
    "--out",
    default="bench",
    metavar="FOLDER",
    help="gets bench.md, .json, .png (default %(default)s)",
  )


def cases(args: argparse.Namespace) -> list[Case]:
  """Returns all that is to be measured.

  Raises:
    ValueError: an unknown name, a number that is too small, or nothing to do.
  """
  _check_names(args)
  _check_numbers(args)
  out = list(_combinations(args))
  if not out:
    raise ValueError(
      "nothing to measure: linear has 0 prompts, the other "
      "methods have more; see --methods and --prompts"
    )
  return out


def _check_names(args: argparse.Namespace) -> None:
  for what, names, known in (
    ("method", args.methods, measure.METHODS),
    ("dtype", args.dtype, measure.TOLERANCE),
    ("variant", args.variants, measure.VARIANTS),
  ):
    for name in names:
      lookup.choose(name, known, what)


def _check_numbers(args: argparse.Namespace) -> None:
  for option, value, least in (
    ("--prompts", min(args.prompts), 0),
    ("--batch", min(args.batch), 1),
    ("--repeats", args.repeats, 1),
    ("--threads", args.threads, 0),
    ("--scoring", args.scoring, 0),
    ("--dropout", args.dropout, 0),
  ):
    if value < least:
      raise ValueError(f"{option} {value}; expected at least {least}")


def _combinations(args: argparse.Namespace) -> Iterator[Case]:
  combinations = itertools.product(
    args.backbones, args.batch, args.dtype, args.methods, args.prompts
  )
  for backbone, batch, dtype, method, prompts in combinations:
    # The linear probe has no prompts, all other methods have.
    if (method == "linear") != (prompts == 0):
      continue
    yield Case(
      backbone=backbone,
      image_size=args.image_size,
      method=method,
      prompts=prompts,
      dtype=dtype,
      batch=batch,
      dropout=args.dropout,
      classes=CLASSES,
      seed=SEED,
      attention=args.attention,
    )


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
  planned = cases(args)
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
  args = parser().parse_args(argv)
  return command_line.exit_status(lambda: run_and_print(args))


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv[1:]))
