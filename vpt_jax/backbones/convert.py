"""Converts checkpoints: `python -m vpt_jax.backbones.convert IN --to NPZ`."""

import sys

from vpt_jax.weights import convert

if __name__ == "__main__":
  sys.exit(convert.main(sys.argv))
