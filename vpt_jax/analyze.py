"""Runs the analyses: `python -m vpt_jax.analyze COMMAND ...`."""

import sys

from vpt_jax.analysis import command
from vpt_jax.utils import command_line

if __name__ == "__main__":
  command_line.program(lambda: command.main(sys.argv[1:]))
