"""Lists the backbones: `python -m vpt_jax.backbones [NAME]`."""

import sys

from vpt_jax.weights import listing

if __name__ == "__main__":
  sys.exit(listing.main(sys.argv))
