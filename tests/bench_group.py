"""Measures runs that train together against one after the other.

  python -m tests.bench_group [--counts 1 4 16 40]

The embedded backbone and data. Times are of a training step of all runs,
divided by their number, medians of repeats that alternate in one process.
`alike`: one seed, so that batches are the same; `own`: a seed and an order for
each run.
"""

import argparse
from collections.abc import Sequence
import statistics
import time

import jax
from ml_collections import ConfigDict

from configs import linear_vtab, vapt_vtab, vpt_vtab
from vpt_jax import config as config_lib
from vpt_jax.sweeps.vmapped_runs import VmappedRuns
from vpt_jax.training import experiment

METHODS = {"linear": linear_vtab, "vpt": vpt_vtab, "vapt": vapt_vtab}
# Steps of one run that a sample takes; of many runs fewer.
STEPS = {"linear": 400, "vpt": 4, "vapt": 4}


def run_configs(module, count: int, own_seeds: bool) -> list[ConfigDict]:
  """Returns resolved configs with a rate each, and a seed if asked for."""
  out = []
  for i in range(count):
    config = module.get_config()
    config.optim.lr *= 0.9**i
    if own_seeds:
      config.seed += i
    out.append(config_lib.resolve(config))
  return out


def timed(runs: VmappedRuns, steps: int) -> float:
  """Returns the seconds of a step, of one of the runs."""
  batches = runs.batches(0)
  start = time.perf_counter()
  for _ in range(steps):
    runs.state, step_metrics = runs._step(
      runs.own, runs.state, runs.shared, next(batches)
    )
  jax.block_until_ready(step_metrics)
  return (time.perf_counter() - start) / steps / len(runs.configs)


def measure(
  job: experiment.Experiment,
  name: str,
  counts: Sequence[int],
  own_seeds: bool,
  repeats: int,
) -> dict[int, float]:
  """Returns the median seconds of a step and run for each count of runs."""
  together = {}
  for count in counts:
    configs = run_configs(METHODS[name], count, own_seeds)
    together[count] = VmappedRuns(job, configs)
  samples = {count: [] for count in counts}
  for repeat in range(repeats + 1):
    for count, runs in together.items():
      steps = max(1, STEPS[name] // count)
      sample = timed(runs, min(steps, len(job.train)))
      if repeat > 0:  # the first one compiles
        samples[count].append(sample)
  return {count: statistics.median(samples[count]) for count in counts}


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
    config = config_lib.resolve(METHODS[name].get_config())
    job = experiment.build(config, experiment.load_data(config))
    for seeds in ("alike", "own"):
      medians = measure(job, name, args.counts, seeds == "own", args.repeats)
      alone = medians[args.counts[0]]
      for count, seconds in medians.items():
        print(
          f"{name:7} {seeds:5} {count:3} runs  {1e3 * seconds:9.3f} ms  "
          f"x {alone / seconds:.2f}",
          flush=True,
        )


if __name__ == "__main__":
  main()
