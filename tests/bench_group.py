"""Runs of a grid together against one after the other.

  python -m tests.bench_group [--counts 1 4 16 40]

The embedded backbone and data; times are of a training step of all runs, divided
by their number, medians of repeats that alternate in one process. `alike`: one
seed, so that batches are the same; `own`: a seed and an order for each run.
"""

import argparse
import statistics
import time

import jax
from ml_collections import ConfigDict

from configs import linear_vtab, vapt_vtab, vpt_vtab
from vpt_jax import config as configs
from vpt_jax.sweeps import vmapped_runs
from vpt_jax.training import experiment as jobs

METHODS = {"linear": linear_vtab, "vpt": vpt_vtab, "vapt": vapt_vtab}


def members(module, count: int, own: bool) -> list[ConfigDict]:
  """Resolved configs with rates of their own."""
  out = []
  for i in range(count):
    config = module.get_config()
    config.optim.lr *= 0.9**i
    config.seed += i * own
    out.append(configs.resolve(config))
  return out


def timed(one: vmapped_runs.Group, steps: int) -> float:
  """Seconds of a step, of one run of the group."""
  batches = one.batches(0)
  start = time.perf_counter()
  for _ in range(steps):
    one.state, record = one._step(
      one.hyper, one.state, one.shared, next(batches)
    )
  jax.block_until_ready(record)
  return (time.perf_counter() - start) / steps / len(one.members)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 16, 40])
  parser.add_argument(
    "--methods", nargs="+", default=[*METHODS], choices=METHODS
  )
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  print(
    f"{jax.device_count()} x {jax.devices()[0].device_kind}; milliseconds "
    "of a step and run, and how many times as fast as one run alone"
  )
  for name in args.methods:
    module = METHODS[name]
    job = jobs.build(
      configs.resolve(module.get_config()),
      jobs.load_data(configs.resolve(module.get_config())),
    )
    for own in (False, True):
      groups = {
        count: vmapped_runs.Group(job, members(module, count, own))
        for count in args.counts
      }
      times = {count: [] for count in groups}
      for repeat in range(args.repeats + 1):
        for count, one in groups.items():
          steps = max(1, (400 if name == "linear" else 4) // count)
          sample = timed(one, min(steps, len(job.train)))
          if repeat:  # the first one compiles
            times[count].append(sample)
      alone = statistics.median(times[args.counts[0]])
      for count, samples in times.items():
        median = statistics.median(samples)
        print(
          f"{name:7} {'own' if own else 'alike':5} {count:3} runs  "
          f"{1e3 * median:9.3f} ms  x {alone / median:.2f}",
          flush=True,
        )


if __name__ == "__main__":
  main()
