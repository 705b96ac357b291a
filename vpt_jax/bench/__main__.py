"""Ours against PyTorch, in one run: `python -m vpt_jax.bench`.

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
from vpt_jax.bench import bench_tables, measure, plot, worker
from vpt_jax.bench.measure import Case
from vpt_jax.utils import files, lookup

CLASSES, SEED = 100, 0


def parser() -> argparse.ArgumentParser:
  """The arguments."""
  out = argparse.ArgumentParser(
    prog="python -m vpt_jax.bench", description=__doc__.splitlines()[0]
  )
  add = out.add_argument
  words = lambda text: tuple(text.split(","))
  numbers = lambda text: tuple(map(int, text.split(",")))
  add(
    "--backbones",
    type=words,
    default=("vit_ti16", "vit_b16"),
    metavar="A,B",
    help="plain ViTs of `python -m vpt_jax.backbones` "
    "(default vit_ti16,vit_b16)",
  )
  add(
    "--methods",
    type=words,
    default=measure.METHODS,
    metavar="A,B",
    help=f"of {','.join(measure.METHODS)} (default: all)",
  )
  add(
    "--prompts",
    type=numbers,
    default=(0, 10, 50, 100, 200),
    metavar="N,M",
    help="per block; 0 is for linear alone (default 0,10,50,100,200)",
  )
  add(
    "--batch",
    type=numbers,
    default=(8,),
    metavar="N,M",
    help="images (default 8)",
  )
  add(
    "--dtype",
    type=words,
    default=("float32",),
    metavar="A,B",
    help="float32,bfloat16 (default float32)",
  )
  add("--image_size", type=int, default=224)
  add(
    "--dropout",
    type=float,
    default=0.1,
    help="of prompts in training steps (default %(default)s)",
  )
  add(
    "--variants",
    type=words,
    default=measure.VARIANTS,
    metavar="A,B",
    help="of PyTorch (default eager,sdpa,compile)",
  )
  add(
    "--attention",
    default="ours",
    metavar="A",
    help="our side's config.compute.attention: ours, xla, cudnn (GPUs, "
    "bfloat16)",
  )
  add("--repeats", type=int, default=5, help="samples (default %(default)s)")
  add(
    "--threads",
    type=int,
    default=0,
    help="cores to use (default: all that there are)",
  )
  add(
    "--start_up",
    action="store_true",
    help="also time the start of a process, with and without a cache",
  )
  add(
    "--scoring",
    type=int,
    nargs="?",
    const=64,
    default=0,
    metavar="N",
    help="also time scoring the prompts of vpt_deep on N images (64)",
  )
  add(
    "--out",
    default="bench",
    metavar="FOLDER",
    help="gets bench.md, .json, .png (default %(default)s)",
  )
  return out


def cases(args: argparse.Namespace) -> list[Case]:
  """All that is to be measured.

  Raises:
    ValueError: an unknown name, or nothing to do.
  """
  for what, names, known in (
    ("method", args.methods, measure.METHODS),
    ("dtype", args.dtype, measure.TOLERANCE),
    ("variant", args.variants, measure.VARIANTS),
  ):
    for name in names:
      lookup.choose(name, known, what)
  for what, value, least in (
    ("--prompts", min(args.prompts), 0),
    ("--batch", min(args.batch), 1),
    ("--repeats", args.repeats, 1),
    ("--threads", args.threads, 0),
    ("--scoring", args.scoring, 0),
    ("--dropout", args.dropout, 0),
  ):
    if value < least:
      raise ValueError(f"{what} {value}; expected at least {least}")
  out = [
    Case(
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
    for backbone in args.backbones
    for batch in args.batch
    for dtype in args.dtype
    for method in args.methods
    for prompts in args.prompts
    if (method == "linear") == (not prompts)
  ]
  if not out:
    raise ValueError(
      "nothing to measure: linear has 0 prompts, the other "
      "methods have more; see --methods and --prompts"
    )
  return out


def host() -> dict[str, Any]:
  """The machine, as far as its processors go."""
  try:
    found = re.search(
      r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text()
    )
  except OSError:
    found = None
  return {
    "cpu": found[1] if found else platform.processor() or "unknown",
    "cores": worker.cores(),
    "load": os.getloadavg()[0],
    "system": platform.platform(),
    "python": platform.python_version(),
  }


def _limit(threads: int) -> None:
  """Leaves so many cores to this process and its workers."""
  if not threads:
    return
  if not hasattr(os, "sched_setaffinity"):
    raise ValueError("--threads needs Linux; leave it out to use all cores")
  cores = sorted(os.sched_getaffinity(0))
  if threads > len(cores):
    raise ValueError(f"--threads {threads}; there are {len(cores)}")
  os.sched_setaffinity(0, cores[:threads])


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures, writes the files, and gives the report (see `table.text`).

  Raises:
    ValueError: arguments that do not fit, a missing package, sides that
      compute different things, or nothing that could be measured.
    OSError: nothing can be written there.
  """
  todo, out = cases(args), Path(args.out)
  for name in ("torch", "timm"):
    if importlib.util.find_spec(name) is None:
      raise ValueError(
        f"{name} is not installed; pip install -e '.[bench,analyze]'"
      )
  to = figures.check(str(out / "bench.png"))
  _limit(args.threads)
  report: dict[str, Any] = {
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
  if report["host"]["load"] > 1:
    _say(
      f"load {report['host']['load']:.1f}: something else is running, which "
      "makes these times worth less"
    )
  with tempfile.TemporaryDirectory() as folder:
    for i, case in enumerate(todo):
      try:
        row = measure.row(case, args.repeats, args.variants, Path(folder))
      except worker.Failed as error:  # out of memory, say: others may do
        report["failed"].append({"case": dict(case), "why": str(error)})
        _say(f"{i + 1}/{len(todo)} {bench_tables.name(case)}: {error}")
        continue
      report["rows"].append(row)
      for side in row["sides"].values():
        report["versions"] |= side.pop("versions", {})
      report["device"] = row["sides"]["ours"]["device"]
      _say(f"{i + 1}/{len(todo)} {bench_tables.line(row)}")
      # Killed, it leaves what it has measured.
      files.write_json(out / "bench.json", report)
    if not report["rows"]:
      raise ValueError(
        f"nothing could be measured: {report['failed'][0]['why']}"
      )
    done = [row["case"] for row in report["rows"]]
    deep = [case for case in done if case["method"] == "vpt_deep"]
    if args.start_up:
      # Of each backbone the last.
      for case in {case["backbone"]: case for case in deep or done}.values():
        with tempfile.TemporaryDirectory(dir=folder) as empty:
          report["start_up"] += measure.start_up(
            case, report["rows"][0]["platform"], args.variants, Path(empty)
          )
        _say(f"start-up of {bench_tables.group(case)}: done")
    for case in deep if args.scoring else ():
      report["scoring"].append(
        measure.scoring(case, args.scoring, Path(folder))
      )
      _say(
        f"scoring {bench_tables.group(case)}, {case['prompts']} prompts: done"
      )
  files.write_json(out / "bench.json", report)
  files.write_atomic(out / "bench.md", bench_tables.text(report).encode())
  plot.draw(report["rows"], to)
  return report


def _say(line: str) -> None:
  sys.stderr.write(f"{line}\n")


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit status."""
  args = parser().parse_args(argv)
  try:
    report = run(args)
  except (ValueError, OSError) as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  sys.stdout.write(
    f"{bench_tables.text(report)}\n{Path(args.out) / 'bench'}.md, .json, .png\n"
  )
  return int(bool(report["failed"]))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
