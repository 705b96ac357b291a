"""From files to the train step: every source, crops, what is on the device."""

import csv
import json

import jax
from jax.sharding import Mesh
import numpy as np
from PIL import Image
import pytest

import vpt_jax
from tests.conftest import trained
from vpt_jax import config as configs
from vpt_jax import main, shard
from vpt_jax.data import pipeline, sources
from vpt_jax.data.examples import Split, Strips

SIDE = 6


@pytest.fixture(scope="module")
def strips():
  """Five images of 6 pixels on the shorter side, two of them wide."""
  lengths, wide = np.array([6, 9, 7, 6, 11]), np.array([0, 1, 0, 0, 1], bool)
  rows = np.random.default_rng(0).integers(
      0, 256, (lengths.sum(), 6, 3), dtype=np.uint8)
  first = np.concatenate([[0], np.cumsum(lengths)])
  return Split(rows, np.arange(5, dtype=np.int32), 5,
               strips=Strips(first, wide))


def mesh_of(count=1):
  return Mesh(np.array(jax.devices()[:count]), ("data",))


def test_crops_are_the_same_on_the_device_and_from_the_file(strips):
  order, place = pipeline.order(5, 3, 1), pipeline.places(5, 3, 1)
  resident, streamed = (pipeline.Feed(strips, 2, mesh_of(), size, crop=4)
                        for size in (1e9, 0))
  assert resident.resident and not streamed.resident
  ours, other = (jax.device_get(list(feed.batches(order, place)))
                 for feed in (resident, streamed))
  jax.tree.map(np.testing.assert_array_equal, ours, other)
  images = np.concatenate([batch["image"] for batch in ours])[:5]
  for image, i in zip(images, order, strict=True):
    rows = strips.images[slice(*strips.strips.first[i:i + 2])]
    whole = rows.swapaxes(0, 1) if strips.strips.wide[i] else rows
    found = [(r, c) for r in range(whole.shape[0] - 3)
             for c in range(whole.shape[1] - 3)
             if np.array_equal(whole[r:r + 4, c:c + 4], image)]
    assert len(found) == 1
  again = next(resident.batches(order, pipeline.places(5, 3, 2)))
  assert not np.array_equal(again["image"], ours[0]["image"])


def test_crops_reach_every_place_and_the_middle():
  free = np.array([strip for strip in range(40)])
  place = np.concatenate([pipeline.places(500, 0, e) for e in range(4)])
  assert place.min() >= 0 and place.max() < 1
  rows = np.zeros((len(free) + 3, 6, 3), np.uint8)
  rows[:, :, 0] = np.arange(len(rows))[:, None]
  strips = Strips(np.array([0, len(rows)]), np.array([False]))
  tops = [int(strips.crop(rows, 0, at, 4)[0, 0, 0]) for at in place]
  counts = np.bincount(tops, minlength=40)
  assert counts.shape == (40,) and counts.min() > 20 and counts.max() < 90
  assert strips.crop(rows, 0, np.array([0.5, 0.5]), 4)[0, 0, 0] == 20


def test_order_and_places_depend_on_seed_and_epoch_alone():
  for function in (pipeline.order, pipeline.places):
    first = function(9, 1, 2)
    np.testing.assert_array_equal(first, function(9, 1, 2))
    assert not np.array_equal(first, function(9, 2, 2))
    assert not np.array_equal(first, function(9, 1, 3))


class Device:
  """With a given memory."""

  def __init__(self, stats):
    self.memory_stats = lambda: stats


def test_the_device_is_asked(monkeypatch):
  mesh = lambda *stats: type("M", (), {"local_devices": [
      Device(s) for s in stats]})
  memory = lambda limit, used: {"bytes_limit": limit, "bytes_in_use": used}
  assert pipeline.room(mesh(memory(100, 20), memory(100, 60))) == 20
  pages = {"SC_AVPHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}
  monkeypatch.setattr("os.sysconf", pages.get)
  assert pipeline.room(mesh(None)) == 5 * 4096
  monkeypatch.setattr(pipeline, "room", lambda mesh: 11)
  split = sources.from_arrays(np.zeros((2, 2, 2, 3), np.uint8), [0, 1])
  assert not pipeline.Feed(split, 2, mesh_of()).resident
  monkeypatch.setattr(pipeline, "room", lambda mesh: 24)
  assert pipeline.Feed(split, 2, mesh_of()).resident


def test_each_process_reads_its_own_rows():
  feed = pipeline.Feed(sources.from_arrays(
      np.zeros((4, 2, 2, 3), np.uint8), [0, 1, 0, 1]), 4, mesh_of(), 0)
  assert feed._mine == slice(0, 4)


# Whole runs.


@pytest.fixture
def everywhere(tmp_path):
  """Digits as a pack, a folder, a csv and an npz, in the order of a folder."""
  arrays = {}
  lists = {"train": "train800", "val": "val200", "test": "test",
           "trainval": "train800val200"}
  rows = {}
  for part in ("train", "val", "test"):
    split = sources.load("digits", part, image_size=(8, 8))
    order = np.argsort(split.labels, kind="stable")[:120]
    order = order[np.argsort(split.labels[order], kind="stable")]
    pick = np.arange(0, len(split), 5)
    pick = pick[np.argsort(split.labels[pick], kind="stable")]
    rows[part] = []
    for number, i in enumerate(pick):
      name = f"{part}/{split.labels[i]}/{number:04d}.png"
      path = tmp_path / "images" / name
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(split.images[i]).save(path)
      rows[part].append((name, int(split.labels[i])))
    arrays[part] = split.images[pick], split.labels[pick]
  rows["trainval"] = rows["train"] + rows["val"]
  pack = tmp_path / "vtab-1k/svhn"  # a task of ten classes
  pack.mkdir(parents=True)
  (pack / "images").symlink_to(tmp_path / "images")
  for part, name in lists.items():
    (pack / f"{name}.txt").write_text("".join(
        f"images/{path} {label}\n" for path, label in rows[part]))
  with (tmp_path / "list.csv").open("w", newline="") as file:
    write = csv.writer(file).writerow
    write(("path", "label", "split"))
    for part in ("train", "val", "test"):
      for path, label in rows[part]:
        write((f"images/{path}", label, part))
  np.savez(tmp_path / "digits.npz",
           images=np.concatenate([arrays[part][0] for part in arrays]),
           labels=np.concatenate([arrays[part][1] for part in arrays]),
           split=np.repeat(list(arrays), [len(a[1]) for a in arrays.values()]))
  return tmp_path


def test_every_source_trains_the_same(config, everywhere):
  kinds = {"pack": "pack", "folder": f"folder:{everywhere}/images",
           "csv": f"csv:{everywhere}/list.csv",
           "npz": f"npz:{everywhere}/digits.npz"}
  found = {}
  config.epochs, config.method = 2, "vpt"
  for kind, source in kinds.items():
    config.data.source, config.data.dir = source, str(everywhere)
    config.task = "svhn" if kind == "pack" else ""
    config.data.train_split = "train"
    result = vpt_jax.run(config, everywhere / "runs" / kind)
    data = main.load_data(configs.resolve(config))
    found[kind] = (data.train.images, data.train.labels, data.test.images,
                   trained(everywhere / "runs" / kind)[0], result)
  for kind, (images, labels, test, adapter, result) in found.items():
    for ours, other in zip((images, labels, test), found["pack"]):
      np.testing.assert_array_equal(ours, other)
    for path, leaf in adapter.items():
      np.testing.assert_array_equal(leaf, found["pack"][3][path], err_msg=kind)
    assert result["top1"] == found["pack"][4]["top1"]
  tasks = {kind: found[kind][4]["task"] for kind in kinds}
  assert tasks == {"pack": "svhn", "folder": "images", "csv": "list",
                   "npz": "digits"}


def test_predictions(config, everywhere):
  config.data.source = f"csv:{everywhere}/list.csv"
  config.epochs, config.method = 1, "linear"
  config.optim.warmup_epochs = 0
  result = vpt_jax.run(config, everywhere / "run")
  with (everywhere / "run/predictions.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == result["count"] and lines[0].keys() == {
      "path", "label", "prediction", "confidence"}
  assert lines[0]["path"].endswith("0000.png")
  hits = [line["label"] == line["prediction"] for line in lines]
  np.testing.assert_allclose(100 * np.mean(hits), result["top1"])
  assert all(0 < float(line["confidence"]) <= 1 for line in lines)
  predict = vpt_jax.load_adapter(everywhere / "run/adapter.npz")
  first = Image.open(everywhere / lines[0]["path"])
  probabilities = predict(np.asarray(first)[None])[0]
  assert probabilities.argmax() == int(lines[0]["prediction"])
  np.testing.assert_allclose(probabilities.max(),
                             float(lines[0]["confidence"]), atol=1e-5)


def test_the_config_says_what_was_done(config, everywhere):
  config.data.source = f"folder:{everywhere}/images"
  config.data.preprocess = "fgvc"
  config.epochs = 1
  config.optim.warmup_epochs = 0
  vpt_jax.run(config, everywhere / "run")
  saved = json.loads((everywhere / "run/config.json").read_text())["data"]
  assert (saved["preprocess"], saved["augment"]) == ("fgvc", "flip")
  shapes = main.load_data(configs.resolve(config))
  assert shapes.train.strips is not None and shapes.test.strips is None
  assert shapes.test.images.shape[1:] == (8, 8, 3)
