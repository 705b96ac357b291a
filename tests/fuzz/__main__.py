"""Mutates files and reads them: `python -m tests.fuzz [--count 2000] [KIND]`.

`--case KIND:NUMBER` runs one case and prints what became of it.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
import sys
import tempfile
import time

from tests.fuzz import outcomes, runner
from tests.fuzz.kinds import KINDS
from vpt_jax.utils import text_tables

SHOWN = 10  # faults of a kind


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  out = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
  out.add_argument("kind", nargs="*", help=f"of {', '.join(KINDS)}")
  out.add_argument(
    "--count", type=int, default=2000, help="cases of a kind (%(default)s)"
  )
  out.add_argument(
    "--first", type=int, default=0, help="number of the first case"
  )
  out.add_argument("--case", metavar="KIND:NUMBER", help="runs this one alone")
  return out


def main(argv: Sequence[str]) -> int:
  """Runs the command `argv[1:]`; returns 1 if there was a fault."""
  arguments = parser()
  args = arguments.parse_args(argv[1:])
  names = args.kind or list(KINDS)
  first, count = args.first, args.count
  if args.case:
    name, _, number = args.case.partition(":")
    names, first, count = [name], int(number), 1
  unknown = [name for name in names if name not in KINDS]
  if unknown:
    arguments.error(f"unknown kinds {unknown}; known: {', '.join(KINDS)}")
  lines = []
  has_faults = False
  for name in names:
    started = time.monotonic()
    counts, faults = run_kind(name, count, first)
    seconds = time.monotonic() - started
    lines.append(_line(name, counts, seconds))
    sys.stdout.write(f"{name}: {dict(counts)}, {seconds:.0f} s\n")
    for fault in faults[:SHOWN]:
      outcome = fault.outcome
      sys.stdout.write(
        f"{outcome.kind} in --case {name}:{fault.number}\n{outcome.text}\n"
      )
    has_faults = has_faults or bool(faults)
    sys.stdout.flush()
  head = ["kind", *outcomes.ALL, "seconds"]
  sys.stdout.write(text_tables.align([head, *lines]))
  return int(has_faults)


def run_kind(
  name: str, count: int, first: int = 0
) -> tuple[Counter[str], list[runner.Fault]]:
  """Makes the sound files of a kind and runs its cases; see `runner.run`."""
  make_kind = KINDS[name]
  with tempfile.TemporaryDirectory() as folder:
    make_kind().make(Path(folder))
    return runner.run(make_kind, Path(folder), count, first)


def _line(name: str, counts: Counter[str], seconds: float) -> list[str]:
  numbers = [str(counts[outcome]) for outcome in outcomes.ALL]
  return [name, *numbers, f"{seconds:.0f}"]


if __name__ == "__main__":
  sys.exit(main(sys.argv))
