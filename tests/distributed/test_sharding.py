"""Data parallelism: eight devices do what one does.

The number of devices is fixed when JAX starts, so everything runs once, in a
process of its own with eight virtual CPUs, and the tests look at what it wrote.
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
from vpt_jax.data import datasets, pipeline
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.methods.vpt import VPT
from vpt_jax.problems import Classification
from vpt_jax.training import evaluation, optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees

DEVICES = 8
BATCH = 16
IMAGES = 2 * BATCH + 3  # the last batch has fewer images than devices


def counted(array):
  """[(device, indices of the rows that it holds)] of a sharded batch."""
  return sorted(
    (piece.device.id, list(range(*piece.index[0].indices(BATCH))))
    for piece in array.addressable_shards
  )


def same_everywhere(values):
  """Whether every device holds all of every array, and all hold the same."""
  return all(
    len(leaf.addressable_shards) == DEVICES
    and all(
      np.array_equal(piece.data, leaf) for piece in leaf.addressable_shards
    )
    for leaf in jax.tree.leaves(values)
  )


def error_of(batch_size):
  """What `make_mesh` says against a batch size, "" if nothing."""
  try:
    sharding.make_mesh(batch_size)
  except ValueError as error:
    return str(error)
  return ""


def place_error(flat, strategy, model):
  """What `place` says against a strategy, "" if nothing."""
  try:
    sharding.distribute(flat, sharding.make_mesh(BATCH, model), strategy)
  except ValueError as error:
    return str(error)
  return ""


def run(mesh, split, device_bytes):
  """Two epochs and an evaluation: ({name: array}, state, frozen, a batch)."""
  vit = ViT((8, 8), 4, 16, 2, 2, 32)
  # Dropout and crops: the random numbers of an image must not depend on the
  # device that it is on.
  model = models.Model(vit, VPT(vit.spec, 3, dropout=0.2), 5)
  rng = jax.random.PRNGKey(0)
  trainable, frozen = trees.split(
    models.init(model, rng), model.method.trainable
  )
  arrays = {f"start/{path}": np.array(leaf) for path, leaf in trainable.items()}
  tx = optim.make_optimizer(
    "sgd",
    optim.per_epoch(np.array([0.5, 0.2]), 3),
    trainable,
    weight_decay=1e-3,
  )
  feed = pipeline.Feed(split, BATCH, mesh, device_bytes)
  frozen = sharding.replicate(frozen, mesh)
  state = sharding.replicate(
    step_lib.TrainState(jnp.int32(0), trainable, tx.init(trainable), {}, rng),
    mesh,
  )
  preprocess = Preprocess(model.method.input_size, "half")
  step = step_lib.make_train_step(
    model,
    tx,
    problem=Classification(model.num_classes),
    preprocess=preprocess,
    augment="flip_crop",
    shards=mesh.shape["data"],
  )
  records = []
  for epoch in range(2):
    for batch in feed.batches(pipeline.order(len(split), 0, epoch)):
      state, record = step(state, frozen, batch)
      records.append(record)
  scores, _ = evaluation.evaluate(
    evaluation.make_eval_step(
      evaluation.make_apply(model, preprocess),
      Classification(model.num_classes),
    ),
    state.trainable,
    frozen,
    {},
    feed,
    Classification(model.num_classes),
  )
  for name in records[0]:
    arrays[f"metrics/{name}"] = np.array([record[name] for record in records])
  arrays |= {f"scores/{name}": value for name, value in scores.items()}
  arrays |= {f"end/{path}": leaf for path, leaf in state.trainable.items()}
  return arrays, state, frozen, batch


def main(folder):
  """Writes facts.json, eight.npz and one.npz."""
  images = np.random.default_rng(0).integers(
    0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8
  )
  split = datasets.from_arrays(images, np.arange(IMAGES) % 5)
  facts = {
    "devices": jax.device_count(),
    "errors": {size: error_of(size) for size in (100, 5, 8, 15, 96, 104)},
  }

  arrays, state, frozen, batch = run(sharding.make_mesh(BATCH), split, 1e9)
  facts["resident"] = {name: counted(batch[name]) for name in batch}
  facts["state"] = same_everywhere(state)
  facts["frozen"] = same_everywhere(frozen)
  feed = pipeline.Feed(split, BATCH, sharding.make_mesh(BATCH), 0)
  streamed = next(feed.batches(np.arange(IMAGES)))
  facts["streamed"] = {name: counted(streamed[name]) for name in streamed}
  facts["parts"] = {
    strategy: {
      path: leaf.addressable_shards[0].data.shape
      for path, leaf in sharding.distribute(
        frozen, sharding.make_mesh(BATCH, model), strategy
      ).items()
    }
    for strategy, model in (("dp", 1), ("fsdp", 1), ("tp", 2))
  }
  facts["split"] = [
    place_error(*case)
    for case in (
      (frozen, "tp", 1),
      ({"backbone/odd": np.zeros(8)}, "tp", 2),
      ({"backbone/odd": np.zeros(7)}, "fsdp", 1),
      ({}, "fsdp", 1),
    )
  ]
  np.savez(folder / "eight.npz", **arrays)

  np.savez(
    folder / "one.npz",
    **run(Mesh(np.array(jax.devices()[:1]), ("data",)), split, 0)[0],
  )
  (folder / "facts.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  """(facts, arrays on eight devices, arrays on one)."""
  folder = tmp_path_factory.mktemp("shard")
  flags = os.environ.get("XLA_FLAGS", "")
  subprocess.run(
    [sys.executable, "-m", "tests.distributed.test_sharding", str(folder)],
    check=True,
    cwd=Path(__file__).resolve().parents[2],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={DEVICES}",
    },
  )
  facts = json.loads((folder / "facts.json").read_text())
  assert facts["devices"] == DEVICES
  return facts, *(
    dict(np.load(folder / f"{name}.npz")) for name in ("eight", "one")
  )


def test_the_devices_must_divide_the_batch(result):

  def says(size, nearest):
    return (
      f"batch_size={size} is not divisible by 8 devices; nearest: {nearest}"
    )

  assert result[0]["errors"] == {
    "100": says(100, "96, 104"),
    "5": says(5, "8"),
    "15": says(15, "8, 16"),
    "8": "",
    "96": "",
    "104": "",
  }


@pytest.mark.parametrize("feed", ["resident", "streamed"])
@pytest.mark.parametrize("name", ["image", "label", "mask"])
def test_every_device_gets_its_rows_of_the_batch(result, feed, name):
  rows = BATCH // DEVICES
  assert result[0][feed][name] == [
    [i, list(range(i * rows, (i + 1) * rows))] for i in range(DEVICES)
  ]


@pytest.mark.parametrize("what", ["state", "frozen"])
def test_all_else_is_copied_and_stays_equal(result, what):
  assert result[0][what] is True


def test_what_a_device_holds_of_the_frozen_parameters(result):
  parts, block = result[0]["parts"], "backbone/Transformer/encoderblock_1/"
  attention = block + "MultiHeadDotProductAttention_0/"
  for path, whole, fsdp, tp in (
    (attention + "query/kernel", [16, 2, 8], [2, 2, 8], [16, 1, 8]),
    (attention + "value/bias", [2, 8], [2, 1], [1, 8]),
    (attention + "out/kernel", [2, 8, 16], [2, 8, 2], [1, 8, 16]),
    (block + "MlpBlock_0/Dense_0/kernel", [16, 32], [16, 4], [16, 16]),
    (block + "MlpBlock_0/Dense_0/bias", [32], [4], [16]),
    (block + "MlpBlock_0/Dense_1/kernel", [32, 16], [4, 16], [16, 16]),
    (block + "MlpBlock_0/Dense_1/bias", [16], [2], [16]),
    (block + "LayerNorm_0/scale", [16], [2], [16]),
  ):
    assert [parts[strategy][path] for strategy in ("dp", "fsdp", "tp")] == [
      whole,
      fsdp,
      tp,
    ], path


def test_a_strategy_that_splits_nothing(result):
  says = "config.shard.strategy={!r} splits no frozen parameter over devices {}"
  assert result[0]["split"] == [
    says.format("tp", {"data": 8, "model": 1})
    + "; use 'dp', or set config.shard.model",
    says.format("tp", {"data": 4, "model": 2})
    + "; use 'dp', or set config.shard.model",
    says.format("fsdp", {"data": 8, "model": 1}) + "; use 'dp'",
    "",
  ]


def test_training_is_the_same_as_on_one_device(result):
  _, eight, one = result
  assert eight.keys() == one.keys()
  for name in one:
    np.testing.assert_allclose(
      eight[name], one[name], atol=1e-5, rtol=1e-5, err_msg=name
    )
  np.testing.assert_array_equal(eight["metrics/images"], [16, 16, 3] * 2)
  assert eight["scores/count"] == IMAGES
  moved = [name for name in eight if name.startswith("end/")]
  assert moved
  for name in moved:
    start = eight[name.replace("end/", "start/")]
    assert np.abs(eight[name] - start).max() > 1e-3, name


if __name__ == "__main__":
  main(Path(sys.argv[1]))
