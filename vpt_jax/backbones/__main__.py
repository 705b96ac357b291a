"""Lists the backbones: `python -m vpt_jax.backbones [NAME]`."""

import sys

from vpt_jax.utils import command_line
from vpt_jax.weights import listing

if __name__ == "__main__":
  command_line.program(lambda: listing.main(sys.argv))
