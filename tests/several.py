"""One of several processes of a tiny run, for tests: a stand-in for a host.

  python -m tests.several WORKDIR METHOD[,FIELD=VALUE...] [SPEC]
  python -m tests.several FOLDER METHOD[,FIELD=VALUE...]+METHOD... [SPEC]

It is `main.run` on the tests' small config; SPEC is `--distributed`. A field
`in_memory` is no config's: see `config_of`. Several
runs, one after the other, have FOLDER/METHOD each.
"""

import ast
from pathlib import Path
import sys

from tests import conftest
from vpt_jax import main
from vpt_jax.data import datasets
from vpt_jax.distributed import processes


def config_of(text: str):
  """The small config with a method and other fields."""
  config = conftest.config.__wrapped__()
  config.method, *changes = text.split(",")
  config.batch_size, config.epochs = 64, 2
  config.optim.warmup_from_zero = False
  for change in changes:
    field, _, value = change.partition("=")
    try:
      value = ast.literal_eval(value)
    except (SyntaxError, ValueError):
      pass
    if field == "in_memory":  # bytes; a larger split is mapped from the disk
      datasets.IN_MEMORY = value
      continue
    config.update_from_flattened_dict({field: value})
  return config


def work(workdir: str, what: str, spec: str = "") -> int:
  processes.join(spec)
  several = what.split("+")
  for one in several:
    config = config_of(one)
    result = main.run(
      config, Path(workdir) / (config.method if len(several) > 1 else "")
    )
    sys.stdout.write(f"done {result.get('top1')}\n")
    sys.stdout.flush()
  return 0


if __name__ == "__main__":
  processes.exit_on_sigterm()  # as main does
  sys.exit(main.exit_status(lambda: work(*sys.argv[1:])))
