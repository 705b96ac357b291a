"""Compares one device with eight, and with two processes of four each.

  python -m tests.devices [METHOD ...]

Every method trains for two epochs on the tests' small config. Prints how far
the trained parameters and the losses are apart at the end, and exits with 1
where that is above 1e-5.
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
  """Returns the run of a method, as `several.py` takes it."""
  parts = [name]
  if name in RATES:
    parts.append(f"optim.lr={RATES[name]}")
  for option, value in test_methods.OPTIONS.get(name, {}).items():
    text = f"{name}.{option}={value!r}"
    parts.append(text.replace(" ", ""))
  return ",".join(parts)


def apart(workdir: Path, other: Path) -> tuple[float, float]:
  """Returns the largest differences of two runs.

  Returns:
    (of a parameter, relative to its tensor's largest entry if that is above 1;
    of an epoch's loss, relative).
  """
  adapter, metrics = conftest.trained(workdir)
  other_adapter, other_metrics = conftest.trained(other)
  assert adapter.keys() == other_adapter.keys()
  parameter = 0.0
  for path, leaf in adapter.items():
    difference = np.abs(leaf - other_adapter[path]).max(initial=0)
    scale = max(1.0, np.abs(leaf).max(initial=0))
    parameter = max(parameter, float(difference / scale))
  loss = 0.0
  for line, expected in zip(metrics, other_metrics, strict=True):
    loss = max(loss, abs(line["loss"] / expected["loss"] - 1))
  return parameter, loss


def train(folder: Path, what: str) -> dict[str, Path]:
  """Trains on one device, eight, and two processes; returns the folders."""
  env = conftest.as_users_compile()
  runs = {"1": folder / "1", "8": folder / "8", "2 x 4": folder / "2x4"}
  one = test_processes.start(runs["1"], what, env=env)
  test_processes.ended([one])
  eight = test_processes.start(runs["8"], what, 8, env=env)
  test_processes.ended([eight])
  two = test_processes.together(runs["2 x 4"], what, 2, 4, env)
  test_processes.ended(two)
  return runs


def main(names: list[str]) -> int:
  """Compares all methods, or those that are named; returns the exit status."""
  names = names or [*test_methods.OPTIONS]
  what = "+".join(spec(name) for name in names)
  test_processes.TIMEOUT = 3600  # of all methods, one after the other
  num_failed = 0
  with tempfile.TemporaryDirectory() as folder:
    runs = train(Path(folder), what)
    for name in names:
      subfolder = name if len(names) > 1 else ""  # see several.py
      texts = []
      failed = False
      for devices in ("8", "2 x 4"):
        parameter, loss = apart(
          runs[devices] / subfolder, runs["1"] / subfolder
        )
        texts.append(f"{devices}: parameters {parameter:.1e}, loss {loss:.1e}")
        failed = failed or not (parameter <= BAR and loss <= BAR)
      if failed:
        num_failed += 1
        texts.append("ABOVE")
      sys.stdout.write(f"{name:16}{'  '.join(texts)}\n")
  return 1 if num_failed else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
