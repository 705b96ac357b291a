"""Sweeps: the protocol, and that killed ones end with the same records.

Most tests are of the protocol alone, with made-up scores in place of training;
the last ones train and are killed in processes of their own.
"""

import contextlib
import errno
import fcntl
import multiprocessing
from pathlib import Path
import random
import shutil
import sys
import time
from types import SimpleNamespace

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import common, sweep_mini, sweep_vtab

# The first for its backbones, in processes of their own too.
from tests import conftest, report_records
import vpt_jax
from vpt_jax import config as config_lib
from vpt_jax import main
from vpt_jax import model as model_lib
from vpt_jax.data import tasks
from vpt_jax.sweeps import protocol, searches, vmapped_runs
from vpt_jax.training import adapter_files, experiment
from vpt_jax.training.records import FILE, find, Store
from vpt_jax.utils import files, trees
from vpt_jax.weights import load

del conftest
GRID = (("optim.lr", (0.5, 2.0)), ("optim.weight_decay", (0.01, 0.0)))
CELLS = [
  {"optim.lr": lr, "optim.weight_decay": decay}
  for lr in (0.5, 2.0)
  for decay in (0.01, 0.0)
]
SEEDS = (42, 44)
TASKS = ("bright", "dark")
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def without_times(records):
  """Id -> record, but for what may differ."""
  assert len({record["id"] for record in records}) == len(records)
  return {
    record["id"]: {
      name: value
      for name, value in record.items()
      if name not in ("seconds", "images_per_second")
    }
    for record in records
  }


# The search.


def test_cells_with_the_last_axis_fastest():
  assert searches.cells(GRID) == CELLS
  assert searches.cells(()) == [{}]


def test_best():
  tried = [{"optim.lr": lr} for lr in (5.0, 1.0, 0.1, 2.0)]
  assert searches.best(tried, [70.0, 90.0, 80.0, 10.0]) == [1, 2, 0, 3]
  assert searches.best(tried, [90.0, 90.0, 80.0, 90.0]) == [1, 3, 0, 2]
  assert searches.best(tried, [None, 0.0, None, 50.0]) == [3, 1]
  # Without rates, or with the same: the first.
  assert searches.best([{"seed": 2}, {"seed": 1}], [5.0, 5.0]) == [0, 1]


def test_all_diverged_is_an_error_that_says_what_to_do():
  with pytest.raises(
    searches.AllDiverged,
    match="all 4 runs .* smaller values of optim.lr into config.sweep.grid",
  ):
    searches.best(CELLS, [None] * 4)


class Asked:
  """Answers with `score(cell)`, and keeps what was asked for."""

  def __init__(self, score):
    self.score, self.batches = score, []

  def __call__(self, wanted):
    self.batches.append(wanted)
    return [self.score(cell) for cell in wanted]


AXES = (("optim.lr", (5.0, 1.0, 0.1)), ("optim.weight_decay", (0.1, 0.01)))


def of_table(*rows):
  """Scores by rate and decay."""
  scores = {
    (lr, decay): value
    for lr, row in zip(AXES[0][1], rows)
    for decay, value in zip(AXES[1][1], row)
  }
  return lambda cell: scores[cell["optim.lr"], cell["optim.weight_decay"]]


def cell(lr, decay, **more):
  return {"optim.lr": lr, "optim.weight_decay": decay, **more}


def test_grid_asks_for_all_at_once():
  ask = Asked(of_table((1, 2), (3, 9), (9, 4)))
  assert searches.grid(AXES, ask, ConfigDict()) == cell(0.1, 0.1)
  assert ask.batches == [searches.cells(AXES)]


def test_coordinate_tries_the_decay_first():
  # The best of all, (0.1, 0.1), is not where it looks.
  ask = Asked(of_table((1, 2), (3, 4), (9, 3)))
  assert searches.coordinate(AXES, ask, ConfigDict()) == cell(1.0, 0.01)
  assert ask.batches == [
    [cell(5.0, 0.1), cell(5.0, 0.01)],
    [cell(5.0, 0.01), cell(1.0, 0.01), cell(0.1, 0.01)],
  ]


def test_halving():
  """12 runs for 12 of 100 epochs, 4 for 34, 2 for all."""
  axes = (("optim.lr", tuple(range(1, 13))),)
  ranks = {12: lambda lr: lr, 34: lambda lr: -lr, 0: lambda lr: lr}
  ask = Asked(lambda one: ranks[one.get("epochs", 0)](one["optim.lr"]))
  base = ConfigDict({"epochs": 100, "optim": {"warmup_epochs": 10}})
  assert searches.halving(axes, ask, base) == {"optim.lr": 10}
  of = lambda rates, **length: [{"optim.lr": lr, **length} for lr in rates]
  assert ask.batches == [
    of(range(1, 13), **{"epochs": 12, "optim.warmup_epochs": 2}),
    of((12, 11, 10, 9), **{"epochs": 34, "optim.warmup_epochs": 4}),
    of((9, 10)),
  ]


def test_halving_of_few_runs_without_warm_up():
  ask = Asked(lambda one: None if one["optim.lr"] == 3 else one["optim.lr"])
  base = ConfigDict({"epochs": 1, "optim": {"warmup_epochs": 0}})
  assert searches.halving((("optim.lr", (1, 2, 3)),), ask, base) == {
    "optim.lr": 2
  }
  assert [len(batch) for batch in ask.batches] == [3, 1, 1]
  assert ask.batches[0][0] == {
    "optim.lr": 1,
    "epochs": 1,
    "optim.warmup_epochs": 0,
  }


# A sweep of two tasks of one's own.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A config file whose sweep takes seconds; its data are beside it."""
  folder = tmp_path_factory.mktemp("tiny")
  for seed, task in enumerate(TASKS):
    write_task(folder / f"{task}.npz", seed)
  config = common.embedded(common.get_config())
  config.backbone.name, config.image_size = "vit_test", 8
  model = model_lib.build(config_lib.resolve(config), 3)
  load.save(
    folder / "backbone.npz",
    trees.flatten(
      model_lib.init(model, jax.random.key(7), ["backbone"])["backbone"]
    ),
  )
  (folder / "configs").mkdir()
  path = folder / "configs" / "tiny.py"
  path.write_text(f"""
from configs import common


def get_config(method="linear"):
  config = common.get_config()
  config.method, config.task = method, "bright"
  config.backbone.name, config.image_size = "vit_test", 8
  config.backbone.checkpoint = {str(folder / "backbone.npz")!r}
  config.epochs, config.batch_size = 3, 16
  config.optim.warmup_epochs = 1
  config.checkpoint.every_epochs = 1
  config.sweep.seeds, config.sweep.grid = {SEEDS}, {GRID}
  by_task = {{}}
  for task in {TASKS}:
    by_task[task] = config.copy_and_resolve_references()
    by_task[task].data.source = f"npz:{folder}/{{task}}.npz"
  return common.swept(config, "tiny", by_task)
""")
  return path


def write_task(path, seed):
  rng = np.random.default_rng(seed)
  labels = np.arange(90) % 3
  images = (
    rng.integers(0, 220, (90, 8, 8, 3)) + 15 * labels[:, None, None, None]
  )
  np.savez(
    path,
    images=images.astype(np.uint8),
    labels=labels,
    split=np.repeat(["train", "val", "test"], [39, 21, 30]),
  )


def config_of(path, *args):
  return config_lib.parse(["main", f"--config={path}", *args]).config


def run(capsys, *args):
  """(status, stdout, stderr) of the command."""
  status = main.main(["main", *args])
  captured = capsys.readouterr()
  main.log.handlers.clear()
  main.log.propagate = True
  return status, captured.out, captured.err


def val_score(config):
  """The second best rate by test images is the best by validation images."""
  return {
    "bright": {
      (0.5, 0.01): 10.0,
      (0.5, 0.0): 60.0,
      (2.0, 0.01): 60.0,
      (2.0, 0.0): None,
    },
    "dark": {
      (0.5, 0.01): 10.0,
      (0.5, 0.0): 60.0,
      (2.0, 0.01): 70.0,
      (2.0, 0.0): 60.0,
    },
  }[config.task][config.optim.lr, config.optim.weight_decay]


BEST = {"bright": CELLS[1], "dark": CELLS[2]}  # a tie, and not


@pytest.fixture
def made_up(monkeypatch):
  """Records without training: groups that were run, in `.groups`."""
  known = SimpleNamespace(groups=[], score=val_score, fits=100)

  def fake(job, members, folder, stage, cells, keep=()):
    known.groups.append([one.optim.lr for one in members])
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "1").write_text("state")
    out = []
    for i, (one, wanted) in enumerate(zip(members, cells)):
      score = known.score(one) if stage == "search" else 100 - one.seed / 10
      made = report_records.record(
        one.name,
        status="diverged" if score is None else "done",
        task=one.task,
        split=one.data.test_split,
        seed=one.seed,
        stage=stage,
        method=one.method,
        cell=dict(wanted),
        metric="mean_per_class",
        backbone=one.backbone.name,
        top1=0.0,
      )
      scores = (
        {}
        if score is None
        else {"mean_per_class": score, "top1": 100.0 - score}
      )
      out.append(
        {
          **made,
          **scores,
          "id": config_lib.digest(one, 12),
          "config": config_lib.plain(one),
          "group": len(members),
        }
      )
      if keep:
        files.write_atomic(keep[i] / "adapter.npz", b"values")
    return out

  def build(config, data):
    return SimpleNamespace(
      config=config,
      backbone={"name": "vit_test", "sha256": "ab" * 32},
      data=data,
    )

  def most(job, members):
    keys = {vmapped_runs.group_key(one) for one in (job.config, members[0])}
    assert len(keys) == 1
    return min(known.fits, len(members))

  monkeypatch.setattr(vmapped_runs, "run", fake)
  monkeypatch.setattr(vmapped_runs, "most_together", most)
  monkeypatch.setattr(experiment, "build", build)
  return known


def test_the_protocol(tiny, tmp_path, made_up):
  records = protocol.run(config_of(tiny), tmp_path)
  assert records == Store(tmp_path / FILE).read()
  for task in TASKS:
    own = [record for record in records if record["task"] == task]
    search, final = own[:4], own[4:]
    assert [record["cell"] for record in search] == CELLS
    assert [record["cell"] for record in final] == [
      {**BEST[task], "seed": seed} for seed in SEEDS
    ]
    for one, stage, parts in (
      (search, "search", ("train", "val")),
      (final, "final", ("trainval", "test")),
    ):
      assert {record["stage"] for record in one} == {stage}
      for record in one:
        config = record["config"]
        assert (
          config["data"]["train_split"],
          config["data"]["test_split"],
        ) == parts
        assert config["data"]["source"].endswith(f"{task}.npz")
        assert config["optim"]["lr"] == record["cell"]["optim.lr"]
        assert (
          config["optim"]["weight_decay"]
          == record["cell"]["optim.weight_decay"]
        )
        assert config["task"] == task and config["name"] == "tiny"
        assert config["mode"] == "train" and "sweep" not in config
    assert {record["config"]["seed"] for record in search} == {42}
    assert [record["config"]["seed"] for record in final] == [*SEEDS]
  assert len(records) == 12
  assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(
    f"{record['task']}-{record['id']}"
    for record in records
    if record["stage"] == "final"
  )
  assert leftovers(tmp_path) == []
  # All of a grid together, and the seeds of the best.
  assert [len(one) for one in made_up.groups] == [4, 2, 4, 2]
  before = (tmp_path / FILE).read_bytes()
  assert protocol.run(config_of(tiny), tmp_path) == records
  assert len(made_up.groups) == 4  # nothing was run again
  assert (tmp_path / FILE).read_bytes() == before


def leftovers(workdir):
  """What `groups/` has beside notes, and half-written notes of killed ones."""
  folder = workdir / "groups"
  return (
    [
      path.name
      for path in folder.iterdir()
      if path.suffix != ".json" and ".json." not in path.name
    ]
    if folder.exists()
    else []
  )


@pytest.mark.parametrize("search,runs", [("coordinate", 3), ("halving", 7)])
def test_other_searches_share_their_runs(tiny, tmp_path, made_up, search, runs):
  """Coordinate: the first rate with the best decay is one of both its rows."""
  args = [
    f"--config.sweep.search={search}",
    "--config.sweep.tasks=('dark',)",
    "--config.epochs=18",
  ]
  records = protocol.run(config_of(tiny, *args), tmp_path)
  assert sum(record["stage"] == "search" for record in records) == runs
  assert len(without_times(records)) == runs + 2


def test_without_a_grid_there_are_only_seeds(tiny, tmp_path, made_up):
  records = protocol.run(config_of(tiny, "--config.sweep.grid=()"), tmp_path)
  assert [(record["stage"], record["cell"]) for record in records] == 2 * [
    ("final", {"seed": seed}) for seed in SEEDS
  ]
  assert {record["config"]["optim"]["lr"] for record in records} == {1.0}


def test_all_of_a_task_diverged(tiny, tmp_path, made_up, capsys):
  made_up.score = lambda config: (
    None if config.task == "bright" else val_score(config)
  )
  status, _, err = run(capsys, f"--config={tiny}", f"--workdir={tmp_path}")
  assert status == 1
  assert "1 of 2 tasks could not be done" in err
  assert "bright: all 4 runs of the search diverged" in err
  stages = [
    (record["task"], record["stage"])
    for record in Store(tmp_path / FILE).read()
  ]
  assert stages == 4 * [("bright", "search")] + 4 * [("dark", "search")] + (
    2 * [("dark", "final")]
  )


@pytest.mark.parametrize(
  "wanted,fits,sizes",
  [
    (3, 100, [2, 2, 2]),
    (1, 100, [1] * 6),
    (0, 3, [2, 2, 2]),
    (0, 1, [1] * 6),
    (4, 1, [4, 2]),
    (7, 1, [4, 2]),
  ],
)
def test_sizes_of_groups(tiny, tmp_path, made_up, wanted, fits, sizes):
  made_up.fits = fits
  config = config_of(
    tiny, f"--config.sweep.group={wanted}", "--config.sweep.tasks=('dark',)"
  )
  records = protocol.run(config, tmp_path)
  assert [len(one) for one in made_up.groups] == sizes
  assert len(records) == 6 and leftovers(tmp_path) == []


def test_what_fits_is_found_once(tiny, tmp_path, made_up, monkeypatch):
  """Another process, with less memory free, makes the same groups."""
  made_up.fits = 3
  config = config_of(tiny, "--config.sweep.tasks=('dark',)")

  def killed(self, record):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(Store, "add", killed)
    with pytest.raises(KeyboardInterrupt):
      protocol.run(config, tmp_path)
  made_up.fits = 1
  protocol.run(config, tmp_path)
  # The first two groups of the search, then what is fresh: one by one.
  assert [len(one) for one in made_up.groups] == [2, 2, 2, 1, 1]


def test_runs_that_do_not_fit_after_all(tiny, tmp_path, made_up, monkeypatch):
  """Half as many, also when the same command is given again."""
  run = vmapped_runs.run

  def full(job, members, *rest):
    if len(members) > made_up.memory:
      made_up.failed.append(len(members))
      raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes."
      )
    return run(job, members, *rest)

  monkeypatch.setattr(vmapped_runs, "run", full)
  made_up.memory, made_up.failed = 1, []
  config = config_of(tiny, "--config.sweep.tasks=('dark',)")
  records = protocol.run(config, tmp_path)
  assert len(records) == 6 and leftovers(tmp_path) == []
  assert made_up.failed == [4, 2, 2]  # of the search, and of the seeds
  assert [len(one) for one in made_up.groups] == [1] * 6
  made_up.memory = 0
  with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
    protocol.run(config, tmp_path / "one")
  # A number that was asked for is not changed.
  made_up.memory, config.sweep.group = 1, 2
  with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
    protocol.run(config, tmp_path / "asked")


def test_a_note_of_what_fits_is_not_changed_by_another_process(
  tiny, tmp_path, made_up, monkeypatch
):
  """Both looked for it before either wrote it: the first one's holds, for it
  may be training such groups already."""
  config = config_of(tiny, "--config.sweep.tasks=('dark',)")
  most = vmapped_runs.most_together

  def slow(job, members):
    if made_up.fits:
      made_up.fits, other = 0, protocol.Sweep(config, tmp_path)
      wanted = protocol.run_configs(config, "dark", "search", CELLS)
      note = tmp_path / "groups" / f"{vmapped_runs.group_key(wanted[0])}-4.json"
      made_up.first = other._size(note, wanted)
      return 4
    del job, members
    return 1

  monkeypatch.setattr(vmapped_runs, "most_together", slow)
  del most
  protocol.run(config, tmp_path)
  assert made_up.first == 1
  assert [len(one) for one in made_up.groups][:4] == [1, 1, 1, 1]


@pytest.mark.parametrize("text", ["", '{"runs": 0}', '{"runs": "4"}', "[4]"])
def test_a_damaged_note_of_how_many_is_named(tiny, tmp_path, made_up, text):
  config = config_of(tiny, "--config.sweep.tasks=('dark',)")
  wanted = protocol.run_configs(config, "dark", "search", CELLS)
  note = tmp_path / "groups" / f"{vmapped_runs.group_key(wanted[0])}-4.json"
  note.parent.mkdir()
  note.write_text(text)
  with pytest.raises(ValueError, match=f"{note}: .*delete it"):
    protocol.run(config, tmp_path)
  assert not made_up.groups


# Killed.

KILLED_AT = (
  (Store, "add"),
  (files, "write_atomic"),
  (shutil, "rmtree"),
  (vmapped_runs, "run"),
)


def test_killed_before_or_after_every_write(
  tiny, tmp_path, made_up, monkeypatch
):
  """At each place in turn; the same command then goes on to the same end."""
  config = config_of(
    tiny, "--config.sweep.tasks=('dark',)", "--config.sweep.group=2"
  )
  want = without_times(protocol.run(config, tmp_path / "whole"))
  countdown = []

  def watched(function):
    def call(*given, **options):
      tick()
      out = function(*given, **options)
      tick()
      return out

    return call

  def tick():
    countdown[0] -= 1
    if not countdown[0]:
      raise KeyboardInterrupt

  for owner, name in KILLED_AT:
    monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
  left = {}
  for place in range(1, 1000):
    workdir = tmp_path / str(place)
    countdown[:] = [place]
    try:
      protocol.run(config, workdir)
      break
    except KeyboardInterrupt:
      countdown[:] = [0]
      got = protocol.run(config, workdir)
    assert without_times(got) == want, place
    assert {path.name for path in (workdir / "runs").iterdir()} == {
      path.name for path in (tmp_path / "whole" / "runs").iterdir()
    }, place
    left |= {place: leftovers(workdir)} if leftovers(workdir) else {}
  assert place > 30
  assert left == {}


def test_another_process_may_clear_a_group_away_at_any_time(
  tiny, tmp_path, made_up, monkeypatch
):
  """It is done with what this one is about to look at."""
  config = config_of(tiny, "--config.sweep.tasks=('dark',)")
  made, mkdir = [], Path.mkdir

  def raced(self, *args, **options):
    mkdir(self, *args, **options)
    if self.parent.name == "groups" and not made:
      made.append(self)
      shutil.rmtree(self)

  monkeypatch.setattr(Path, "mkdir", raced)
  assert len(protocol.run(config, tmp_path)) == 6
  assert made


def test_one_that_is_behind_leaves_the_next_group_alone(
  tiny, tmp_path, made_up, monkeypatch
):
  """Coordinate: the second row begins with a run that the first one has, so
  that its group may have the name of one that is done."""
  config = config_of(
    tiny, "--config.sweep.tasks=('dark',)", "--config.sweep.search=coordinate"
  )
  behind, train = protocol.Sweep(config, tmp_path), vmapped_runs.run

  def run_group(job, members, folder, *args):
    out = train(job, members, folder, *args)
    if len(made_up.groups) == 2:
      behind.finish("dark", "search", CELLS[:2])
      assert (folder / "checkpoints" / "1").exists()
      with pytest.raises(files.InUse), files.lock(folder):
        pass
    return out

  monkeypatch.setattr(vmapped_runs, "run", run_group)
  assert len(protocol.run(config, tmp_path)) == 5
  assert made_up.groups[:2] == [[0.5, 0.5], [0.5, 2.0]]


def test_what_another_process_holds_is_waited_for(
  tiny, tmp_path, made_up, monkeypatch
):
  config = config_of(
    tiny, "--config.sweep.tasks=('dark',)", "--config.sweep.group=2"
  )
  name = config_lib.digest(
    protocol.run_configs(config, "dark", "search", CELLS)[0], 12
  )
  held = contextlib.ExitStack()
  held.enter_context(files.lock(tmp_path / "groups" / f"dark-search-{name}"))
  waits = []

  def sleep(seconds):
    # The other group is done meanwhile; then the other process was killed.
    waits.append((seconds, made_up.groups[:]))
    held.close()

  monkeypatch.setattr(protocol.time, "sleep", sleep)
  assert len(protocol.run(config, tmp_path)) == 6
  assert waits == [(protocol.WAIT, [[2.0, 2.0]])]


# What is refused.


def test_shards_make_the_whole(tiny, tmp_path, made_up):
  config = config_of(tiny)
  want = without_times(protocol.run(config, tmp_path / "whole"))
  parts = [protocol.run(config, tmp_path / "parts", (i, 2)) for i in (1, 2)]
  assert [{record["task"] for record in part} for part in parts] == [
    {"bright"},
    {"dark"},
  ]
  assert without_times([*parts[0], *parts[1]]) == want
  assert without_times(find([tmp_path / "parts"])) == want
  # They write nothing in common.
  assert {path.name for path in (tmp_path / "parts").iterdir()} == {
    "shard-1-of-2",
    "shard-2-of-2",
  }


def test_on_a_disk_without_locks(tiny, tmp_path, made_up, monkeypatch, caplog):
  def flock(file, how):
    del file, how
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(fcntl, "flock", flock)
  config = config_of(tiny, "--config.sweep.tasks=('dark',)")
  with caplog.at_level("WARNING", "vpt_jax"):
    assert len(protocol.run(config, tmp_path)) == 6
  assert f"no file locks in {tmp_path}" in caplog.text


@pytest.mark.parametrize(
  "shard,message",
  [
    ("0/2", "--shard=0/2 of 2 tasks; expected i/n with i from 1 to n"),
    ("3/2", "--shard=3/2 of 2 tasks"),
    ("1/3", "at most the number of tasks"),
    ("1/0", "--shard=1/0 of 2 tasks"),
    ("half", "--shard=half; expected i/n"),
    ("1", "expected i/n, for example 3/8"),
  ],
)
def test_wrong_shards(tiny, tmp_path, capsys, shard, message):
  status, _, err = run(
    capsys,
    f"--config={tiny}",
    f"--shard={shard}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert status == 1 and message in err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "arg,message",
  [
    ("--config.sweep.search=gird", "did you mean 'grid'?"),
    (
      "--config.sweep.grid=(('optim.lrr', (1.0,)),)",
      "unknown field of config.sweep 'optim.lrr'; did you mean 'optim.lr'?",
    ),
    ("--config.sweep.grid=(('optim.lr', 1.0, 2.0),)", "expected (field,"),
    ("--config.sweep.grid=(('optim.lr', ()),)", "expected (field,"),
    ("--config.sweep.grid=(('optim.name', 'sgd'),)", "expected (field,"),
    ("--config.sweep.seeds=()", "expected one seed or more"),
    ("--config.sweep.group=-1", "group=-1; expected"),
    ("--config.condense.shares=(0.5,)", "does not condense"),
    ("--config.compute.attention=cudnn", "can't train runs together"),
    ("--config.sweep.tasks=('eurosatt',)", "unknown task 'eurosatt'"),
    ("--config.optim.warmup_epochs=9", "warmup_epochs=9"),
    ("--config.problem=segmentation", "does not train problem 'segmentation'"),
    ("--config.optim.schedule=poly", "'poly' changes the rate in every step"),
    (
      "--config.sweep.grid=(('optim.schedule', ('cosine', 'poly')),)",
      "'poly' changes the rate in every step",
    ),
  ],
)
def test_what_cannot_be_swept_is_refused_before_anything_runs(
  tiny, tmp_path, capsys, arg, message
):
  status, _, err = run(
    capsys, f"--config={tiny}", arg, f"--workdir={tmp_path / 'run'}"
  )
  assert status == 1 and message in err and "Traceback" not in err
  assert not (tmp_path / "run").exists()


def test_another_config_in_the_workdir(tiny, tmp_path, made_up, capsys):
  args = [f"--config={tiny}", f"--workdir={tmp_path}"]
  assert run(capsys, *args)[0] == 0
  before = (tmp_path / FILE).read_bytes()
  status, _, err = run(capsys, *args, "--config.epochs=4")
  assert status == 1 and "epochs: 3 -> 4" in err and "--workdir" in err
  assert (tmp_path / FILE).read_bytes() == before
  assert run(capsys, *args)[0] == 0


@pytest.fixture
def own_data(tiny, tmp_path):
  """The same sweep, of data that a test may change."""
  folder = tmp_path / "configs"
  folder.mkdir()
  text = tiny.read_text().replace(
    f"npz:{tiny.parent.parent}", f"npz:{tmp_path}"
  )
  (folder / "own.py").write_text(text)
  for task in TASKS:
    shutil.copy(tiny.parent.parent / f"{task}.npz", tmp_path)
  return folder / "own.py"


def test_other_data_in_the_workdir(own_data, tmp_path, made_up, capsys):
  args = [f"--config={own_data}", f"--workdir={tmp_path / 'run'}"]
  made_up.score = lambda config: (
    None if config.task == "dark" else val_score(config)
  )
  assert run(capsys, *args)[0] == 1  # `dark` has only been searched
  before = (tmp_path / "run" / FILE).read_bytes()
  write_task(tmp_path / "bright.npz", seed=7)
  made_up.score = val_score
  lines = before.splitlines(keepends=True)
  (tmp_path / "run" / FILE).write_bytes(
    b"".join(line for line in lines if b'"bright"' not in line)
  )
  status, _, err = run(capsys, *args)
  assert status == 1 and "bright: " in err and "another bright-train" in err


def test_a_task_without_data(own_data, tmp_path, made_up, capsys):
  """The others are done, and the command can be repeated."""
  args = [f"--config={own_data}", f"--workdir={tmp_path / 'run'}"]
  (tmp_path / "bright.npz").rename(tmp_path / "away.npz")
  for _ in range(2):
    status, _, err = run(capsys, *args)
    assert status == 1
    assert "1 of 2 tasks could not be done, the others are" in err
    assert f"bright: {tmp_path / 'bright.npz'} is missing" in err
    store = Store(tmp_path / "run" / FILE)
    assert [record["task"] for record in store.read()] == ["dark"] * 6
    assert len(made_up.groups) == 2
  (tmp_path / "away.npz").rename(tmp_path / "bright.npz")
  status, out, err = run(capsys, *args)
  assert status == 0, err
  assert [record["task"] for record in store.read()] == (
    ["dark"] * 6 + ["bright"] * 6
  )
  assert f"records in {tmp_path / 'run'}" in out and "vpt_jax.report" in out


# The configs that are shipped.


def test_tasks_are_those_of_the_suites():
  groups = {"natural": 0, "specialized": 1, "structured": 2}
  of = lambda suite: sorted(
    name for name, task in tasks.TASKS.items() if task.suite == suite
  )
  assert sorted(sweep_vtab.TASKS) == of("vtab")
  order = [groups[tasks.TASKS[name].group] for name in sweep_vtab.TASKS]
  assert order == [0] * 7 + [1] * 4 + [2] * 8
  assert sorted(sweep_vtab.PGN_TASKS) == of("pgn")
  assert len(sweep_vtab.PGN_TASKS) == 12


# Rates and decays: VPT and VAPT 10 x 4, full fine-tuning 4 x 4, Gated 7 rates.
SIZES = {
  "vapt": (10, 4),
  "vpt_deep": (10, 4),
  "vpt_shallow": (10, 4),
  "linear": (10, 4),
  "full": (4, 4),
  "gated_mae": (7, 1),
  "gated_mocov3": (7, 1),
  "pgn": (),
}


@pytest.mark.parametrize("name", sweep_vtab.METHODS)
def test_every_cell_of_every_task_resolves(name):
  config = sweep_vtab.get_config(name)
  protocol.check(config)
  assert (
    tuple(len(set(values)) for _, values in config.sweep.grid) == (SIZES[name])
  )
  cells = searches.cells(config.sweep.grid)
  assert len(config.sweep.tasks) == (12 if name == "pgn" else 19)
  assert config.name == name and config.mode == "sweep"
  for task in config.sweep.tasks:
    wanted = [cells[0], cells[-1]]
    for stage in ("search", "final"):
      one = protocol.run_configs(config, task, stage, wanted)
      # They train together.
      assert len(set(map(vmapped_runs.group_key, one))) == 1
      for member, made in zip(one, wanted):
        own = trees.flatten(config_lib.plain(member))
        assert own["task"] == task
        assert {field: own[field.replace(".", "/")] for field in made} == made
  # What differs between tasks is never what is searched.
  searched = {field for field, _ in config.sweep.grid}
  for changes in config.sweep.per_task.values():
    assert not searched & {field for field, _ in changes}


def test_every_cell_of_vapt_is_in_one_group():
  config = sweep_vtab.get_config("vapt")
  one = protocol.run_configs(
    config, "dtd", "search", searches.cells(config.sweep.grid)
  )
  assert len({config_lib.digest(member) for member in one}) == 40
  assert len(set(map(vmapped_runs.group_key, one))) == 1


@pytest.mark.parametrize(
  "name,task,field,value",
  [
    ("vpt_deep", "dmlab", "vpt/num_tokens", 100),
    ("vpt_deep", "eurosat", "vpt/num_tokens", 100),
    ("vpt_deep", "sun397", "vpt/num_tokens", 5),
    ("vpt_deep", "sun397", "batch_size", 128),
    ("vpt_deep", "sun397", "optim/lr", 50.0),  # tuned is 25
    ("vpt_deep", "dtd", "vpt/num_tokens", 10),
    ("vpt_deep", "dtd", "vpt/dropout", 0.1),
    ("vpt_shallow", "dmlab", "vpt/num_tokens", 100),
    ("vpt_shallow", "dmlab", "vpt/dropout", 0.0),
    ("vpt_shallow", "dmlab", "vpt/deep", False),
    ("vapt", "cifar100", "optim/weight_decay", 0.01),
    ("gated_mae", "resisc45", "gated/num_tokens", 10),
    ("gated_mae", "resisc45", "gated/gate_init", 5.0),
    ("gated_mae", "kitti", "optim/lr", 0.05),  # tuned is 0.1
    ("gated_mae", "kitti", "backbone/name", "mae_b16"),
    ("gated_mocov3", "oxford_iiit_pet", "batch_size", 64),
    ("gated_mocov3", "oxford_iiit_pet", "gated/num_tokens", 100),
    ("gated_mocov3", "dtd", "backbone/name", "mocov3_b16_pretrain"),
    ("pgn", "pgn_dtd", "optim/lr", 0.1),
    ("pgn", "pgn_dtd", "data/preprocess", "pgn"),
  ],
)
def test_what_is_tuned_for_a_task_is_kept(name, task, field, value):
  config = sweep_vtab.get_config(name)
  (member,) = protocol.run_configs(
    config, task, "search", searches.cells(config.sweep.grid)[:1]
  )
  assert trees.flatten(config_lib.plain(member))[field] == value


@pytest.mark.parametrize("name", sweep_mini.METHODS)
def test_the_miniature(name):
  config = sweep_mini.get_config(name)
  protocol.check(config)
  assert tuple(config.sweep.tasks) == ("digits", "eurosat")
  assert len(config.sweep.seeds) == 2
  cells = searches.cells(config.sweep.grid)
  assert len(cells) == 4
  for task in config.sweep.tasks:
    one = protocol.run_configs(config, task, "search", cells)
    assert len(set(map(vmapped_runs.group_key, one))) == 1
    assert {member.task for member in one} == {task}


@pytest.mark.parametrize("module", [sweep_vtab, sweep_mini])
def test_an_unknown_method(module):
  with pytest.raises(ValueError, match="unknown method 'vapd'.*known: .*vapt"):
    module.get_config("vapd")


# Whole sweeps, in processes of their own. They come from one that has all
# imported, which takes ten times as long as the sweep of a linear probe.

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload([__name__])


def command(workdir, cache, args):
  """The command, with its output in a file."""
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_disable_most_optimizations", True)
  protocol.WAIT = 0.2
  workdir.parent.mkdir(parents=True, exist_ok=True)
  with (
    workdir.with_suffix(".log").open("a") as file,
    contextlib.redirect_stdout(file),
    contextlib.redirect_stderr(file),
  ):
    sys.exit(main.main(["main", *args, f"--workdir={workdir}"]))


def begin(workdir, cache, args):
  process = FRESH.Process(target=command, args=(workdir, cache, args))
  process.start()
  return process


def finish(workdir, cache, args):
  """Records of a sweep that runs to its end, by id."""
  process = begin(workdir, cache, args)
  process.join()
  assert process.exitcode == 0, workdir.with_suffix(".log").read_text()
  return without_times(Store(workdir / FILE).read())


def killed(folder, cache, args, seconds, seed, times=10):
  """Records of sweeps that were killed `times` times in all, at random.

  One that ends before that is looked at too, and another one begun.
  """
  rng, done = random.Random(seed), []
  for _ in range(times):
    workdir = folder / f"killed{len(done)}"
    process = begin(workdir, cache, args)
    process.join(rng.uniform(0.2, seconds / 3))
    process.kill()
    process.join()
    if process.exitcode == 0:
      done.append(finish(workdir, cache, args))
  done.append(finish(folder / f"killed{len(done)}", cache, args))
  for i in range(len(done)):
    assert leftovers(folder / f"killed{i}") == []
  return done


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory, cache):
  """(workdir, records by id, seconds) of an undisturbed sweep."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  args = [f"--config={tiny}"]
  finish(workdir.with_name("warm"), cache, args)
  started = time.monotonic()
  records = finish(workdir, cache, args)
  return workdir, records, time.monotonic() - started


def test_a_sweep(tiny, whole, tmp_path):
  workdir, records, _ = whole
  assert len(records) == 12 and leftovers(workdir) == []
  for task in TASKS:
    own = [one for one in records.values() if one["task"] == task]
    search = [one for one in own if one["stage"] == "search"]
    final = [one for one in own if one["stage"] == "final"]
    assert [one["cell"] for one in search] == CELLS
    best = sorted(
      search, key=lambda one: (-one["top1"], one["cell"]["optim.lr"])
    )[0]
    assert [one["cell"] for one in final] == [
      {**best["cell"], "seed": seed} for seed in SEEDS
    ]
    assert {one["train_images"] for one in search} == {39}
    assert {one["train_images"] for one in final} == {60}
    assert {one["count"] for one in search} == {21}
    assert {one["count"] for one in final} == {30}
    assert all(one["confusion"] is None for one in search)
  # The last run by itself: of the same id, with the same scores.
  last = final[-1]
  config = ConfigDict(last["config"])
  # Records hold the last part of paths.
  config.data.source = f"npz:{tiny.parents[1]}/{last['task']}.npz"
  config.backbone.checkpoint = str(tiny.parents[1] / "backbone.npz")
  result = vpt_jax.run(config, tmp_path)
  (alone,) = Store(tmp_path / FILE).read()
  assert (alone["id"], alone["stage"]) == (last["id"], "single")
  assert result["top1"] == last["top1"]
  assert alone["confusion"] == last["confusion"]
  assert alone["config"] == last["config"]
  np.testing.assert_allclose(result["loss"], last["loss"], rtol=1e-4)
  kept, _ = adapter_files.read_adapter(
    workdir / "runs" / f"{last['task']}-{last['id']}" / "adapter.npz"
  )
  own, _ = adapter_files.read_adapter(tmp_path / "adapter.npz")
  for path, leaf in own.items():
    np.testing.assert_allclose(kept[path], leaf, atol=1e-4, err_msg=path)


def test_killed_ten_times(tiny, whole, tmp_path, cache):
  _, want, seconds = whole
  for got in killed(tmp_path, cache, [f"--config={tiny}"], seconds, seed=0):
    assert got == want


def test_two_processes_in_one_workdir(tiny, whole, tmp_path, cache):
  # Several groups each, so that both have something to do.
  args = [f"--config={tiny}", "--config.sweep.group=1"]
  both = [begin(tmp_path / "run", cache, args) for _ in range(2)]
  for process in both:
    process.join()
  log = (tmp_path / "run.log").read_text()
  assert [process.exitcode for process in both] == [0, 0], log
  records = Store(tmp_path / "run" / FILE).read()
  _, want, _ = whole
  assert without_times(records).keys() == want.keys()
  for record in records:
    assert record["top1"] == want[record["id"]]["top1"]
    np.testing.assert_allclose(
      record["loss"], want[record["id"]]["loss"], rtol=1e-4
    )
  assert leftovers(tmp_path / "run") == []


@pytest.mark.skipif(
  not (DATA / "vtab-1k" / "eurosat").exists(),
  reason="the EuroSAT pack is not there",
)
def test_the_miniature_killed_ten_times(tmp_path, cache):
  args = [
    f"--config={sweep_mini.__file__}:linear",
    "--config.epochs=3",
    f"--config.data.dir={DATA}",
    "--config.optim.warmup_epochs=1",
    f"--config.data.cache={tmp_path / 'images'}",
    "--config.checkpoint.every_epochs=1",
  ]
  started = time.monotonic()
  want = finish(tmp_path / "whole", cache, args)
  seconds = time.monotonic() - started
  assert [(one["task"], one["stage"]) for one in want.values()] == [
    (task, stage)
    for task in ("digits", "eurosat")
    for stage in 4 * ["search"] + 2 * ["final"]
  ]
  for got in killed(tmp_path, cache, args, seconds, seed=1):
    assert got == want
