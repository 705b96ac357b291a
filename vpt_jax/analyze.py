"""Runs the analyses: `python -m vpt_jax.analyze COMMAND ...`."""

import sys

from vpt_jax.analysis import command

if __name__ == "__main__":
  sys.exit(command.main(sys.argv[1:]))
