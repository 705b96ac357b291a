"""A run may start from what another one has learned, and only where it fits."""

import json
import re

from ml_collections import ConfigDict
import numpy as np
import pytest

from tests.conftest import trained
import vpt_jax
from vpt_jax import main
from vpt_jax.training import records

VPT = (
  "--config=configs/vpt_vtab.py",
  "--config.backbone.name=vit_test",
  "--config.backbone.checkpoint=random",
  "--config.image_size=8",
  "--config.batch_size=256",
  "--config.vpt.num_tokens=3",
  "--config.optim.warmup_epochs=0",
)


def command(capsys, workdir, *arguments):
  """(status, what is printed) of the command line."""
  status = main.main(["main", *VPT, f"--workdir={workdir}", *arguments])
  out, err = capsys.readouterr()
  return status, out + err


@pytest.fixture(name="old", scope="module")
def old_fixture(tmp_path_factory):
  """The workdir of a finished run."""
  workdir = tmp_path_factory.mktemp("old")
  arguments = [*VPT, f"--workdir={workdir}", "--config.epochs=3"]
  assert main.main(["main", *arguments]) == 0
  return workdir


def test_more_epochs_for_a_finished_run(old, tmp_path, capsys):
  """`--config.epochs=9` in the same workdir is refused, and says the way."""
  status, text = command(capsys, old, "--config.epochs=9")
  assert status == 1
  assert "epochs: 3 -> 9" in text
  start = f"--start={old}/adapter.npz"
  assert f"another --workdir and {start}\n" in text

  more = tmp_path / "more"
  status, text = command(capsys, more, "--config.epochs=9", start)
  assert status == 0, text
  assert f"starts from {old}/adapter.npz" in text
  _, before = trained(old)
  _, after = trained(more)
  assert len(after) == 9
  assert after[0]["loss"] < before[0]["loss"]
  assert after[-1]["loss"] < before[-1]["loss"]
  ids = {record["id"] for record in records.find([old, more])}
  assert len(ids) == 2

  # The same command shows it; without --start it is another run.
  status, text = command(capsys, more, "--config.epochs=9", start)
  assert status == 0 and "is finished" in text
  status, text = command(capsys, more, "--config.epochs=9")
  assert status == 1 and "\n  start: " in text


def test_it_starts_exactly_there(old, tmp_path, capsys):
  start = f"--start={old}/adapter.npz"
  status, text = command(capsys, tmp_path, "--config.epochs=0", start)
  assert status == 0, text
  want, _ = trained(old)
  got, _ = trained(tmp_path)
  assert got.keys() == want.keys()
  for path, array in want.items():
    np.testing.assert_array_equal(got[path], array, err_msg=path)
  results = [
    json.loads((workdir / "result.json").read_text())
    for workdir in (old, tmp_path)
  ]
  assert results[0]["loss"] == results[1]["loss"]


@pytest.mark.parametrize(
  "arguments,message",
  [
    (["--config.vpt.num_tokens=4"], "where it was saved"),
    (["--config.vpt.deep=False"], "where it was saved"),
    (["--config.method=linear"], "holds method/.*config.method='vpt'"),
    (["--config.backbone.name=mae_test"], "was trained on backbone vit_test"),
    (["--config.seed=1"], "a random backbone of seed 42, .* config.seed=42"),
    (["--config.start=0123"], "config.start='0123', but .*: --start=ADAPTER"),
    (["--config.mode=sweep"], "a sweep's runs start anew: leave --start out"),
    (["--start=nowhere.npz"], "no adapter at nowhere.npz"),
  ],
)
def test_where_it_does_not_fit_it_is_refused(
  old, tmp_path, capsys, arguments, message
):
  start = f"--start={old}/adapter.npz"
  status, text = command(capsys, tmp_path / "run", start, *arguments)
  assert status == 1
  error = next(line for line in text.splitlines() if "error: " in line)
  assert re.search(message, error), text


def test_other_classes_are_refused(config, tmp_path):
  """As many as there were, but others: labels would mean other classes."""
  config.task = "photos"
  config.epochs = 1
  config.optim.warmup_epochs = 0
  config.batch_size = 16
  images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)

  def data(*names):
    split = vpt_jax.from_arrays(images, np.arange(20) % 2, class_names=names)
    return vpt_jax.Data(split, split)

  vpt_jax.run(config, tmp_path / "old", data("cat", "dog"))
  start = tmp_path / "old" / "adapter.npz"
  with pytest.raises(ValueError, match=r"classes \['cat', 'dog'\].* \['dog'"):
    vpt_jax.run(config, tmp_path / "b", data("dog", "cat"), start=start)
  vpt_jax.run(config, tmp_path / "c", data("cat", "dog"), start=start)
  named = ConfigDict(config.to_dict())
  named.start = "0123456789abcdef"
  with pytest.raises(ValueError, match="name its file by --start=ADAPTER"):
    vpt_jax.run(named, tmp_path / "d", data("cat", "dog"))
