"""A disk that fills up while a run trains, wherever it does."""

import errno
import os
import subprocess

import numpy as np
import pytest

from tests.conftest import trained
from vpt_jax import main
from vpt_jax.sweeps import protocol
from vpt_jax.training import (
  checkpoints,
  metrics,
  records,
  run_folder,
  run_results,
)
from vpt_jax.utils import files

# What is written, in this order, and the file that the error names.
STAGES = [
  (run_folder, "claim", "backbone.json"),
  (metrics.Metrics, "write", "metrics.jsonl"),
  (metrics._Events, "write", "tensorboard"),
  (checkpoints.Checkpoints, "save", "checkpoints"),
  (run_results, "save", "adapter.npz"),
  (records.Store, "add", "records.jsonl"),
  (files, "write_json", "result.json"),
]


@pytest.fixture
def disk(tmp_path):
  """A disk of a few megabytes."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder],
    capture_output=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip("only root may mount a disk")
  yield folder
  subprocess.run(["umount", "-l", folder], check=True)


def fill(disk):
  """Writes until there is no room."""
  with (disk / "balloon").open("ab", buffering=0) as balloon:
    for size in (2**16, 1):
      with pytest.raises(OSError, match="No space left"):
        while True:
          balloon.write(b"x" * size)


def is_last(name, arguments):
  """Whether this call is the one that the disk is full for."""
  return name != "write_json" or arguments[0].name == "result.json"


@pytest.fixture
def small(config):
  config.epochs, config.checkpoint.every_epochs = 2, 1
  config.optim.warmup_epochs = 0
  return config


def same(ours, theirs):
  (adapter, lines), (want, wanted) = map(trained, (ours, theirs))
  assert lines == wanted and adapter.keys() == want.keys()
  for path, leaf in want.items():
    np.testing.assert_array_equal(adapter[path], leaf)


@pytest.mark.parametrize("module,name,file", STAGES)
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(
  module, name, file, small, disk, tmp_path, monkeypatch, capfd
):
  """Nothing but the path and what to do; then the same bits as undisturbed."""
  write = getattr(module, name)

  def fill_and_write(*arguments, **options):
    if is_last(name, arguments):
      fill(disk)
    return write(*arguments, **options)

  def work():
    main.run(small, disk / "run")
    return 0

  with monkeypatch.context() as patch:
    patch.setattr(module, name, fill_and_write)
    assert main.exit_status(work) == 1
  err = capfd.readouterr().err
  # Progress may stand before it, where an earlier test has asked for it.
  assert err.splitlines()[-1] == (
    f"error: {disk}/run/{file}: No space left on device; make room on this "
    "disk, or name a folder on another one; the same command resumes"
  )
  assert "Traceback" not in err
  assert not (disk / "run" / "result.json").exists()
  (disk / "balloon").unlink()
  assert main.exit_status(work) == 0
  main.run(small, tmp_path / "whole")
  same(disk / "run", tmp_path / "whole")
  assert not [*(disk / "run").rglob(f"*{files.UNFINISHED}*")]
  assert not [*(disk / "run").rglob(f"*{checkpoints.UNFINISHED}*")]


def test_a_sweep_stops_at_once_when_the_disk_is_full(
  small, tmp_path, monkeypatch
):
  """Other tasks, which it would go on with, could not be saved either."""
  tried = []

  def finish_task(self, task):
    del self
    tried.append(task)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "records.jsonl")

  monkeypatch.setattr(protocol.Sweep, "finish_task", finish_task)
  small.mode, small.task, small.sweep.tasks = "sweep", "", ("digits", "eurosat")
  with pytest.raises(OSError, match="No space left"):
    protocol.run(small, tmp_path)
  assert tried == ["digits"]
