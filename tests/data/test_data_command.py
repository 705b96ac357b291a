"""python -m vpt_jax.data prepare | check | show."""

from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from tests import images as images_lib
from vpt_jax.data import __main__ as command
from vpt_jax.data import contact_sheet, datasets, survey, tasks
from vpt_jax.data.cache import prepared
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.utils import signals

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, capsys):
  """(exit status, stdout, stderr) of a command line."""

  def main(line):
    status = command.main(
      [
        "data",
        *line.split(),
        f"--data_dir={tmp_path}",
        f"--cache={tmp_path}/cache",
        "--image_size=16",
      ]
    )
    return status, *capsys.readouterr()

  return main


@pytest.fixture
def eurosat(tmp_path):
  """A pack of 40 images, and 20 for testing."""
  folder = tmp_path / "vtab-1k/eurosat"
  (folder / "x").mkdir(parents=True)
  names = [f"x/{i}.png {i % 10}\n" for i in range(60)]
  for i in range(60):
    Image.fromarray(np.full((8 + i % 2, 8, 3), i, np.uint8)).save(
      folder / f"x/{i}.png"
    )
  for file, part in (
    ("train800", slice(30)),
    ("val200", slice(30, 40)),
    ("train800val200", slice(40)),
    ("test", slice(40, 60)),
  ):
    (folder / f"{file}.txt").write_text("".join(names[part]))
  return folder


def row(out, task):
  """Cells of a task's row in the table."""
  (line,) = [line for line in out.splitlines() if line.split("  ")[0] == task]
  return re.split("  +", line.strip())


def test_prepare_then_load(run, eurosat, tmp_path):
  status, _, err = run("prepare eurosat")
  assert status == 0
  assert "eurosat, trainval: 40 images, 0.0 MiB in" in err
  folders = [x for x in (tmp_path / "cache").iterdir() if x.name[0] != "."]
  assert sorted(x.name.rpartition("-")[0] for x in folders) == [
    "eurosat-test-vtab16",
    "eurosat-trainval-vtab16",
  ]
  split = images_lib.load(
    "eurosat",
    "trainval",
    folder=tmp_path,
    train=True,
    image_size=(16, 16),
    cache_dir=tmp_path / "cache",
  )
  assert isinstance(split.images, np.memmap) and len(split) == 40
  before = [x.stat().st_mtime_ns for x in folders]
  assert run("prepare eurosat")[0] == 0
  assert [x.stat().st_mtime_ns for x in folders] == before
  assert run("prepare eurosat --force")[0] == 0
  assert [x.stat().st_mtime_ns for x in folders] != before


def test_prepare_all_goes_on_after_an_error(run, eurosat, tmp_path):
  (eurosat / "x/3.png").write_bytes(b"<html>")
  status, _, err = run("prepare all")
  assert status == 1
  assert "eurosat, trainval: " in err and "HTML" in err
  assert "eurosat, test: 20 images" in err and "dtd: no images" in err
  status, _, err = run("prepare eurosat --splits=train --on_error=skip")
  assert status == 0 and "train: 29 images, 1 left out" in err
  (path,) = (tmp_path / "cache").glob("eurosat-train-*")
  assert "x/3.png" in prepared.read_meta(path)["failed"][0]


def test_check(run, eurosat, tmp_path):
  status, out, _ = run("check")
  assert status == 0
  assert all(len(row(out, name)) >= 2 for name in tasks.TASKS)
  assert row(out, "eurosat") == [
    "eurosat",
    "vtab",
    "ready",
    "30/10/20",
    "10 of 10",
    "3 to 3",
  ]
  for name, state in (
    ("dtd", survey.DOWNLOAD),
    ("resisc45", survey.MANUAL),
    ("fgvc_cub", survey.DOWNLOAD),
    ("fgvc_nabirds", survey.MANUAL),
    ("pgn_ucf101", survey.MANUAL),
  ):
    assert row(out, name) == [name, tasks.TASKS[name].suite, state]
  assert row(out, "digits")[:3] == ["digits", "ready", "800/200/797"]
  assert "eurosat: train: 30 images, as published 800" in out
  run("prepare eurosat")
  assert row(run("check eurosat")[1], "eurosat")[-1] == "trainval test"


def test_check_tells_how_to_get_a_task(run):
  status, out, _ = run("check resisc45")
  assert status == 0
  for text in (
    "needs manual steps",
    "NWPU-RESISC45.rar",
    "tfds.builder",
    "licence: not stated",
  ):
    assert text in out
  assert "tfds.builder" not in run("check")[1]  # pages of it


def test_check_finds_what_is_broken(run, eurosat, tmp_path):
  (eurosat / "x/41.png").write_bytes(b"<html>")  # not among the few looked at
  assert run("check eurosat")[0] == 0
  status, out, _ = run("check eurosat --deep")
  assert status == 1 and row(out, "eurosat")[2] == "broken"
  assert "eurosat: test: 1 of 20 images that were decoded are bad: " in out
  assert "x/41.png" in out and "HTML" in out

  (eurosat / "x/41.png").unlink()
  status, out, _ = run("check eurosat")
  assert status == 1
  assert "test: 1 of 20 files are missing, such as " in out

  (eurosat / "test.txt").write_text("x/0.png ten\n")
  status, out, _ = run("check eurosat")
  assert status == 1 and "test.txt:1: expected 'PATH LABEL'" in out
  assert row(out, "eurosat")[3] == "30/10/-"

  run("prepare eurosat --splits=val")
  (path,) = (tmp_path / "cache").glob("eurosat-val-*")
  (path / "images.npy").write_bytes(b"")
  assert f"val: the cache {path} is damaged" in run("check eurosat")[1]


def test_a_users_images(run, eurosat, tmp_path):
  lines = (eurosat / "train800val200.txt").read_text().splitlines()
  (eurosat / "my.csv").write_text(
    "path,label\n" + "".join(f"{line.replace(' ', ',c')}\n" for line in lines)
  )
  source = f"--source=csv:{eurosat}/my.csv"
  status, out, _ = run(f"check {source}")
  # Four of each class: two to train.
  assert status == 0
  assert row(out, "my") == ["my", "ready", "20/10/10", "10 of 10", "2 to 2"]
  assert run(f"prepare {source}")[0] == 0
  assert len([*(tmp_path / "cache").glob("my-*")]) == 2
  assert run(f"show {source} --out={tmp_path}/a.png")[0] == 0


def test_without_test_images_it_is_not_broken(run, tmp_path):
  for part in ("train", "val"):
    for name in "ab":
      path = tmp_path / f"x/{part}/{name}"
      path.mkdir(parents=True)
      Image.new("RGB", (4, 4)).save(path / "1.png")
  status, out, _ = run(f"check --source=folder:{tmp_path}/x")
  assert status == 0 and row(out, "x")[1:3] == ["ready", "2/2/-"]


@pytest.mark.parametrize(
  "line,message",
  [
    ("prepare", "name a task"),
    ("show", "name a task"),
    ("show all", "unknown task 'all'"),
    ("prepare eurosatt", "unknown task 'eurosatt'; did you mean 'eurosat'"),
    ("prepare dtd", "no images of task 'dtd'; looked for"),
    ("prepare digits --splits=dev", "unknown split 'dev'"),
    ("prepare digits --source=x:y", "unknown data.source 'x'"),
  ],
)
def test_errors_are_told(run, line, message):
  status, _, err = run(line)
  assert status == 1 and f"error: {message}" in err


def test_an_interruption(run, monkeypatch):
  def stop(*args, **options):
    raise KeyboardInterrupt

  monkeypatch.setattr(command.prepared, "prepare", stop)
  status, _, err = run("prepare digits")
  assert status == 130 and "the same command" in err


# Contact sheets.


@pytest.mark.parametrize(
  "options",
  [
    "",
    "--preprocess=fgvc",
    "--preprocess=fgvc --augment",
    "--preprocess=pgn --augment",
    "--augment=flip_crop",
  ],
)
def test_show(run, tmp_path, monkeypatch, options):
  drawn = []
  sheet = contact_sheet.sheet
  monkeypatch.setattr(
    contact_sheet, "sheet", lambda *args: (drawn.append(args), sheet(*args))[1]
  )
  status, out, _ = run(f"show digits {options} --out={tmp_path}/a.png")
  assert status == 0 and out == f"{tmp_path}/a.png\n"
  ((images, labels, title),) = drawn
  assert images.shape == (64, 16, 16, 3) and images.dtype == np.uint8
  assert images.max() > 200 > 50 > images.min()
  assert labels == sorted(labels)
  assert {labels.count(str(i)) for i in range(10)} == {6, 7}
  assert title.startswith("digits, train: 800 images of 10 classes")
  with Image.open(tmp_path / "a.png") as page:
    assert page.size == (8 * 162 + 10, 8 * 181 + 33)


def test_what_is_shown_without_views_is_what_evaluation_sees():
  digits = contact_sheet.sample(datasets.open_split("digits", "train"), 1)
  preprocess = Preprocess((8, 8), "half")
  images, split = contact_sheet.model_views(digits, preprocess, None, 0)
  np.testing.assert_array_equal(images, split.images)
  flipped, _ = contact_sheet.model_views(digits, preprocess, "flip", 0)
  same = (flipped == images).all((1, 2, 3))
  mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
  assert (same | mirrored).all() and not same.all() and not mirrored.all()


def test_a_sheet_of_a_few_images_and_long_names():
  page = contact_sheet.sheet(
    np.zeros((3, 30, 20, 3), np.uint8), ["a", "b" * 99, ""], "title " * 99
  )
  pixels = np.asarray(page.convert("L"))
  assert page.size == (8 * 162 + 10, 181 + 33)
  step, top = (
    contact_sheet.TILE + contact_sheet.GAP,
    2 * contact_sheet.GAP + contact_sheet.TEXT,
  )
  # Nothing runs into the next tile's text, nor over the edge.
  text = pixels[top + contact_sheet.TILE :]
  assert (text[:, step + 10 + contact_sheet.TILE :] == 255).all()
  assert (text[:, step : step + contact_sheet.TILE] < 128).any()
  assert (pixels[:, -10:] == 255).all()


# What training would meet at its end.


def write_parts(root, **classes_of_part):
  """ROOT/PART/CLASS/I.png, all different; {part: {class: count}}."""
  number = 0
  for part, classes in classes_of_part.items():
    for name, count in classes.items():
      (root / part / name).mkdir(parents=True)
      for i in range(count):
        number += 1
        image = Image.new("RGB", (4, 4), (number, 0, 0))
        image.save(root / part / name / f"{i}.png")
  return root


def test_check_says_which_classes_there_are(run, tmp_path):
  """Names and counts of the classes, of all parts."""
  root = write_parts(
    tmp_path / "x", Train={"cat": 3, "dog": 2}, Test={"cat": 1}
  )
  status, out, _ = run(f"check --source={root}")
  assert status == 0
  assert "x: train: 3 images of 2 classes: cat (2), dog (1)" in out
  assert "x: val: 2 images of 2 classes: cat (1), dog (1)" in out
  assert "x: test: 1 images of 1 classes: cat (1); without images: dog" in out


def test_check_says_once_what_the_folders_are(run, tmp_path):
  """Parts, how images are divided, and what is only for prediction."""
  root = write_parts(tmp_path / "x", Train={"cat": 4, "dog": 4})
  (root / "test").mkdir()
  (root / "test/1.png").write_bytes(b"")
  _, _, err = run(f"check --source={root}")
  assert err.count("images in test (1) have no classes and are only for") == 1
  assert err.count("parts are train = Train") == 1
  assert err.count("divided with seed 0") == 1


def test_check_finds_classes_without_images(run, tmp_path):
  root = write_parts(
    tmp_path / "x", train={"cat": 3, "dog": 0}, test={"cat": 1}
  )
  status, out, _ = run(f"check --source=folder:{root}")
  assert status == 1
  assert out.count("1 class folders without images, such as 'dog'") == 1


def test_check_says_that_a_run_would_find_no_test_images(run, tmp_path):
  """What training would end with: parts of which test is missing."""
  root = write_parts(
    tmp_path / "x", train={"cat": 3, "dog": 3}, val={"cat": 1, "dog": 1}
  )
  status, out, _ = run(f"check --source={root}")
  assert status == 0
  assert "has no images for test, only for train, val" in out
  assert "config.data.test_split name the parts" in out


def test_check_tells_a_layout_that_is_not_clear(run, tmp_path):
  root = write_parts(tmp_path / "x", train={"a": 3, "b": 3}, more={"a": 3})
  status, out, _ = run(f"check --source={root}")
  assert status == 1 and "config.data.layout=classes" in out
  status, out, _ = run(f"check --source={root} --layout=parts")
  assert status == 0 and "of 2 classes: a (1), b (1)" in out


def test_check_finds_images_that_parts_share(run, tmp_path):
  """The same bytes in two parts, or of two classes, are counted and named."""
  root = write_parts(
    tmp_path / "x",
    train={"a": 4, "b": 4},
    val={"a": 2, "b": 2},
    test={"a": 3, "b": 3},
  )
  status, out, _ = run(f"check --source={root}")
  assert status == 0 and "same bytes" not in out
  for source, target in (
    ("train/a/0.png", "test/a/0.png"),
    ("train/a/1.png", "test/a/again.png"),
    ("train/b/0.png", "train/a/other.png"),
  ):
    (root / target).write_bytes((root / source).read_bytes())
  status, out, _ = run(f"check --source={root}")
  assert status == 0
  assert (
    "x: 2 of 7 images of test have the same bytes as images of train, such as "
    "test/a/0.png and train/a/0.png"
  ) in out
  assert "1 images have the same bytes as one of another class" in out
  assert "images of val have the same bytes" not in out


def test_check_compares_arrays_if_it_reads_all(run, tmp_path):
  images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
  images[5] = images[0]
  np.savez(
    tmp_path / "x.npz",
    images=images,
    labels=[0, 1] * 3,
    split=["train"] * 2 + ["val"] * 2 + ["test"] * 2,
  )
  source = f"--source={tmp_path}/x.npz"
  assert "same bytes" not in run(f"check {source}")[1]
  _, out, _ = run(f"check {source} --deep")
  assert "1 of 2 images of test have the same bytes as images of train" in out


def test_a_deep_check_names_all_damaged_images(run, tmp_path):
  root = write_parts(tmp_path / "x", train={"a": 30, "b": 30}, test={"a": 2})
  for name in ("a/3.png", "b/4.png", "b/17.png"):
    (root / "train" / name).write_bytes(b"<html>" + name.encode())
  status, out, _ = run(f"check --source={root} --deep")
  assert status == 1
  for name in ("a/3.png", "b/4.png", "b/17.png"):
    assert f"train/{name}" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_preparation_with_its_status(number, tmp_path):
  """Also of the first process of a container, which has no defaults."""
  for name in ("cat", "dog"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(300):
      image = Image.new("RGB", (300, 300), (i % 256, 0, 0))
      image.save(tmp_path / "photos" / name / f"{i}.png")
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "vpt_jax.data", "prepare", "--workers=1"),
      f"--source=folder:{tmp_path}/photos",
      f"--cache={tmp_path}/cache",
    ],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  while not [*(tmp_path / "cache").glob(".*/images.npy")]:
    assert process.poll() is None
    time.sleep(0.001)
  process.send_signal(number)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + number, err
  assert err.splitlines()[-1] == (
    f"{signals.CAUSES[number]}; saved: the images that are done; the same "
    "command resumes"
  )
  assert "Traceback" not in err
