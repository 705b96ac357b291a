"""Runs the main job: `python -m vpt_jax.main --config=FILE[:TASK]`.

`run` adapts a backbone to a task; `main` is the command line around it, for
sweeps too.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import logging
import os
from pathlib import Path
import re
import sys
import tempfile
import time
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as config_lib
from vpt_jax import problems
from vpt_jax.condensation import stages
from vpt_jax.config import normalization
from vpt_jax.data import datasets, own_sources
from vpt_jax.distributed import memory, processes, program_cache, sharding
from vpt_jax.report import result_tables
from vpt_jax.sweeps import protocol
from vpt_jax.training import (
  experiment,
  loop,
  metrics,
  optim,
  records,
  run_folder,
  run_results,
  run_texts,
  start_files,
)
from vpt_jax.utils import command_line, files, malloc, signals, trees
from vpt_jax.utils.logs import log

EMBEDDED_BACKBONE = "vit_mini4_cifar10"
EMBEDDED_TASKS = ("digits", "digit_scenes")

EMBEDDED = """\
no task named: takes the embedded data (scikit-learn's digits) and backbone \
%s; name a real task as in --config=%s:eurosat, with ViT-B/16 IN-21k"""

EMBEDDED_SCENES = """\
no task named: takes embedded scenes of scikit-learn's digits, with exact \
masks, and the embedded backbone %s; name a real task as in \
--config=%s:ade20k"""

OWN_ON_EMBEDDED = """\
no task named: takes your images, %s, and the embedded backbone %s; a real one,
ViT-B/16 IN-21k, is taken by --config=%s:eurosat --config.task="""

OWN_ON_EMBEDDED_DENSE = """\
no task named: takes your images, %s, and the embedded backbone %s; a real one
is taken by --config=%s:ade20k --config.task="""

OWN = "no task named: takes your images, %s, and the backbone %s"

OUT_OF_MEMORY = """\
out of memory. In another workdir take a smaller config.batch_size (of a sweep:
config.sweep.group), fewer images on the device (config.data.device_gb), or
config.compute.remat=True; more devices help too"""


def run(
  config: ConfigDict,
  workdir: str | os.PathLike,
  data: experiment.Data | None = None,
  start: trees.Flat | str | os.PathLike | None = None,
) -> dict[str, Any]:
  """Adapts, evaluates and saves; resumes where an earlier call was killed.

  Args:
    config: see `vpt_jax/config/sections.py`.
    workdir: gets config.json, metrics.jsonl, tensorboard/, checkpoints/,
      adapter.npz and, last, result.json.
    data: splits in memory; default: those that `config.task` names.
    start: the adapter file that the run starts from, or values of one.

  Returns:
    What result.json holds, or condense.json (see
    `vpt_jax/condensation/stages.py`).

  Raises:
    ValueError: a config, file or folder that can't be used, saying why.
    loop.Diverged: the loss is NaN or infinite.
  """
  processes.check_not_forked()
  is_named = data is None
  config = config_lib.resolve(config, named_task=is_named)
  warn(normalization.warning(config, is_named))
  if data is not None:
    data = data.aligned()
  condenses = "condense" in config
  if condenses:
    stages.check(config)
  config, saved, origin = read_start(config, start)
  precision = config.compute.matmul_precision
  with (
    jax.default_matmul_precision(precision),
    own_folder(Path(workdir).expanduser()) as folder,
  ):
    identity = check_same_run(folder, config, data)
    result_file = folder / ("condense.json" if condenses else "result.json")
    is_finished = np.bool_(result_file.exists())
    if processes.broadcast_from_primary(is_finished):
      log.info("%s is finished; another --workdir runs it again", folder)
      if not processes.is_primary():
        return {}
      read = stages.read_result if condenses else run_results.read_result
      return read(result_file, identity)
    if data is None:
      data = experiment.load_data(config)
    if condenses:
      check_one_process_condenses()
      return stages.run(config, folder, data, run)
    return train_and_evaluate(config, folder, data, saved, origin)


def read_start(
  config: ConfigDict, start: trees.Flat | str | os.PathLike | None
) -> tuple[ConfigDict, trees.Flat, start_files.Origin | None]:
  """Returns (config, values that the run starts from, the file they are of).

  Raises:
    ValueError: a file that can't be used, or none where the config names one.
  """
  if not start and config.start:
    raise ValueError(
      f"config.start={config.start!r}: this run starts from an adapter; name "
      "its file by --start=ADAPTER"
    )
  if start and "condense" in config:
    raise ValueError(
      "condensation trains with all prompts first, and takes no --start; leave "
      "it out, or set config.condense.shares=()"
    )
  if isinstance(start, str | os.PathLike):
    config = start_files.note(config, start)
    origin = start_files.read(start)
    return config, origin.values, origin
  return config, start or {}, None


def warn(text: str) -> None:
  """Logs a warning, if there is one."""
  if text:
    log.warning("%s", text)


@contextlib.contextmanager
def own_folder(workdir: Path) -> Iterator[Path]:
  """Gives the folder that this process writes to, locked.

  That is the workdir for the primary process; what the others write is thrown
  away.
  """
  if processes.is_primary():
    with files.lock(workdir):
      yield workdir
  else:
    with tempfile.TemporaryDirectory() as temporary:
      yield Path(temporary)


def check_same_run(
  folder: Path, config: ConfigDict, data: experiment.Data | None
) -> dict[str, str]:
  """Raises ValueError if the folder holds a run of another config or data.

  Returns:
    What is known of the run's identity, see `run_folder.identity`.
  """
  run_folder.check_unchanged(folder / "config.json", config_lib.plain(config))
  if data is None:
    return run_folder.identity([config])
  fingerprint = run_folder.fingerprint(data)
  run_folder.check_unchanged(folder / "data.json", fingerprint)
  return run_folder.identity([config], data=fingerprint)


def check_one_process_condenses() -> None:
  """Raises ValueError if there are several processes."""
  if jax.process_count() > 1:
    raise ValueError(
      "condensation takes one process, of any number of "
      "devices; leave --distributed out"
    )


def train_and_evaluate(
  config: ConfigDict,
  workdir: Path,
  data: experiment.Data,
  saved: trees.Flat,
  origin: start_files.Origin | None = None,
) -> dict[str, Any]:
  """Trains one run, evaluates it and writes its files.

  Args:
    config: resolved.
    workdir: see `run`.
    data: its splits.
    saved: values of an adapter file to start from.
    origin: that file.

  Returns:
    What result.json holds.
  """
  started = time.monotonic()
  fingerprint = run_folder.fingerprint(data)
  check_same_in_all_processes(config, fingerprint)
  job = experiment.build(config, data, saved)
  if origin is not None:
    check_start(job, origin)
  log_sizes(job)

  rate_of = optim.rates_from_config(
    config.optim, config.batch_size, config.epochs, len(job.train)
  )
  rate = rate_of(1.0)
  optimizer = job.optimizer(rate, config.optim.weight_decay, rate_of)
  first_state = experiment.train_state(config, job.start, optimizer)
  run_folder.claim(workdir, config, job.backbone, fingerprint)
  identity = run_folder.identity([config], job.backbone, fingerprint)
  state, images_per_second = loop.fit(
    config,
    workdir,
    sharding.replicate(first_state, job.mesh),
    job.start.frozen,
    job.train,
    jax.jit(
      job.step(job.model, optimizer),
      donate_argnums=0,
      out_shardings=sharding.replicated(job.mesh),
    ),
    rate,
    job.problem,
    identity,
  )

  evaluated = job.evaluate(state, workdir)
  result = {
    **run_results.facts(job),
    **evaluated.scores,
    **evaluated.told,
    "run": identity,
    "images_per_second": images_per_second,
    "seconds": time.monotonic() - started,
  }
  run_results.save(
    workdir,
    job,
    config,
    state.trainable,
    state.collections,
    evaluated,
    identity,
  )
  record = run_results.record(
    job,
    config,
    "single",
    list(metrics.read_metrics(workdir / metrics.FILE)),
    evaluated,
    speed=images_per_second,
    seconds=result["seconds"],
  )
  records.Store(workdir / records.FILE).add(record)
  # Last: it says that the run is finished.
  files.write_json(workdir / "result.json", result)
  return result


def check_start(job: experiment.Experiment, origin: start_files.Origin) -> None:
  """Raises ValueError if a run can't start from an adapter."""
  collections = trees.flatten(job.start.collections)
  known = [*job.start.trainable, *job.start.frozen, *collections]
  start_files.check(
    origin,
    known,
    job.backbone,
    job.data.train.class_names,
    job.config.seed,
  )
  log.info("starts from %s", origin.path)


def check_same_in_all_processes(
  config: ConfigDict, fingerprint: dict[str, Any]
) -> None:
  """Raises ValueError if the processes do not make the same run.

  It comes before they wait for each other where one of them would never come.
  """
  difference = config_lib.difference
  processes.check_same(config_lib.plain(config), "config", difference)
  processes.check_same(fingerprint, "data", difference)


def log_sizes(job: experiment.Experiment) -> None:
  """Writes how much is trained, and on how many images."""
  start = job.start
  pattern = job.config.trainable
  log.info("%s", run_texts.split_table(start.trainable, start.frozen, pattern))
  for part in ("train", "test"):
    split = getattr(job.data, part)
    is_told = job.problem.dense or split.preprocess is not None
    if not is_told:  # arrays in memory
      log.info("%s: %s", part, datasets.summary_of(split))
  log.info(
    "%d training and %d test images, %d classes",
    len(job.data.train),
    len(job.data.test),
    job.data.train.num_classes,
  )


def main(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit status.

  Mistakes of the user are shown as `error: ...`, without a traceback.
  """
  if {"--help", "-h"} & {*argv}:
    sys.stdout.write(config_lib.USAGE + "\n")
    return 0
  log.addHandler(logging.StreamHandler(sys.stdout))
  log.setLevel(logging.INFO)
  log.propagate = False  # absl would print each line again
  return exit_status(lambda: run_command(config_lib.parse(argv)))


def run_command(command: config_lib.Command) -> int:
  """Runs a sweep or one run; returns the exit status."""
  config = command.config
  processes.join(command.distributed)
  if not processes.is_primary():
    log.setLevel(logging.WARNING)
  if config.task in EMBEDDED_TASKS and ":" not in command.path:
    config = name_nothing(command)
    command = command._replace(config=config)
  if config.mode == "sweep":
    return run_sweep(command)
  config = config_lib.resolve(config)
  if command.start:
    config = start_files.note(config, command.start)
  workdir = command.workdir or default_workdir(config.task, config)
  log.info("workdir %s", workdir)
  tell_saved(workdir)
  result = run(config, workdir, start=command.start or None)
  if not processes.is_primary():
    return 0
  if "condense" in config:
    text = stages.table(result)
    names = "condense.json and all runs"
  else:
    text = run_texts.result_text(result)
    names = "result.json and adapter.npz"
  log.info("%s\n%s in %s", text, names, workdir)
  return 0


def name_nothing(command: config_lib.Command) -> ConfigDict:
  """Returns the config of a command line that names no task, and says so.

  Images of the user's own have their own name, not that of the embedded data.
  """
  config = command.config
  source = own_sources.canonical(config.data.source)
  is_dense = problems.of_run(config).dense
  if not own_sources.is_own(source):
    text = EMBEDDED_SCENES if is_dense else EMBEDDED
    log.info(text, config.backbone.name, command.path)
    return config
  config = ConfigDict(config.to_dict())
  config.task = own_sources.name_of(source)
  backbone = config.backbone
  if backbone.checkpoint or backbone.name != EMBEDDED_BACKBONE:
    log.info(OWN, source, backbone.name)
  else:
    text = OWN_ON_EMBEDDED_DENSE if is_dense else OWN_ON_EMBEDDED
    log.info(text, source, backbone.name, command.path)
  return config


def run_sweep(command: config_lib.Command) -> int:
  """Runs a sweep and prints its table; returns the exit status."""
  config = command.config
  if jax.process_count() > 1:
    raise ValueError(
      f"a sweep takes one process, of any number of devices, here are "
      f"{jax.process_count()}; start it without --distributed on each "
      "machine, with one --workdir on a shared disk or with --shard. The "
      "hosts of a TPU slice can't work alone: take slices of one host"
    )
  if command.start or config.start:
    raise ValueError(
      "a sweep's runs start anew: leave --start out, or train one run with "
      "config.mode=train"
    )
  config_lib.check_values(config)
  name = "sweep" if config.sweep.tasks else config.task
  source = own_sources.canonical(config.data.source)
  if not name and own_sources.is_own(source):
    name = own_sources.name_of(source)
  workdir = command.workdir or default_workdir(name, config)
  log.info("workdir %s", workdir)
  tell_saved(workdir)
  folder = Path(workdir).expanduser()
  made = protocol.run(config, folder, command.shard)
  log.info(
    "%s\nrecords in %s; `python -m vpt_jax.report %s --out FOLDER` "
    "writes tables and a page",
    result_tables.terminal(made),
    workdir,
    workdir,
  )
  return 0


def default_workdir(name: str, config: ConfigDict) -> str:
  """Returns the folder of a run whose command line names none.

  Args:
    name: of the task, which may be any text: it is made one folder's name.
    config: of the run.
  """
  readable = re.sub(r"[^\w.-]+", "_", name).strip(".")[:64]
  run_name = f"{readable}-{config.method}-{config_lib.digest(config)}"
  return os.path.join("runs", run_name)


def tell_saved(workdir: str) -> None:
  """Lets a signal that ends this process say what the workdir holds."""
  if processes.is_primary():
    folder = Path(workdir).expanduser()
    signals.tell_saved(functools.partial(run_texts.saved_text, folder))


def exit_status(work: Callable[[], int]) -> int:
  """Returns the exit status of some work; shows on stderr what stops it."""
  try:
    status = command_line.exit_status(work)
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_out_of_memory(error) and not is_one_of_several():
      raise
    sys.stderr.write(f"error: {explain(error)}\n")
    status = 1
  if status == 1 and is_one_of_several():
    # At JAX's exit it would wait for the others, which wait for it.
    sys.stderr.flush()
    os._exit(status)
  return status


def exit_with(status: int) -> NoReturn:
  """Ends this process; one of several waits for the others, as JAX does."""
  if is_one_of_several():
    sys.exit(status)
  command_line.leave(status)


def is_one_of_several() -> bool:
  """Returns whether this process was started with `--distributed`."""
  return jax.distributed.is_initialized()


def explain(error: jax.errors.JaxRuntimeError) -> str:
  """Returns what an error of the devices means, and what to do."""
  if memory.is_out_of_memory(error):
    return f"{OUT_OF_MEMORY}\n{error}"
  return (
    f"process {jax.process_index()} has lost another one; start them all "
    f"again, the same command resumes:\n{error}"
  )


def start_process() -> int:
  """Sets this process up, before JAX starts; returns the exit status, 0.

  `VPT_JAX_KEEP_MEMORY=0` in the environment leaves the C library's memory
  settings alone.
  """
  if os.environ.get("VPT_JAX_KEEP_MEMORY", "1") != "0":
    malloc.keep()
  program_cache.enable()
  return signals.listen()


if __name__ == "__main__":
  exit_with(exit_status(start_process) or main(sys.argv))
