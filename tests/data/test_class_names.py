"""Which classes there are: their order, their names, labels that are names."""

import csv
import json
import logging
import unicodedata

import numpy as np
from PIL import Image
import pytest

import vpt_jax
from vpt_jax.analysis import subject
from vpt_jax.data import class_names, datasets
from vpt_jax.data.sources import arrays, csv_tables
from vpt_jax.training import adapter_files, records

SIDE = 8


def write_photos(folder, classes, count=10):
  """FOLDER/CLASS/CLASS_00.png; class number k has images of grey 20 k."""
  for k, name in enumerate(classes):
    (folder / name).mkdir(parents=True)
    for i in range(count):
      pixels = np.full((SIDE, SIDE, 3), 20 * k + i, np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{name}_{i:02}.png")
  return folder


def opened(source, split="train", **options):
  return datasets.open_split("", split, source=source, **options)


def short(config, folder):
  """A run of a head alone, without training steps."""
  config.method = "linear"
  config.epochs = 1
  config.optim.warmup_epochs = 0
  config.batch_size = 8
  config.task = ""
  config.data.source = f"folder:{folder}"
  return config


# Order.


@pytest.mark.parametrize(
  "names,order",
  [
    (["1", "10", "2"], ["1", "2", "10"]),
    (["0.5", "10", "-1"], ["-1", "0.5", "10"]),
    (["00", "0", "01"], ["0", "00", "01"]),
    (["10", "2", "x"], ["10", "2", "x"]),
    (["n10", "n2"], ["n10", "n2"]),
    ([10, 2, 1], [1, 2, 10]),
    (["1" * 30, "2"], ["2", "1" * 30]),
  ],
)
def test_numeric_names_are_in_numeric_order(names, order):
  assert class_names.in_order(names) == order
  assert class_names.in_order(names, as_text=True) == sorted(names)


def test_class_folders_that_are_numbers(config, tmp_path):
  """Folders 1, 10, 2: in numeric order, and predictions say their names."""
  folder = write_photos(tmp_path / "photos", ["1", "10", "2"])
  examples = opened(f"folder:{folder}", "test")
  assert examples.class_names == ("1", "2", "10")
  vpt_jax.run(short(config, folder), tmp_path / "run")
  with (tmp_path / "run/predictions.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  predict = vpt_jax.load_adapter(tmp_path / "run/adapter.npz")
  assert predict.class_names == ("1", "2", "10")
  for line in lines:
    assert line["label"] == line["path"].partition("/")[0]
    probabilities = predict(folder / line["path"])
    assert line["prediction"] == predict.class_names[probabilities.argmax()]


def test_an_adapter_keeps_its_own_order_of_classes(config, tmp_path):
  """Analyses see labels as an adapter has them; old ones sorted names as text.

  Also where the folder has got another class since.
  """
  folder = write_photos(tmp_path / "photos", ["1", "10", "2"])
  vpt_jax.run(short(config, folder), tmp_path / "run")
  new = tmp_path / "run/adapter.npz"
  values, meta = adapter_files.read_adapter(new)
  old_meta = {**meta.to_json()}
  del old_meta["class_names"]
  old = tmp_path / "run/old.npz"
  np.savez(old, meta=json.dumps(old_meta), **values)
  for path, classes in ((new, ("1", "2", "10")), (old, ("1", "10", "2"))):
    adapter = subject.read(str(path))
    images = subject.test(adapter)
    assert images.class_names == classes
    for name, label in zip(images.names, images.labels, strict=True):
      assert classes[label] == name.partition("_")[0]
    assert (
      subject.files(adapter, [folder / "2/2_00.png"]).class_names == classes
    )
  assert vpt_jax.load_adapter(old).class_names == ("0", "1", "2")
  write_photos(folder, ["05"])
  with pytest.raises(ValueError, match="class 05 are none of the adapter's"):
    subject.test(subject.read(str(new)))


def test_published_lists_keep_the_order_of_text(tmp_path):
  labels = {"a.png": "10", "b.png": "2"}
  for part in ("train", "val", "test"):
    (tmp_path / f"{part}.json").write_text(json.dumps(labels))
  published = datasets.image_files.json_splits(tmp_path, "train", 2, 0)
  assert published.class_names == ("10", "2")
  assert opened(f"json:{tmp_path}").class_names == ("2", "10")


# Labels that are names.


def images_of(count):
  return np.zeros((count, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize(
  "labels,numbers,names",
  [
    ([0, 1, 2], [0, 1, 2], ()),
    ([1, 2, 3], [0, 1, 2], ("1", "2", "3")),
    ([0, 5, 999], [0, 1, 2], ("0", "5", "999")),
    (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
  ],
)
def test_labels_with_gaps_are_names(labels, numbers, names):
  """Labels 1..N, with gaps, or texts: as many classes as there are labels."""
  split = vpt_jax.from_arrays(images_of(3), np.array(labels))
  assert split.labels.tolist() == numbers
  assert (split.num_classes, split.class_names) == (len({*labels}), names)


@pytest.mark.parametrize("labels", [["b", "a"], [1, 3]])
def test_labels_as_pandas_has_them(labels):
  """Columns of any objects, if all are texts or all are integers."""
  split = vpt_jax.from_arrays(images_of(2), np.array(labels, object))
  assert split.class_names == tuple(map(str, sorted(labels)))
  mixed = np.array([labels[0], None], object)
  with pytest.raises(ValueError, match="or names, got object"):
    vpt_jax.from_arrays(images_of(2), mixed)


def test_the_user_says_that_labels_are_numbers():
  split = vpt_jax.from_arrays(images_of(2), [0, 5], 7)
  assert (split.num_classes, split.labels.tolist()) == (7, [0, 5])
  split = vpt_jax.from_arrays(images_of(2), [0, 2], class_names=["a", "b", "c"])
  assert split.labels.tolist() == [0, 2] and split.num_classes == 3
  split = vpt_jax.from_arrays(
    images_of(2), np.array(["b", "a"]), class_names=["b", "a", "c"]
  )
  assert split.labels.tolist() == [0, 1] and split.class_names == (
    "b",
    "a",
    "c",
  )
  for labels, options, message in (
    ([0, 3], {"class_names": ["a", "b", "c"]}, "label 3 .* range 0..2"),
    (
      ["a", "x"],
      {"class_names": ["a", "b"]},
      "'x' is none of class_names, a, b",
    ),
    ([0, 1], {"class_names": ["a", "a"]}, "1 different ones"),
    ([0, 1], {"num_classes": 3, "class_names": ["a", "b"]}, "expected 3"),
  ):
    with pytest.raises(ValueError, match=message):
      vpt_jax.from_arrays(images_of(2), np.array(labels), **options)


def aligned(train, test):
  parts = []
  for labels in (train, test):
    parts.append(vpt_jax.from_arrays(images_of(len(labels)), np.array(labels)))
  return vpt_jax.Data(*parts).aligned()


def test_test_labels_are_those_of_the_training_images():
  """Each part has its own gaps; a label is the same class in both."""
  for train, test, expected in (
    ([1, 2, 3], [3, 1], [2, 0]),
    ([0, 1, 2], [0, 2], [0, 2]),
    ([0, 1, 2], [1], [1]),
    ([0, 5, 999], [999], [2]),
    (["a", "b", "c"], ["c", "a"], [2, 0]),
  ):
    data = aligned(train, test)
    assert data.test.labels.tolist() == expected
    assert data.test.num_classes == data.train.num_classes == 3
    assert data.test.class_names == data.train.class_names
  for train, test, name in (
    ([1, 2, 3], [0, 1, 2], "0"),
    ([0, 1, 3], [0, 1, 2, 3], "2"),
    (["a", "b"], ["c", "a"], "c"),
  ):
    with pytest.raises(ValueError, match=f"class {name} are none of the train"):
      aligned(train, test)


def test_columns_of_several_classes_are_brought_together():
  labels = np.array([[1, 0], [0, 1]])
  split = vpt_jax.from_arrays(images_of(2), labels, class_names=["b", "a"])
  moved = split.with_classes(["a", "x", "b"], "theirs")
  assert moved.labels.tolist() == [[0, 0, 1], [1, 0, 0]]
  assert moved.labels.dtype == np.uint8


def test_a_run_on_arrays_with_other_labels(config, tmp_path, caplog):
  """Labels 1, 2, 5: printed, predicted and recorded under these names."""
  images = np.random.default_rng(0).integers(
    0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8
  )
  data = vpt_jax.Data(
    vpt_jax.from_arrays(images, np.tile([1, 2, 5], 4)),
    vpt_jax.from_arrays(images[:4], np.array([5, 5, 1, 5])),
  )
  config = short(config, "")
  config.data.source = ""
  with caplog.at_level(logging.INFO, "vpt_jax"):
    vpt_jax.run(config, tmp_path, data)
  assert "train: 12 images of 3 classes: 1 (4), 2 (4), 5 (4)" in caplog.text
  assert "test: 4 images of 2 classes: 1 (1), 5 (3); without images: 2" in (
    caplog.text
  )
  with (tmp_path / "predictions.csv").open(newline="") as file:
    labels = [line["label"] for line in csv.DictReader(file)]
  assert labels == ["5", "5", "1", "5"]
  (record,) = records.Store(tmp_path / records.FILE).read()
  assert record["classes"] == ["1", "2", "5"]
  predict = vpt_jax.load_adapter(tmp_path / "adapter.npz")
  assert predict.class_names == ("1", "2", "5")


def test_labels_of_files_are_names(tmp_path):
  """A CSV and an npz whose labels start at 1."""
  names = ("train", "val", "test")
  rows = [f"{part}{k}.png,{k},{part}" for part in names for k in (1, 2, 3)]
  (tmp_path / "x.csv").write_text("path,label,split\n" + "\n".join(rows))
  np.savez(
    tmp_path / "x.npz",
    images=images_of(9),
    labels=np.array([1, 2, 3] * 3),
    split=np.repeat(names, 3),
  )
  for source in (f"csv:{tmp_path}/x.csv", f"npz:{tmp_path}/x.npz"):
    examples = opened(source, "test")
    assert examples.class_names == ("1", "2", "3")
    assert examples.labels.tolist() == [0, 1, 2]


# Names that may be one.


@pytest.mark.parametrize(
  "names,groups",
  [
    (["0", "00", "1"], [("0", "00")]),
    (["Cat", "cat", "dog"], [("Cat", "cat")]),
    (["guinea_pig", "guinea pig", "guinea-pig "], 1),
    (["a1", "a01", "10", "1"], []),
  ],
)
def test_names_that_look_alike(names, groups):
  found = class_names.similar(names)
  assert found == groups or len(found) == groups


def test_similar_classes_are_told(tmp_path, caplog):
  """`Cat` and `cat` are two classes, `7` and `007` of a CSV one: both told."""
  folder = write_photos(tmp_path / "photos", ["Cat", "cat", "dog"], 3)
  assert opened(f"folder:{folder}").num_classes == 3
  assert "'Cat' and 'cat' are different classes" in caplog.text
  (tmp_path / "x.csv").write_text("path,label\na,7\nb,007\nc,8\n")
  assert csv_tables.read_csv(tmp_path / "x.csv", "train", 0).num_classes == 2
  assert "labels '007' and '7' are read as one class, 7" in caplog.text


def test_similar_classes_of_two_parts_are_told(tmp_path):
  """`Cat` in train and `cat` in test: the error says that they look alike."""
  rows = ["a,Cat,train", "b,Dog,train", "c,cat,test"]
  (tmp_path / "x.csv").write_text("\n".join(["path,label,split", *rows]))
  with pytest.raises(ValueError, match="'cat', which .*; 'Cat' has: if they"):
    csv_tables.read_csv(tmp_path / "x.csv", "train", 0)


def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path):
  """Class folders in NFC and NFD, of one part or of two, and in tables."""
  composed = unicodedata.normalize("NFC", "café")
  apart = unicodedata.normalize("NFD", "café")
  assert composed != apart
  for name in (f"train/{composed}", f"train/{apart}", "train/tea"):
    (tmp_path / "x" / name).mkdir(parents=True)
    (tmp_path / "x" / name / "1.png").write_bytes(name.encode())
  (tmp_path / "x/test" / apart).mkdir(parents=True)
  (tmp_path / "x/test" / apart / "2.png").write_bytes(b"2")
  train = opened(f"folder:{tmp_path}/x", "trainval")
  assert train.class_names == (composed, "tea")
  assert sorted(train.labels.tolist()) == [0, 0, 1]
  assert opened(f"folder:{tmp_path}/x", "test").labels.tolist() == [0]
  np.savez(
    tmp_path / "x.npz",
    images=images_of(4),
    labels=[composed, apart, "tea", "tea"],
    split=["train", "train", "train", "test"],
  )
  assert arrays.npz(tmp_path / "x.npz", "train", 0).num_classes == 2


# What is printed.


def test_a_summary_of_classes():
  labels = np.repeat(np.arange(20), 2)[:-1]
  text = class_names.summary(labels, 20)
  assert text == (
    "39 images of 20 classes: 0 (2), 1 (2), 2 (2), 3 (2), 4 (2), 5 (2), 6 (2), "
    "... (12 more), 19 (1)"
  )
  several = np.array([[1, 1], [0, 1]], np.uint8)
  assert class_names.summary(several, 2, ("a", "b")) == (
    "2 images of 2 classes: a (1), b (2)"
  )


def test_loading_says_which_classes_there_are(tmp_path, caplog):
  folder = write_photos(tmp_path / "photos", ["cat", "dog"])
  preprocess = datasets.without_normalization("", "folder:x", "", (SIDE, SIDE))
  with caplog.at_level(logging.INFO, "vpt_jax"):
    datasets.load("", "train", preprocess, source=f"folder:{folder}")
  assert "train: 16 images of 2 classes: cat (8), dog (8)" in caplog.text
