"""Runs the protocol of the papers: search on a part of the images, then train.

Hyper-parameters are searched on a part of the training images; the best ones
train on all of them with several seeds. For each task:

  search   runs of the grid on train/val, one seed; the best by the validation
           score of the last epoch, ties to the smaller rate
  final    the best one on trainval/test with every seed

Runs are told apart by their configs alone, and `records.jsonl` says which are
done: the same command resumes wherever it was killed. Several processes may
have the same workdir, on machines that share it: each takes groups of runs that
no other process holds. Without a shared disk, `--shard=1/8` takes every eighth
task.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from pathlib import Path
import shutil
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as config_lib
from vpt_jax import problems
from vpt_jax.config import normalization
from vpt_jax.distributed import memory, processes
from vpt_jax.sweeps import searches, vmapped_runs
from vpt_jax.sweeps.searches import Cell
from vpt_jax.training import experiment, records, run_folder
from vpt_jax.utils import files, json_files, lookup, system_errors, trees
from vpt_jax.utils.logs import log

WAIT = 5.0  # seconds between looks at what other processes do


def check(config: ConfigDict) -> None:
  """Raises ValueError for a section `sweep` that cannot be used."""
  section = config.sweep
  lookup.choose(section.search, searches.SEARCHES, "sweep.search")
  if "condense" in config and config.condense.shares:
    raise ValueError(
      "config.mode='sweep' does not condense; set config.condense.shares=()"
    )
  if config.compute.attention == "cudnn":
    raise ValueError(
      "config.compute.attention='cudnn' can't train runs "
      "together (JAX maps it over all operands or none); take "
      "'ours' or 'xla' for a sweep"
    )
  if not section.seeds or section.group < 0:
    raise ValueError(
      f"config.sweep.seeds={tuple(section.seeds)}, group="
      f"{section.group}; expected one seed or more, and a "
      "number of runs, 0 for as many as fit"
    )
  for axis in section.grid:
    is_pair = len(axis) == 2 and not isinstance(axis[1], str)
    if not is_pair or not len(axis[1]):
      raise ValueError(
        f"config.sweep.grid has {axis!r}; expected (field, "
        "(value, ...)), as ('optim.lr', (0.5, 1.0))"
      )
  known = {name.replace("/", ".") for name in trees.flatten(config.to_dict())}
  changed = [field for field, _ in section.grid]
  for changes in section.per_task.to_dict().values():
    changed += [field for field, _ in changes]
  for field in changed:
    lookup.choose(field, known, "field of config.sweep")


def run_configs(
  config: ConfigDict, task: str, stage: str, cells: Sequence[Cell]
) -> list[ConfigDict]:
  """Returns the resolved configs of runs, each as if it were run alone.

  Args:
    config: of the sweep.
    task: of these runs.
    stage: `search` or `final`.
    cells: what each run differs in.
  """
  of_task = config.sweep.per_task.to_dict().get(task, ())
  if stage == "search":
    train_split = "train"
    test_split = "val"
  else:
    train_split = "trainval"
    test_split = "test"
  out = []
  for cell in cells:
    of_run = ConfigDict(config.to_dict())
    del of_run.sweep
    of_run.mode = "train"
    of_run.task = task
    of_run.data.train_split = train_split
    of_run.data.test_split = test_split
    of_run.checkpoint.keep = 1
    of_run.update_from_flattened_dict({**dict(of_task), **cell})
    _check_trains_together(of_run)
    out.append(config_lib.resolve(of_run))
  return out


def _check_trains_together(config: ConfigDict) -> None:
  """Raises ValueError for a run that cannot train together with others.

  Args:
    config: of the run, not resolved.
  """
  problem = problems.of_run(config)
  if problem.dense:
    raise ValueError(
      f"config.mode='sweep' does not train problem {problem.name!r}, whose "
      "views are cut for each run and would not be shared; start its runs one "
      "by one, config.mode=train with --config.optim.lr=... and "
      "--config.seed=..., and give their folders to `python -m vpt_jax.report`"
    )
  if config.optim.schedule == "poly":
    raise ValueError(
      "config.optim.schedule='poly' changes the rate in every step, and runs "
      "that train together have one for each epoch; take 'cosine' or another "
      "schedule for a sweep, or start runs one by one with config.mode=train"
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of a sweep.

  Attributes:
    config: resolved.
    cell: what it differs in from others.
    id: of its record.
  """

  config: ConfigDict
  cell: Cell
  id: str


class Sweep:
  """A sweep in a folder.

  Attributes:
    config: of the sweep.
    workdir: the folder.
    store: its records.
  """

  def __init__(self, config: ConfigDict, workdir: Path):
    self.config = config
    self.workdir = workdir
    self.store = records.Store(workdir / records.FILE)
    # The latest job, and the group key of the runs that it is for.
    self._job: experiment.Experiment | None = None
    self._job_key = ""

  def finish_task(self, task: str) -> None:
    """Searches and trains for one task, or does what is left of that."""
    with jax.default_matmul_precision(self.config.compute.matmul_precision):
      best = self._search(task)
      seeds = self.config.sweep.seeds
      self.finish(task, "final", [{**best, "seed": seed} for seed in seeds])

  def _search(self, task: str) -> Cell:
    """Returns the best cell of the grid; {} if there is no grid."""
    section = self.config.sweep
    if not section.grid:
      return {}

    def train(cells: list[Cell]) -> list[searches.Score]:
      scores = []
      for record in self.finish(task, "search", cells):
        metric = record.get("metric")  # missing if the run diverged
        scores.append(None if metric is None else record.get(metric))
      return scores

    (base,) = run_configs(self.config, task, "search", [{}])
    best = searches.SEARCHES[section.search](section.grid, train, base)
    log.info("%s: the best of the search is %s", task, best)
    return best

  def finish(
    self, task: str, stage: str, cells: Sequence[Cell]
  ) -> list[records.Record]:
    """Makes the records of these runs that are missing; returns all.

    Args:
      task: of the runs.
      stage: `search` or `final`.
      cells: what each run differs in.

    Returns:
      The records in the order of `cells`.
    """
    configs = run_configs(self.config, task, stage, cells)
    runs = []
    for config, cell in zip(configs, cells, strict=True):
      runs.append(Run(config, cell, config_lib.digest(config, 12)))
    while True:
      known = self._records_by_id()
      if all(run.id in known for run in runs):
        for run in runs:
          files.clear(self._folder(stage, run))  # a kill may have left it
        return [known[run.id] for run in runs]
      if not self._train_groups(stage, runs):
        time.sleep(WAIT)  # other processes have what is left

  def _train_groups(self, stage: str, runs: Sequence[Run]) -> bool:
    """Trains every group that no other process holds.

    Returns:
      Whether anything changed, so that another look need not wait.
    """
    changed = False
    for group, note in self._groups(runs):
      folder = self._folder(stage, group[0])
      try:
        with files.lock(folder):
          changed |= self._train_group(folder, stage, group)
      except files.InUse:
        continue
      except jax.errors.JaxRuntimeError as error:
        can_be_fewer = len(group) > 1 and note.exists()
        if not memory.is_out_of_memory(error) or not can_be_fewer:
          raise
        fewer = len(group) // 2
        log.warning(
          "%d runs together are out of memory; %d from now on",
          len(group),
          fewer,
        )
        files.write_json(note, {"runs": fewer})
        files.clear(folder)
        return True  # the groups are formed anew
    return changed

  def _groups(self, runs: Sequence[Run]) -> Iterator[tuple[list[Run], Path]]:
    """Yields the runs that train together, the same in all processes.

    Yields:
      (runs, the file that notes how many these may be).
    """
    alike: dict[str, dict[str, Run]] = {}  # group key -> id -> run
    for run in runs:
      key = vmapped_runs.group_key(run.config)
      alike.setdefault(key, {}).setdefault(run.id, run)
    for key, by_id in alike.items():
      distinct = list(by_id.values())
      note = self.workdir / "groups" / f"{key}-{len(distinct)}.json"
      size = self._size(note, [run.config for run in distinct])
      # Of nearly equal size, which is at most two programs.
      num_groups = math.ceil(len(distinct) / size)
      for part in np.array_split(np.arange(len(distinct)), num_groups):
        yield [distinct[i] for i in part], note

  def _size(self, note: Path, configs: Sequence[ConfigDict]) -> int:
    """Returns how many of these runs train together.

    What a process has found is noted and holds for all processes.
    """
    if self.config.sweep.group:
      return self.config.sweep.group
    if len(configs) == 1:
      return 1
    if not note.exists():
      fits = vmapped_runs.most_together(self._job_for(configs[0]), configs)
      log.info("%d of %d runs train together", fits, len(configs))
      if not note.exists():  # another process may have been faster
        files.write_json(note, {"runs": fits})
    noted = json_files.read(
      note, {"runs": json_files.POSITIVE}, "delete it, it is made again"
    )
    return noted["runs"]

  def _train_group(
    self, folder: Path, stage: str, group: Sequence[Run]
  ) -> bool:
    """Makes the records of a group; returns whether any was missing."""
    known = self._records_by_id()
    missing = any(run.id not in known for run in group)
    if missing:
      job = self._job_for(group[0].config)
      task = job.config.task
      log.info("%s, %s: %d runs", task, stage, len(group))
      kept = []
      if stage == "final":
        kept = [self.workdir / "runs" / f"{task}-{run.id}" for run in group]
      new = vmapped_runs.run(
        job,
        [run.config for run in group],
        folder,
        stage,
        [run.cell for run in group],
        kept,
      )
      files.check_locks(folder)
      for record in new:
        self.store.add(record)
    shutil.rmtree(folder, ignore_errors=True)
    return missing

  def _records_by_id(self) -> dict[str, records.Record]:
    return {record["id"]: record for record in self.store.read()}

  def _folder(self, stage: str, first: Run) -> Path:
    """Returns the folder of the group that begins with this run."""
    name = f"{first.config.task}-{stage}-{first.id}"
    return self.workdir / "groups" / name

  def _job_for(self, config: ConfigDict) -> experiment.Experiment:
    """Returns what runs share that may train together with this one."""
    key = vmapped_runs.group_key(config)
    if self._job is None or self._job_key != key:
      self._job = None  # its images are let go before others are loaded
      self._job = self._build_job(config)
      self._job_key = key
    return self._job

  def _build_job(self, config: ConfigDict) -> experiment.Experiment:
    """Builds a job; its images and backbone must be those of earlier calls."""
    data = experiment.load_data(config)
    fingerprint = run_folder.fingerprint(data)
    name = f"{config.task}-{config.data.train_split}.json"
    path = self.workdir / "data" / name
    run_folder.check_unchanged(path, fingerprint)
    files.write_json(path, fingerprint)
    job = experiment.build(config, data)
    run_folder.claim_backbone(self.workdir, job.backbone)
    return job


def run(
  config: ConfigDict, workdir: Path, shard: tuple[int, int] = (1, 1)
) -> list[records.Record]:
  """Makes all records of a sweep that are missing.

  Args:
    config: with mode "sweep"; see its section `sweep`.
    workdir: gets config.json, records.jsonl and, of final runs, `runs/`.
    shard: (i, n): every n-th task from the i-th on, counted from 1, in the
      folder `shard-i-of-n` of the workdir if n is not 1.

  Returns:
    All records of that folder.

  Raises:
    ValueError: a config that cannot be used; or, after all others are done,
      tasks that could not be.
  """
  processes.check_not_forked()
  check(config)
  tasks = tuple(config.sweep.tasks) or (config.task,)
  # All configs of all tasks are checked before anything runs.
  cells = [{}, *searches.cells(config.sweep.grid)]
  warnings = set()
  for task in tasks:
    of_task = run_configs(config, task, "search", cells)
    warnings.add(normalization.warning(of_task[0], named_task=True))
  for text in sorted(warnings - {""}):
    log.warning("%s", text)
  first, count = shard
  if not 1 <= first <= count or count > len(tasks):
    raise ValueError(
      f"--shard={first}/{count} of {len(tasks)} tasks; expected i/n with i "
      "from 1 to n, n at most the number of tasks. Processes that share a "
      "disk share one --workdir instead, without --shard"
    )
  if count > 1:  # of its own: WORKDIR may be on a disk without file locks
    workdir /= f"shard-{first}-of-{count}"
  path = workdir / "config.json"
  run_folder.check_unchanged(path, config_lib.plain(config))
  for folder in (workdir, workdir / "runs"):
    files.sweep(folder)
  files.write_json(path, config_lib.plain(config))
  sweep = Sweep(config, workdir)
  failed = []
  for task in tasks[first - 1 :: count]:
    try:
      sweep.finish_task(task)
    except (ValueError, OSError) as error:
      is_full = getattr(error, "errno", None) in system_errors.NO_WRITES
      if len(tasks) == 1 or is_full:
        raise
      text = system_errors.explain(error)
      log.error("%s: %s", task, text)
      failed.append(f"{task}: {text.splitlines()[0]}")
  if failed:
    lines = "\n  ".join(failed)
    raise ValueError(
      f"{len(failed)} of {len(tasks)} tasks could not be done, the others "
      f"are; the same command tries them again:\n  {lines}"
    )
  return sweep.store.read()
