"""Whole runs: outputs, adapters, refusals, divergence, exact batches."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from tests import images as images_lib
from tests.conftest import trained
import vpt_jax
from vpt_jax import config as configs
from vpt_jax import main
from vpt_jax import model as models
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import processes
from vpt_jax.problems import Classification
from vpt_jax.training import loop, optim
from vpt_jax.training import step as step_lib
from vpt_jax.training.progress import Progress
from vpt_jax.utils import files, trees
from vpt_jax.weights import file_formats, load


@pytest.fixture
def checkpoint_file(config, tmp_path):
  """A backbone file with random weights."""
  model = models.build(configs.resolve(config), 10)
  params = models.init(model, jax.random.key(7))
  load.save(tmp_path / "backbone.npz", trees.flatten(params["backbone"]))
  return tmp_path / "backbone.npz"


def test_a_run_leaves_what_a_researcher_needs(
  config, tmp_path, checkpoint_file, caplog
):
  config.backbone.checkpoint = str(checkpoint_file)
  workdir = tmp_path / "run"
  caplog.set_level("INFO", "vpt_jax")
  result = vpt_jax.run(config, workdir)
  assert json.loads((workdir / "result.json").read_text()) == result
  assert result["backbone"] == {
    "name": "vit_test",
    "sha256": load.sha256(checkpoint_file),
  }
  assert (result["task"], result["split"], result["count"]) == (
    "digits",
    "test",
    797,
  )
  # 3 static prompts, a generator, its projector, the head.
  generator = 2 * 32 + 4 + 1 * 3 + 3
  assert result["trainable_params"] == (
    3 * 32 + generator + 2 * 32 * 8 + 32 * 10 + 10
  )
  saved = json.loads((workdir / "config.json").read_text())
  assert saved["vapt"]["num_tokens"] == 3 and "vpt" not in saved
  arrays, metrics = trained(workdir)
  assert [line["step"] for line in metrics] == [8, 16, 24]
  assert metrics[0]["lr"] == 0 < metrics[1]["lr"]
  assert all(path.startswith(("method/", "head/")) for path in arrays)
  assert list((workdir / "tensorboard").glob("events*"))
  counts = "trainval: 1,000 images of 10 classes: 0 (100), 1 (100), 2 (97)"
  # Before it only that the pixels are not those of this backbone.
  assert any(text.startswith(counts) for text in caplog.messages[:2])
  (table,) = [text for text in caplog.messages if "trainable" in text]
  assert "(method|head)/.*" in table
  assert f"{result['trainable_params']:,}" in table

  predict = vpt_jax.load_adapter(workdir / "adapter.npz")
  test = images_lib.load("digits", "test", folder="", image_size=(8, 8))
  probabilities = predict(test.images)
  np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
  top1 = 100 * (probabilities.argmax(-1) == test.labels).mean()
  np.testing.assert_allclose(top1, result["top1"], atol=0.13)  # one image
  recall = [
    100 * (probabilities.argmax(-1) == k)[test.labels == k].mean()
    for k in range(10)
  ]
  np.testing.assert_allclose(
    np.mean(recall), result["mean_per_class"], atol=0.2
  )

  # Another backbone file is refused, by the adapter and by the workdir.
  other = tmp_path / "other.npz"
  flat = file_formats.read(checkpoint_file)
  load.save(other, {**flat, "cls": flat["cls"] + 1})
  message = (
    r"was trained on backbone vit_test \(sha256 "
    f"{load.sha256(checkpoint_file)[:8]}.., this config builds "
    rf"vit_test \(sha256 {load.sha256(other)[:8]}"
  )
  with pytest.raises(ValueError, match=message.replace("..,", r"\.\.\),")):
    vpt_jax.load_adapter(workdir / "adapter.npz", backbone=str(other))
  (workdir / "result.json").unlink()
  checkpoint_file.write_bytes(other.read_bytes())
  with pytest.raises(ValueError, match="was trained on backbone vit_test"):
    vpt_jax.run(config, workdir)


def test_a_changed_config_is_refused_with_the_difference(config, tmp_path):
  vpt_jax.run(config, tmp_path)
  before = (tmp_path / "result.json").read_bytes()
  config.optim.lr, config.vapt.hidden = 0.7, 4
  with pytest.raises(ValueError) as error:
    vpt_jax.run(config, tmp_path)
  assert "optim.lr: 1.0 -> 0.7" in str(error.value)
  assert "vapt.hidden: 8 -> 4" in str(error.value)
  assert (tmp_path / "result.json").read_bytes() == before


def easy(n=40, k=3):
  """Images that tell their class by their brightness."""
  rng = np.random.default_rng(0)
  labels = np.arange(n) % k
  images = rng.integers(0, 60, (n, 8, 8, 3)) + 80 * labels[:, None, None, None]
  return vpt_jax.from_arrays(images.astype(np.uint8), labels)


@pytest.mark.parametrize(
  "edit",
  [
    lambda c: c.update(method="vpt"),
    lambda c: c.update(method="linear"),
    lambda c: c.update(method="full", pool="img"),
    lambda c: c.update(trainable="head/kernel|backbone/.*encoderblock_1/.*"),
    lambda c: (
      c.update(method="vpt", trainable="head/.*"),
      c.compute.update(dtype="bfloat16"),
      c.backbone.update(frozen_dtype="bfloat16"),
    ),
    lambda c: (
      c.optim.update(name="adamw", lr=1e-3),
      c.data.update(augment="flip_crop"),
      c.backbone.update(checkpoint="random"),
    ),
  ],
  ids=["vpt", "linear", "full", "block", "bfloat16", "adamw"],
)
def test_the_adapter_predicts_what_the_run_measured(
  config, tmp_path, edit, checkpoint_file
):
  config.backbone.checkpoint = str(checkpoint_file)
  edit(config)
  config.task, config.epochs = "mine", 1
  config.optim.warmup_epochs = 0
  config.batch_size = 16
  part = easy()
  result = vpt_jax.run(config, tmp_path, vpt_jax.Data(part, part))
  predict = vpt_jax.load_adapter(tmp_path / "adapter.npz")
  probabilities = predict(part.images)
  assert probabilities.shape == (40, 3)
  # The loss tells weights apart that give the same few hits.
  loss = -np.log(probabilities[np.arange(40), part.labels]).mean()
  np.testing.assert_allclose(loss, result["loss"], rtol=1e-3)
  with pytest.raises(ValueError, match="images must be uint8"):
    predict(part.images / 255)


def test_other_data_in_an_old_workdir_is_refused(config, tmp_path):
  config.task, config.method, config.epochs = "mine", "linear", 1
  config.optim.warmup_epochs = 0
  config.batch_size = 16
  part = easy()
  vpt_jax.run(config, tmp_path, vpt_jax.Data(part, part))
  with pytest.raises(ValueError, match=r"(?s)another data.*train\.crc32"):
    other = vpt_jax.from_arrays(255 - part.images, part.labels)
    vpt_jax.run(config, tmp_path, vpt_jax.Data(other, part))


def test_a_workdir_belongs_to_one_process(config, tmp_path):
  with (
    files.lock(tmp_path),
    pytest.raises(ValueError, match="is in use by another process"),
  ):
    vpt_jax.run(config, tmp_path)


def test_a_workdir_that_is_deleted_under_a_run(config, tmp_path, monkeypatch):
  """And taken by another config: each file there is of the second run."""
  workdir = tmp_path / "run"
  other = ConfigDict(config.to_dict())
  other.seed = 7
  results = []
  epoch_ends = Progress.epoch

  def taken_by_another(self, epoch, values):
    monkeypatch.setattr(Progress, "epoch", epoch_ends)
    shutil.rmtree(workdir)
    results.append(vpt_jax.run(other, workdir))
    files_of_it.update(contents(workdir))

  def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}

  files_of_it = {}
  monkeypatch.setattr(Progress, "epoch", taken_by_another)
  with pytest.raises(files.Lost, match="was deleted while this process"):
    vpt_jax.run(config, workdir)
  assert contents(workdir) == files_of_it
  assert vpt_jax.run(other, workdir) == results[0]
  with pytest.raises(ValueError, match="seed: 7 -> 42"):
    vpt_jax.run(config, workdir)


def test_divergence_in_the_last_update_of_an_epoch_is_seen(config, tmp_path):
  config.method, config.task, config.epochs = "linear", "mine", 1
  config.optim.update(lr=1e38, scale_lr=False, warmup_epochs=0)
  config.batch_size = 40  # one step: its loss is still finite
  part = easy()
  with pytest.raises(loop.Diverged, match="param_norm is (inf|nan) at step 0"):
    vpt_jax.run(config, tmp_path, vpt_jax.Data(part, part))
  assert not (tmp_path / "result.json").exists()
  assert not list((tmp_path / "checkpoints").iterdir())


def test_divergence_stops_and_saves_nothing(config, tmp_path):
  config.optim.lr = 1e30
  config.checkpoint.every_epochs = 1
  with pytest.raises(
    loop.Diverged,
    match=(
      r"(loss|param_norm) is (nan|inf) at step \d+ \(epoch 1, lr 5e\+29\);"
      r".*grad_norm in "
      r".*metrics.jsonl"
    ),
  ):
    vpt_jax.run(config, tmp_path)
  assert not (tmp_path / "result.json").exists()
  assert not (tmp_path / "adapter.npz").exists()
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["8"]


def make_step(config, method="vapt", **kwargs):
  config.method = method
  config = configs.resolve(config)
  model = models.build(config, 10)
  params = models.init(model, jax.random.key(0))
  trainable, frozen = trees.split(params, config.trainable)
  tx = optim.make_optimizer(
    "sgd", lambda step: 0.1, trainable, weight_decay=1e-4
  )
  state = step_lib.TrainState(
    jnp.int32(0), trainable, tx.init(trainable), {}, jax.random.PRNGKey(0)
  )
  step = step_lib.make_train_step(
    model,
    tx,
    problem=Classification(model.num_classes),
    preprocess=Preprocess(model.method.input_size, "half"),
    augment="none",
    **kwargs,
  )
  return model, params, state, frozen, step


def batch_of(n, padding=0):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (n, 8, 8, 3)).astype(np.uint8)
  label = rng.integers(0, 10, n).astype(np.int32)
  fill = lambda x: np.concatenate([x, np.repeat(x[:1], padding, 0)])
  return {
    "image": fill(image),
    "label": fill(label),
    "mask": np.array([1] * n + [0] * padding, np.float32),
  }


def test_preempted_in_the_last_epoch(config, tmp_path, monkeypatch):
  """What comes after it may take longer than there is time."""
  config.epochs, config.optim.warmup_epochs = 2, 0
  main.run(config, tmp_path / "whole")
  end = Progress.epoch

  def preempt(self, epoch, values):
    end(self, epoch, values)
    if epoch == 1:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(Progress, "epoch", preempt)
    with pytest.raises(processes.Preempted):
      main.run(config, tmp_path / "run")
  assert not (tmp_path / "run/adapter.npz").exists()
  main.run(config, tmp_path / "run")
  (adapter, metrics), (want, wanted) = (
    trained(tmp_path / name) for name in ("run", "whole")
  )
  assert metrics == wanted and len(metrics) == 2
  jax.tree.map(np.testing.assert_array_equal, adapter, want)


def test_padding_does_not_count(config):
  config.vapt.update(dropout=0.0, dropout_channel=0.0, dropout_mlp=0.0)
  results = []
  for padding in (0, 3):
    _, _, state, frozen, step = make_step(config)
    results.append(step(state, frozen, batch_of(5, padding)))
  (a, a_metrics), (b, b_metrics) = results
  np.testing.assert_allclose(a_metrics["loss"], b_metrics["loss"], rtol=1e-5)
  assert b_metrics["images"] == 5
  for path in a.trainable:
    np.testing.assert_allclose(
      a.trainable[path], b.trainable[path], atol=1e-5, err_msg=path
    )


def test_only_the_trainable_tree_has_gradients_and_slots(config):
  _, _, state, frozen, step = make_step(config)
  before = {path: np.array(leaf) for path, leaf in state.trainable.items()}
  slots = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert slots == trees.count(state.trainable)
  after, _ = step(state, frozen, batch_of(5))
  assert after.trainable.keys() == before.keys()
  changed = {
    path for path in before if (before[path] != after.trainable[path]).any()
  }
  assert {"head/bias", "head/kernel", "method/prompt"} <= changed


def test_a_probe_on_cached_features_is_the_same_probe(config):
  model, params, state, frozen, step = make_step(config, "linear")
  _, _, again, _, on_features = make_step(config, "linear", on_features=True)
  batch = batch_of(6)
  from vpt_jax.data.transforms import views

  image = views.prepare(jnp.asarray(batch["image"]), (8, 8), "half")
  features = model.apply({"params": params}, image, method=model.features)
  a, a_metrics = step(state, frozen, batch)
  b, b_metrics = on_features(again, frozen, {**batch, "image": features})
  np.testing.assert_allclose(a_metrics["loss"], b_metrics["loss"], rtol=1e-5)
  for path in a.trainable:
    np.testing.assert_allclose(a.trainable[path], b.trainable[path], atol=1e-5)


def test_constrain_is_applied_after_the_update(config, monkeypatch):
  from vpt_jax.methods.vapt import VAPT

  monkeypatch.setattr(
    VAPT,
    "constrain",
    lambda self, params: {
      **params,
      "prompt": jnp.clip(params["prompt"], -1e-3, 1e-3),
    },
  )
  _, _, state, frozen, step = make_step(config)
  after, _ = step(state, frozen, batch_of(5))
  assert abs(after.trainable["method/prompt"]).max() <= 1e-3


def test_damaged_adapters_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no adapter at"):
    vpt_jax.load_adapter(tmp_path / "none.npz")
  (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
  with pytest.raises(ValueError, match="is not an adapter file"):
    vpt_jax.load_adapter(tmp_path / "bad.npz")
  np.savez(tmp_path / "pickle.npz", meta=np.array([{}], object))
  with pytest.raises(ValueError, match="is not an adapter file"):
    vpt_jax.load_adapter(tmp_path / "pickle.npz")


def test_data_of_the_api_needs_no_known_task(config):
  config.task = "mine"
  assert configs.resolve(config, named_task=False).task == "mine"
  with pytest.raises(ValueError, match="unknown task 'mine'"):
    main.run(config, "unused")
