"""Runs that train together: each is what it would be alone."""

import csv
import itertools
import multiprocessing
import os
import signal
import warnings

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import common
import vpt_jax
from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax.data import examples, pipeline
from vpt_jax.distributed import memory, processes
from vpt_jax.sweeps import vmapped_runs
from vpt_jax.training import adapter_files, experiment
from vpt_jax.training import step as step_lib
from vpt_jax.training.progress import Progress
from vpt_jax.training.records import FILE, SCHEMA, Store
from vpt_jax.utils import trees
from vpt_jax.weights import load

# Steps of five images short of full batches, 20 after the warm-up.
BATCH, TRAIN, TEST, CLASSES, EPOCHS = 16, 75, 41, 4, 5
# What a record says of how it came about, not of its run.
ABOUT = {"stage", "cell", "group", "seconds", "images_per_second"}


def split(n, seed):
  """Noise that tells its class a little by its brightness."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(n) % CLASSES)
  images = rng.integers(0, 200, (n, 8, 8, 3)) + 15 * labels[:, None, None, None]
  return vpt_jax.from_arrays(images.astype(np.uint8), labels)


def strips(n, seed):
  """The same labels with images of 9 x (9 to 13) pixels, some of them wide."""
  part, rng = split(n, seed), np.random.default_rng(seed)
  lengths = rng.integers(9, 14, n)
  rows = rng.integers(0, 256, (lengths.sum(), 9, 3), dtype=np.uint8)
  return examples.Split(
    rows,
    part.labels,
    CLASSES,
    strips=examples.Strips(
      np.append(0, np.cumsum(lengths)), rng.random(n) < 0.5
    ),
  )


DATA = experiment.Data(split(TRAIN, 0), split(TEST, 1))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
  """A file with random weights."""
  config = common.embedded(common.get_config())
  config.backbone.name, config.image_size = "vit_test", 8
  params = model_lib.init(
    model_lib.build(config_lib.resolve(config), CLASSES), jax.random.key(7)
  )
  path = tmp_path_factory.mktemp("backbone") / "backbone.npz"
  load.save(path, trees.flatten(params["backbone"]))
  return path


@pytest.fixture
def base(config, backbone):
  config.task, config.method = "mine", "vpt"
  config.backbone.checkpoint = str(backbone)
  config.batch_size, config.epochs = BATCH, EPOCHS
  config.checkpoint.every_epochs = 1
  config.optim.warmup_epochs = 1
  return config


def changed(config, fields):
  """A copy with dotted fields changed."""
  out = config.copy_and_resolve_references()
  out.update_from_flattened_dict(fields)
  return out


def resolved(config, members):
  return [
    config_lib.resolve(changed(config, fields), named_task=False)
    for fields in members
  ]


def grouped(folder, members, cells, data=DATA):
  """Records of a group; member i has its files in folder/i."""
  assert len(set(map(vmapped_runs.group_key, members))) == 1
  with jax.default_matmul_precision(members[0].compute.matmul_precision):
    return vmapped_runs.run(
      experiment.build(members[0], data),
      members,
      folder,
      "final",
      cells,
      [folder / str(i) for i in range(len(members))],
    )


def together(folder, config, cells, data=DATA):
  """The same of members that differ in dotted fields."""
  return grouped(folder, resolved(config, cells), cells, data)


def files(folder):
  """(adapter's arrays, its meta, predictions) that a run has left."""
  arrays, meta = adapter_files.read_adapter(folder / "adapter.npz")
  with (folder / "predictions.csv").open() as file:
    return arrays, meta, [line["prediction"] for line in csv.DictReader(file)]


def assert_same_run(got, want, got_record, want_record):
  """To rounding, of two folders and their records."""
  ours, meta, predictions = files(got)
  theirs, own_meta, own_predictions = files(want)
  assert ours.keys() == theirs.keys()
  for path, leaf in theirs.items():
    # Leaves that started from 0 have no scale of their own.
    np.testing.assert_allclose(
      ours[path],
      leaf,
      rtol=0,
      err_msg=path,
      atol=1e-5 * max(np.abs(leaf).max(), 0.5),
    )
  assert meta == own_meta and predictions == own_predictions
  exact, close = [
    [
      {
        name: value
        for name, value in record.items()
        if name not in ABOUT
        and (name in ("loss", "curve", "top1", "mean_per_class")) == about
      }
      for record in (got_record, want_record)
    ]
    for about in (False, True)
  ]
  assert exact[0] == exact[1]
  ours, theirs = map(trees.flatten, close)
  for name, value in theirs.items():
    np.testing.assert_allclose(
      ours[name], value, rtol=1e-5, atol=1e-5, err_msg=name
    )


RATES = [
  {"optim.lr": 0.5, "optim.weight_decay": 1e-3, "seed": 1},
  {
    "optim.lr": 2.0,
    "optim.weight_decay": 0.0,
    "seed": 2,
    "optim.schedule": "constant",
  },
]
ADAM = {"optim.name": "adamw", "optim.scale_lr": False}

# Name -> (what all have, what each member has).
CASES = {
  "linear": ({"method": "linear"}, RATES),
  "vpt deep": (
    {},
    [
      {"optim.lr": lr, "seed": seed, "vpt.dropout": rate}
      for lr, seed, rate in ((0.5, 1, 0.0), (2.0, 2, 0.1), (1.0, 1, 0.3))
    ],
  ),
  # One order of images for all.
  "vpt shallow, adamw": (
    {"vpt.deep": False, **ADAM},
    [
      {"optim.lr": lr, "optim.weight_decay": decay, "seed": 3}
      for lr, decay in ((0.01, 0.1), (0.003, 0.0))
    ],
  ),
  # At a small rate: what all channels of a prompt share is lost in the
  # block's norm, so that the gradient of `tokens/bias` is mostly rounding.
  "vapt": (
    {"method": "vapt"},
    [
      one
      | {f"vapt.dropout{part}": rate for part in ("", "_channel", "_mlp")}
      | {"optim.lr": lr}
      for one, rate, lr in zip(RATES, (0.1, 0.3), (0.5, 0.25))
    ],
  ),
  "gated": (
    {"method": "gated", "gated.num_tokens": 3},
    [one | {"gated.gate_init": gate} for one, gate in zip(RATES, (2.0, -1.0))],
  ),
  "pgn": (
    {
      "method": "pgn",
      "pgn.num_tokens": 2,
      "pgn.library": 5,
      "pgn.initial_channels": 4,
      "pgn.groups": 2,
    },
    RATES,
  ),
  # The method's prompts are frozen, and not the same for all.
  "frozen prompts": ({"trainable": "head/.*"}, RATES),
  "strips, flip_crop": ({"data.augment": "flip_crop"}, RATES),
}


@pytest.mark.parametrize("name", CASES)
def test_a_member_is_what_it_is_alone(base, tmp_path, name):
  fields, members = CASES[name]
  base = changed(base, fields)
  data = DATA
  if name.startswith("strips"):
    data = experiment.Data(strips(TRAIN, 0), DATA.test)
  records = together(tmp_path / "group", base, members, data)
  # The first is what the group's job was made for, hence the least of a test.
  for i, member in enumerate(members[1:], 1):
    alone = tmp_path / f"alone{i}"
    vpt_jax.run(changed(base, member), alone, data)
    (record,) = Store(alone / FILE).read()
    assert_same_run(
      tmp_path / "group" / str(i),
      alone,
      {"schema": SCHEMA, **records[i]},
      record,
    )
    assert records[i]["cell"] == member
    assert records[i]["group"] == len(members)
    assert (
      records[i]["stage"] == "final" and records[i]["seed"] == (member["seed"])
    )
  # They are different runs.
  curves = [record["curve"]["loss"] for record in records]
  assert all(
    np.abs(np.subtract(one, other)).max() > 1e-3
    for one, other in itertools.combinations(curves, 2)
  )


def test_one_that_diverges_leaves_the_others_as_they_are(base, tmp_path):
  sane = [
    {"optim.lr": lr, "seed": seed}
    for lr, seed in ((0.5, 1), (1.0, 2), (2.0, 1))
  ]
  wild = [sane[0], {"optim.lr": 1e30, "seed": 2}, sane[2]]
  want = together(tmp_path / "sane", base, sane)
  got = together(tmp_path / "wild", base, wild)
  assert [record["status"] for record in got] == ["done", "diverged", "done"]
  assert (
    not {
      "top1",
      "mean_per_class",
      "loss",
      "count",
      "metric",
      "classes",
      "confusion",
    }
    & got[1].keys()
  )
  # The first epoch has rate 0; what follows is not a number.
  assert len(got[1]["curve"]["loss"]) == 1
  assert got[1]["curve"]["lr"] == [0.0]
  assert not (tmp_path / "wild" / "1").exists()
  for i in (0, 2):
    arrays, _, predictions = files(tmp_path / "wild" / str(i))
    others, _, others_predictions = files(tmp_path / "sane" / str(i))
    for path, leaf in others.items():
      np.testing.assert_array_equal(arrays[path], leaf, err_msg=path)
    assert predictions == others_predictions
    assert without(got[i]) == without(want[i])


def without(record):
  """But for the times."""
  return {
    name: value
    for name, value in record.items()
    if name not in ("seconds", "images_per_second")
  }


def epochs_of(monkeypatch, stop=None):
  """List of the epochs that groups train; they are killed before `stop`."""
  begun, epoch = [], vmapped_runs.VmappedRuns._epoch

  def counted(self, number, *args):
    if number == stop and stop not in begun:
      begun.append(number)
      raise KeyboardInterrupt
    begun.append(number)
    return epoch(self, number, *args)

  monkeypatch.setattr(vmapped_runs.VmappedRuns, "_epoch", counted)
  return begun


def test_all_diverged_ends_early(base, tmp_path, monkeypatch):
  begun = epochs_of(monkeypatch)
  members = [{"optim.lr": 1e30}, {"optim.lr": 1e35}]
  with warnings.catch_warnings():
    warnings.simplefilter("error", RuntimeWarning)
    records = together(tmp_path, base, members)
  assert begun == [0, 1]
  for record, member in zip(records, members):
    assert record["status"] == "diverged" and "top1" not in record
    assert record["cell"] == member
    assert len(record["curve"]["loss"]) == 1
  # As a run that was killed after this, before its records were kept.
  again = together(tmp_path, base, members)
  assert [without(record) for record in again] == [
    without(record) for record in records
  ]


def test_killed_it_goes_on_with_the_same_bits(base, tmp_path, monkeypatch):
  base = changed(base, {"checkpoint.every_epochs": 2, **CASES["vapt"][0]})
  members = [*CASES["vapt"][1], {"optim.lr": 1e30, "seed": 2}]
  want = together(tmp_path / "whole", base, members)
  begun = epochs_of(monkeypatch, stop=3)
  with pytest.raises(KeyboardInterrupt):
    together(tmp_path / "killed", base, members)
  assert begun == [0, 1, 2, 3]
  got = together(tmp_path / "killed", base, members)
  assert begun[4:] == [2, 3, 4]
  assert [without(record) for record in got] == [
    without(record) for record in want
  ]
  for i in range(2):
    for ours, theirs in zip(
      *map(files, (tmp_path / "killed" / str(i), tmp_path / "whole" / str(i)))
    ):
      jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_damaged_state_of_a_group_is_not_taken(base, tmp_path, monkeypatch):
  """As of one run: checksums, and whose it is."""
  members = [{"optim.lr": 0.5}, {"optim.lr": 0.25}]
  base = changed(base, {"checkpoint.every_epochs": 2})
  want = together(tmp_path / "whole", base, members)
  begun = epochs_of(monkeypatch, stop=3)
  killed = tmp_path / "killed"
  with pytest.raises(KeyboardInterrupt):
    together(killed, base, members)
  data = list(killed.rglob("checkpoints/*/default/d/*"))
  assert data
  for path in data:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
  got = together(killed, base, members)
  assert begun[4:] == [0, 1, 2, 3, 4]
  assert list(killed.rglob("checkpoints/damaged-*"))
  assert [without(record) for record in got] == [
    without(record) for record in want
  ]


def test_a_state_of_other_runs_is_not_taken(base, tmp_path, monkeypatch):
  base = changed(base, {"checkpoint.every_epochs": 2})
  begun = epochs_of(monkeypatch, stop=3)
  with pytest.raises(KeyboardInterrupt):
    together(tmp_path, base, [{"optim.lr": 0.5}, {"optim.lr": 0.25}])
  together(tmp_path, base, [{"optim.lr": 0.5}, {"optim.lr": 0.125}])
  assert begun[4:] == [0, 1, 2, 3, 4]
  assert list(tmp_path.rglob("checkpoints/other-run-*"))


def test_preempted_in_the_last_epoch(base, tmp_path, monkeypatch):
  """The sweep would go on with its next group; all of one diverged, too."""
  members = [{"optim.lr": 0.5}, {"optim.lr": 0.25}]
  for case, last in ((members, base.epochs - 1), ([{"optim.lr": 1e30}], 0)):
    folder = tmp_path / str(last)
    want = together(folder / "whole", base, case)
    end = Progress.epoch

    def preempt(self, epoch, values, end=end, last=last):
      end(self, epoch, values)
      if epoch == last:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
      patch.setattr(Progress, "epoch", preempt)
      with pytest.raises(processes.Preempted):
        together(folder / "run", base, case)
    got = together(folder / "run", base, case)
    assert [without(record) for record in got] == [
      without(record) for record in want
    ]


# What runs of one program may differ in, and what makes it another.
@pytest.mark.parametrize(
  "fields",
  [
    {"optim.lr": 0.3},
    {"optim.weight_decay": 0.5},
    {"seed": 7},
    {"optim.schedule": "constant"},
    {"optim.warmup_epochs": 0},
    {"optim.warmup_from_zero": False},
    {"vpt.dropout": 0.7},
    {"name": "mine"},
    {"method": "gated", "gated.gate_init": 1.0},
    {"method": "gated", "gated.dropout": 0.0},
    {"method": "vapt", "vapt.dropout_mlp": 0.0},
  ],
  ids=str,
)
def test_one_key(base, fields):
  method = {"method": fields.get("method", "vpt")}
  one, other = resolved(base, [method, fields])
  assert vmapped_runs.group_key(one) == vmapped_runs.group_key(other)


@pytest.mark.parametrize(
  "fields",
  [
    {"vpt.num_tokens": 4},
    {"vpt.deep": False},
    {"method": "vapt"},
    {"optim.momentum": 0.8},
    {"optim.name": "adam"},
    {"epochs": 4},
    {"batch_size": 8},
    {"data.train_split": "train"},
    {"task": "yours"},
    {"data.test_split": "val"},
    {"trainable": "head/.*"},
    {"data.augment": "flip"},
    {"data.train_share": 0.5},
    {"optim.scale_lr": False},
    {"compute.dtype": "bfloat16"},
    {"head_init": "kaiming"},
    {"pool": "img"},
    {"data.seed": 1},
  ],
  ids=str,
)
def test_another_key(base, fields):
  one, other = resolved(base, [{}, fields])
  assert vmapped_runs.group_key(one) != vmapped_runs.group_key(other)


def test_a_random_backbone_is_the_seeds(base):
  base.backbone.checkpoint = "random"
  one, same, other = resolved(base, [{}, {"optim.lr": 3.0}, {"seed": 3}])
  key = vmapped_runs.group_key(one)
  assert key == vmapped_runs.group_key(same)
  assert key != vmapped_runs.group_key(other)


def test_every_head_of_a_checkpoint_has_a_key(base):
  """Groups of its classes: as many as the task has, whatever that is."""
  base.head, base.head_groups = "pretrained", ((0,), (1, 2), (3,))
  one, other = resolved(base, [{}, {"optim.lr": 3.0}])
  assert vmapped_runs.group_key(one) == vmapped_runs.group_key(other)


class Executions:
  """Counts the steps that were run, not those that were only compiled."""

  def __init__(self, monkeypatch):
    self.count, step_of = 0, step_lib.train_step

    def counted(*args, **options):
      step = step_of(*args, **options)

      def one(state, frozen, batch):
        jax.debug.callback(self._add, state.step)
        return step(state, frozen, batch)

      return one

    monkeypatch.setattr(step_lib, "train_step", counted)

  def _add(self, step):
    del step
    self.count += 1


def test_most(base, tmp_path, monkeypatch):
  members = resolved(base, [{"optim.lr": 0.1 * i} for i in range(1, 13)])
  job = experiment.build(members[0], DATA)
  ran, free = Executions(monkeypatch), []
  monkeypatch.setattr(memory, "free_bytes", lambda mesh: free[-1])
  one = vmapped_runs.bytes_per_run(job, members[0])
  # More than its trained values, their momentum and a batch of activations.
  assert one > 2 * 4 * trees.count(job.start.trainable)
  assert one > 4 * BATCH * 8 * 8 * 3
  assert one < 2**26

  def most(bytes_):
    free.append(bytes_)
    return vmapped_runs.most_together(job, members)

  assert most(0.9 * one / vmapped_runs.FILL) == 1
  assert most(6.5 * one / vmapped_runs.FILL) == 6
  assert most(2**34) == 12
  assert most(0) == 1  # one has to run anyway
  jax.effects_barrier()
  assert ran.count == 0
  # The count does count.
  vmapped_runs.VmappedRuns(job, members[:1]).fit(tmp_path)
  jax.effects_barrier()
  assert ran.count > 0


def test_heads_on_cached_features_all_fit(base, monkeypatch):
  base.method = "linear"
  members = resolved(base, [{"seed": seed} for seed in range(50)])
  job = experiment.build(members[0], DATA)
  monkeypatch.setattr(memory, "free_bytes", lambda mesh: 0)
  assert vmapped_runs.most_together(job, members) == 50


def test_members_share_one_backbone_from_the_start(base, monkeypatch):
  """Not one copy each while they are made: that alone could be too much."""
  members = resolved(base, [{"seed": seed} for seed in range(8)])
  before = jax.live_arrays()  # of other tests
  others = {*map(id, before)}
  job = experiment.build(members[0], DATA)
  shape = job.start.frozen["backbone/embedding/kernel"].shape
  copies, state_of = [], experiment.train_state

  def counted(*args):
    copies.append(
      sum(x.shape == shape and id(x) not in others for x in jax.live_arrays())
    )
    return state_of(*args)

  monkeypatch.setattr(experiment, "train_state", counted)
  vmapped_runs.VmappedRuns(job, members)
  assert max(copies) <= 3  # the job's, and one that is being made


@pytest.mark.parametrize("seeds", [(1, 2, 1), (4, 4)])
@pytest.mark.parametrize("kind", ["images", "strips", "streamed"])
def test_batches(base, seeds, kind):
  """Each member's are those of its own feed, the filled up last one too."""
  if kind == "streamed":
    base.data.device_gb = 1e-9
  members = resolved(base, [{"seed": seed} for seed in seeds])
  part = strips(TRAIN, 0) if kind == "strips" else DATA.train
  job = experiment.build(members[0], experiment.Data(part, DATA.test))
  assert job.train.resident == (kind != "streamed")
  made = vmapped_runs.VmappedRuns(job, members)
  for epoch in (0, 3):
    got = [jax.device_get(batch) for batch in made.batches(epoch)]
    for g, seed in enumerate(seeds):
      order = pipeline.order(TRAIN, seed, epoch)
      places = pipeline.crop_positions(TRAIN, seed, epoch)[order]
      want = [
        jax.device_get(batch) for batch in job.train.batches(order, places)
      ]
      mine = (
        got
        if seeds == (4, 4)
        else [{name: x[:, g] for name, x in batch.items()} for batch in got]
      )
      jax.tree.map(np.testing.assert_array_equal, mine, want)
      real = np.concatenate([batch["mask"] for batch in mine]) > 0
      labels = np.concatenate([batch["label"] for batch in mine])[real]
      np.testing.assert_array_equal(labels, part.labels[order])
  assert [
    batch["mask"][..., 0].sum()
    if got[0]["mask"].ndim > 1
    else batch["mask"].sum()
    for batch in got
  ] == [16, 16, 16, 16, 11]


def on_eight_devices(members, folder):
  """In a process of its own: their number is fixed when JAX starts."""
  from tests import conftest  # registers the small backbones

  del conftest
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_disable_most_optimizations", True)
  store = Store(folder / FILE)
  for record in grouped(
    folder, [ConfigDict(one) for one in members], [{}] * len(members)
  ):
    store.add(record)


def test_eight_devices_do_what_one_does(base, tmp_path):
  fields, cells = CASES["strips, flip_crop"]
  members = resolved(changed(base, fields), cells)
  want = grouped(tmp_path / "one", members, cells)
  process = multiprocessing.get_context("spawn").Process(
    target=on_eight_devices,
    args=([config_lib.plain(one) for one in members], tmp_path / "eight"),
  )
  process.start()
  process.join()
  assert process.exitcode == 0
  got = Store(tmp_path / "eight" / FILE).read()
  assert [record["device"] for record in got] == ["8 x cpu"] * 2
  for i in range(2):
    assert_same_run(
      *(tmp_path / name / str(i) for name in ("eight", "one")),
      {**got[i], "device": want[i]["device"]},
      {"schema": SCHEMA, **want[i]},
    )
