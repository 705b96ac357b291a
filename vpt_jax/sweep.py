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

from collections.abc import Callable, Iterator, Sequence
import itertools
import json
from pathlib import Path
import shutil
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import checkpoint, config as configs, files, group, job as jobs
from vpt_jax import logs, results, tree

log = logs.log

Cell = dict[str, Any]  # field -> value
Axes = Sequence[tuple[str, Sequence[Any]]]
Score = float | None  # None: it diverged
Ask = Callable[[list[Cell]], list[Score]]

# Of successive halving: a third of the runs goes on, three times as long.
KEEP, RUNGS = 3, 3
WAIT = 5.0  # seconds between looks at what other processes do


class AllDiverged(ValueError):
  """No run of a search has a score."""


def cells(axes: Axes) -> list[Cell]:
  """All combinations, the last axis fastest."""
  return [dict(zip((field for field, _ in axes), values))
          for values in itertools.product(*(values for _, values in axes))]


def best(tried: Sequence[Cell], scores: Sequence[Score]) -> list[int]:
  """Numbers of the runs with a score, best first; ties: smaller rate first."""
  rank = lambda i: (-scores[i], tried[i].get("optim.lr", 0.0), i)
  order = sorted((i for i, score in enumerate(scores) if score is not None),
                 key=rank)
  if not order:
    raise AllDiverged(f"all {len(tried)} runs of the search diverged; take "
                      "smaller values of optim.lr into config.sweep.grid")
  return order


def grid(axes: Axes, ask: Ask, base: ConfigDict) -> Cell:
  """Tries every combination, as VPT."""
  del base
  tried = cells(axes)
  return tried[best(tried, ask(tried))[0]]


def coordinate(axes: Axes, ask: Ask, base: ConfigDict) -> Cell:
  """One axis after the other, the last one first, as VAPT's `--fast`: the
  decay at the first rate, then the rate with the best decay."""
  del base
  chosen = {field: values[0] for field, values in axes}
  for field, values in reversed(axes):
    tried = [{**chosen, field: value} for value in values]
    chosen = tried[best(tried, ask(tried))[0]]
  return chosen


def halving(axes: Axes, ask: Ask, base: ConfigDict) -> Cell:
  """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943).

  All runs train for a ninth of the epochs (with a schedule of that length),
  the best third of them for a third, the best third of these for all.
  """
  tried = cells(axes)
  for rung in reversed(range(RUNGS)):
    short = lambda epochs: -(-epochs // KEEP**rung)
    length = {"epochs": short(base.epochs), "optim.warmup_epochs":
              short(base.optim.warmup_epochs)} if rung else {}
    order = best(tried, ask([{**cell, **length} for cell in tried]))
    tried = [tried[i] for i in order[:-(-len(tried) // KEEP)]]
  return tried[0]


SEARCHES = {"grid": grid, "coordinate": coordinate, "halving": halving}


def check(config: ConfigDict) -> None:
  """Raises ValueError for a section `sweep` that can't be used."""
  section = config.sweep
  tree.choose(section.search, SEARCHES, "sweep.search")
  if "condense" in config and config.condense.shares:
    raise ValueError("config.mode='sweep' does not condense; set "
                     "config.condense.shares=()")
  if not section.seeds or section.group < 0:
    raise ValueError(f"config.sweep.seeds={tuple(section.seeds)}, group="
                     f"{section.group}; expected one seed or more, and a "
                     "number of runs, 0 for as many as fit")
  for axis in section.grid:
    if len(axis) != 2 or isinstance(axis[1], str) or not len(axis[1]):
      raise ValueError(f"config.sweep.grid has {axis!r}; expected (field, "
                       "(value, ...)), as ('optim.lr', (0.5, 1.0))")
  known = {name.replace("/", ".") for name in tree.flatten(config.to_dict())}
  fields = [field for field, _ in section.grid]
  for changes in section.per_task.to_dict().values():
    fields += [field for field, _ in changes]
  for field in fields:
    tree.choose(field, known, "field of config.sweep")


def members(config: ConfigDict, task: str, stage: str, wanted: Sequence[Cell]
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
        ("train", "val") if stage == "search" else ("trainval", "test"))
    one.checkpoint.keep = 1
    one.update_from_flattened_dict({**changes, **cell})
    out.append(configs.resolve(one))
  return out


class Sweep:
  """A sweep in a folder."""

  def __init__(self, config: ConfigDict, workdir: Path):
    self.config, self.workdir = config, workdir
    self.store = results.Store(workdir / results.FILE)
    self._job: tuple[str, jobs.Job] | None = None

  def task(self, task: str) -> None:
    """Searches and trains for one task, or what is left of that."""
    with jax.default_matmul_precision(self.config.compute.matmul_precision):
      self._task(task)

  def _task(self, task: str) -> None:
    section, chosen = self.config.sweep, {}
    if section.grid:
      base, = members(self.config, task, "search", [{}])
      ask = lambda wanted: [record.get(record.get("metric")) for record in
                            self.done(task, "search", wanted)]
      chosen = SEARCHES[section.search](section.grid, ask, base)
      log.info("%s: the best of the search is %s", task, chosen)
    self.done(task, "final", [{**chosen, "seed": seed}
                              for seed in section.seeds])

  def done(self, task: str, stage: str, wanted: Sequence[Cell]
           ) -> list[results.Record]:
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
      for numbers in self._groups(one, ids):
        folder = self.workdir / "groups" / f"{task}-{stage}-{ids[numbers[0]]}"
        try:
          with files.lock(folder):
            worked |= self._make(folder, stage, [
                (one[i], ids[i], wanted[i]) for i in numbers])
        except files.InUse:
          continue
      if not worked:  # other processes have what is left
        time.sleep(WAIT)

  def _groups(self, one: Sequence[ConfigDict], ids: Sequence[str]
              ) -> Iterator[list[int]]:
    """Numbers of the runs that train together: the same in all processes."""
    alike: dict[str, list[int]] = {}
    for i, config in enumerate(one):
      if ids[i] not in ids[:i]:
        alike.setdefault(group.key(config), []).append(i)
    for name, numbers in alike.items():
      size = self._size(name, [one[i] for i in numbers])
      # Of nearly equal size, which is at most two programs.
      for part in np.array_split(numbers, -(-len(numbers) // size)):
        yield part.tolist()

  def _size(self, name: str, alike: Sequence[ConfigDict]) -> int:
    """How many of these runs train together; what was found first holds."""
    if self.config.sweep.group or len(alike) == 1:
      return self.config.sweep.group or 1
    path = self.workdir / "groups" / f"{name}-{len(alike)}.json"
    if not path.exists():
      fits = group.most(self._built(alike[0]), alike)
      log.info("%d of %d runs train together", fits, len(alike))
      if not path.exists():  # another process may have been faster
        files.write_json(path, {"runs": fits})
    return json.loads(path.read_text())["runs"]

  def _make(self, folder: Path, stage: str,
            runs: Sequence[tuple[ConfigDict, str, Cell]]) -> bool:
    """Makes the records of a group that lack; whether there were any."""
    known = {record["id"] for record in self.store.read()}
    lacking = any(name not in known for _, name, _ in runs)
    if lacking:
      one, ids, wanted = zip(*runs)
      job = self._built(one[0])
      log.info("%s, %s: %d runs", job.config.task, stage, len(runs))
      keep = [self.workdir / "runs" / f"{job.config.task}-{name}"
              for name in ids]
      for record in group.run(job, one, folder, stage, wanted,
                              keep if stage == "final" else ()):
        self.store.add(record)
    shutil.rmtree(folder, ignore_errors=True)
    return lacking

  def _built(self, config: ConfigDict) -> jobs.Job:
    """What runs share that may be in one group with this one."""
    name = group.key(config)
    if self._job is None or self._job[0] != name:
      self._job = None  # its images are let go first
      data = jobs.load_data(config)
      path = self.workdir / "data" / (
          f"{config.task}-{config.data.train_split}.json")
      jobs.check_unchanged(path, jobs.fingerprint(data))
      files.write_json(path, jobs.fingerprint(data))
      job = jobs.build(config, data)
      path = self.workdir / "backbone.json"
      if path.exists():
        checkpoint.check_backbone(str(self.workdir),
                                  json.loads(path.read_text()), job.backbone)
      files.write_json(path, job.backbone)
      self._job = name, job
    return self._job[1]


def run(config: ConfigDict, workdir: Path, shard: tuple[int, int] = (1, 1)
        ) -> list[results.Record]:
  """All of a sweep that is not done yet.

  Args:
    config: with mode "sweep"; see the section `sweep` in `configs/common.py`.
    workdir: gets config.json, records.jsonl and, of final runs, `runs/`.
    shard: (i, n): every n-th task from the i-th on, counted from 1.

  Returns:
    All records of the folder.

  Raises:
    ValueError: a config that can't be used; or, after all others are done,
      tasks that could not be.
  """
  check(config)
  names = tuple(config.sweep.tasks) or (config.task,)
  for name in names:  # before anything runs
    members(config, name, "search", [{}, *cells(config.sweep.grid)])
  first, count = shard
  if not 1 <= first <= count or count > len(names):
    raise ValueError(
        f"--shard={first}/{count} of {len(names)} tasks; expected i/n with i "
        "from 1 to n, n at most the number of tasks. Processes that share a "
        "disk share one --workdir instead, without --shard")
  jobs.check_unchanged(workdir / "config.json", configs.plain(config))
  files.write_json(workdir / "config.json", configs.plain(config))
  sweep, failed = Sweep(config, workdir), []
  for name in names[first - 1::count]:
    try:
      sweep.task(name)
    except (ValueError, OSError) as error:
      if len(names) == 1:
        raise
      log.error("%s: %s", name, error)
      failed.append(f"{name}: {str(error).splitlines()[0]}")
  if failed:
    raise ValueError(f"{len(failed)} of {len(names)} tasks could not be done, "
                     "the others are; the same command tries them again:\n  "
                     + "\n  ".join(failed))
  return sweep.store.read()
