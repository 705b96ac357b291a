"""Runs one of several processes of a tiny run, as a stand-in for a host.

  python -m tests.several WORKDIR METHOD[,FIELD=VALUE...] [SPEC]
  python -m tests.several FOLDER METHOD[,FIELD=VALUE...]+METHOD... [SPEC]

It is `main.run` on the tests' small config; SPEC is `--distributed`. A field
`in_memory` is no config's: see `config_of`. Several runs, one after the other,
have FOLDER/METHOD each.
"""

import ast
import contextlib
from pathlib import Path
import sys

from tests import conftest
from vpt_jax import main
from vpt_jax.data import datasets
from vpt_jax.distributed import processes
from vpt_jax.utils import signals


def config_of(text: str):
  """Returns the small config with a method and other fields.

  Args:
    text: `METHOD,FIELD=VALUE,...`. `in_memory` is bytes: a larger split is
      mapped from the disk.
  """
  method, *changes = text.split(",")
  config = conftest.config.__wrapped__()
  config.method = method
  config.batch_size = 64
  config.epochs = 2
  config.optim.warmup_from_zero = False
  for change in changes:
    field, _, value = change.partition("=")
    with contextlib.suppress(SyntaxError, ValueError):  # a word is itself
      value = ast.literal_eval(value)
    if field == "in_memory":
      datasets.IN_MEMORY = value
    else:
      config.update_from_flattened_dict({field: value})
  return config


def work(workdir: str, what: str, spec: str = "") -> int:
  """Joins the other processes and does the runs; returns the exit status."""
  processes.join(spec)
  runs = what.split("+")
  for run in runs:
    config = config_of(run)
    subfolder = config.method if len(runs) > 1 else ""
    folder = Path(workdir) / subfolder
    main.tell_saved(str(folder))
    result = main.run(config, folder)
    sys.stdout.write(f"done {result.get('top1')}\n")
    sys.stdout.flush()
  return 0


if __name__ == "__main__":
  signals.listen()  # as main does
  main.exit_with(main.exit_status(lambda: work(*sys.argv[1:])))
