"""The files of a workdir are checked when they are read back."""

import json
import shutil

import numpy as np
import pytest

from tests import conftest
from tests.conftest import trained
from tests.fuzz import mutations
import vpt_jax
from vpt_jax import config as config_lib
from vpt_jax import main
from vpt_jax.report import __main__ as report
from vpt_jax.training import (
  adapter_files,
  experiment,
  metrics,
  records,
  run_folder,
)

LATER = ("result.json", "adapter.npz", records.FILE)


def small(config):
  config.method = "linear"
  config.epochs = 2
  config.batch_size = 256
  return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(config, data, workdir, what its result.json holds) of a finished run."""
  config = small(conftest.config.__wrapped__())
  workdir = tmp_path_factory.mktemp("run")
  data = experiment.load_data(config_lib.resolve(config))
  return config, data, workdir, vpt_jax.run(config, workdir, data)


@pytest.fixture
def workdir(made, tmp_path):
  return shutil.copytree(made[2], tmp_path / "run")


def test_every_file_says_whose_it_is(made):
  config, data, workdir, result = made
  id = config_lib.digest(config_lib.resolve(config, named_task=False), 12)
  run = result["run"]
  assert run["config"] == id
  _, meta = adapter_files.read_adapter(workdir / "adapter.npz")
  assert meta.run == run
  (record,) = records.find([workdir])
  assert record["id"] == id
  for line in (workdir / metrics.FILE).read_text().splitlines():
    assert json.loads(line)["run"] == id
  other = run_folder.fingerprint(vpt_jax.Data(data.train, data.train))
  assert run_folder.identity([config], data=other)["data"] != run["data"]


DAMAGED = {
  "empty": lambda text: "",
  "half": lambda text: text[: len(text) // 2],
  "a list": lambda text: "[1, 2]\n",
  "a number": lambda text: "7\n",
  "zeros": lambda text: "\0" * len(text),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["config.json", "data.json", "result.json"])
def test_a_damaged_file_of_a_finished_run(made, workdir, name, damage):
  """It is named, with what is wrong and what to do."""
  config, data, _, result = made
  path = workdir / name
  sound = path.read_text()
  path.write_text(DAMAGED[damage](sound))
  with pytest.raises(ValueError, match=f"{path}: .*delete this file"):
    vpt_jax.run(config, workdir, data)
  if name != "result.json":
    path.unlink()
    assert vpt_jax.run(config, workdir, data) == result


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["backbone.json", metrics.FILE])
def test_a_damaged_file_of_a_run_that_goes_on(made, workdir, name, damage):
  config, data, before, result = made
  for later in LATER:
    (workdir / later).unlink()
  path = workdir / name
  path.write_text(DAMAGED[damage](path.read_text()))
  if name == metrics.FILE and damage in ("empty", "half", "zeros"):
    # As a kill leaves it: what is cut off is left out.
    assert vpt_jax.run(config, workdir, data)["loss"] == result["loss"]
    return
  with pytest.raises(ValueError, match=f"{path}.*: .*(d|D)elete this"):
    vpt_jax.run(config, workdir, data)
  path.unlink()
  assert vpt_jax.run(config, workdir, data)["loss"] == result["loss"]
  assert trained(workdir)[0].keys() == trained(before)[0].keys()


def test_mutated_files_of_a_run(made, workdir):
  """200 changes of values: never anything but a sentence with the file."""
  config, data, before, _ = made
  resolved = config_lib.resolve(config, named_task=False)
  rng = np.random.default_rng(0)
  backbone = json.loads((before / "backbone.json").read_text())
  fingerprint = run_folder.fingerprint(data)
  names = ["config.json", "data.json", "backbone.json", "result.json"]
  names += [metrics.FILE, records.FILE]
  refused = 0
  for number in range(200):
    name = names[number % len(names)]
    path = workdir / name
    text = (before / name).read_text()
    if path.suffix == ".jsonl":
      text = text.splitlines()[-1] + "\n"
    path.write_text(mutations.mutate_json(text, rng).strip() + "\n")
    try:
      main.run(config, workdir, data)
      run_folder.claim(workdir, resolved, backbone, fingerprint)
      metrics.Metrics(workdir, 10**6, scores=["top1"]).close()
      report.write(records.find([workdir]), workdir / "report")
    except ValueError as error:
      refused += 1
      assert str(workdir) in str(error) or "record " in str(error)
    path.write_text(text)
  assert refused > 100


@pytest.mark.parametrize("part", ["config", "data"])
def test_a_result_of_another_run_is_not_shown(made, workdir, part):
  """A workdir that was deleted under a run, and taken by another config."""
  config, data, _, result = made
  path = workdir / "result.json"
  run = {**result["run"], part: "0123456789ab"}
  path.write_text(json.dumps({**result, "run": run}))
  match = f"{path} is of a run with another {part} .*0123456789ab.*Delete"
  with pytest.raises(ValueError, match=match):
    vpt_jax.run(config, workdir, data)


def test_lines_of_another_run_are_dropped(tmp_path):
  first = metrics.Metrics(tmp_path, 0, "first")
  values = {"step": 4, "epoch": 0, "lr": 0.1, "loss": 1.5}
  first.write(values)
  first.close()
  assert list(metrics.read_metrics(tmp_path / metrics.FILE)) == [values]
  metrics.Metrics(tmp_path, 9, "second").close()
  assert not (tmp_path / metrics.FILE).read_text()
