"""Sources of the user's own: their kind, their name, and whose name it is."""

import logging

import numpy as np
from PIL import Image
import pytest

from vpt_jax import config as config_lib
from vpt_jax import main
from vpt_jax.data import datasets, own_sources
from vpt_jax.data.sources import own_readers

VTAB = "--config=configs/vapt_vtab.py"


@pytest.fixture
def photos(tmp_path):
  """photos/{cat,dog}/{0..9}.png."""
  for name in ("cat", "dog"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(10):
      pixels = np.full((8, 8, 3), 10 * i, np.uint8)
      Image.fromarray(pixels).save(tmp_path / f"photos/{name}/{i}.png")
  return tmp_path / "photos"


def run(capsys, *args):
  """(status, stdout, stderr) of the command."""
  status = main.main(["main", *args])
  captured = capsys.readouterr()
  main.log.handlers.clear()
  main.log.propagate = True
  return status, captured.out, captured.err


def test_every_kind_has_a_reader():
  assert {*own_readers.USER, *own_sources.MASKED} == {*own_sources.KINDS}


def test_a_path_says_its_kind(tmp_path, photos):
  """A source without `folder:`, `csv:` and so on, where it is clear."""
  (tmp_path / "lists").mkdir()
  (tmp_path / "lists/train.json").write_text("{}")
  for source, expected in (
    (f"{photos}", f"folder:{photos}"),
    ("~/photos", "folder:~/photos"),
    ("./nowhere", "folder:./nowhere"),
    ("a/b:c", "folder:a/b:c"),
    ("labels.csv", "csv:labels.csv"),
    ("~/x/labels.TSV", "csv:~/x/labels.TSV"),
    ("x.npz", "npz:x.npz"),
    (f"{tmp_path}/lists/train.json", f"json:{tmp_path}/lists"),
    ("folder:x", "folder:x"),
    ("csv:~/x", "csv:~/x"),
    ("", ""),
    ("pack", "pack"),
    ("tfds", "tfds"),
  ):
    assert own_sources.canonical(source) == expected
    assert own_sources.canonical(expected) == expected
  assert len(datasets.open_split("", "train", source=str(photos))) == 16


def test_sources_whose_kind_is_not_clear(tmp_path):
  for part in ("train", "test"):
    (tmp_path / f"{part}.json").write_text("{}")
  (tmp_path / "notes.txt").write_text("")
  for source, message in (
    (str(tmp_path), "json:.* .these lists., or folder:"),
    (f"{tmp_path}/notes.txt", "no known kind; expected a folder, a .csv"),
    ("foldr:x", "unknown data.source 'foldr'; did you mean 'folder'"),
    ("https://x.org/a", "unknown data.source 'https'"),
    ("csv:", "'csv:' has no path; expected csv:PATH"),
  ):
    with pytest.raises(ValueError, match=message):
      own_sources.canonical(source)


def test_a_source_has_a_name(monkeypatch, photos):
  monkeypatch.chdir(photos)
  for source, name in (
    ("folder:~/my photos", "my photos"),
    ("folder:.", "photos"),
    ("folder:cat/..", "photos"),
    ("csv:/x/labels.csv", "labels"),
    ("folder:/", "images"),
    ("folder:/caf\udce9", "caf\\xe9"),
  ):
    assert own_sources.name_of(source) == name


def test_a_known_task_and_images_of_ones_own(config, photos):
  """A forgotten `config.task=` is an error, unless it is confirmed."""
  config.data.source = str(photos)
  for task in ("digits", "eurosat"):
    config.task = task
    with pytest.raises(ValueError) as error:
      config_lib.resolve(config)
    for text in (f"config.task='{task}'", str(photos), "own_copy=True"):
      assert text in str(error.value)
    assert "config.task= (which gives 'photos')" in str(error.value)
  for task, name in (("", "photos"), ("mine", "mine")):
    config.task = task
    resolved = config_lib.resolve(config)
    assert resolved.task == name
    assert resolved.data.source == f"folder:{photos}"
    assert config_lib.resolve(resolved) == resolved
  config.task = "eurosat"
  config.data.own_copy = True
  assert config_lib.resolve(config).task == "eurosat"


def test_a_folder_that_is_called_as_a_task(config, photos):
  """Its results would stand beside published ones: that has to be meant."""
  config.data.source = str(photos.rename(photos.with_name("eurosat")))
  config.task = ""
  with pytest.raises(ValueError, match="'eurosat' is the name of a known") as e:
    config_lib.resolve(config)
  assert "leave it to them" not in str(e.value)
  config.data.own_copy = True
  resolved = config_lib.resolve(config)
  assert resolved.task == "eurosat" and config_lib.resolve(resolved) == resolved


def test_the_command_line_without_a_task(capsys, photos, tmp_path):
  """The log is of the user's images, and the results have their name."""
  small = [
    "--config.epochs=1",
    "--config.optim.warmup_epochs=0",
    "--config.method=linear",
    "--config.image_size=8",
    "--config.backbone.name=vit_test",
    "--config.backbone.checkpoint=random",
  ]
  workdir = f"--workdir={tmp_path}/run"
  status, out, _ = run(
    capsys, VTAB, f"--config.data.source={photos}", workdir, *small
  )
  assert status == 0
  assert f"takes your images, folder:{photos}, and the backbone vit_test" in out
  assert "embedded data" not in out
  assert "photos test: top-1" in out
  assert "trainval: 18 images of 2 classes: cat (9), dog (9)" in out
  status, _, err = run(
    capsys, f"{VTAB}:eurosat", f"--config.data.source={photos}", workdir
  )
  assert status == 1 and "error: config.task='eurosat' is the name of a" in err


def test_the_new_fields_do_not_rename_old_runs(config):
  before = config_lib.digest(config)
  del config.data["own_copy"]
  del config.data["layout"]
  assert config_lib.digest(config) == before


def test_the_folder_of_an_unnamed_sweep(monkeypatch, photos, capsys):
  folders = []

  def no_sweep(config, folder, shard):
    folders.append(folder.name)
    raise ValueError("not now")

  monkeypatch.setattr(main.protocol, "run", no_sweep)
  options = (f"--config.data.source={photos}", "--config.mode=sweep")
  run(capsys, f"{VTAB}:eurosat", "--config.task=", *options)
  run(capsys, VTAB, *options)
  assert len(folders) == 2
  assert all(name.startswith("photos-vapt-") for name in folders)


def test_images_in_memory_have_any_name(config, caplog):
  config.task = "mine"
  with caplog.at_level(logging.INFO, "vpt_jax"):
    assert config_lib.resolve(config, named_task=False).task == "mine"
