"""What a checkpoint gives back is what was saved, or it is not taken."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.conftest import trained
import vpt_jax
from vpt_jax.training import records
from vpt_jax.training.checkpoints import Checkpoints, OtherLayout
from vpt_jax.utils import files
from vpt_jax.utils.logs import log

RUN = {"config": "c0ffee", "data": "da7a"}


def state(step):
  """Floats of all kinds, of which a disk may keep no other bits."""
  rng = np.random.default_rng(step)
  return {
    "weights": rng.normal(size=(40, 30)).astype(np.float32),
    "zeros": jnp.full(7, -0.0),
    "half": jnp.asarray(rng.normal(size=9), jnp.bfloat16),
    "step": jnp.int32(step),
    "curve": np.array([0.5, np.nan, -np.inf], np.float32),
  }


def save(folder, *steps, run=RUN):
  saved = Checkpoints(folder, 2, run)
  for step in steps:
    saved.save(step, state(step))
  saved.close()


def restore(folder, run=RUN, like=None):
  saved = Checkpoints(folder, 2, run)
  try:
    return saved.restore(state(0) if like is None else like)
  finally:
    saved.close()


def assert_is(restored, step):
  """The state is that of a step, to the last bit."""
  assert restored[0] == step
  want = state(step)
  assert restored[1].keys() == want.keys()
  for name, leaf in want.items():
    got = np.asarray(restored[1][name])
    assert got.dtype == leaf.dtype and got.shape == leaf.shape
    assert got.tobytes() == np.asarray(leaf).tobytes(), name


@pytest.fixture
def messages(caplog):
  log.addHandler(caplog.handler)
  caplog.set_level(logging.INFO)
  yield caplog
  log.removeHandler(caplog.handler)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  folder = tmp_path_factory.mktemp("checkpoints")
  save(folder, 1, 2, 3)
  return folder


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_the_newest_ones_are_kept(two):
  assert names(two) == ["2", "3"]
  restored = restore(two)
  assert_is(restored, 3)
  assert isinstance(restored[1]["zeros"], jax.Array)
  assert restore(two.parent / "empty") is None


def test_no_flipped_bit_is_taken(two, tmp_path):
  """In any file of the newest checkpoint: the same bits, or the one before."""
  rng = np.random.default_rng(0)
  folder = tmp_path / "checkpoints"
  found = [path for path in (two / "3").rglob("*") if path.is_file()]
  assert any("default/d" in str(path) for path in found)
  fallbacks = 0
  for path in found:
    for _ in range(6):
      shutil.rmtree(folder, ignore_errors=True)
      shutil.copytree(two, folder)
      data = bytearray(path.read_bytes())
      data[rng.integers(len(data))] ^= 1 << rng.integers(8)
      (folder / path.relative_to(two)).write_bytes(data)
      restored = restore(folder)
      if restored[0] == 3:
        assert_is(restored, 3)
        assert names(folder) == ["2", "3"]
      else:
        assert_is(restored, 2)
        assert names(folder) == ["2", "damaged-3"]
        fallbacks += 1
  assert fallbacks > len(found)


def test_no_damaged_file_is_taken(two, tmp_path):
  """Files that are empty, cut, filled with zeros or not there."""
  folder = tmp_path / "checkpoints"
  found = [path for path in (two / "3").rglob("*") if path.is_file()]
  for path in found:
    data = path.read_bytes()
    for damaged in (b"", data[: len(data) // 2], bytes(len(data)), None, b"5"):
      shutil.rmtree(folder, ignore_errors=True)
      shutil.copytree(two, folder)
      copy = folder / path.relative_to(two)
      copy.unlink()
      if damaged is not None:
        copy.write_bytes(damaged)
      restored = restore(folder)
      assert_is(restored, restored[0])


def test_a_damaged_one_is_named_and_kept_aside(two, tmp_path, messages):
  """It is never deleted, also when it happens again."""
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  (folder / "3/default/_METADATA").write_text("")
  assert_is(restore(folder), 2)
  assert f"checkpoint {folder}/3 cannot be taken: " in messages.text
  assert f"kept as {folder}/damaged-3" in messages.text
  save(folder, 3)
  (folder / "3/seal/metadata").write_text("")
  assert_is(restore(folder), 2)
  save(folder, 3, 4, 5, 6)
  assert names(folder) == ["5", "6", "damaged-3", "damaged-3-2"]


def test_none_is_good(two, tmp_path, messages):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  for step in (2, 3):
    shutil.rmtree(folder / str(step) / "default/d")
  assert restore(folder) is None
  assert names(folder) == ["damaged-2", "damaged-3"]
  assert "no good checkpoint is left" in messages.text
  assert "starts from the beginning" in messages.text


def test_one_of_another_run_is_not_taken(two, tmp_path, messages):
  """Another config, other data: whoever wrote it into this folder."""
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  shutil.rmtree(folder / "3")
  save(folder, 3, run={**RUN, "data": "0ther"})
  assert_is(restore(folder), 2)
  assert names(folder) == ["2", "other-run-3"]
  assert "it is of a run with another data (0ther, " in messages.text


def test_one_of_another_version_is_not_thrown_away(two, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  like = {**state(0), "half": jnp.zeros(9, jnp.float32)}
  match = r"3 is whole, but of a version whose states differ: \['half'\] is"
  with pytest.raises(OtherLayout, match=match):
    restore(folder, like=like)
  assert names(folder) == ["2", "3"]


def test_one_of_version_01_is_taken_and_said(tmp_path, messages):
  """As orbax's manager wrote them, without checksums."""
  manager = ocp.CheckpointManager(tmp_path)
  copied = jax.tree.map(np.asarray, state(7))
  manager.save(7, args=ocp.args.StandardSave(copied))
  manager.close()
  assert_is(restore(tmp_path), 7)
  assert "wrote no checksums: it is taken unchecked" in messages.text
  save(tmp_path, 8)
  assert_is(restore(tmp_path), 8)


def test_what_a_kill_left_is_deleted(two, tmp_path):
  folder = tmp_path / "checkpoints"
  shutil.copytree(two, folder)
  shutil.copytree(two / "3", folder / "4.orbax-checkpoint-tmp")
  shutil.copytree(two / "2", folder / "1.orbax-checkpoint-tmp-deleted")
  assert_is(restore(folder), 3)
  assert names(folder) == ["2", "3"]


def test_a_run_with_damaged_checkpoints_ends_the_same(config, tmp_path):
  """`checkpoints/N/default/d/*`: the example of a run that went wrong."""
  config.checkpoint.every_epochs = 1
  done = vpt_jax.run(config, tmp_path)
  want = trained(tmp_path)
  steps = [int(name) for name in names(tmp_path / "checkpoints")]
  for damaged in (steps[1:], steps):
    for name in ("result.json", "adapter.npz", records.FILE):
      (tmp_path / name).unlink()
    for step in damaged:
      path = tmp_path / f"checkpoints/{step}/default/d"
      for file in path.iterdir():
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 16
        file.write_bytes(data)
    result = vpt_jax.run(config, tmp_path)
    assert result["loss"] == done["loss"] and result["top1"] == done["top1"]
    arrays, metrics = trained(tmp_path)
    assert metrics == want[1]
    for path, array in want[0].items():
      np.testing.assert_array_equal(arrays[path], array, err_msg=path)
  kept = names(tmp_path / "checkpoints")
  assert [name for name in kept if "damaged" in name]
  assert json.loads((tmp_path / "result.json").read_text()) == result


@pytest.mark.parametrize("step", ["save", "wait"])
def test_a_folder_that_is_deleted_while_orbax_writes(
  tmp_path, monkeypatch, step
):
  """It is said in place of what orbax then does not find."""
  folder = tmp_path / "run" / "checkpoints"
  with files.lock(tmp_path / "run"):
    saved = Checkpoints(folder, 2, RUN)
    saved.save(1, state(1))

    def deleted(*_, **__):
      shutil.rmtree(tmp_path / "run")
      raise ValueError("NOT_FOUND: Error writing")

    name = {"save": "save", "wait": "wait_until_finished"}[step]
    saved._orbax.wait_until_finished()
    monkeypatch.setattr(saved._orbax, name, deleted)
    with pytest.raises(files.Lost, match="run was deleted while this process"):
      saved.save(2, state(2))
    monkeypatch.undo()
    with pytest.raises(files.Lost, match="run was deleted while this process"):
      saved.close()
  assert not folder.exists()
