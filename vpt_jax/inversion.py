"""Inverts prompts into pixels: `python -m vpt_jax.inversion ADAPTER IMAGE`."""

import sys

from vpt_jax.analysis import inversion
from vpt_jax.utils import command_line

if __name__ == "__main__":
  command_line.program(lambda: inversion.main(sys.argv[1:]))
