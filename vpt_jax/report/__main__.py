"""Makes tables and a page of results: `python -m vpt_jax.report WORKDIR...`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
import sys

from vpt_jax.report import export, galleries, page, result_tables, rows
from vpt_jax.report.record_fields import Record
from vpt_jax.training import record_checks
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
  records: Sequence[Record],
  folder: Path,
  split: str = "test",
  folders: Mapping[str, Path] = page.NO_FOLDERS,
) -> list[Path]:
  """Writes all files and returns their paths.

  Args:
    records: of all runs.
    folder: gets the files.
    split: whose results are shown.
    folders: see `page.render`.

  Raises:
    ValueError: a record that is not of the schema.
  """
  found = rows.collect(records, split)
  texts = {
    "table.md": export.markdown(found),
    "table.tex": export.latex(found),
    "table.csv": export.table_csv(found),
    "report.html": page.render(records, found, folders),
  }
  for name, text in texts.items():
    files.write_atomic(folder / name, text.encode())
  return [folder / name for name in texts]


def run(args: argparse.Namespace) -> int:
  """Prints the table, writes the files; returns the exit status."""
  workdirs = [Path(path).expanduser() for path in args.workdir]
  located = run_records.locate(workdirs, record_checks.fault)
  records = [one.record for one in located]
  sys.stdout.write(result_tables.terminal(records, args.split))
  if args.out:
    folders = galleries.folders_of_runs(located)
    out = Path(args.out).expanduser()
    for path in write(records, out, args.split, folders):
      sys.stdout.write(f"{path}\n")
  return 0


def main(argv: Sequence[str]) -> int:
  """Runs the command `argv[1:]`; returns the exit status."""
  args = parser().parse_args(argv[1:])
  return command_line.exit_status(lambda: run(args))


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv))
