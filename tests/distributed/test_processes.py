"""Several processes and several devices do what one does; how they end.

Each run is a process tree of its own (see `tests/several.py`), as the number of
devices is fixed when JAX starts.
"""

import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import conftest
from vpt_jax.distributed import processes

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 240


def start(workdir, what, devices=1, spec="", env=os.environ, cwd=ROOT):
  """A process of `devices` virtual CPUs."""
  env = {
    **env,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} "
    f"--xla_force_host_platform_device_count={devices}",
  }
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "tests.several",
      str(workdir),
      what,
      *([spec] if spec else []),
    ],
    env=env,
    cwd=cwd,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def together(workdir, what, processes, devices, env=os.environ):
  """Processes that make one run."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [
    start(workdir, what, devices, f"localhost:{port},{processes},{i}", env)
    for i in range(processes)
  ]


def ended(processes, status=0):
  """What they printed, (stdout, stderr) each, all with that exit status."""
  out = [process.communicate(timeout=TIMEOUT) for process in processes]
  assert [process.returncode for process in processes] == (
    [status] * len(processes)
  ), out
  return out


def close(ours, theirs, atol=1e-5):
  """Adapters and metrics are equal to rounding."""
  (adapter, metrics), (other, others) = map(conftest.trained, (ours, theirs))
  assert adapter.keys() == other.keys() and len(metrics) == len(others)
  for path, leaf in adapter.items():
    np.testing.assert_allclose(
      leaf, other[path], err_msg=path, rtol=atol, atol=atol
    )
  for line, want in zip(metrics, others, strict=True):
    np.testing.assert_allclose(line["loss"], want["loss"], rtol=1e-5)


def test_one_device_eight_and_two_times_four(tmp_path):
  method = "vapt"
  ended([start(tmp_path / "one", method)])
  ended([start(tmp_path / "eight", method, 8)])
  (first, _), (second, _) = ended(together(tmp_path / "two", method, 2, 4))
  assert re.search(r"done \d", first) and re.search(r"done \d", second)
  for other in ("eight", "two"):
    close(tmp_path / other, tmp_path / "one")
  predictions = [
    (tmp_path / run / "predictions.csv").read_text().splitlines()
    for run in ("one", "two")
  ]
  assert len(predictions[0]) == len(predictions[1]) == 798


def test_batch_statistics_are_of_all_processes(tmp_path):
  """PGN's BatchNorm."""
  what = (
    "pgn,pgn.initial_channels=2,pgn.groups=1,pgn.num_tokens=2,"
    "pgn.library=4,pgn.init_max_pool=False"
  )
  ended([start(tmp_path / "one", what)])
  ended(together(tmp_path / "two", what, 2, 2))
  close(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
  "processes,what",
  [
    # The frozen tree in parts over processes; images read by each for itself.
    (4, "vpt,shard.strategy=fsdp,data.device_gb=1e-9"),
    # Images mapped from the disk, resident; frozen prompts; parts of layers.
    (2, "vpt,trainable='head/.*',shard.strategy=tp,shard.model=2"),
  ],
)
def test_large_data_and_backbones_over_processes(processes, what, tmp_path):
  here = f",in_memory=0,data.cache={str(tmp_path / 'cache')!r}"
  method, *rest = what.split(",")
  plain = [field for field in rest if field.startswith("trainable")]
  ended([start(tmp_path / "one", ",".join([method, *plain]))])
  ended(together(tmp_path / "several", what + here, processes, 4 // processes))
  assert [*(tmp_path / "cache").glob("*/images.npy")]
  close(tmp_path / "several", tmp_path / "one")


@pytest.mark.parametrize("differ", ["config", "data"])
def test_processes_that_are_not_alike_are_told(differ, tmp_path):
  """Before anything waits for a batch that the other one does not have:
  features of a linear probe."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    spec = f"localhost:{free.getsockname()[1]},2,"
  both = []
  for i, part in enumerate(["train", "trainval"]):
    what, home = f"linear,data.train_split={part}", ROOT
    if differ == "data":  # under the same name
      what, home = "linear,task=,data.source=npz:mine.npz", tmp_path / part
      home.mkdir()
      labels = np.arange(400 + 100 * i) % 5
      np.savez(
        home / "mine.npz",
        labels=labels,
        images=np.zeros((len(labels), 8, 8, 3), np.uint8),
      )
    both.append(start(tmp_path / "run", what, 1, f"{spec}{i}", cwd=home))
  lines = {
    "config": ["data.train_split: 'train' -> 'trainval'"],
    "data": ["train.images: 360 -> 450", "train.crc32: "],
  }
  for _, err in ended(both, 1):
    assert f"error: the processes do not have the same {differ}" in err
    assert "In the first one -> in number 1:\n" in err
    for line in lines[differ]:
      assert f"\n  {line}" in err


def test_a_sweep_takes_one_process(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    spec = f"localhost:{free.getsockname()[1]},2,"
  both = [
    subprocess.Popen(
      [
        sys.executable,
        "-m",
        "vpt_jax.main",
        f"--config={ROOT}/configs/sweep_mini.py",
        f"--workdir={tmp_path}/run",
        f"--distributed={spec}{i}",
      ],
      text=True,
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]
  for _, err in ended(both, 1):
    assert "a sweep takes one process, of any number of devices" in err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strategy", ["fsdp", "tp,shard.model=2"])
def test_strategies(strategy, tmp_path):
  ended([start(tmp_path / "dp", "vpt")])
  ended([start(tmp_path / "other", f"vpt,shard.strategy={strategy}", 8)])
  close(tmp_path / "other", tmp_path / "dp")


def test_a_run_goes_on_with_other_processes_and_devices(tmp_path):
  work = tmp_path / "moved"
  first = start(work, "vpt,epochs=4,checkpoint.every_epochs=1", 8)
  deadline = time.monotonic() + TIMEOUT
  while not (work / "checkpoints" / "16").exists():
    assert time.monotonic() < deadline and first.poll() is None
    time.sleep(0.02)
  first.kill()
  first.communicate()
  ended(together(work, "vpt,epochs=4,checkpoint.every_epochs=1", 2, 2))
  ended([start(tmp_path / "whole", "vpt,epochs=4,checkpoint.every_epochs=1")])
  close(work, tmp_path / "whole")


LONG = "vpt,epochs=40,checkpoint.every_epochs=1000"


def begun(workdir, process):
  """Waits until a run has made steps: the metrics of an epoch are there."""
  deadline = time.monotonic() + TIMEOUT
  path = workdir / "metrics.jsonl"
  while not (path.exists() and path.stat().st_size):
    assert time.monotonic() < deadline and process.poll() is None, (
      process.communicate()
    )
    time.sleep(0.01)


def test_sigterm_saves_and_the_run_ends_with_the_same_bits(tmp_path):
  process = start(tmp_path / "stopped", LONG)
  begun(tmp_path / "stopped", process)
  process.send_signal(signal.SIGTERM)
  ((_, err),) = ended([process], 143)
  step = max(
    int(path.name) for path in (tmp_path / "stopped/checkpoints").iterdir()
  )
  assert 0 < step < 40 * 16
  epoch, more = divmod(step, 16)
  steps = f" and {more} steps" if more else ""
  assert (
    f"stopped by SIGTERM; saved: training up to epoch {epoch}{steps} in "
    f"{tmp_path}/stopped/checkpoints; the same command resumes\n" in err
  )
  ended([start(tmp_path / "stopped", LONG)])
  ended([start(tmp_path / "whole", LONG)])
  (adapter, metrics), (want, wanted) = (
    conftest.trained(tmp_path / name) for name in ("stopped", "whole")
  )
  assert metrics == wanted
  for path, leaf in want.items():
    np.testing.assert_array_equal(adapter[path], leaf)


def test_sigterm_to_several_processes(tmp_path):
  both = together(tmp_path / "stopped", LONG, 2, 1)
  begun(tmp_path / "stopped", both[0])
  both[1].send_signal(signal.SIGTERM)  # one hears of it, both stop
  ended(both, 143)
  assert [*(tmp_path / "stopped/checkpoints").iterdir()]


# The first one is whom the others report to, and the one that writes.
@pytest.mark.parametrize("count,lost", [(2, 1), (4, 0)])
def test_a_process_that_is_lost_ends_the_others(count, lost, tmp_path):
  others = together(tmp_path / "lost", LONG, count, 1)
  begun(tmp_path / "lost", others[0])
  killed = others.pop(lost)
  killed.kill()
  start_of_end = time.monotonic()
  for process in others:
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode not in (0, None)
    assert (
      "has lost another one" in err
      or "heartbeat" in err.lower()
      or ("coordination service" in err.lower())
    ), err
  assert time.monotonic() - start_of_end < 3 * processes.HEARTBEAT_SECONDS
  killed.communicate()
  ended([start(tmp_path / "lost", LONG)])  # and it goes on


@pytest.mark.parametrize("spec", ["here", "localhost:1,2", "localhost:1,2,2"])
def test_addresses_that_cannot_be(spec):
  with pytest.raises(ValueError, match=r"expected 'auto'.*HOST:PORT,N,I"):
    processes.join(spec)


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_port_that_is_taken_is_said(host):
  """JAX ended with a segmentation fault."""
  with socket.socket() as taken:
    taken.bind((host, 0))
    taken.listen()
    port = taken.getsockname()[1]
    message = f"cannot listen on port {port} .Address already in use.; end"
    with pytest.raises(ValueError, match=message):
      processes.join(f"localhost:{port},2,0")


@pytest.mark.parametrize("port", [70000, 99999999999])
def test_a_port_that_cannot_be(port):
  with pytest.raises(ValueError, match=f"cannot listen on port {port} .*65535"):
    processes.join(f"localhost:{port},2,0")


ALONE = """
import sys
from vpt_jax import main
from vpt_jax.distributed import processes
processes.START_SECONDS = 1
def work():
  processes.join(sys.argv[1])
  return 0
main.exit_with(main.exit_status(work))
"""


@pytest.mark.parametrize(
  "number,who",
  [
    (0, "not all 2 processes were there"),
    (1, "no answer from the first"),
  ],
)
def test_processes_that_do_not_come_are_not_waited_for_for_ever(number, who):
  """Nor is the process aborted, with pages of C++, as JAX does it."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    spec = f"localhost:{free.getsockname()[1]},2,{number}"
  done = subprocess.run(
    [sys.executable, "-c", ALONE, spec],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
    check=False,
  )
  assert done.returncode == 1, done.stderr
  assert f"error: --distributed={spec}: {who}" in done.stderr
  assert "stack trace" not in done.stderr


FORKS = """
import multiprocessing, sys
import numpy as np
from tests import conftest
import vpt_jax
config = conftest.config.__wrapped__()
config.epochs, config.optim.warmup_epochs = 1, 0
workdir = sys.argv[1]
image = np.zeros((8, 8, 3), np.uint8)

def predicts(_):
  return predict(image).shape

def loads(_):
  return vpt_jax.load_adapter(workdir + "/adapter.npz")(image).shape

def trains(_):
  return vpt_jax.run(config, workdir + "/again")

def result(work, method):
  with multiprocessing.get_context(method).Pool(1) as pool:
    try:
      return pool.map(work, [0])[0]
    except ValueError as error:
      return error

if __name__ == "__main__":
  vpt_jax.run(config, workdir)
  predict = vpt_jax.load_adapter(workdir + "/adapter.npz")
  for work in (predicts, loads, trains):
    print(result(work, "fork"))
  print(result(loads, "spawn"), predict(image).shape)
"""


def test_a_fork_of_a_process_that_has_started_jax_is_told(tmp_path):
  """It would wait for ever. What the error advises, 'spawn', works."""
  script = tmp_path / "forks.py"
  script.write_text(FORKS)
  done = subprocess.run(
    [sys.executable, str(script), str(tmp_path / "run")],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  *told, works = done.stdout.splitlines()
  assert len(told) == 3 and works == "(10,) (10,)"
  for line in told:
    assert "is a fork of one that has started JAX" in line
    assert "multiprocessing.get_context('spawn')" in line


def collectives(text):
  """Bytes that the all-reduces, gathers ... of a compiled program give."""
  sizes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2}
  total = 0
  for line in text.splitlines():
    found = re.search(
      r"= (.*?) (all-reduce|all-gather|reduce-scatter|"
      r"all-to-all|collective-permute)(-start)?\(",
      line,
    )
    for kind, shape in re.findall(
      r"(\w+)\[([\d,]*)\]", found[1] if found else ""
    ):
      count = np.prod([int(n) for n in shape.split(",") if n], dtype=int)
      total += sizes[kind] * int(count)
  return total


BYTES = """
import jax, numpy as np, jax.numpy as jnp
from vpt_jax import model as models
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.problems import Classification
from vpt_jax.training import optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.pixel import Below
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT
for depth, make in (
    (1, lambda spec: VPT(spec, 8, deep=False, dropout=0.)),
    (3, lambda spec: VPT(spec, 8, deep=False, dropout=0.)),
    (3, lambda spec: VPT(spec, 8, dropout=0.)), (3, lambda spec: VPT(spec, 8)),
    (3, lambda spec: VPT(spec, 8, shared=True, dropout=0.)),
    (3, lambda spec: VAPT(spec, 8)),
    (3, lambda spec: Below(spec, 2))):
  vit = ViT((32, 32), 8, 64, depth, 2, 256)
  mesh = sharding.make_mesh(8)
  model = models.Model(vit, make(vit.spec), 10)
  trainable, frozen = trees.split(models.init(model, jax.random.key(0)),
                                 model.method.trainable)
  tx = optim.make_optimizer("sgd", lambda step: .1, trainable, weight_decay=0.)
  state = sharding.replicate(step_lib.TrainState(
      jnp.int32(0), trainable, tx.init(trainable), {},
      jax.random.PRNGKey(0)), mesh)
  step = step_lib.make_train_step(model, tx, problem=Classification(10),
                              preprocess=Preprocess((32, 32), "half"),
                              augment="none",
                              shards=mesh.shape["data"])
  put = lambda x: jax.device_put(x, sharding.batch_sharding(mesh))
  batch = {"image": put(np.zeros((8, 32, 32, 3), np.uint8)),
           "label": put(np.zeros(8, np.int32)),
           "mask": put(np.ones(8, np.float32))}
  text = step.lower(state, sharding.distribute(frozen, mesh, "dp"), batch
                    ).compile().as_text()
  print("PROGRAM", trees.count(trainable))
  print(text)
"""


def test_collectives_move_the_trainable_tree_only():
  env = {
    **conftest.as_users_compile(),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
  }
  out = subprocess.run(
    [sys.executable, "-c", BYTES],
    env=env,
    text=True,
    capture_output=True,
    timeout=TIMEOUT,
    check=True,
  ).stdout
  moved = []
  for part in out.split("PROGRAM ")[1:]:
    moved.append(collectives(part) - 4 * int(part.split("\n", 1)[0]))
  # Beside each gradient once, whatever the depth: loss, hits, images.
  assert moved == [12] * 7
