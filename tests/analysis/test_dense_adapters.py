"""Adapters of segmentation are analysed, or refused by one clear sentence."""

import csv

import jax
import numpy as np
from PIL import Image
import pytest

from tests.analysis import tiny
from tests.serving import dense_run
import vpt_jax
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.analysis import command, inversion
from vpt_jax.training import adapter_files, records
from vpt_jax.utils import trees


@pytest.fixture(name="folder", scope="module")
def folder_fixture(tmp_path_factory):
  """An untrained adapter with gates that reads the first block, and a photo."""
  folder = tmp_path_factory.mktemp("dense")
  config = dense_run.dense_config(folder, "gated")
  config.segmentation.blocks = (1,)
  config = configs.resolve(config)
  model = models.build(config, dense_run.CLASSES)
  rng = np.random.default_rng(0)
  flat = {}
  for parts in (models.init, models.collections):
    shapes = jax.eval_shape(lambda make=parts: make(model, jax.random.key(0)))
    for path, leaf in trees.flatten(shapes).items():
      flat[path] = np.abs(rng.normal(size=leaf.shape, scale=0.1))
  adapter_files.save_adapter(
    folder / "adapter.npz",
    flat,
    adapter_files.AdapterMeta(
      backbone={"name": "vit_test", "sha256": "random"},
      config=configs.plain(config),
      num_classes=dense_run.CLASSES,
      versions={},
      palette=(),
    ),
  )
  image, _ = dense_run.scene(0, (20, 24))
  Image.fromarray(image).save(folder / "photo.png")
  return folder


@pytest.mark.parametrize(
  "line",
  [
    "attention adapter.npz photo.png",
    "eigenvalues adapter.npz --images 2",
    "layers adapter.npz",
    "embedding adapter.npz --images 5",
    "gradcam adapter.npz photo.png",
  ],
)
def test_what_looks_at_one_class_an_image_is_refused(
  folder, line, tmp_path, capsys
):
  to = tmp_path / "figure.png"
  name, *words = line.split()
  paths = [str(folder / word) if "." in word else word for word in words]
  assert command.main([name, *paths, "--to", str(to)]) == 1
  out, errors = capsys.readouterr()
  assert errors.startswith(
    f"error: {folder / 'adapter.npz'} is of problem 'seg"
  )
  assert ".save(IMAGES, FOLDER, overlays=True)" in errors and not out
  assert not list(tmp_path.iterdir())


def test_prompts_are_not_inverted(folder, tmp_path):
  with pytest.raises(ValueError, match="is of problem 'segmentation'"):
    inversion.export(
      str(folder / "adapter.npz"), str(folder / "photo.png"), tmp_path / "out"
    )
  assert not list(tmp_path.iterdir())


def test_gates_are_drawn(folder, tmp_path, capsys):
  """They are the method's; a block behind the one that is read is not run."""
  to = tmp_path / "gates.png"
  adapter = str(folder / "adapter.npz")
  assert command.main(["gates", adapter, "--to", str(to)]) == 0
  assert capsys.readouterr().err == ""
  with to.with_suffix(".csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["block"] for row in rows] == ["none", "0", "1"]
  assert sum(float(row["weight"] or 0) for row in rows) == pytest.approx(1)


def test_the_refusal_says_what_works(folder, tmp_path):
  predict = vpt_jax.load_adapter(folder / "adapter.npz")
  (path,) = predict.save(folder / "photo.png", tmp_path, overlays=True)
  assert np.asarray(Image.open(path)).shape == (20, 24)
  assert Image.open(tmp_path / "overlays" / path.name).size == (24, 20)


def dense_record(seed, width):
  """The record of a run of segmentation, as far as curves read it."""
  config = configs.resolve(dense_run.dense_config("scenes"))
  config.seed = seed
  config.segmentation.width = width
  record = tiny.record(1, seed, top1=0.0)
  del record["top1"], record["mean_per_class"]
  return record | {
    "id": f"{seed}-{width}",
    "stage": "single",
    "problem": "segmentation",
    "backbone": {"name": "vit_test", "sha256": "random"},
    "task": "scenes",
    "metric": "miou",
    "miou": width + seed / 10,
    "macc": 1.0,
    "aacc": 2.0,
    "config": configs.plain(config),
  }


def test_curves_are_of_miou(tmp_path, capsys):
  for seed in (1, 3):
    for width in (8, 16):
      store = records.Store(tmp_path / "run" / records.FILE)
      store.add(dense_record(seed, width))
  to = tmp_path / "curve.png"
  words = ["curve", str(tmp_path / "run"), "--field", "segmentation.width"]
  assert command.main([*words, "--to", str(to)]) == 0
  assert capsys.readouterr().err == ""
  with to.with_suffix(".csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(row["metric"], float(row["mean"])) for row in rows] == [
    ("miou", pytest.approx(8.2)),
    ("miou", pytest.approx(16.2)),
  ]


def test_prompts_are_not_condensed():
  config = dense_run.dense_config("scenes")
  config.condense.shares = (0.5,)
  with pytest.raises(ValueError, match=r"condensation .*set config.condense"):
    configs.resolve(config)
