"""A killed run is resumed and ends with the same bits."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import trained

COMMAND = [
  sys.executable,
  "-m",
  "vpt_jax.main",
  "--config=configs/vapt_vtab.py",
  "--config.backbone.name=vit_mini4",
  "--config.backbone.checkpoint=random",
  "--config.image_size=8",
  "--config.epochs=12",
  "--config.batch_size=96",
  "--config.checkpoint.every_epochs=1",
]


def start(workdir):
  return subprocess.Popen(
    [*COMMAND, f"--workdir={workdir}"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(workdir):
  output = start(workdir).communicate()[0]
  assert (workdir / "result.json").exists(), output
  return output


def kill_when(workdir, condition):
  """Kills a run as soon as `condition(names in checkpoints/)` holds."""
  process = start(workdir)
  folder = workdir / "checkpoints"
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    names = os.listdir(folder) if folder.exists() else []
    if condition(names):
      process.send_signal(signal.SIGKILL)
      break
    time.sleep(0.001)
  process.wait()
  assert process.returncode == -signal.SIGKILL, process.stdout.read()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole")
  finish(workdir)
  return workdir


def test_killed_while_a_checkpoint_is_written(uninterrupted, tmp_path):
  writing = lambda names: (
    any("tmp" in name for name in names)
    and any(name.isdigit() for name in names)
  )
  kill_when(tmp_path, writing)
  # And once more, later, with a line of metrics cut in half.
  steps = lambda names: [int(name) for name in names if name.isdigit()]
  done = max(steps(os.listdir(tmp_path / "checkpoints")))
  kill_when(tmp_path, lambda names: max(steps(names), default=0) > done)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 99999, "lo')
  output = finish(tmp_path)
  assert "resumes after epoch" in output
  want, want_metrics = trained(uninterrupted)
  got, got_metrics = trained(tmp_path)
  assert got_metrics == want_metrics
  assert len(got_metrics) == 12
  assert got.keys() == want.keys()
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_killed_before_the_first_checkpoint(uninterrupted, tmp_path):
  process = start(tmp_path)
  while not (tmp_path / "config.json").exists():
    assert process.poll() is None
    time.sleep(0.01)
  process.kill()
  process.wait()
  finish(tmp_path)
  want, _ = trained(uninterrupted)
  got, _ = trained(tmp_path)
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)


def test_a_finished_run_is_shown_not_repeated(uninterrupted):
  before = (uninterrupted / "adapter.npz").stat().st_mtime_ns
  assert "is finished" in finish(uninterrupted)
  assert (uninterrupted / "adapter.npz").stat().st_mtime_ns == before
