"""A step of segmentation on four devices, by each strategy, is that of one.

The number of devices is fixed when JAX starts, so everything runs once, in a
process of its own with four virtual CPUs, and the tests look at what it wrote.
"""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import pytest

from vpt_jax import model as models
from vpt_jax.backbones.vit import ViT
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.methods.vpt import VPT
from vpt_jax.nn import dense_heads
from vpt_jax.nn.tokens import Reads
from vpt_jax.problems.semantic_segmentation import Segmentation
from vpt_jax.training import optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees

DEVICES = 4
BATCH = 8
STEPS = 2
VIT = ViT((16, 16), 4, 32, 2, 2, 64)
READS = Reads((0, 1), final_norm=False)
# {strategy: devices along `model`}.
STRATEGIES = {"dp": 1, "fsdp": 1, "tp": 2}


def batch_of_images():
  """Noise; every image has another number of labelled pixels, one is a copy."""
  rng = np.random.default_rng(0)
  label = rng.integers(0, 3, (BATCH, 16, 16), np.int32)
  for i in range(BATCH):
    label[i, : 2 * i] = 255
  mask = np.ones(BATCH, np.float32)
  mask[-1] = 0
  image = rng.integers(0, 256, (BATCH, 16, 16, 3), np.uint8)
  return {"image": image, "label": label, "mask": mask}


def run(mesh, strategy):
  """Returns {name: array} of some steps, and the FLOPs of one of a device."""
  grids = [VIT.spec.grids[i] for i in READS.blocks]
  head = dense_heads.setr(3, grids, main="pup_4", auxiliary="aux_4", width=16)
  # Dropout: random numbers must not depend on the device of an image.
  method = VPT(VIT.spec, 3, dropout=0.2)
  model = models.Model(VIT, method, 3, reads=READS, dense=head)
  rng = jax.random.PRNGKey(0)
  trainable, frozen = trees.split(models.init(model, rng), method.trainable)
  optimizer = optim.make_optimizer(
    "sgd",
    lambda step: 0.1,
    trainable,
    weight_decay=0.0,
    policies=optim.head_policies(),
  )
  state = step_lib.TrainState(
    jnp.int32(0),
    trainable,
    optimizer.init(trainable),
    models.collections(model, rng),
    rng,
  )
  state = sharding.replicate(state, mesh)
  frozen = sharding.distribute(frozen, mesh, strategy)
  batch = jax.device_put(batch_of_images(), sharding.batch_sharding(mesh))
  step = step_lib.make_train_step(
    model,
    optimizer,
    # Its mean is over labelled pixels, which every device has others of.
    problem=Segmentation(3, average="labelled"),
    preprocess=Preprocess((16, 16), "half"),
    augment="none",
    shards=mesh.shape["data"],
  )
  program = step.lower(state, frozen, batch).compile()
  start = {path: np.array(leaf) for path, leaf in trainable.items()}
  arrays = {}
  for i in range(STEPS):
    state, metrics = program(state, frozen, batch)
    for name, value in metrics.items():
      arrays[f"metrics/{i}/{name}"] = value
  for path, leaf in state.trainable.items():
    arrays[f"moved/{path}"] = leaf - start[path]
  for path, leaf in trees.flatten(state.collections).items():
    arrays[f"statistics/{path}"] = leaf
  return arrays, program.cost_analysis()["flops"]


def main(folder):
  """Writes STRATEGY.npz of all, one.npz, and flops.json."""
  alone = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
  runs = {"one": (alone, "dp")}
  for strategy, count in STRATEGIES.items():
    runs[strategy] = (sharding.make_mesh(BATCH, count), strategy)
  flops = {}
  for name, (mesh, strategy) in runs.items():
    arrays, flops[name] = run(mesh, strategy)
    np.savez(folder / f"{name}.npz", **arrays)
  (folder / "flops.json").write_text(json.dumps(flops))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What `main` wrote."""
  folder = tmp_path_factory.mktemp("dense")
  flags = os.environ.get("XLA_FLAGS", "")
  subprocess.run(
    [sys.executable, "-m", "tests.distributed.test_dense_sharding", folder],
    check=True,
    cwd=Path(__file__).resolve().parents[2],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={DEVICES}",
    },
  )
  return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_computes_what_one_device_does(folder, strategy):
  """Losses, pixels, updates and batch statistics, and work that is shared."""
  want = dict(np.load(folder / "one.npz"))
  found = dict(np.load(folder / f"{strategy}.npz"))
  assert found.keys() == want.keys()
  for name, value in want.items():
    largest = np.abs(value).max()
    assert largest > 1e-6, name  # so that something is compared
    np.testing.assert_allclose(
      found[name], value, atol=1e-4 * largest, err_msg=name
    )
  # Each device computes its own images alone, kernels' gradients included.
  flops = json.loads((folder / "flops.json").read_text())
  images_of_device = STRATEGIES[strategy] / DEVICES
  assert flops[strategy] < 1.2 * images_of_device * flops["one"]


if __name__ == "__main__":
  main(Path(sys.argv[1]))
