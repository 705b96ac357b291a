"""Prompt condensation, all stages of the command."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import images as images_lib
from tests.conftest import trained
import vpt_jax
from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax.condensation import prompt_scores, selection, stages
from vpt_jax.utils import files

# What the stages run on: two blocks, digits as 2 x 2 patches.
SETTINGS = """
from tests import conftest
import vpt_jax
config = conftest.config.__wrapped__()
config.method, config.epochs, config.checkpoint.every_epochs = "vpt", 2, 1
config.vpt.num_tokens = 4
config.condense.shares, config.condense.epochs = (0.25,), 3
config.condense.oracle_images = 100
"""
CALL = "import sys; vpt_jax.run(config, sys.argv[1])"
RUNS = ("full", "keep_25_as_is", "keep_25")


@pytest.fixture
def staged():
  scope = {}
  exec(SETTINGS, scope)  # pylint: disable=exec-used
  return scope["config"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  scope, folder = {}, tmp_path_factory.mktemp("whole")
  exec(SETTINGS, scope)  # pylint: disable=exec-used
  vpt_jax.run(scope["config"], folder)
  return folder


def timeless(workdir):
  """condense.json without what a clock gave."""
  result = json.loads((workdir / "condense.json").read_text())
  for row in result["rows"]:
    assert row.pop("milliseconds") > 0
  return result


def assert_same(workdir, want):
  assert timeless(workdir) == timeless(want)
  for name in ("scores.npz", "oracle.npz"):
    assert (workdir / name).read_bytes() == (want / name).read_bytes()
  for name in RUNS:
    (got, got_metrics), (arrays, metrics) = (
      trained(folder / name) for folder in (workdir, want)
    )
    assert got_metrics == metrics and got.keys() == arrays.keys()
    for path in arrays:
      np.testing.assert_array_equal(got[path], arrays[path], err_msg=path)


def test_the_stages_leave_what_a_researcher_needs(uninterrupted, staged):
  result = timeless(uninterrupted)
  first, last = result["rows"]
  assert (result["method"], result["statistic"]) == (
    "vpt",
    "elementwise_sample_abs",
  )
  assert (first["share"], first["prompts"], first["per_set"]) == (1, 8, [4, 4])
  assert last["share"] == 0.25 and last["prompts"] == sum(last["per_set"]) == 2
  assert last["gmacs"] < first["gmacs"]
  assert first["top1_as_is"] == first["top1_tuned"]
  saved = {
    name: json.loads((uninterrupted / name / "result.json").read_text())
    for name in RUNS
  }
  assert last["top1_as_is"] == saved["keep_25_as_is"]["top1"]
  assert last["top1_tuned"] == saved["keep_25"]["top1"]
  assert (
    saved["full"]["trainable_params"] - saved["keep_25"]["trainable_params"]
    == 6 * 32
  )

  # Fine-tuning starts from the kept prompts and the head.
  with np.load(uninterrupted / "scores.npz") as file:
    found = dict(file)
  assert found.keys() == prompt_scores.STATISTICS.keys()
  mask = selection.keep(found["elementwise_sample_abs"], 0.25)
  full, _ = trained(uninterrupted / "full")
  as_is, _ = trained(uninterrupted / "keep_25_as_is")
  np.testing.assert_array_equal(
    as_is["method/prompt"], full["method/prompt"][mask]
  )
  np.testing.assert_array_equal(as_is["head/kernel"], full["head/kernel"])
  tuned, metrics = trained(uninterrupted / "keep_25")
  assert np.abs(tuned["method/prompt"] - as_is["method/prompt"]).max() > 0
  assert len(metrics) == 3
  # Half of the rate, from the first epoch on.
  assert metrics[0]["lr"] == pytest.approx(0.5 * staged.optim.lr / 2)
  # The option that makes the model smaller comes back from the file.
  predict = vpt_jax.load_adapter(uninterrupted / "keep_25" / "adapter.npz")
  assert predict.meta["config"]["vpt"]["kept"] == [
    list(kept) for kept in selection.indices(mask)
  ]
  test = images_lib.load("digits", "test", folder="", image_size=(8, 8))
  top1 = 100 * (predict(test.images).argmax(-1) == test.labels).mean()
  assert top1 == pytest.approx(last["top1_tuned"], abs=0.13)  # one image

  # The signed score predicts the change, the other one its size.
  oracle = result["oracle"]
  assert oracle.keys() == prompt_scores.STATISTICS.keys()
  assert oracle["removal_signed"]["change"] > 0.5
  assert 0.3 < oracle["removal"]["magnitude"] <= 1
  text = stages.table(json.loads((uninterrupted / "condense.json").read_text()))
  assert "digits test, vpt on vit_test" in text
  assert text.splitlines()[3].split()[:3] == ["25", "%", "2"]


class Stop(Exception):
  """Where a run is interrupted."""


def test_a_run_that_stopped_before_a_file_goes_on(
  staged, tmp_path, monkeypatch, uninterrupted
):
  write, done = files.write_atomic, {}

  def stop_at(at):
    def writes(path, data):
      if path == tmp_path / at:
        raise Stop
      write(path, data)

    return writes

  for at in (
    "full/adapter.npz",
    "scores.npz",
    "oracle.npz",
    "keep_25_as_is/config.json",
    "keep_25/result.json",
    "condense.json",
  ):
    monkeypatch.setattr(files, "write_atomic", stop_at(at))
    with pytest.raises(Stop):
      vpt_jax.run(staged, tmp_path)
    for name, when in done.items():  # what is done is not done again
      assert (tmp_path / name).stat().st_mtime_ns == when
    done = {
      path: path.stat().st_mtime_ns
      for path in (*tmp_path.glob("*/result.json"), *tmp_path.glob("*.npz"))
    }
  assert len(done) == 5
  monkeypatch.undo()
  vpt_jax.run(staged, tmp_path)
  assert_same(tmp_path, uninterrupted)


def test_a_run_killed_while_it_is_fine_tuned_goes_on(
  staged, tmp_path, uninterrupted
):
  process = subprocess.Popen(
    [sys.executable, "-c", SETTINGS + CALL, str(tmp_path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  checkpoints = tmp_path / "keep_25" / "checkpoints"
  deadline = time.monotonic() + 300
  while process.poll() is None and time.monotonic() < deadline:
    if checkpoints.exists() and any(
      path.name.isdigit() for path in checkpoints.iterdir()
    ):
      process.send_signal(signal.SIGKILL)
      break
    time.sleep(0.001)
  process.wait()
  assert process.returncode == -signal.SIGKILL, process.stdout.read()
  assert not (tmp_path / "keep_25" / "result.json").exists()
  vpt_jax.run(staged, tmp_path)
  assert_same(tmp_path, uninterrupted)


def test_a_finished_run_is_shown_and_no_other_goes_on_in_it(
  staged, uninterrupted
):
  before = (uninterrupted / "condense.json").stat().st_mtime_ns
  assert vpt_jax.run(staged, uninterrupted) == json.loads(
    (uninterrupted / "condense.json").read_text()
  )
  assert (uninterrupted / "condense.json").stat().st_mtime_ns == before
  part = vpt_jax.from_arrays(np.zeros((20, 8, 8, 3), np.uint8), np.arange(20))
  with pytest.raises(ValueError, match="another data"):
    vpt_jax.run(staged, uninterrupted, vpt_jax.Data(part, part))
  staged.condense.statistic = "grad_l1"
  with pytest.raises(ValueError, match="condense.statistic: .* -> 'gr"):
    vpt_jax.run(staged, uninterrupted)


def flipped(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def emptied(path):
  path.write_bytes(b"")


@pytest.mark.parametrize("damage", [emptied, flipped])
@pytest.mark.parametrize(
  "name",
  ["condense.json", "scores.npz", "full/result.json", "full/adapter.npz"],
)
def test_damaged_files_are_named(staged, tmp_path, uninterrupted, name, damage):
  """A condensation's own files, and those of its runs; deleted they come back.

  A flipped bit of a result may be that of a number, which nothing shows.
  """
  workdir = shutil.copytree(uninterrupted, tmp_path / "run")
  if name != "condense.json":
    (workdir / "condense.json").unlink()
  path = workdir / name
  if damage is flipped and path.suffix == ".json":
    path.write_text(path.read_text().replace('"backbone"', '"backb\\u0000"'))
  else:
    damage(path)
  with pytest.raises(ValueError, match=str(path)):
    vpt_jax.run(staged, workdir)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"rows": 5}, "'rows' is 5, expected a list"),
    ({"rows": [5]}, "field 'share' is missing"),
    ({"oracle": {"s": {}}}, "field 'magnitude' is missing"),
    ({"problem": 5}, "'problem' is 5"),
    ({"run": {"config": "0123456789ab"}}, "is of a run with another config"),
    ({"run": 5}, "'run' is 5"),
  ],
)
def test_fields_of_a_damaged_result(
  staged, tmp_path, uninterrupted, change, message
):
  for name in ("config.json", "data.json", "condense.json"):
    shutil.copy(uninterrupted / name, tmp_path / name)
  path = tmp_path / "condense.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=f"{path}.*{message}"):
    vpt_jax.run(staged, tmp_path)


@pytest.mark.parametrize(
  "edit, message",
  [
    (lambda c: c.update(method="vapt"), "'vapt' can't be condensed: prompts"),
    (lambda c: c.update(method="linear"), "method 'linear' can't be condensed"),
    (lambda c: c.condense.update(statistic="grad_11"), "did you mean 'grad_l"),
    (lambda c: c.condense.update(statistic="taylor_signed"), "unknown condens"),
    (
      lambda c: c.condense.update(statistic="taylor_sample_abs"),
      "'taylor_sample_abs' ranks nothing that matters",
    ),
    (lambda c: c.condense.update(shares=(0.5, 1.0)), "between 0 and 1"),
    (lambda c: c.condense.update(epochs=-1), "condense.epochs=-1; expected"),
    (lambda c: c.vpt.update(kept=((0,), (1,))), "vpt.kept is what cond"),
  ],
  ids=[
    "vapt",
    "linear",
    "statistic",
    "sign",
    "noise",
    "share",
    "epochs",
    "kept",
  ],
)
def test_what_no_run_can_do_is_refused_before_it_starts(
  staged, tmp_path, edit, message
):
  edit(staged)
  with pytest.raises(ValueError, match=message):
    vpt_jax.run(staged, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_an_ordinary_run_knows_nothing_of_it(config):
  resolved = config_lib.resolve(config)
  assert "condense" not in resolved
  assert "condense" not in config_lib.plain(config_lib.resolve(resolved))


def test_a_start_of_another_shape_is_refused():
  saved = {"method/prompt": np.ones((2, 5)), "head/bias": np.ones(3)}
  values = {"method": {}, "head": {"bias": np.zeros(3), "kernel": np.zeros(2)}}
  got = model_lib.restore(values, saved)
  assert got["method"] == {} and got["head"]["bias"].all()
  assert not got["head"]["kernel"].any()
  values["method"] = {"prompt": np.zeros((2, 4))}
  with pytest.raises(ValueError, match=r"method/prompt is \(2, 5\) where"):
    model_lib.restore(values, saved)
