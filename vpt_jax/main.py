"""The main job: `python -m vpt_jax.main --config=FILE[:TASK]`."""

from collections.abc import Callable, Sequence
import contextlib
import json
import logging
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as configs
from vpt_jax.condensation import stages
from vpt_jax.distributed import memory, processes, program_cache, sharding
from vpt_jax.report import result_tables
from vpt_jax.sweeps import protocol
from vpt_jax.training import evaluation, loop, metrics, optim, run_texts
from vpt_jax.training import experiment as jobs
from vpt_jax.training import records as results
from vpt_jax.utils import files, malloc, trees
from vpt_jax.utils.logs import log


def run(
  config: ConfigDict,
  workdir: str | os.PathLike,
  data: jobs.Data | None = None,
  start: trees.Flat | None = None,
) -> dict[str, Any]:
  """Adapts, evaluates and saves; goes on where an earlier call was killed.

  Args:
    config: see `vpt_jax/config/sections.py`.
    workdir: gets config.json, metrics.jsonl, tensorboard/, checkpoints/,
      adapter.npz and, last, result.json.
    data: splits in memory; default: those that `config.task` names.
    start: values of an adapter file that the run starts from.

  Returns:
    What result.json holds, or condense.json (see `condense.py`).

  Raises:
    ValueError: a config, file or folder that can't be used, saying why.
    train.Diverged: the loss is NaN or infinite.
  """
  config = configs.resolve(config, named_task=data is None)
  workdir = Path(workdir).expanduser()
  staged = "condense" in config
  if staged:
    stages.check(config)
  with contextlib.ExitStack() as stack:
    stack.enter_context(
      jax.default_matmul_precision(config.compute.matmul_precision)
    )
    if processes.is_primary():
      stack.enter_context(files.lock(workdir))
    else:  # what it writes is thrown away
      workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    finished = workdir / ("condense.json" if staged else "result.json")
    jobs.check_unchanged(workdir / "config.json", configs.plain(config))
    if data is not None:
      jobs.check_unchanged(workdir / "data.json", jobs.fingerprint(data))
    if processes.broadcast_from_primary(np.bool_(finished.exists())):
      log.info("%s is finished; another --workdir runs it again", workdir)
      return json.loads(finished.read_text()) if processes.is_primary() else {}
    data = data or jobs.load_data(config)
    if not staged:
      return _run(config, workdir, data, start or {})
    if jax.process_count() > 1:
      raise ValueError(
        "condensation takes one process, of any number of "
        "devices; leave --distributed out"
      )
    return stages.run(config, workdir, data, run)


def _run(
  config: ConfigDict, workdir: Path, data: jobs.Data, saved: trees.Flat
) -> dict[str, Any]:
  started = time.monotonic()
  fingerprint = jobs.fingerprint(data)
  # Before they wait for each other where one of them never comes.
  processes.check_same(
    {"sha256": np.uint32(int(configs.digest(config), 16))}, "config"
  )
  processes.check_same(jax.tree.map(np.uint32, fingerprint), "data")
  job = jobs.build(config, data, saved)
  log.info(
    "%s",
    run_texts.split_table(
      job.start.trainable, job.start.frozen, config.trainable
    ),
  )
  log.info(
    "%d training and %d test images, %d classes",
    len(data.train),
    len(data.test),
    data.train.num_classes,
  )
  rate = optim.per_epoch(
    optim.epoch_rates(config.optim, config.batch_size, config.epochs),
    len(job.train),
  )
  tx = job.optimizer(rate, config.optim.weight_decay)
  state = sharding.replicate(jobs.train_state(config, job.start, tx), job.mesh)
  jobs.claim(workdir, config, job.backbone, fingerprint)
  state, speed = loop.fit(
    config,
    workdir,
    state,
    job.start.frozen,
    job.train,
    jax.jit(
      job.step(job.model, tx),
      donate_argnums=0,
      out_shardings=sharding.replicated(job.mesh),
    ),
    rate,
    job.problem,
  )

  total, predictions = evaluation.collect(
    evaluation.make_eval_step(job.apply, job.problem, job.mesh),
    state.trainable,
    job.start.frozen,
    state.collections,
    job.test,
  )
  result = {
    **jobs.facts(job),
    **evaluation.scores(job.problem, total, predictions, data.test.labels),
    "images_per_second": speed,
    "seconds": time.monotonic() - started,
  }
  jobs.save(
    workdir, job, config, state.trainable, state.collections, predictions
  )
  curve = list(metrics.read_metrics(workdir / "metrics.jsonl"))
  results.Store(workdir / results.FILE).add(
    jobs.record(
      job,
      config,
      "single",
      curve,
      total,
      predictions,
      speed=speed,
      seconds=result["seconds"],
    )
  )
  files.write_json(workdir / "result.json", result)
  return result


EMBEDDED = """\
no task named: takes the embedded data (scikit-learn's digits) and backbone \
%s; name a real task as in --config=%s:eurosat, with ViT-B/16 IN-21k"""


def main(argv: Sequence[str]) -> int:
  """Runs; returns the exit status. What the user can mend is told clearly."""
  if {"--help", "-h"} & {*argv}:
    sys.stdout.write(configs.USAGE + "\n")
    return 0
  log.addHandler(logging.StreamHandler(sys.stdout))
  log.setLevel(logging.INFO)
  log.propagate = False  # absl would print each line again
  return told(lambda: _main(configs.parse(argv)))


def _main(command: configs.Command) -> int:
  config, path, workdir, part, spec = command
  whole = config.mode == "sweep"
  processes.join(spec)
  if whole and jax.process_count() > 1:
    raise ValueError(
      f"a sweep takes one process, of any number of devices, here are "
      f"{jax.process_count()}; start it without --distributed on each "
      "machine, with one --workdir on a shared disk or with --shard. The "
      "hosts of a TPU slice can't work alone: take slices of one host"
    )
  if not processes.is_primary():
    log.setLevel(logging.WARNING)
  if config.task == "digits" and ":" not in path:
    log.info(EMBEDDED, config.backbone.name, path)
  if whole:
    configs.check_values(config)
  else:
    config = configs.resolve(config)
  task = "sweep" if whole and config.sweep.tasks else config.task
  workdir = workdir or os.path.join(
    "runs", f"{task}-{config.method}-{configs.digest(config)}"
  )
  log.info("workdir %s", workdir)
  if whole:
    records = protocol.run(config, Path(workdir).expanduser(), part)
    log.info(
      "%s\nrecords in %s; `python -m vpt_jax.report %s --out FOLDER` "
      "writes tables and a page",
      result_tables.terminal(records),
      workdir,
      workdir,
    )
    return 0
  result = run(config, workdir)
  if processes.is_primary():
    text, names = (
      (stages.table(result), "condense.json and all runs")
      if "condense" in config
      else (run_texts.result_text(result), "result.json and adapter.npz")
    )
    log.info("%s\n%s in %s", text, names, workdir)
  return 0


OUT_OF_MEMORY = """\
out of memory. In another workdir take a smaller config.batch_size (of a sweep:
config.sweep.group), fewer images on the device (config.data.device_gb), or
config.compute.remat=True; more devices help too"""


def told(work: Callable[[], int]) -> int:
  """The exit status of some work; what stops it is told on stderr."""
  try:
    return work()
  except (ValueError, OSError) as error:
    sys.stderr.write(f"error: {error}\n")
    return _end(1)
  except jax.errors.JaxRuntimeError as error:
    if memory.is_out_of_memory(error):
      sys.stderr.write(f"error: {OUT_OF_MEMORY}\n{error}\n")
      return _end(1)
    if not jax.distributed.is_initialized():
      raise
    sys.stderr.write(
      f"error: process {jax.process_index()} has lost another one; start "
      f"them all again, the same command goes on:\n{error}\n"
    )
    return _end(1)
  except processes.Preempted as stop:
    sys.stderr.write(
      "stopped by SIGTERM, all is saved; the same command goes on\n"
    )
    return stop.code
  except KeyboardInterrupt:
    sys.stderr.write("interrupted; the same command goes on\n")
    return 130


def _end(status: int) -> int:
  """The status; one of several processes ends here: it can't wait for others
  at JAX's exit."""
  if jax.distributed.is_initialized():
    sys.stderr.flush()
    os._exit(status)
  return status


if __name__ == "__main__":
  malloc.keep()
  program_cache.enable()
  processes.exit_on_sigterm()
  sys.exit(main(sys.argv))
