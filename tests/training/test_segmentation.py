"""Whole runs of segmentation: outputs, exact resumption, sizes, refusals."""

import csv
import json
import os
from pathlib import Path
import subprocess
import sys
import time
import zlib

import jax
import numpy as np
from PIL import Image
import pytest

from tests.conftest import small_config, trained
import vpt_jax
from vpt_jax import config as configs
from vpt_jax.data.transforms import views
from vpt_jax.distributed import processes, sharding
from vpt_jax.problems import semantic_segmentation
from vpt_jax.report import __main__ as report
from vpt_jax.training import dense_evaluation, experiment
from vpt_jax.utils import trees

SIZES = [(18, 24), (24, 18), (16, 16), (20, 33)]


def write_images(root, part, count, seed):
  """Images of noise with a bright part of class 1; its edge has no class."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    rows, columns = SIZES[i % len(SIZES)]
    image = rng.integers(0, 90, (rows, columns, 3), dtype=np.uint8)
    label = np.zeros((rows, columns), np.uint8)
    edge = int(rng.integers(4, columns - 4))
    image[:, edge:] += 150
    label[:, edge:] = 1
    label[:, edge] = 255
    for folder, array in (("images", image), ("masks", label)):
      path = root / part / folder / f"{part}{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  write_images(root, "train", 11, 0)
  write_images(root, "test", 5, 1)
  return root


def dense_config(images, **fields):
  """Two epochs of three steps, on a random backbone."""
  config = small_config()
  config.problem = "segmentation"
  config.task = ""
  config.method = "vpt"
  config.vpt.dropout = 0.1
  config.data.source = f"segfolder:{images}"
  config.data.train_split = "train"
  config.image_size = 16
  config.batch_size = 4
  config.epochs = 2
  config.steps_per_epoch = 3
  config.checkpoint.every_epochs = 1
  config.optim.name = "adamw"
  config.optim.lr = 0.01
  config.optim.schedule = "poly"
  config.optim.warmup_epochs = 0
  config.optim.policies = (("head/.*", {"lr": 10.0}), (".*", {}))
  section = config.segmentation
  section.decoder = "pup_4"
  section.auxiliary = "aux_4"
  section.blocks = (1, 2)
  section.width = 8
  section.scale = section.test_scale = (40, 16)
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
  """(config, workdir, result) of a run that also tests at several scales."""
  config = dense_config(
    images,
    **{
      "segmentation.multi_scale": "own",
      "segmentation.test_factors": (1.0, 1.5),
    },
  )
  workdir = tmp_path_factory.mktemp("run")
  return config, workdir, vpt_jax.run(config, workdir)


def test_a_run_leaves_label_maps_scores_and_pictures(images, finished):
  """Scores are those of the label maps that are written, at stored sizes."""
  _, workdir, result = finished
  assert json.loads((workdir / "result.json").read_text()) == result
  total = dict.fromkeys(("intersect", "predicted", "label"), 0)
  for i in range(5):
    path = workdir / "predictions" / f"test{i}.png"
    predicted = np.array(Image.open(path))
    label = np.array(Image.open(images / f"test/masks/test{i}.png"))
    assert predicted.shape == label.shape == SIZES[i % len(SIZES)]
    known = label != 255
    total["label"] += np.bincount(label[known], minlength=2)
    total["predicted"] += np.bincount(predicted[known], minlength=2)
    hits = label[known & (predicted == label)]
    total["intersect"] += np.bincount(hits, minlength=2)
  scores = semantic_segmentation.measured(total)
  assert {name: result[name] for name in scores} == scores
  assert (
    result["class_iou"] == semantic_segmentation.kept_of(total)["class_iou"]
  )
  assert result["multi_scale"].keys() == scores.keys()
  arrays, lines = trained(workdir)
  assert result["head_params"] == sum(
    leaf.size
    for name, leaf in arrays.items()
    if name.startswith("head/") and not name.endswith(("/mean", "/var"))
  )
  assert result["trainable_params"] == result["head_params"] + 2 * 3 * 32
  assert [line["step"] for line in lines] == [3, 6]
  rows = list(csv.DictReader((workdir / "predictions.csv").open()))
  assert [row["path"] for row in rows] == [
    f"test/images/test{i}.png" for i in range(5)
  ]
  gallery = json.loads((workdir / "gallery/gallery.json").read_text())
  assert {"best_1", "typical_1", "worst_1"} == gallery.keys()
  assert gallery["best_1"]["miou"] >= gallery["worst_1"]["miou"]
  assert (workdir / "gallery/best_1.png").exists()


def test_a_run_that_was_stopped_between_two_steps_ends_with_the_same_bits(
  images, finished, tmp_path, monkeypatch
):
  """Order, views, dropout and rates are functions of the step alone."""
  config, workdir, _ = finished
  steps = []

  class Notice(processes.PreemptionNotice):
    def __call__(self, step):
      steps.append(step)
      return step == 4  # the first step of the second epoch

  with monkeypatch.context() as patch:
    patch.setattr(processes, "PreemptionNotice", Notice)
    with pytest.raises(processes.Preempted):
      vpt_jax.run(config, tmp_path)
  assert steps[-1] == 4
  vpt_jax.run(config, tmp_path)
  want, want_lines = trained(workdir)
  got, got_lines = trained(tmp_path)
  assert got_lines == want_lines
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)
  for name in ("predictions.csv", "predictions/test3.png"):
    assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def feed_of(config, workers=0):
  """(feed of training views, its seed)."""
  config = configs.resolve(config)
  config.segmentation.workers = workers
  data = experiment.load_data(config)
  mesh = sharding.make_mesh(config.batch_size)
  return experiment.mask_feed_of(config, data.train, mesh), config.seed


def batches_of(config, workers=0, epochs=(0, 1), steps_done=0):
  """The batches of some epochs, on the host."""
  feed, seed = feed_of(config, workers)
  found = []
  for epoch in epochs:
    for batch in feed.epoch(seed, epoch, steps_done):
      found.append(jax.device_get(batch))
  return found


@pytest.mark.parametrize("steps_per_epoch", [3, 0])
def test_views_depend_on_seed_and_step_alone(images, steps_per_epoch):
  """Wherever a training begins, and whoever makes them, they are the same."""
  config = dense_config(images, steps_per_epoch=steps_per_epoch)
  want = batches_of(config)
  later = batches_of(config, epochs=(1,), steps_done=1)
  for got, expected in zip(later, want[4:], strict=True):
    for name, values in expected.items():
      np.testing.assert_array_equal(got[name], values, err_msg=name)
  masks = np.concatenate([batch["mask"] for batch in want])
  assert masks.sum() == (24 if steps_per_epoch else 20)  # a tenth is for val
  assert want[0]["image"].shape == (4, 16, 16, 3)
  images_of = [batch["image"].tobytes() for batch in want]
  assert len(set(images_of)) == len(images_of)


KILLED = """
import sys, time
from tests.training import test_segmentation as tests

if __name__ == "__main__":
  feed, seed = tests.feed_of(tests.dense_config(sys.argv[1]), workers=2)
  print(tests.digest_of(next(feed.epoch(seed, 0))), flush=True)
  time.sleep(100)
"""


def digest_of(batch):
  """A number that changes with every bit of a batch."""
  total = 0
  for name in sorted(batch):
    total = zlib.crc32(np.ascontiguousarray(batch[name]).tobytes(), total)
  return total


def test_processes_make_the_same_views_and_end_when_the_run_is_killed(
  images, tmp_path
):
  """Nothing is left that waits, or holds memory."""
  script = tmp_path / "run.py"
  script.write_text(KILLED)
  root = Path(vpt_jax.__file__).parents[1]
  run = subprocess.Popen(
    [sys.executable, script, images],
    stdout=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": str(root)},
  )
  feed, seed = feed_of(dense_config(images))
  first = next(feed.epoch(seed, 0))
  assert int(run.stdout.readline()) == digest_of(jax.device_get(first))
  started = []
  for children in Path(f"/proc/{run.pid}/task").glob("*/children"):
    started += children.read_text().split()
  assert len(started) >= 2
  run.kill()
  run.communicate()
  deadline = time.monotonic() + 30
  while any(is_running(process) for process in started):
    assert time.monotonic() < deadline, started
    time.sleep(0.1)


def is_running(process):
  """Whether there is such a process that is not over yet."""
  stat = Path(f"/proc/{process}/stat")
  return stat.exists() and ") Z " not in stat.read_text()


def test_an_image_of_a_windows_size_gets_the_models_own_logits(images):
  """Windows, canvases and sizes add nothing where there is one window."""
  config = configs.resolve(
    dense_config(images, **{"segmentation.test_stored": True})
  )
  job = experiment.build(config, experiment.load_data(config))
  params = trees.merge(job.start.trainable, job.start.frozen)
  variables = {"params": params, **job.start.collections}
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
  (canvas,) = job.labeller()(variables, [image])
  mean, std = views.NORMALIZE[config.data.normalize]
  pixels = (image[None] / 255 - np.array(mean)) / np.array(std)
  logits, *_ = job.model.apply(variables, pixels.astype(np.float32))
  np.testing.assert_allclose(canvas.cut(), logits[0], rtol=1e-4, atol=2e-5)


def test_few_programs_are_compiled_however_many_sizes_there_are(finished):
  """Windows have one size where no side is shorter than they are."""
  _, _, result = finished
  # Slides of 16 x 16; at several scales, too.
  assert result["programs"] == 1


def test_whole_images_of_any_size_are_seen(images, tmp_path):
  """Positions come to the image's grid; its ends are filled up."""
  config = dense_config(
    images,
    epochs=0,
    **{"segmentation.test": "whole", "segmentation.test_stored": True},
  )
  result = vpt_jax.run(config, tmp_path)
  assert result["programs"] == len(set(SIZES))
  assert 0 <= result["miou"] <= 100


def test_what_sees_one_size_has_its_small_windows_filled_up(images, tmp_path):
  """A Swin labels images with a side that is shorter than a window."""
  config = dense_config(
    images,
    epochs=0,
    **{
      "backbone.name": "swin_test",
      "segmentation.decoder": "linear",
      "segmentation.scale": (16, 16),
      "segmentation.test_scale": (16, 16),
    },
  )
  result = vpt_jax.run(config, tmp_path)
  assert result["programs"] == 1
  assert 0 <= result["miou"] <= 100


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"head": "pretrained"}, "config.segmentation.decoder"),
    ({"data.augment": "flip"}, "the section segmentation"),
    ({"condense.shares": (0.3,)}, "condensation"),
    ({"segmentation.blocks": (2, 1)}, "ascending"),
    ({"segmentation.blocks": (1, 3)}, "1 to 2"),
    ({"segmentation.auxiliary": ""}, "auxiliary is empty"),
    ({"segmentation.stride": 17}, "at most image_size=16"),
    ({"optim.poly_min": 1.0}, "at most lr"),
    (
      {"segmentation.test_stored": True, "segmentation.multi_scale": "setr"},
      "multi_scale=own",
    ),
    (
      {
        "segmentation.test": "whole",
        "segmentation.decoder": "linear",
        "backbone.name": "swin_test",
      },
      "images of one size",
    ),
    ({"problem": "classification"}, "segmentation"),
  ],
)
def test_what_segmentation_does_not_have_is_refused(
  images, tmp_path, fields, words
):
  """A field that would be ignored, or two that do not fit, is an error."""
  config = dense_config(images, **fields)
  with pytest.raises(ValueError, match=words):
    vpt_jax.run(config, tmp_path)
  assert not (tmp_path / "metrics.jsonl").exists()  # nothing was trained


def test_published_policies_of_a_linear_head_are_not_those_of_a_dense_one():
  """A config of whole images becomes one of segmentation by its problem."""
  config = small_config()
  config.problem = "segmentation"
  config.task = "ade20k"
  config.method = "vpt"
  config.segmentation.decoder = "linear"  # patches have 4 pixels
  resolved = configs.resolve(config)
  assert resolved.optim.policies == ((".*", {}),)
  assert resolved.data.augment == "none"
  assert resolved.segmentation.scale == (32, 8)
  assert resolved.segmentation.test_scale == (32, 8)
  config.optim.policies = (("head/.*", {"lr": 10.0}), (".*", {}))
  assert configs.resolve(config).optim.policies[0][1] == {"lr": 10.0}


def test_label_maps_have_names_of_their_own():
  """Of images with one stem in several folders, and of hostile names."""
  named = dense_evaluation.map_names
  assert named(["a/x.jpg", "b/y.jpg"]) == ["x", "y"]
  assert named(["a/x.jpg", "b/X.png"]) == ["000000_x", "000001_X"]
  for name in named(["../..", "a\0/\n.png", "..png", "é\\ü.jpg"]):
    assert name.strip("._") and not set(name) & set("/\\\0\n")


def test_a_run_is_reported(finished, tmp_path, capsys):
  """The table has both tests, the page classes and pictures of the run."""
  _, workdir, result = finished
  assert report.main(["", str(workdir), "--out", str(tmp_path)]) == 0
  said = capsys.readouterr().out
  line = next(line for line in said.splitlines() if line.startswith("vpt"))
  assert line.split()[-3:] == [
    "192",  # without head
    f"{result['miou']:.2f}",
    f"{result['multi_scale']['miou']:.2f}",
  ]
  page = (tmp_path / "report.html").read_text(encoding="utf-8")
  shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
  (classes,) = shown["classes"]
  assert len(classes["table"]) == len(result["class_iou"])
  (run,) = shown["galleries"]["runs"]
  titles = [picture["title"] for picture in run["pictures"]]
  assert titles == ["best 1", "typical 1", "worst 1"]
  assert all("mIoU" in picture["text"] for picture in run["pictures"])
  assert not run["damaged"]
