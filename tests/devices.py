"""Every method on one device, on eight, and on two processes with four each.

  python -m tests.devices [METHOD ...]

Two epochs on the tests' small config; prints how far the trained parameters and
the losses are apart at the end, and exits with 1 where that is above 1e-5.
"""

from pathlib import Path
import sys
import tempfile

import numpy as np

from tests import conftest
from tests.distributed import test_processes
from tests.methods import test_methods

BAR = 1e-5
# Prompts learn at rate 1. What changes whole layers does not train at that: any
# rounding grows there (full fine-tuning: to 4e-2 within two epochs).
RATES = {"full": 0.01, "lora": 0.1, "pgn": 0.1}


def spec(name: str) -> str:
  """The run of a method, as `several.py` takes it."""
  options = test_methods.OPTIONS.get(name, {})
  rate = [f"optim.lr={RATES[name]}"] if name in RATES else []
  return ",".join(
    [
      name,
      *rate,
      *(
        f"{name}.{option}={value!r}".replace(" ", "")
        for option, value in options.items()
      ),
    ]
  )


def apart(ours: Path, theirs: Path) -> tuple[float, float]:
  """Largest differences: of a parameter (of its tensor's largest, if that is
  above 1), of an epoch's loss (relative)."""
  (adapter, metrics), (other, others) = map(conftest.trained, (ours, theirs))
  assert adapter.keys() == other.keys() and len(metrics) == len(others)
  parameter = max(
    float(
      np.abs(leaf - other[path]).max(initial=0)
      / max(1.0, np.abs(leaf).max(initial=0))
    )
    for path, leaf in adapter.items()
  )
  return parameter, max(
    abs(line["loss"] / want["loss"] - 1) for line, want in zip(metrics, others)
  )


def main(names: list[str]) -> int:
  names = names or [*test_methods.OPTIONS]
  what, failed = "+".join(map(spec, names)), 0
  test_processes.TIMEOUT = 3600  # of all methods, one after the other
  with tempfile.TemporaryDirectory() as folder:
    one, eight, two = (Path(folder) / run for run in ("one", "eight", "two"))
    env = conftest.as_users_compile()
    test_processes.ended([test_processes.start(one, what, env=env)])
    test_processes.ended([test_processes.start(eight, what, 8, env=env)])
    test_processes.ended(test_processes.together(two, what, 2, 4, env))
    for name in names:
      at = name if len(names) > 1 else ""  # see several.py
      found = [apart(run / at, one / at) for run in (eight, two)]
      wrong = not all(x <= BAR for pair in found for x in pair)
      failed += wrong
      sys.stdout.write(
        f"{name:16}"
        + "  ".join(
          f"{run}: parameters {pair[0]:.1e}, loss {pair[1]:.1e}"
          for run, pair in zip(("8", "2 x 4"), found)
        )
        + "  ABOVE" * wrong
        + "\n"
      )
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
