"""Tables and a page of results: `python -m vpt_jax.report WORKDIR...`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from vpt_jax.report import export, page, result_tables, rows
from vpt_jax.training import records as results
from vpt_jax.utils import files


def parser() -> argparse.ArgumentParser:
  """The command line."""
  out = argparse.ArgumentParser(
    "python -m vpt_jax.report", description=__doc__.split(":", maxsplit=1)[0]
  )
  add = out.add_argument
  add(
    "workdir",
    nargs="+",
    metavar="WORKDIR",
    help=f"folder of a run or of a sweep, or a {results.FILE}",
  )
  add(
    "--out",
    help="folder that gets table.md, table.tex, table.csv and report.html",
  )
  add(
    "--split",
    default="test",
    help="whose results are shown, searches apart (default: %(default)s)",
  )
  return out


def write(
  records: Sequence[rows.Record], folder: Path, split: str = "test"
) -> list[Path]:
  """Writes all files and returns where they are.

  Raises:
    ValueError: a record that is not of the schema.
  """
  found = rows.collect(records, split)
  out = []
  for name, text in (
    ("table.md", export.markdown(found)),
    ("table.tex", export.latex(found)),
    ("table.csv", export.table_csv(found)),
    ("report.html", page.render(records, found)),
  ):
    out.append(folder / name)
    files.write_atomic(out[-1], text.encode())
  return out


def main(argv: Sequence[str]) -> int:
  """Prints the table, writes the files; returns the exit status."""
  args = parser().parse_args(argv[1:])
  try:
    records = results.find([Path(path).expanduser() for path in args.workdir])
    sys.stdout.write(result_tables.terminal(records, args.split))
    if args.out:
      for path in write(records, Path(args.out).expanduser(), args.split):
        sys.stdout.write(f"{path}\n")
  except (OSError, ValueError) as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
