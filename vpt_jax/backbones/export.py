"""A backbone of a run as a big_vision checkpoint:

  python -m vpt_jax.backbones.export runs/mini/adapter.npz OUT.npz
"""

from collections.abc import Sequence
import json
import sys

import numpy as np

from vpt_jax.backbones import load


def main(argv: Sequence[str]) -> int:
  """Writes the float16 npz and prints its sha256."""
  if len(argv) != 3:
    sys.stderr.write(f"usage: {__doc__}")
    return 1
  flat = load.read(argv[1])
  backbone = {path.removeprefix("backbone/"): leaf for path, leaf in
              flat.items() if path.startswith("backbone/")}
  if not backbone:
    sys.stderr.write(f"error: {argv[1]} holds no backbone; train it with "
                     "config.method=full\n")
    return 1
  load.save(argv[2], backbone, np.float16)
  sys.stdout.write(json.dumps({"file": argv[2], "sha256": load.sha256(argv[2])})
                   + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
