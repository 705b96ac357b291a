"""Converts checkpoints: `python -m vpt_jax.backbones.convert IN --to NPZ`."""

import sys

from vpt_jax.utils import command_line
from vpt_jax.weights import convert

if __name__ == "__main__":
  command_line.program(lambda: convert.main(sys.argv))
