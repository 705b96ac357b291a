"""Inverts prompts into pixels: `python -m vpt_jax.inversion ADAPTER IMAGE`."""

import sys

from vpt_jax.analysis import inversion

if __name__ == "__main__":
  sys.exit(inversion.main(sys.argv[1:]))
