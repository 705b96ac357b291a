"""The protocol of the papers: hyper-parameters are searched on a part of the
training images, the best ones train on all of them with several seeds.

For each task:

  search   runs of the grid on train/val, one seed; the best by the validation
           score of the last epoch, ties to the smaller rate
  final    the best one on trainval/test with every seed

Runs are told apart by their configs alone, and `records.jsonl` says which are
done: the same command goes on wherever it was killed. Several processes may
have the same workdir, on machines that share it: each takes groups of runs that
no other one holds. Without a shared disk, `--shard=1/8` takes every eighth
task.
"""

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
import shutil
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as configs
from vpt_jax.distributed import memory
from vpt_jax.sweeps import searches, vmapped_runs
from vpt_jax.sweeps.searches import Cell
from vpt_jax.training import checkpoints, metrics, records
from vpt_jax.training import experiment as jobs
from vpt_jax.utils import files, lookup, trees

log = metrics.log

WAIT = 5.0  # seconds between looks at what other processes do


def check(config: ConfigDict) -> None:
  """Raises ValueError for a section `sweep` that can't be used."""
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
    if len(axis) != 2 or isinstance(axis[1], str) or not len(axis[1]):
      raise ValueError(
        f"config.sweep.grid has {axis!r}; expected (field, "
        "(value, ...)), as ('optim.lr', (0.5, 1.0))"
      )
  known = {name.replace("/", ".") for name in trees.flatten(config.to_dict())}
  fields = [field for field, _ in section.grid]
  for changes in section.per_task.to_dict().values():
    fields += [field for field, _ in changes]
  for field in fields:
    lookup.choose(field, known, "field of config.sweep")


def members(
  config: ConfigDict, task: str, stage: str, wanted: Sequence[Cell]
) -> list[ConfigDict]:
  """Resolved configs of runs, each as if it were run alone.

  Args:
    config: of the sweep.
    task: of these runs.
    stage: `search` or `final`.
    wanted: what they differ in.
  """
  out = []
  for cell in wanted:
    one = ConfigDict(config.to_dict())
    changes = dict(one.sweep.per_task.to_dict().get(task, ()))
    del one.sweep
    one.mode, one.task = "train", task
    one.data.train_split, one.data.test_split = (
      ("train", "val") if stage == "search" else ("trainval", "test")
    )
    one.checkpoint.keep = 1
    one.update_from_flattened_dict({**changes, **cell})
    out.append(configs.resolve(one))
  return out


class Sweep:
  """A sweep in a folder."""

  def __init__(self, config: ConfigDict, workdir: Path):
    self.config, self.workdir = config, workdir
    self.store = records.Store(workdir / records.FILE)
    self._job: tuple[str, jobs.Job] | None = None

  def task(self, task: str) -> None:
    """Searches and trains for one task, or what is left of that."""
    with jax.default_matmul_precision(self.config.compute.matmul_precision):
      self._task(task)

  def _task(self, task: str) -> None:
    section, chosen = self.config.sweep, {}
    if section.grid:
      (base,) = members(self.config, task, "search", [{}])
      ask = lambda wanted: [
        record.get(record.get("metric"))
        for record in self.done(task, "search", wanted)
      ]
      chosen = searches.SEARCHES[section.search](section.grid, ask, base)
      log.info("%s: the best of the search is %s", task, chosen)
    self.done(
      task, "final", [{**chosen, "seed": seed} for seed in section.seeds]
    )

  def done(
    self, task: str, stage: str, wanted: Sequence[Cell]
  ) -> list[records.Record]:
    """Records of these runs, in this order; those that lack are made."""
    one = members(self.config, task, stage, wanted)
    ids = [configs.digest(config, 12) for config in one]
    while True:
      known = {record["id"]: record for record in self.store.read()}
      if all(name in known for name in ids):
        for name in ids:  # a kill may have left it
          files.clear(self.workdir / "groups" / f"{task}-{stage}-{name}")
        return [known[name] for name in ids]
      worked = False
      for numbers, note in self._groups(one, ids):
        folder = self.workdir / "groups" / f"{task}-{stage}-{ids[numbers[0]]}"
        try:
          with files.lock(folder):
            worked |= self._make(
              folder, stage, [(one[i], ids[i], wanted[i]) for i in numbers]
            )
        except files.InUse:
          continue
        except jax.errors.JaxRuntimeError as error:
          if (
            not memory.is_out_of_memory(error)
            or len(numbers) == 1
            or (not note.exists())
          ):
            raise
          fewer = len(numbers) // 2
          log.warning(
            "%d runs together are out of memory; %d from now on",
            len(numbers),
            fewer,
          )
          files.write_json(note, {"runs": fewer})
          files.clear(folder)
          worked = True
          break  # they are put together anew
      if not worked:  # other processes have what is left
        time.sleep(WAIT)

  def _groups(
    self, one: Sequence[ConfigDict], ids: Sequence[str]
  ) -> Iterator[tuple[list[int], Path]]:
    """Numbers of the runs that train together, the same in all processes, and
    the note of how many these may be."""
    alike: dict[str, list[int]] = {}
    for i, config in enumerate(one):
      if ids[i] not in ids[:i]:
        alike.setdefault(vmapped_runs.key(config), []).append(i)
    for name, numbers in alike.items():
      note = self.workdir / "groups" / f"{name}-{len(numbers)}.json"
      size = self._size(note, [one[i] for i in numbers])
      # Of nearly equal size, which is at most two programs.
      for part in np.array_split(numbers, -(-len(numbers) // size)):
        yield part.tolist(), note

  def _size(self, note: Path, alike: Sequence[ConfigDict]) -> int:
    """How many of these runs train together; what was found first holds."""
    if self.config.sweep.group or len(alike) == 1:
      return self.config.sweep.group or 1
    if not note.exists():
      fits = vmapped_runs.most(self._built(alike[0]), alike)
      log.info("%d of %d runs train together", fits, len(alike))
      if not note.exists():  # another process may have been faster
        files.write_json(note, {"runs": fits})
    return json.loads(note.read_text())["runs"]

  def _make(
    self, folder: Path, stage: str, runs: Sequence[tuple[ConfigDict, str, Cell]]
  ) -> bool:
    """Makes the records of a group that lack; whether there were any."""
    known = {record["id"] for record in self.store.read()}
    lacking = any(name not in known for _, name, _ in runs)
    if lacking:
      one, ids, wanted = zip(*runs)
      job = self._built(one[0])
      log.info("%s, %s: %d runs", job.config.task, stage, len(runs))
      keep = [
        self.workdir / "runs" / f"{job.config.task}-{name}" for name in ids
      ]
      for record in vmapped_runs.run(
        job, one, folder, stage, wanted, keep if stage == "final" else ()
      ):
        self.store.add(record)
    shutil.rmtree(folder, ignore_errors=True)
    return lacking

  def _built(self, config: ConfigDict) -> jobs.Job:
    """What runs share that may be in one group with this one."""
    name = vmapped_runs.key(config)
    if self._job is None or self._job[0] != name:
      self._job = None  # its images are let go first
      data = jobs.load_data(config)
      path = (
        self.workdir
        / "data"
        / (f"{config.task}-{config.data.train_split}.json")
      )
      jobs.check_unchanged(path, jobs.fingerprint(data))
      files.write_json(path, jobs.fingerprint(data))
      job = jobs.build(config, data)
      path = self.workdir / "backbone.json"
      if path.exists():
        checkpoints.check_backbone(
          str(self.workdir), json.loads(path.read_text()), job.backbone
        )
      files.write_json(path, job.backbone)
      self._job = name, job
    return self._job[1]


def run(
  config: ConfigDict, workdir: Path, shard: tuple[int, int] = (1, 1)
) -> list[records.Record]:
  """All of a sweep that is not done yet.

  Args:
    config: with mode "sweep"; see the section `sweep` in `vpt_jax/config/sections.py`.
    workdir: gets config.json, records.jsonl and, of final runs, `runs/`.
    shard: (i, n): every n-th task from the i-th on, counted from 1, in the
      folder `shard-i-of-n` of the workdir if n is not 1.

  Returns:
    All records of that folder.

  Raises:
    ValueError: a config that can't be used; or, after all others are done,
      tasks that could not be.
  """
  check(config)
  names = tuple(config.sweep.tasks) or (config.task,)
  for name in names:  # before anything runs
    members(config, name, "search", [{}, *searches.cells(config.sweep.grid)])
  first, count = shard
  if not 1 <= first <= count or count > len(names):
    raise ValueError(
      f"--shard={first}/{count} of {len(names)} tasks; expected i/n with i "
      "from 1 to n, n at most the number of tasks. Processes that share a "
      "disk share one --workdir instead, without --shard"
    )
  if count > 1:  # of its own: WORKDIR may be on a disk without file locks
    workdir /= f"shard-{first}-of-{count}"
  jobs.check_unchanged(workdir / "config.json", configs.plain(config))
  files.write_json(workdir / "config.json", configs.plain(config))
  sweep, failed = Sweep(config, workdir), []
  for name in names[first - 1 :: count]:
    try:
      sweep.task(name)
    except (ValueError, OSError) as error:
      if len(names) == 1:
        raise
      log.error("%s: %s", name, error)
      failed.append(f"{name}: {str(error).splitlines()[0]}")
  if failed:
    raise ValueError(
      f"{len(failed)} of {len(names)} tasks could not be done, "
      "the others are; the same command tries them again:\n  "
      + "\n  ".join(failed)
    )
  return sweep.store.read()
