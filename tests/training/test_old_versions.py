"""Files of versions before 0.2 load: workdirs, records and adapters."""

import json

import numpy as np
import pytest

from tests.conftest import trained
import vpt_jax
from vpt_jax.report import rows
from vpt_jax.training import adapter_files, records

# Fields of a config that came later.
NEW_FIELDS = ("problem", "compute.ops")


@pytest.fixture
def data():
  images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
  split = vpt_jax.from_arrays(images, np.arange(40) % 3)
  return vpt_jax.Data(split, split)


@pytest.fixture
def config(config):
  config.task = "photos"
  config.epochs = 2
  config.batch_size = 16
  config.checkpoint.every_epochs = 1
  return config


def without_new_fields(config):
  """The config, as JSON, as version 0.1 wrote it."""
  for field in NEW_FIELDS:
    *sections, name = field.split(".")
    part = config
    for section in sections:
      part = part[section]
    del part[name]
  return config


def make_old(workdir):
  """Turns a finished run's files into those of version 0.1."""
  path = workdir / "config.json"
  config = without_new_fields(json.loads(path.read_text()))
  path.write_text(json.dumps(config))

  path = workdir / "result.json"
  result = json.loads(path.read_text())
  del result["problem"], result["run"]
  path.write_text(json.dumps(result))

  path = workdir / records.FILE
  record = json.loads(path.read_text())
  del record["problem"]
  without_new_fields(record["config"])
  path.write_text(json.dumps(record) + "\n")

  path = workdir / "adapter.npz"
  with np.load(path) as file:
    arrays = dict(file)
  meta = json.loads(str(arrays.pop("meta")))
  del meta["preprocess"], meta["run"]
  without_new_fields(meta["config"])
  np.savez(path, meta=json.dumps(meta), **arrays)


def test_a_finished_workdir(config, data, tmp_path):
  new = vpt_jax.run(config, tmp_path, data)
  make_old(tmp_path)
  old = vpt_jax.run(config, tmp_path, data)
  assert new == {**old, "problem": "classification", "run": new["run"]}


def test_a_workdir_that_was_killed(config, data, tmp_path):
  vpt_jax.run(config, tmp_path, data)
  make_old(tmp_path)
  want = trained(tmp_path)
  for name in ("result.json", "adapter.npz", records.FILE):
    (tmp_path / name).unlink()
  vpt_jax.run(config, tmp_path, data)
  arrays, metrics = trained(tmp_path)
  assert metrics == want[1]
  for path, array in want[0].items():
    np.testing.assert_array_equal(arrays[path], array, err_msg=path)


def test_a_record(config, data, tmp_path):
  vpt_jax.run(config, tmp_path, data)
  (new,) = records.find([tmp_path])
  make_old(tmp_path)
  (old,) = records.find([tmp_path])
  typed = records.RunRecord.from_json(old)
  assert typed.problem == "classification"
  assert typed.outcome == records.RunRecord.from_json(new).outcome
  (row,) = rows.collect([old]).rows
  assert row.scores["photos"].mean == new["top1"]
  # The same run is not kept a second time.
  assert records.find([tmp_path])[0]["id"] == new["id"]


def test_an_adapter(config, data, tmp_path):
  vpt_jax.run(config, tmp_path, data)
  path = tmp_path / "adapter.npz"
  images = data.test.images
  want = vpt_jax.load_adapter(path)(images)
  make_old(tmp_path)
  np.testing.assert_array_equal(vpt_jax.load_adapter(path)(images), want)
  _, meta = adapter_files.read_adapter(path)
  assert meta.preprocess is None


def test_an_adapter_of_another_program_is_refused(tmp_path):
  path = tmp_path / "adapter.npz"
  np.savez(path, meta=json.dumps({"config": {}}), x=np.ones(3))
  with pytest.raises(ValueError, match="has no backbone, num_classes"):
    adapter_files.read_adapter(path)
