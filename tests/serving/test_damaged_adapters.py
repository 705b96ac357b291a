"""Reading any adapter file ends with a model, or with a sentence."""

import io
import json

import numpy as np
import pytest

from tests import conftest
from tests.fuzz import mutations
import vpt_jax
from vpt_jax import config as config_lib


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
  """The path of an adapter that holds all of its model."""
  config = conftest.config.__wrapped__()
  config.method = "full"
  config.epochs = 0
  config.optim.warmup_epochs = 0
  workdir = tmp_path_factory.mktemp("run")
  vpt_jax.run(config, workdir)
  return workdir / "adapter.npz"


def parts_of(path):
  with np.load(path) as file:
    arrays = dict(file)
  return json.loads(str(arrays.pop("meta"))), arrays


def write(path, meta, arrays):
  buffer = io.BytesIO()
  np.savez(buffer, meta=json.dumps(meta), **arrays)
  path.write_bytes(buffer.getvalue())
  return path


def test_mutated_bytes_and_values(adapter, tmp_path):
  """300 of them, 53 of 400 gave a traceback: a ValueError with the path."""
  rng = np.random.default_rng(0)
  images = np.zeros((2, 8, 8, 3), np.uint8)
  sound = adapter.read_bytes()
  meta, arrays = parts_of(adapter)
  path = tmp_path / "mutated.npz"
  refused = 0
  for number in range(300):
    if number % 3 == 0:
      path.write_bytes(mutations.mutate_bytes(sound, rng))
    else:
      text = mutations.mutate_json(json.dumps(meta), rng)
      write(path, json.loads(text), arrays)
    try:
      probabilities = vpt_jax.load_adapter(path)(images)
    except ValueError as error:
      assert str(path) in str(error)
      refused += 1
    else:
      assert probabilities.shape == (2, meta["num_classes"])
  assert refused > 200


@pytest.mark.parametrize(
  "change,message",
  [
    (lambda meta: meta.pop("backbone"), "its meta has no backbone"),
    (lambda meta: meta.update(backbone="b"), "'backbone' is 'b'"),
    (lambda meta: meta.update(num_classes="10"), "'num_classes' is '10'"),
    (lambda meta: meta.update(class_names=["a"]), "expected 10 texts, or none"),
    (lambda meta: meta.update(class_names=[1] * 10), "expected 10 texts"),
    (lambda meta: meta.update(run=[]), r"'run' is \[\]"),
    (lambda meta: meta["config"].pop("head_layers"), "head_layers is missing"),
    (lambda meta: meta["config"].update(method=None), "config.method=None"),
    (lambda meta: meta["config"].update(method="x"), "unknown method 'x'"),
    (lambda meta: meta["config"].update(optim=5), "config.optim=5; expected"),
    (lambda meta: meta["config"].update(batch_size=0), "batch_size=0"),
    (lambda meta: meta["preprocess"].pop("family"), "'family' is missing"),
    (lambda meta: meta["preprocess"].update(x=1), "unknown field 'x'"),
    (
      lambda meta: meta["preprocess"].update(image_size=[10**6] * 2),
      r"images are of \(1000000, 1000000\) pixels, those of its model of",
    ),
  ],
)
def test_what_is_wrong_is_said(adapter, tmp_path, change, message):
  meta, arrays = parts_of(adapter)
  change(meta)
  path = write(tmp_path / "changed.npz", meta, arrays)
  with pytest.raises(ValueError, match=f"{path}.*{message}"):
    vpt_jax.load_adapter(path)


@pytest.mark.parametrize(
  "array", [np.zeros(3), np.zeros(3, int), np.array("text"), np.zeros((0,))]
)
def test_arrays_that_no_run_saves(adapter, tmp_path, array):
  meta, arrays = parts_of(adapter)
  name = "head/bias"
  path = write(tmp_path / "changed.npz", meta, {**arrays, name: array})
  with pytest.raises(ValueError, match=f"{path}.*head/bias"):
    vpt_jax.load_adapter(path)


def test_the_config_of_every_run_passes(config):
  """What `resolve` makes of a config is what `check_saved` expects."""
  for method in ("linear", "vpt", "vapt", "gated", "pgn", "full"):
    config.method = method
    resolved = config_lib.resolve(config)
    config_lib.check_saved(config_lib.plain(resolved))
