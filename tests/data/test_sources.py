"""Packs, json lists, folders, CSVs and npz files, and which of them is read."""

import json
import logging
import os

import numpy as np
from PIL import Image
import pytest

from tests import images as images_lib
from vpt_jax.data import datasets, tasks
from vpt_jax.data.sources import (
  arrays,
  class_folders,
  csv_tables,
  image_files,
  parts,
)

SIZE = (12, 12)


def picture(seed, side=8):
  return np.random.default_rng(seed).integers(
    0, 256, (side, side, 3), dtype=np.uint8
  )


def write(path, seed=0, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture(seed)).save(path, **options)
  return path


@pytest.fixture
def load(tmp_path):
  def read(source, split="train", **options):
    return images_lib.load(
      "",
      split,
      source=source,
      image_size=SIZE,
      cache_dir=tmp_path / "cache",
      **options,
    )

  return read


@pytest.fixture
def photos(tmp_path):
  """photos/{cat,dog}/{0..19}.png."""
  for label, name in enumerate(("cat", "dog")):
    for i in range(20):
      write(tmp_path / f"photos/{name}/{i:02}.png", 100 * label + i)
  return tmp_path / "photos"


# The same images from every source.


def test_all_sources_of_the_same_images_agree(tmp_path, load):
  """A pack, a folder, a CSV and an npz, down to the order of the images."""
  names = {
    part: [
      (f"{part}/c{label}/{i}.png", label)
      for label in range(10)
      for i in range(2)
    ]
    for part in ("train", "val", "test")
  }
  root = tmp_path / "vtab-1k/eurosat"
  rows, number = [], 0
  for part, files in names.items():
    for name, label in files:
      write(root / name, number)
      rows.append((name, label, part))
      number += 1
  lines = lambda *which: "".join(
    f"{name} {label}\n" for part in which for name, label in names[part]
  )
  for file, which in (
    ("train800.txt", ["train"]),
    ("val200.txt", ["val"]),
    ("train800val200.txt", ["train", "val"]),
    ("test.txt", ["test"]),
  ):
    (root / file).write_text(lines(*which))
  (root / "all.csv").write_text(
    "path,label,split\n"
    + "".join(f"{name},{label},{part}\n" for name, label, part in rows)
  )
  np.savez(
    root / "all.npz",
    images=[picture(i) for i in range(number)],
    labels=[label for _, label, _ in rows],
    split=[part for _, _, part in rows],
  )
  (tmp_path / "photos").mkdir()
  for part in names:
    (tmp_path / "photos" / part).symlink_to(root / part)

  for split, count in (
    ("train", 20),
    ("val", 20),
    ("trainval", 40),
    ("test", 20),
  ):
    want = images_lib.load(
      "eurosat",
      split,
      folder=tmp_path,
      image_size=SIZE,
      cache_dir=tmp_path / "cache",
    )
    assert len(want) == count
    for source in (
      f"folder:{tmp_path}/photos",
      f"csv:{root}/all.csv",
      f"npz:{root}/all.npz",
    ):
      got = load(source, split)
      np.testing.assert_array_equal(got.images, want.images)
      np.testing.assert_array_equal(got.labels, want.labels)
      assert got.labels.dtype == np.int32 and got.num_classes == 10
  assert want.class_names == tasks.TASKS["eurosat"].class_names
  assert load(f"folder:{tmp_path}/photos").class_names == tuple(
    f"c{i}" for i in range(10)
  )
  assert load(f"csv:{root}/all.csv").class_names == ()  # numbers name nothing


# Parts.


def test_what_is_not_parted_is_parted_by_the_seed(photos, caplog):
  opened = lambda split, seed=0: class_folders.folder(photos, split, seed)
  with caplog.at_level(logging.INFO, "vpt_jax"):
    names = {
      split: list(opened(split).names)
      for split in ("train", "val", "test", "trainval")
    }
  assert "seed 0" in caplog.text
  assert {split: len(x) for split, x in names.items()} == {
    "train": 32,
    "val": 4,
    "test": 4,
    "trainval": 36,
  }
  assert names["trainval"] == names["train"] + names["val"]
  assert sorted(names["trainval"] + names["test"]) == [
    f"{c}/{i:02}.png" for c in ("cat", "dog") for i in range(20)
  ]
  assert opened("test").labels.tolist() == [0, 0, 1, 1]
  assert list(opened("test").names) == names["test"]
  assert any(
    list(opened("test", seed).names) != names["test"] for seed in (1, 2)
  )
  identity = {
    opened(split, seed).identity for split in names for seed in (0, 1)
  }
  assert len(identity) == 8


def test_another_image_moves_few_others(photos):
  before = {*class_folders.folder(photos, "test", 0).names}
  write(photos / "cat/new.png")
  assert len(before - {*class_folders.folder(photos, "test", 0).names}) <= 1


@pytest.mark.parametrize(
  "n,counts",
  [
    (1, (1, 0, 0)),
    (2, (2, 0, 0)),
    (3, (1, 1, 1)),
    (10, (8, 1, 1)),
    (19, (15, 2, 2)),
    (100, (80, 10, 10)),
  ],
)
def test_a_tenth_of_every_class(n, counts):
  rows = [(f"{label}{i}", label) for i in range(n) for label in "ab"]
  found = parts.carve(rows, 0, ("val", "test"))
  assert {part: len(x) for part, x in found.items()} == dict(
    zip(("train", "val", "test"), (2 * n for n in counts))
  )
  for part in found.values():
    assert sum(label == "a" for _, label in part) == len(part) / 2
    assert part == [row for row in rows if row in part]  # in their order


def test_without_val_it_is_a_tenth_of_train(tmp_path):
  for i in range(20):
    write(tmp_path / f"training/{'ab'[i % 2]}/{i}.png", i)
    write(tmp_path / f"test/{'ab'[i % 2]}/{i}.png", i)
  size = lambda split: len(class_folders.folder(tmp_path, split, 0))
  assert [size(x) for x in ("train", "val", "trainval", "test")] == [
    18,
    2,
    20,
    20,
  ]
  (tmp_path / "test").rename(tmp_path / "validation")
  assert [size(x) for x in ("train", "val", "trainval")] == [20, 20, 40]
  with pytest.raises(
    ValueError,
    match="has no images for test, only for train"
    ", val; config.data.train_split",
  ):
    size("test")
  (tmp_path / "validation").rename(tmp_path / "x")
  os.rename(tmp_path / "x", tmp_path.parent / f"{tmp_path.name}-x")
  assert [size(x) for x in ("train", "val", "test")] == [16, 2, 2]


# Folders.


def test_what_is_in_a_folder(photos, caplog):
  for name in (".hidden.png", "notes.txt", "raw.cr2", ".cache/x.png"):
    write(photos / "cat/x.png").rename(photos / "cat/y.png")
    (photos / "cat" / name).parent.mkdir(exist_ok=True)
    (photos / "cat/y.png").rename(photos / "cat" / name)
  (photos / "README").write_text("")
  (photos / ".git/objects").mkdir(parents=True)
  (photos / "__MACOSX/cat").mkdir(parents=True)
  write(photos / "cat/deep/er/LAST.JPG")
  with caplog.at_level(logging.INFO, "vpt_jax"):
    opened = lambda split: class_folders.folder(
      photos, split, 0, layout="classes"
    )
    names = {*opened("trainval").names, *opened("test").names}
  assert len(names) == 41 and "cat/deep/er/LAST.JPG" in names
  for text in ("4 hidden", "1 .cr2", "1 .txt", "1 README outside of classes"):
    assert text in caplog.text


def test_links_that_lead_round_in_circles(photos):
  (photos / "cat/self").symlink_to(photos / "cat")
  (photos / "cat/up").symlink_to(photos)
  (photos / "cat/me").symlink_to("me")
  (photos / "cat/gone.png").symlink_to("nowhere.png")
  os.mkfifo(photos / "cat/pipe.png")
  (photos / "dog/more").mkdir()
  (photos / "dog/more/back").symlink_to("..")
  found = [
    *class_folders.folder(photos, "trainval", 0).names,
    *class_folders.folder(photos, "test", 0).names,
  ]
  assert len(found) == 41 and "cat/gone.png" in found


def test_classes_may_be_called_like_parts(tmp_path):
  for name in ("train", "bus", "test"):
    for i in range(3):
      write(tmp_path / f"{name}/{i}.png")
  found = class_folders.folder(tmp_path, "train", 0, layout="classes")
  assert found.class_names == ("bus", "test", "train")
  with pytest.raises(ValueError, match="config.data.layout=classes"):
    class_folders.folder(tmp_path, "train", 0)


def test_a_users_photos_are_upright(tmp_path, load):
  exif = Image.Exif()
  exif[274] = 6  # to be turned to the right
  for name in "ab":
    for i in range(3):
      write(tmp_path / f"x/{name}/{i}.png", i, exif=exif)
  (tmp_path / "x.csv").write_text(
    "path,label\n"
    + "".join(f"x/{name}/{i}.png,{name}\n" for name in "ab" for i in range(3))
  )
  for source in (f"folder:{tmp_path}/x", f"csv:{tmp_path}/x.csv"):
    got = [image.tolist() for image in load(source, "trainval").images]
    for i in range(3):
      assert np.rot90(picture(i), -1).tolist() in got or i == 2
    assert picture(0).tolist() not in got


@pytest.mark.parametrize(
  "files,message",
  [
    ([], "has no class folders; expected CLASS/IMAGE"),
    (["1.png"], "has no class folders"),
    (["a/1.png", "a/2.png", "a/3.png"], "classes with training images: \\['a"),
    (["a/1.png", "b/x.txt"], "1 class folders without images, such as 'b'"),
    (
      ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
      "test/c/1.png of test is of class 'c', which has no training images",
    ),
    (
      ["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"],
      "has two folders for val",
    ),
  ],
)
def test_folders_that_cannot_be_used(tmp_path, files, message):
  (tmp_path / "x").mkdir()
  for name in files:
    path = tmp_path / "x" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
  with pytest.raises(ValueError, match=message) as error:
    class_folders.folder(tmp_path / "x", "train", 0)
  assert str(tmp_path / "x") in str(error.value)


def test_home_and_unknown_sources(photos, load, monkeypatch):
  monkeypatch.setenv("HOME", str(photos.parent))
  assert len(load("folder:~/photos")) == 32
  for source, message in (
    ("folder:~/nowhere", "nowhere is no folder; expected folder:PATH"),
    ("csv:~/nowhere", "nowhere is missing; expected csv:PATH"),
    ("npz:~/nowhere", "nowhere is missing; expected npz:PATH"),
    ("folder:", "'folder:' has no path; expected folder:PATH"),
    ("foldr:~/photos", "unknown data.source 'foldr'; did you mean 'folder'"),
  ):
    with pytest.raises(ValueError, match=message):
      load(source)


# CSV.


def table(tmp_path, text, split="train"):
  path = tmp_path / "all.csv"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return csv_tables.read_csv(path, split, 0)


def test_a_csv(tmp_path):
  text = (
    "\ufeffLabel, Path ,split,notes\r\n"
    'red,"a, ""b"".png",TRAIN,x\r\n'
    f'blue,{tmp_path}/../c.png,training,"two\r\nlines"\r\n'
    "\r\n"
    "red,d.png,valid,\r\nred,d.png,valid,\r\nblue,e.png,test,\r\n"
  )
  part = table(tmp_path, text, "trainval")
  assert list(part.names) == ['a, "b".png', f"{tmp_path}/../c.png", "d.png"]
  assert part.labels.tolist() == [1, 0, 1]
  assert part.class_names == ("blue", "red")
  assert table(tmp_path, text, "test").labels.tolist() == [0]


@pytest.mark.parametrize(
  "labels,numbers,names",
  [
    ("0 1 2", [0, 1, 2], ()),
    ("2 10 1", [1, 2, 0], ("1", "2", "10")),
    ("007 7 8", [0, 0, 1], ("7", "8")),
    ("2 10 x", [1, 0, 2], ("10", "2", "x")),
    ("1.5 2 2", [0, 1, 1], ("1.5", "2")),
  ],
)
def test_labels_are_numbered_in_their_order(tmp_path, labels, numbers, names):
  rows = [f"{i}.png,{label}" for i, label in enumerate(labels.split())]
  part = table(
    tmp_path,
    "path,label,split\nv.png"
    + rows[0][5:]
    + ",val\n"
    + "".join(f"{row},train\n" for row in rows),
  )
  assert part.labels.tolist() == numbers and part.class_names == names


@pytest.mark.parametrize(
  "text,message",
  [
    ("", "the first line is \\[\\]; expected 'path,label'"),
    ("a.png,1\nb.png,2\n", "the first line is .*'a.png'"),
    ("path,label\na.png\n", "line 2: 1 columns, expected 2"),
    ("path,label\na.png,1\na,b.png,1\n", "line 3: 3 columns, .* quote a path"),
    ("path,label\na.png, \n", "line 2: .*expected a path, a label"),
    ("path,label\n,1\n", "line 2: .*expected a path, a label"),
    ("path,label,split\na.png,1,tren\n", "line 2: .*train, val or test"),
    ("path,label\na.png,-1\n", "line 2: label -1 is negative"),
    (
      "path,label\na.png,1\n./a.png,2\n",
      "line 3: './a.png' has label '2'.* further up it has '1'",
    ),
    ("path,label,split\na.png,1,train\na.png,1,test\n", "line 3: .*'train'"),
    ("path,label\na.png,1\nb.png,1\n", "classes with training images: \\[1\\]"),
    ("path,label\n", "classes with training images: \\[\\]"),
    ("path,label\na\0.png,1\n", "line 2: .*expected a path"),
    ('path,label\n"a.png,1\n', "unexpected end of data"),
    (b"path,label\n\xff.png,1\n", "Save the table as UTF-8"),
    ("path,label\n" + "x" * 200000 + ",1\n", "field larger than"),
  ],
)
def test_csvs_that_cannot_be_used(tmp_path, text, message):
  with pytest.raises(ValueError, match=message) as error:
    table(tmp_path, text)
  assert str(error.value).startswith(str(tmp_path / "all.csv"))


# VPT's json lists.


def lists(folder, **files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, value in files.items():
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    (folder / f"{name}.json").write_bytes(
      text.encode() if isinstance(text, str) else text
    )
  return folder


def opened(folder, split="train", classes=2, **options):
  return image_files.json_splits(folder, split, classes, 0, **options)


def test_json_lists(tmp_path):
  folder = lists(
    tmp_path,
    train={"x/a.png": 30, "b.png": 4, "c.png": 30},
    val={"d.png": 4},
    test={"e.png": 30},
  )
  write(folder / "images/x/a.png", 5)
  train = opened(folder, images="images")
  assert list(train.names) == ["x/a.png", "b.png", "c.png"]
  assert train.labels.tolist() == [1, 0, 1]
  assert train.read(0) == (folder / "images/x/a.png").read_bytes()
  assert opened(folder, "trainval").labels.tolist() == [1, 0, 1, 0]
  assert opened(folder, "test").labels.tolist() == [1]
  with pytest.raises(ValueError, match="2 classes have .* expected 3"):
    opened(folder, classes=3)
  (folder / "val.json").unlink()
  lists(
    folder,
    train={f"{i}.png": str(i % 2) for i in range(40)},
    test={"a.png": "1"},
  )
  assert [len(opened(folder, x)) for x in ("train", "val", "trainval")] == [
    36,
    4,
    40,
  ]


GOOD = {"a.png": 0, "b.png": 1}


@pytest.mark.parametrize(
  "value,message",
  [
    ("", "cannot read .*train.json: Expecting value"),
    ("{", "cannot read"),
    ("[" * 100000, "cannot read .*nested too deep"),
    (b"\xff", "cannot read .*utf-8"),
    ("9" * 5000, "cannot read"),
    ("{}", "with one file at least"),
    ("[]", "expected {file: class}"),
    ('["a.png"]', "expected {file: class}"),
    ('[["a.png", 1]]', "expected {file: class}"),
    ('{"a.png": 1, "a.png": 0}', "'a.png' is in it twice"),
    ({"a.png": 0, "b.png": "1"}, "some classes are integers"),
    ({"a.png": True}, "entry 'a.png': 'True'; expected"),
    ({"a.png": 0.5}, "entry 'a.png'"),
    ('{"a.png": NaN}', "entry 'a.png'"),
    ({"a.png": None}, "entry 'a.png'"),
    ({"a.png": {"b.png": 1}}, "entry 'a.png'"),
    ({"": 1}, "entry ''"),
    ({"a\0.png": 1}, "entry 'a"),
    ({"../a.png": 1}, "'../a.png' is outside"),
    ({"/etc/passwd": 1}, "is outside"),
    ({"x/../../a.png": 1}, "is outside"),
    ({"a.png": 0}, "classes with training images: \\[0\\]"),
    ({**GOOD, "t.png": 1}, "'t.png' has another class"),
  ],
)
def test_hostile_json_lists(tmp_path, value, message):
  folder = lists(tmp_path, train=value, test={"t.png": 0})
  with pytest.raises(ValueError, match=message) as error:
    opened(folder)
  assert str(folder) in str(error.value)


def test_json_lists_that_are_missing_or_overlap(tmp_path, caplog):
  with pytest.raises(ValueError, match="train.json is missing; expected"):
    opened(tmp_path)
  lists(tmp_path, train=GOOD)
  with pytest.raises(ValueError, match="test.json is missing; expected"):
    opened(tmp_path)
  lists(tmp_path, test={"c.png": 2})
  with pytest.raises(ValueError, match="c.png of test is of class 2"):
    opened(tmp_path)
  lists(tmp_path, val=GOOD, test=GOOD)
  assert len(opened(tmp_path)) == 2
  assert "files are in two of train, val, test" in caplog.text


def test_names_that_are_no_text(tmp_path, load):
  """A file whose name is not UTF-8, and half of a surrogate pair in JSON."""
  for i in range(6):
    write(tmp_path / f"x/{'ab'[i % 2]}/{i}.png", i)
  (tmp_path / "x/a/0.png").rename(
    os.fsdecode(os.fsencode(tmp_path / "x/a") + b"/\xff.png")
  )
  assert len(load(f"folder:{tmp_path}/x", "trainval")) == 4
  folder = lists(
    tmp_path, train='{"\\ud800.png": 0, "b.png": 1}', test=GOOD, val=GOOD
  )
  with pytest.raises(ValueError):
    opened(folder).read(0)


# npz.


def npz(tmp_path, part="train", **changes):
  values = {
    "images": np.stack([picture(i) for i in range(4)]),
    "labels": np.array([3, 5, 3, 5]),
    "split": np.array(["train", "train", "val", "test"]),
    **changes,
  }
  np.savez(
    tmp_path / "x.npz",
    **{name: value for name, value in values.items() if value is not None},
  )
  return arrays.npz(tmp_path / "x.npz", part, 0)


def test_an_npz(tmp_path):
  part = npz(tmp_path, "trainval")
  assert part.labels.tolist() == [0, 1, 0] and part.class_names == ("3", "5")
  np.testing.assert_array_equal(part.read(2), picture(2))
  assert npz(tmp_path, labels=np.array(list("baba"))).class_names == ("a", "b")
  capitals = np.array(["Train", "TRAINING", "Val ", "Test"])
  assert len(npz(tmp_path, "trainval", split=capitals)) == 3
  grey = npz(tmp_path, images=np.zeros((4, 5, 6), np.uint8))
  assert grey.read(0).shape == (5, 6, 1)
  many = dict(
    images=np.zeros((30, 2, 2), np.uint8), split=None, labels=np.arange(30) % 3
  )
  assert [len(npz(tmp_path, x, **many)) for x in ("train", "val", "test")] == [
    24,
    3,
    3,
  ]


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"images": None}, "no array images; it has labels.npy, split.npy"),
    ({"labels": None}, "no array labels"),
    ({"images": np.zeros((4, 5, 6))}, "images must be uint8"),
    ({"images": np.zeros((0, 5, 6), np.uint8)}, "no images"),
    ({"labels": np.array([0, 1])}, "labels must be .* got int64 \\[2\\]"),
    ({"labels": np.array([0.0, 1, 0, 1])}, "labels must be"),
    ({"labels": np.array([-1, 1, 0, 1])}, "labels must be integers from 0 on"),
    ({"labels": np.array([{}] * 4)}, "pickled content is never loaded"),
    ({"split": np.array(["train"] * 3)}, "split must be names \\[4\\]"),
    ({"split": np.array(["train", "tren", "val", "test"])}, "split must be"),
    ({"split": np.array(["train"] * 3 + [""])}, "split must be"),
    ({"split": np.arange(4)}, "split must be"),
    ({"labels": np.array([0, 0, 1, 1])}, "classes with training images: \\[0"),
  ],
)
def test_npzs_that_cannot_be_used(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    npz(tmp_path, **changes)
  assert str(tmp_path / "x.npz") in str(error.value)


# Which source is read.


def test_the_first_source_that_is_there(tmp_path, monkeypatch):
  read = []
  monkeypatch.setattr(
    datasets.tfds,
    "examples",
    lambda task, split, folder: read.append(split),
  )
  with pytest.raises(ValueError) as error:
    datasets.open_split("dtd", "train", folder=tmp_path)
  for text in (
    "no images of task 'dtd'; looked for",
    f"{tmp_path}/vtab-1k/dtd",
    f"{tmp_path}/dtd",
    "tfds.builder",
    "licence",
  ):
    assert text in str(error.value)
  with pytest.raises(
    ValueError,
    match=(
      "task 'dtd' has no source 'json'; it has pack, tfds, and every task has "
      "folder:PATH"
    ),
  ):
    datasets.open_split("dtd", "train", folder=tmp_path, source="json")
  (tmp_path / "vtab-1k/dtd").mkdir(parents=True)
  with pytest.raises(ValueError, match="train800.txt is missing"):
    datasets.open_split("dtd", "train", folder=tmp_path)
  with pytest.raises(AttributeError):  # the fake has no labels
    datasets.open_split("dtd", "train", folder=tmp_path, source="tfds")
  assert read == ["train"]


def test_every_task_says_how_to_get_it(tmp_path):
  for name, task in tasks.TASKS.items():
    if name != "digits":
      assert not datasets.is_there(task, tmp_path), name
      with pytest.raises(ValueError, match=str(tmp_path)) as error:
        datasets.open_split(name, "train", folder=tmp_path)
      assert (
        "tfds" in str(error.value)
        or "missing" in str(error.value)
        or ("expected" in str(error.value))
      ), name


def test_labels_of_a_task_are_in_range(monkeypatch):
  digits = datasets.open_split("digits", "train")
  bad = digits.labels.copy()
  bad[3] = 10
  monkeypatch.setattr(
    datasets.arrays,
    "digits",
    lambda split: datasets.Examples(
      digits.names, bad, 10, digits.read, "here", "x"
    ),
  )
  with pytest.raises(ValueError, match="here: label 10 of digits.* 0..9"):
    datasets.open_split("digits", "train")


def test_identity_follows_names_labels_and_files(photos):
  read = lambda split="train": class_folders.folder(photos, split, 0).identity
  first = read()
  assert read() == first != read("test")
  file = photos / class_folders.folder(photos, "train", 0).names[0]
  os.utime(file, (1, 1))
  assert (second := read()) != first
  file.write_bytes(file.read_bytes() + b"\0")
  os.utime(file, (1, 1))
  assert read() not in (first, second)
  text = "path,label,split\na.png,{},train\nb.png,y,train\n"
  assert len({table(photos, text.format(x)).identity for x in "xz"}) == 2


def test_bad_images_of_a_folder(photos, load):
  (photos / "cat/00.png").write_bytes(b"<html>")
  (photos / "dog/00.png").unlink()
  (photos / "dog/00.png").symlink_to("gone")
  source = f"folder:{photos}"
  split = {
    name: split
    for split in ("trainval", "test")
    for name in class_folders.folder(photos, split, 0).names
  }
  for name, why in (
    ("cat/00.png", "cannot decode cat/00.png: .*HTML"),
    ("dog/00.png", "dog/00.png is missing"),
  ):
    with pytest.raises(ValueError, match=f"{photos}: {why}"):
      load(source, split[name])
    (photos / "cat/00.png").unlink()  # so that the second one comes first
    write(photos / "cat/00.png")
  (photos / "cat/00.png").write_bytes(b"")
  parted = [load(source, x, on_error="skip") for x in ("trainval", "test")]
  assert sum(x.skipped for x in parted) == 2
  assert sum(map(len, parted)) == 38
  assert all(len(x.names) == len(x) for x in parted)
