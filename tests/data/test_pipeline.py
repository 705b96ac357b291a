"""From files to the train step: every source, crops, what is on the device."""

import csv
import json
import os
from pathlib import Path
import socket
import subprocess
import sys

import jax
from jax.sharding import Mesh
import numpy as np
from PIL import Image
import pytest

from tests import images as images_lib
from tests.conftest import trained
import vpt_jax
from vpt_jax import config as configs
from vpt_jax.data import datasets, pipeline
from vpt_jax.data.examples import Split, Strips
from vpt_jax.training import experiment

SIDE = 6
EUROSAT = Path(__file__).resolve().parents[3] / "shared/data/vtab-1k/eurosat"


@pytest.fixture(scope="module")
def strips():
  """Five images of 6 pixels on the shorter side, two of them wide."""
  lengths, wide = np.array([6, 9, 7, 6, 11]), np.array([0, 1, 0, 0, 1], bool)
  rows = np.random.default_rng(0).integers(
    0, 256, (lengths.sum(), 6, 3), dtype=np.uint8
  )
  first = np.concatenate([[0], np.cumsum(lengths)])
  return Split(
    rows, np.arange(5, dtype=np.int32), 5, strips=Strips(first, wide)
  )


def mesh_of(count=1):
  return Mesh(np.array(jax.devices()[:count]), ("data",))


def test_crops_are_the_same_on_the_device_and_from_the_file(strips):
  order, place = pipeline.order(5, 3, 1), pipeline.crop_positions(5, 3, 1)
  resident, streamed = (
    pipeline.Feed(strips, 2, mesh_of(), size, crop=4) for size in (1e9, 0)
  )
  assert resident.resident and not streamed.resident
  ours, other = (
    jax.device_get(list(feed.batches(order, place)))
    for feed in (resident, streamed)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, other)
  images = np.concatenate([batch["image"] for batch in ours])[:5]
  for image, i in zip(images, order, strict=True):
    rows = strips.images[slice(*strips.strips.first[i : i + 2])]
    whole = rows.swapaxes(0, 1) if strips.strips.wide[i] else rows
    found = [
      (r, c)
      for r in range(whole.shape[0] - 3)
      for c in range(whole.shape[1] - 3)
      if np.array_equal(whole[r : r + 4, c : c + 4], image)
    ]
    assert len(found) == 1
  again = next(resident.batches(order, pipeline.crop_positions(5, 3, 2)))
  assert not np.array_equal(again["image"], ours[0]["image"])


def test_crops_reach_every_place_and_the_middle():
  free = np.arange(40)
  place = np.concatenate([pipeline.crop_positions(500, 0, e) for e in range(4)])
  assert place.min() >= 0 and place.max() < 1
  rows = np.zeros((len(free) + 3, 6, 3), np.uint8)
  rows[:, :, 0] = np.arange(len(rows))[:, None]
  strips = Strips(np.array([0, len(rows)]), np.array([False]))
  tops = [int(strips.crop(rows, 0, at, 4)[0, 0, 0]) for at in place]
  counts = np.bincount(tops, minlength=40)
  assert counts.shape == (40,) and counts.min() > 20 and counts.max() < 90
  assert strips.crop(rows, 0, np.array([0.5, 0.5]), 4)[0, 0, 0] == 20


def test_order_and_places_depend_on_seed_and_epoch_alone():
  for function in (pipeline.order, pipeline.crop_positions):
    first = function(9, 1, 2)
    np.testing.assert_array_equal(first, function(9, 1, 2))
    assert not np.array_equal(first, function(9, 2, 2))
    assert not np.array_equal(first, function(9, 1, 3))


class Device:
  """With a given memory."""

  def __init__(self, stats):
    self.memory_stats = lambda: stats


def test_the_device_is_asked(monkeypatch):
  mesh = lambda *stats: type(
    "M", (), {"local_devices": [Device(s) for s in stats]}
  )
  memory = lambda limit, used: {"bytes_limit": limit, "bytes_in_use": used}
  assert pipeline.spare_bytes(mesh(memory(100, 20), memory(100, 60))) == 20
  monkeypatch.setattr("vpt_jax.distributed.memory.free_host_bytes", lambda: 40)
  assert pipeline.spare_bytes(mesh(None)) == 20
  monkeypatch.setattr(pipeline, "spare_bytes", lambda mesh: 11)
  split = datasets.from_arrays(np.zeros((2, 2, 2, 3), np.uint8), [0, 1])
  assert not pipeline.Feed(split, 2, mesh_of()).resident
  monkeypatch.setattr(pipeline, "spare_bytes", lambda mesh: 24)
  assert pipeline.Feed(split, 2, mesh_of()).resident


def test_a_map_is_read_as_its_file(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (9, 5, 4, 3), np.uint8)
  np.save(tmp_path / "images.npy", images)
  mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
  out = np.zeros((3, 5, 4, 3), np.uint8)
  for source in (images, mapped):
    pipeline.read_rows(source, np.array([8, 0, 4]), out, np.array([2, 0, 1]))
    np.testing.assert_array_equal(out, images[[0, 4, 8]])
    out[:] = 0
  with (tmp_path / "images.npy").open("r+b") as file:
    file.truncate(128 + 8 * 60 + 1)
  with pytest.raises(OSError, match="ends before image 8"):
    pipeline.read_rows(mapped, np.array([8]), out, np.array([0]))


def test_each_process_reads_its_own_rows():
  feed = pipeline.Feed(
    datasets.from_arrays(np.zeros((4, 2, 2, 3), np.uint8), [0, 1, 0, 1]),
    4,
    mesh_of(),
    0,
  )
  assert feed._local_rows(4) == slice(0, 4)


WORKER = """
import sys
import jax
import numpy as np
from vpt_jax.data import datasets, pipeline
from vpt_jax.distributed import sharding
rank, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, rank)
split = datasets.from_arrays(np.load(path, mmap_mode="r"), np.arange(10) % 7)
mesh = sharding.make_mesh(4)
for room in (0, 1e9):
  feed = pipeline.Feed(split, 4, mesh, room)
  for batch in feed.batches(pipeline.order(10, 3, 1)):
    local = lambda x: np.concatenate(
        [np.asarray(s.data) for s in x.addressable_shards])
    print("rows", feed.resident, local(batch["label"]).tolist(),
          local(batch["image"])[:, 0, 0, 0].tolist(),
          local(batch["mask"]).tolist())
"""


def test_two_processes_share_each_batch(tmp_path):
  images = np.zeros((10, 4, 4, 3), np.uint8)
  images += np.arange(10, dtype=np.uint8)[:, None, None, None]
  np.save(tmp_path / "images.npy", images)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  env = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }
  workers = [
    subprocess.Popen(
      [
        sys.executable,
        "-c",
        WORKER,
        str(rank),
        str(port),
        str(tmp_path / "images.npy"),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
    )
    for rank in (0, 1)
  ]
  outputs = [worker.communicate(timeout=120) for worker in workers]
  assert all(worker.returncode == 0 for worker in workers), outputs
  seen = [
    [
      line.split(" ", 2)[1:]
      for line in out.splitlines()
      if line.startswith("rows")
    ]
    for out, _ in outputs
  ]
  order = pipeline.order(10, 3, 1)
  for half, lines in enumerate(seen):
    for line, (resident, text) in enumerate(lines):
      part = order[4 * (line % 3) :][:4]
      mine = np.resize(part, 4)[2 * half : 2 * half + 2]
      mask = (np.arange(4) < len(part)).astype(float)[2 * half : 2 * half + 2]
      assert resident == str(line >= 3)
      assert text == " ".join(
        str(values)
        for values in ((mine % 7).tolist(), mine.tolist(), mask.tolist())
      )
    assert len(lines) == 6


def test_a_share_of_the_images(strips):
  labels = np.repeat([0, 1, 2], [50, 9, 1])
  images = np.arange(60, dtype=np.uint8)[:, None, None, None] + np.zeros(
    (60, 2, 2, 3), np.uint8
  )
  split = datasets.from_arrays(images, labels)
  last = set()
  for part, counts in (
    (0.01, [1, 1, 1]),
    (0.1, [5, 1, 1]),
    (0.5, [25, 5, 1]),
    (1, [50, 9, 1]),
  ):
    some = split.share(part, 3)
    assert np.bincount(some.labels).tolist() == counts
    chosen = some.images[:, 0, 0, 0].tolist()
    assert chosen == sorted(chosen) and last <= set(chosen)
    np.testing.assert_array_equal(labels[chosen], some.labels)
    last = set(chosen)
  assert (
    split.share(0.1, 3).images.tolist() != split.share(0.1, 4).images.tolist()
  )
  two = strips.take(np.array([1, 4]))
  for i, j in enumerate((1, 4)):
    place = np.array([0.9, 0.2])
    np.testing.assert_array_equal(
      two.strips.crop(two.images, i, place, 4),
      strips.strips.crop(strips.images, j, place, 4),
    )


# Whole runs.


@pytest.fixture
def everywhere(tmp_path):
  """Digits as a pack, a folder, a csv and an npz, in the order of a folder."""
  arrays = {}
  lists = {
    "train": "train800",
    "val": "val200",
    "test": "test",
    "trainval": "train800val200",
  }
  rows = {}
  for part in ("train", "val", "test"):
    split = images_lib.load("digits", part, image_size=(8, 8))
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
    (pack / f"{name}.txt").write_text(
      "".join(f"images/{path} {label}\n" for path, label in rows[part])
    )
  with (tmp_path / "list.csv").open("w", newline="") as file:
    write = csv.writer(file).writerow
    write(("path", "label", "split"))
    for part in ("train", "val", "test"):
      for path, label in rows[part]:
        write((f"images/{path}", label, part))
  np.savez(
    tmp_path / "digits.npz",
    images=np.concatenate([arrays[part][0] for part in arrays]),
    labels=np.concatenate([arrays[part][1] for part in arrays]),
    split=np.repeat(list(arrays), [len(a[1]) for a in arrays.values()]),
  )
  return tmp_path


def test_every_source_trains_the_same(config, everywhere):
  kinds = {
    "pack": "pack",
    "folder": f"folder:{everywhere}/images",
    "csv": f"csv:{everywhere}/list.csv",
    "npz": f"npz:{everywhere}/digits.npz",
  }
  found = {}
  config.epochs, config.method = 2, "vpt"
  for kind, source in kinds.items():
    config.data.source, config.data.dir = source, str(everywhere)
    config.task = "svhn" if kind == "pack" else ""
    config.data.own_copy = kind == "npz"  # whose file is called like a task
    config.data.train_split = "train"
    result = vpt_jax.run(config, everywhere / "runs" / kind)
    data = experiment.load_data(configs.resolve(config))
    found[kind] = (
      data.train.images,
      data.train.labels,
      data.test.images,
      trained(everywhere / "runs" / kind)[0],
      result,
    )
  for kind, (images, labels, test, adapter, result) in found.items():
    for ours, other in zip((images, labels, test), found["pack"]):
      np.testing.assert_array_equal(ours, other)
    for path, leaf in adapter.items():
      np.testing.assert_array_equal(leaf, found["pack"][3][path], err_msg=kind)
    assert result["top1"] == found["pack"][4]["top1"]
  tasks = {kind: found[kind][4]["task"] for kind in kinds}
  assert tasks == {
    "pack": "svhn",
    "folder": "images",
    "csv": "list",
    "npz": "digits",
  }


@pytest.mark.skipif(not EUROSAT.is_dir(), reason="EuroSAT is not here")
def test_real_images_as_pack_folder_and_csv(config, tmp_path):
  """JPEG files of the EuroSAT pack; every fifth of each list."""
  classes = (EUROSAT / "classes.txt").read_text().split()
  pack = tmp_path / "vtab-1k/eurosat"
  pack.mkdir(parents=True)
  (pack / "classes.txt").write_text("\n".join(classes) + "\n")
  (pack / "images").symlink_to(EUROSAT / "images")
  with (tmp_path / "list.csv").open("w", newline="") as file:
    write = csv.writer(file).writerow
    write(("path", "label", "split"))
    for part, name in (
      ("train", "train800"),
      ("val", "val200"),
      ("test", "test"),
    ):
      lines = [
        line.split()
        for line in (EUROSAT / f"{name}.txt").read_text().splitlines()[::5]
      ]
      # As a folder is read: by class, then by name.
      lines.sort(key=lambda line: (classes[int(line[1])], line[0]))
      (pack / f"{name}.txt").write_text(
        "".join(f"{path} {label}\n" for path, label in lines)
      )
      for path, label in lines:
        target = tmp_path / "own" / part / classes[int(label)]
        target.mkdir(parents=True, exist_ok=True)
        (target / path.split("/")[-1]).symlink_to(EUROSAT / path)
        write((pack / path, classes[int(label)], part))
  config.epochs, config.method, config.image_size = 1, "vpt", 32
  config.optim.warmup_epochs = 0
  config.data.train_split, config.data.dir = "train", str(tmp_path)
  found = {}
  for task, source in (
    ("eurosat", "pack"),
    ("", f"folder:{tmp_path}/own"),
    ("", f"csv:{tmp_path}/list.csv"),
  ):
    config.task, config.data.source = task, source
    run = tmp_path / "runs" / source.partition(":")[0]
    result = vpt_jax.run(config, run)
    data = experiment.load_data(configs.resolve(config))
    found[source] = (
      data.train.images,
      data.train.labels,
      data.test.images,
      data.test.labels,
      *trained(run)[0].values(),
      result["top1"],
    )
  first, *others = found.values()
  assert first[0].shape == (160, 32, 32, 3) and first[2].shape[0] == 100
  for other in others:
    for ours, theirs in zip(first, other, strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_predictions(config, everywhere):
  config.task, config.data.source = "", f"csv:{everywhere}/list.csv"
  config.epochs, config.method = 1, "linear"
  config.optim.warmup_epochs = 0
  result = vpt_jax.run(config, everywhere / "run")
  with (everywhere / "run/predictions.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == result["count"] and lines[0].keys() == {
    "path",
    "label",
    "prediction",
    "confidence",
  }
  assert lines[0]["path"].endswith("0000.png")
  hits = [line["label"] == line["prediction"] for line in lines]
  np.testing.assert_allclose(100 * np.mean(hits), result["top1"])
  assert all(0 < float(line["confidence"]) <= 1 for line in lines)
  predict = vpt_jax.load_adapter(everywhere / "run/adapter.npz")
  first = Image.open(everywhere / lines[0]["path"])
  probabilities = predict(np.asarray(first)[None])[0]
  assert probabilities.argmax() == int(lines[0]["prediction"])
  np.testing.assert_allclose(
    probabilities.max(), float(lines[0]["confidence"]), atol=1e-5
  )


def test_the_config_says_what_was_done(config, everywhere):
  config.task, config.data.source = "", f"folder:{everywhere}/images"
  config.data.preprocess = "fgvc"
  config.epochs = 1
  config.optim.warmup_epochs = 0
  vpt_jax.run(config, everywhere / "run")
  saved = json.loads((everywhere / "run/config.json").read_text())["data"]
  assert (saved["preprocess"], saved["augment"]) == ("fgvc", "flip")
  shapes = experiment.load_data(configs.resolve(config))
  assert shapes.train.strips is not None and shapes.test.strips is None
  assert shapes.test.images.shape[1:] == (8, 8, 3)
