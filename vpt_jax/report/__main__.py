"""Makes tables and a page of results: `python -m vpt_jax.report WORKDIR...`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from vpt_jax.report import export, page, result_tables, rows
from vpt_jax.report.record_fields import Record
from vpt_jax.training import records as run_records
from vpt_jax.utils import command_line, files


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  out = argparse.ArgumentParser(
    "python -m vpt_jax.report",
    description="Makes tables and a page of results.",
  )
  out.add_argument(
    "workdir",
    nargs="+",
    metavar="WORKDIR",
    help=f"folder of a run or of a sweep, or a {run_records.FILE}",
  )
  out.add_argument(
    "--out",
    help="folder that gets table.md, table.tex, table.csv and report.html",
  )
  out.add_argument(
    "--split",
    default="test",
    help="whose results are shown, searches apart (default: %(default)s)",
  )
  return out


def write(
  records: Sequence[Record], folder: Path, split: str = "test"
) -> list[Path]:
  """Writes all files and returns their paths.

  Raises:
    ValueError: a record that is not of the schema.
  """
  found = rows.collect(records, split)
  texts = {
    "table.md": export.markdown(found),
    "table.tex": export.latex(found),
    "table.csv": export.table_csv(found),
    "report.html": page.render(records, found),
  }
  for name, text in texts.items():
    files.write_atomic(folder / name, text.encode())
  return [folder / name for name in texts]


def run(args: argparse.Namespace) -> int:
  """Prints the table, writes the files; returns the exit status."""
  workdirs = [Path(path).expanduser() for path in args.workdir]
  records = run_records.find(workdirs)
  sys.stdout.write(result_tables.terminal(records, args.split))
  if args.out:
    for path in write(records, Path(args.out).expanduser(), args.split):
      sys.stdout.write(f"{path}\n")
  return 0


def main(argv: Sequence[str]) -> int:
  """Runs the command `argv[1:]`; returns the exit status."""
  args = parser().parse_args(argv[1:])
  return command_line.exit_status(lambda: run(args))


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv))
