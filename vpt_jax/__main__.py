"""Runs the commands of this package: `vpt_jax COMMAND ...`.

`python -m vpt_jax COMMAND ...` is the same. Each command is a module that can
also be run by itself: `vpt_jax data check` is `python -m vpt_jax.data check`.
"""

import os
import runpy
import sys
from typing import NamedTuple

import vpt_jax
from vpt_jax.utils import command_line, lookup


class Subcommand(NamedTuple):
  """A command: the module that is run, and one line about it."""

  module: str
  about: str


COMMANDS = {
  "train": Subcommand("vpt_jax.main", "adapts a backbone, or runs a sweep"),
  "config": Subcommand("vpt_jax.config", "lists the fields of configs"),
  "data": Subcommand("vpt_jax.data", "checks, prepares and shows images"),
  "backbones": Subcommand("vpt_jax.backbones", "lists the backbones"),
  "convert": Subcommand(
    "vpt_jax.backbones.convert", "writes a checkpoint as one npz file"
  ),
  "report": Subcommand("vpt_jax.report", "makes tables and a page of results"),
  "analyze": Subcommand("vpt_jax.analyze", "draws what prompts do"),
  "invert": Subcommand("vpt_jax.inversion", "writes PGN's prompts as pixels"),
  "bench": Subcommand("vpt_jax.bench", "measures time and memory"),
  "plan": Subcommand(
    "vpt_jax.bench.plan", "computes the memory that training takes"
  ),
}


def usage() -> str:
  """Returns what `vpt_jax --help` prints."""
  lines = [
    "usage: vpt_jax COMMAND ...",
    "",
    *(f"  {name:10} {command.about}" for name, command in COMMANDS.items()),
    "",
    "vpt_jax COMMAND --help says more. A first run, on data and a backbone",
    "that come with the package:",
    "",
    "  vpt_jax train --config=configs/vapt_vtab.py",
  ]
  return "\n".join(lines) + "\n"


def main() -> int:
  """Runs the command that `sys.argv` names; returns the exit status."""
  arguments = sys.argv[1:]
  if not arguments or arguments[0] in ("-h", "--help"):
    sys.stdout.write(usage())
    return 0
  if arguments[0] == "--version":
    sys.stdout.write(f"vpt_jax {vpt_jax.__version__}\n")
    return 0
  return command_line.exit_status(lambda: run(*arguments))


def run(name: str, *arguments: str) -> int:
  """Runs a command as `python -m` does; returns the exit status.

  Raises:
    ValueError: there is no such command.
  """
  module = COMMANDS[lookup.choose(name, COMMANDS, "command")].module
  # As `python -m`, unlike installed scripts, finds modules of the user's own.
  if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  sys.argv[1:] = arguments
  runpy.run_module(module, run_name="__main__", alter_sys=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
