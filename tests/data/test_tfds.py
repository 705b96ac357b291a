"""Data sets of tensorflow-datasets: each layout of the table, made small.

They are made by the real builders, with their own features, from a few random
examples; each image holds the number of its example.
"""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import functools
import io
import json
import logging
import random
import shlex
import shutil
import struct

import numpy as np
from PIL import Image
import pytest
from tensorboardX import record_writer
import tensorflow_datasets as tfds

from vpt_jax.data import tasks
from vpt_jax.data.sources import tfds as tfds_source
from vpt_jax.data.sources import tfds_labels, tfrecord

COUNT = 12  # examples per split
TASKS = {name: task for name, task in tasks.TASKS.items() if task.tfds}
FEATURES = tfds.features


def picture(number, shape, dtype=np.uint8):
  """An image whose pixels, all 0 or 1, start with the bits of a number."""
  height, width, channels = (
    n or default for n, default in zip(shape, (9, 10, 3))
  )
  pixels = np.zeros((height, width, channels), dtype)
  pixels[0, :8] = [[number >> bit & 1] for bit in range(8)]
  file = io.BytesIO()
  Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, "PNG")
  return io.BytesIO(file.getvalue())


def number_in(image):
  """Back from encoded bytes, or from pixels that are 0 or 255."""
  if isinstance(image, bytes):
    image = np.asarray(Image.open(io.BytesIO(image)))
  return sum(
    int(bit) << i
    for i, bit in enumerate(image.reshape(*image.shape[:2], -1)[0, :8, 0] > 0)
  )


def value(feature, number, rng, key=""):
  """A random value of a feature."""
  of = functools.partial(value, number=number, rng=rng)
  match feature:
    case FEATURES.FeaturesDict():
      return {key: of(feature[key], key=key) for key in feature}
    case FEATURES.Sequence():
      some = 3 + number % 8 if "pixel_coords" in feature.feature else number % 4
      return [of(feature.feature) for _ in range(some)]
    case FEATURES.Image():  # others than `image` must not be taken for it
      return picture(number if key == "image" else 255, feature.shape)
    case FEATURES.ClassLabel():
      return rng.randrange(feature.num_classes)
    case FEATURES.Text():
      return f"text {number}"
    case FEATURES.BBoxFeature():
      return FEATURES.BBox(0.0, 0.1, 0.5, 0.7)
  low, high = {"pixel_coords": (7.5, 11), "location": (-5, 30)}.get(key, (0, 1))
  return np.array(
    [rng.uniform(low, high) for _ in range(int(np.prod(feature.shape)))],
    feature.np_dtype,
  ).reshape(feature.shape)


def prepare(name, splits, folder, file_format="array_record"):
  """Makes a small data set with the features of the real one.

  Returns:
    by split, what each example was made of.
  """
  real = tfds.builder(name, data_dir=folder)
  made = {
    split: [
      value(real.info.features, i, random.Random(f"{split} {i}"))
      for i in range(COUNT)
    ]
    for split in splits
  }

  def generate(self, split):
    del self
    yield from enumerate(made[split])

  # Without `code_path` no checksums of downloads are looked for.
  small = type(type(real))(
    "Small",
    (type(real),),
    {
      "code_path": None,
      "__module__": type(real).__module__,
      "name": real.name,
      "MANUAL_DOWNLOAD_INSTRUCTIONS": None,
      "_generate_examples": generate,
      "_split_generators": lambda self, _: {
        split: self._generate_examples(split) for split in made
      },
    },
    skip_registration=True,
  )
  config = real.builder_config and real.builder_config.name
  small(
    data_dir=folder,
    config=config,
    version=str(real.version),
    file_format=file_format,
  ).download_and_prepare()
  return made


@pytest.fixture(scope="module", name="data")
def data_(tmp_path_factory):
  """Task -> (folder, what its examples were made of); made on first use."""
  folder = tmp_path_factory.mktemp("tfds")

  @functools.cache
  def make(name):
    splits = {
      part.split
      for task in TASKS.values()
      if task.tfds == name
      for part in task.parts
    }
    return folder, prepare(name, sorted(splits), folder)

  return lambda task: make(task.tfds)


def expected(task, example):
  """The label by other means than `labels.py` has."""
  if task.label == "clevr_count":
    return len(example["objects"]) - 3
  if task.label == "clevr_distance":
    nearest = min(o["pixel_coords"][2] for o in example["objects"])
    return sum(nearest > at for at in (8, 8.5, 9, 9.5, 10))
  if task.label == "kitti_distance":
    near = [o["location"][2] for o in example["objects"] if o["type"] <= 2]
    return sum(min(near) > at for at in (8, 20)) if near else 3
  if task.label == "dsprites_x":
    return example["label_x_position"] // 2
  if task.label == "dsprites_orientation":
    return int(example["label_orientation"] / 2.5)
  return example[task.label.replace("smallnorb", "label")]


def check(task, folder, made):
  """Every split is read and labelled right; returns the numbers by split."""
  numbers = {}
  for split in tfds_source.SPLITS:
    got = tfds_source.examples(task, split, folder)
    assert len(got) == len(got.names) == len(got.labels)
    assert got.labels.dtype == np.int32 and got.num_classes == task.num_classes
    images = [got.read(i) for i in range(len(got))]
    numbers[split] = [
      (name.partition("[")[0], number_in(image))
      for name, image in zip(got.names, images)
    ]
    assert got.labels.tolist() == [
      expected(task, made[part][number]) for part, number in numbers[split]
    ]
    if task.scale == 255:
      assert {(image.dtype, image.shape) for image in images} == {
        (np.dtype(np.uint8), (64, 64, 1))
      }
      assert {0, 255} == set(np.unique(images))
    else:
      assert all(isinstance(image, bytes) for image in images)
  assert numbers["trainval"] == numbers["train"] + numbers["val"]
  return numbers


@pytest.mark.parametrize("name", TASKS)
def test_every_layout_is_read_and_labelled_right(data, name):
  task = TASKS[name]
  folder, made = data(task)
  numbers = check(task, folder, made)
  everything = numbers["trainval"] + numbers["test"]
  assert len(set(everything)) == len(everything)
  # The parts of every row of the table leave nothing over.
  assert set(everything) == {
    (part.split, i) for part in task.parts for i in range(COUNT)
  }


def test_the_order_is_that_of_the_files(data):
  task = TASKS["pgn_cifar10"]
  folder, _ = data(task)
  stored = tfds.builder_from_directory(folder / "cifar10/3.0.2").as_data_source(
    "train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  order = [number_in(example["image"]) for example in stored]
  assert order != sorted(order)  # tfds shuffles when it prepares
  got = tfds_source.examples(task, "train", folder)
  assert got.names == [f"train[{i}]" for i in range(10)]
  assert [number_in(got.read(i)) for i in range(10)] == order[:10]
  val = tfds_source.examples(task, "val", folder)
  assert val.names == ["train[10]", "train[11]"]
  assert [number_in(val.read(i)) for i in range(2)] == order[10:]


def test_vtab_stops_at_its_limits(data):
  task = dataclasses.replace(TASKS["cifar100"], limits=(4, 1))
  folder, _ = data(task)
  names = {
    split: tfds_source.examples(task, split, folder).names
    for split in tfds_source.SPLITS
  }
  assert names["trainval"] == [
    "train[0]",
    "train[1]",
    "train[2]",
    "train[3]",
    "train[10]",
  ]
  assert names["val"] == ["train[10]"] and len(names["test"]) == COUNT


def test_rounding_is_that_of_tfds():
  for count in range(1, 40):
    lengths = {
      "test": tfds.core.SplitInfo(
        name="test", shard_lengths=[count], num_bytes=0
      )
    }
    for start, stop in ((0, 50), (50, 100)):
      (theirs,) = tfds.core.ReadInstruction(
        "test", from_=start, to=stop, unit="%"
      ).to_absolute(lengths)
      _, first, end = tfds_source.span(
        tasks.Slice("test", start, stop, closest=True), count
      )
      assert (theirs.from_ or 0, count if theirs.to is None else theirs.to) == (
        first,
        end,
      )


@pytest.mark.parametrize(
  "name,classes",
  [
    ("pgn_cifar10", tasks.TASKS["cifar10"].class_names),
    ("pgn_dtd", ("banded", "blotchy")),
    ("pgn_svhn", tuple("0123456789")),
    ("fgvc_dogs", ()),
    ("eurosat", ("annual crop", "forest")),
    ("sun397", ("abbey", "airplane cabin", "airport terminal")),
    ("pgn_clevr", ("3 objects",)),
  ],
)
def test_class_names(data, name, classes):
  got = tfds_source.examples(TASKS[name], "test", data(TASKS[name])[0])
  assert got.class_names[: len(classes)] == classes
  assert len(got.class_names) == (got.num_classes if classes else 0)


@pytest.mark.parametrize(
  "name", [name for name, task in TASKS.items() if task.label == "label"]
)
def test_classes_are_those_of_the_real_data_set(name, tmp_path):
  task = tasks.get(name)
  info = tfds.builder(task.tfds, data_dir=tmp_path).info
  names = info.features["label"].names
  assert len(names) == task.num_classes
  if task.class_names and names[0] != "0":  # CIFAR's come with its download
    assert [name[:3].lower() for name in names] == [
      name[:3] for name in task.class_names
    ]


def test_images_are_read_by_many_threads(data):
  task = TASKS["pgn_food101"]
  got = tfds_source.examples(task, "test", data(task)[0])
  with ThreadPoolExecutor(8) as pool:
    images = list(pool.map(got.read, [*range(len(got))] * 20))
  assert images == [got.read(i) for i in range(len(got))] * 20


def test_identity_tells_what_was_read(data):
  task = TASKS["clevr_count"]
  folder, _ = data(task)
  one = lambda task, split: tfds_source.examples(task, split, folder).identity
  first = one(task, "train")
  assert first.startswith("tfds clevr/3.1.0 train[0:10] clevr_count x1 ")
  others = {
    one(task, "val"),
    one(task, "trainval"),
    one(task, "test"),
    one(TASKS["clevr_distance"], "train"),
    one(dataclasses.replace(task, limits=(9, 1)), "train"),
  }
  assert len(others | {first}) == 6
  assert one(task, "train") == first


@pytest.fixture(name="copy")
def copy_(data, tmp_path):
  """A copy, to spoil, of what `pgn_food101` reads: (task, folder, files)."""
  task = TASKS["pgn_food101"]
  shutil.copytree(data(task)[0] / "food101", tmp_path / "food101")
  return task, tmp_path, tmp_path / "food101/2.0.0"


def test_identity_tells_other_files(copy):
  task, folder, files = copy
  before = tfds_source.examples(task, "train", folder).identity
  other = tfds_source.examples(task, "test", folder).identity
  (shard,) = files.glob("*train.array_record*")
  shard.write_bytes(shard.read_bytes())
  assert tfds_source.examples(task, "train", folder).identity != before
  assert tfds_source.examples(task, "test", folder).identity == other


def test_what_is_not_there(tmp_path):
  with pytest.raises(ValueError) as error:
    tfds_source.examples(TASKS["resisc45"], "train", tmp_path)
  text = str(error.value)
  assert f"{tmp_path}/resisc45 has no version 3.0.0" in text
  assert "there is nothing" in text and "NWPU-RESISC45.rar" in text
  assert "file_format" in text and "0.4 GB" in text
  with pytest.raises(ValueError, match="not in tensorflow-datasets; unpack"):
    tfds_source.examples(tasks.get("fgvc_nabirds"), "train", tmp_path)
  with pytest.raises(ValueError, match="not in tensorflow-datasets; name"):
    tfds_source.examples(tasks.get("digits"), "train", tmp_path)


def test_the_command_prepares_what_is_read_then(tmp_path, monkeypatch):
  called = []

  class Builder:
    def __init__(self, *args, **kwargs):
      called.append((args, kwargs))

    def download_and_prepare(self):
      called.append("prepared")

  monkeypatch.setattr(tfds, "builder", Builder)
  folder = tmp_path / "my 'own' \"data\""
  command = tfds_source.prepare_command(TASKS["eurosat"], folder)
  python, option, code = shlex.split(command)
  assert (python, option) == ("python", "-c")
  exec(code, {})  # pylint: disable=exec-used
  assert called == [
    (
      ("eurosat/rgb:2.0.0",),
      {"data_dir": str(folder), "file_format": "array_record"},
    ),
    "prepared",
  ]


def version(folder, *names):
  for name in names:
    (folder / name).mkdir(parents=True)
    (folder / name / "dataset_info.json").touch()


def test_versions(tmp_path, caplog):
  pets, food = TASKS["oxford_iiit_pet"], TASKS["pgn_food101"]
  caplog.set_level(logging.INFO, "vpt_jax")
  found = lambda task: tfds_source.find(task, tmp_path).name
  version(tmp_path / "food101", "1.0.0", "incomplete.ABC_2.0.0")
  with pytest.raises(
    ValueError,
    match=r"has no version 2\.0\.0 \(nor another "
    r"2\.x\); there is 1\.0\.0, incomplete.ABC_2\.0\.0\. To",
  ):
    found(food)
  version(tmp_path / "food101", "2.1.0", "2.10.0", "2.9.0", "3.0.0")
  assert found(food) == "2.10.0"
  assert caplog.records[-1].levelname == "WARNING"
  assert "version 2.10.0 is used, 2.0.0 is not there" in caplog.text
  version(tmp_path / "food101", "2.0.0")
  assert found(food) == "2.0.0"
  assert caplog.records[-1].levelname == "INFO"
  assert caplog.messages[-1].endswith("food101: version 2.0.0")
  # Either that of the papers or today's will do, the papers' rather.
  version(tmp_path / "oxford_iiit_pet", "3.1.0")
  assert found(pets) == "3.1.0"
  version(tmp_path / "oxford_iiit_pet", "4.0.0")
  assert found(pets) == "4.0.0"
  version(tmp_path / "oxford_iiit_pet", "3.2.0")
  assert found(pets) == "3.2.0"


def test_another_config_is_no_substitute(tmp_path):
  version(tmp_path / "eurosat/all", "2.0.0")
  with pytest.raises(ValueError, match="eurosat/rgb has no version 2.0.0"):
    tfds_source.find(TASKS["eurosat"], tmp_path)


def test_damage_is_named(copy):
  task, folder, files = copy
  read = lambda split: tfds_source.examples(task, split, folder)
  (shard,) = files.glob("*validation.array_record*")
  whole = shard.read_bytes()
  shard.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(
    ValueError,
    match=r"cannot read 'label' of validation\[0\]"
    rf" of {files}: it is empty",
  ):
    read("test")
  shard.write_bytes(b"x" * len(whole))
  with pytest.raises(ValueError, match=rf"of {files}: .*[Rr]iegeli"):
    read("test")
  shard.unlink()
  with pytest.raises(ValueError, match=f"{files} is damaged.*{shard.name}"):
    read("test")
  shard.write_bytes(whole)
  read("test")
  info = files / "features.json"
  text = info.read_text()
  for damaged in (text[:40], "", "[]"):
    info.write_text(damaged)
    with pytest.raises(ValueError, match=f"{files} is damaged, prepare it"):
      read("test")
  info.unlink()
  with pytest.raises(ValueError, match=f"{files} is damaged, prepare it"):
    read("test")
  info.write_text(text)
  info = files / "dataset_info.json"
  info.write_text(info.read_text()[:80])
  with pytest.raises(ValueError, match=f"{files} is damaged, prepare it"):
    read("test")


def test_what_a_data_set_lacks_is_named(data):
  task = TASKS["pgn_food101"]
  folder, _ = data(task)
  read = lambda **fields: tfds_source.examples(
    dataclasses.replace(task, **fields), "train", folder
  )
  with pytest.raises(
    ValueError, match="feature 'objects' is missing; there are image, label"
  ):
    read(label="kitti_distance")
  with pytest.raises(
    ValueError,
    match=r"2\.0\.0: label \d+ of train\[\d+\] is "
    r"out of range 0\.\.1$",
  ):
    read(num_classes=2)
  with pytest.raises(
    ValueError,
    match="split 'dev' of food101:2.0.0 is "
    "missing; there are train, validation",
  ):
    read(parts=task.parts._replace(train=tasks.Slice("dev")))
  with pytest.raises(ValueError, match="has no image for train"):
    read(parts=task.parts._replace(train=tasks.Slice("train", 0, 1)))


def test_pixels_that_do_not_fit_the_scale_are_refused():
  pixels = np.array([[[0], [1]]], np.uint8)
  scaled = tfds_source._scaled  # pylint: disable=protected-access
  assert scaled(pixels, 255).tolist() == [[[0], [255]]]
  with pytest.raises(ValueError, match="a pixel is 2; expected up to 1"):
    scaled(pixels * 2, 255)


def with_checksum(data):
  return data + struct.pack("<I", record_writer.masked_crc32c(data))


def tfrecords(records, lengths, folder, prefix):
  """TFRecord files of these lengths, whose checksums another library makes."""
  for shard, length in enumerate(lengths):
    path = folder / f"{prefix}-{shard:05d}-of-{len(lengths):05d}"
    path.write_bytes(
      b"".join(
        with_checksum(struct.pack("<Q", len(record))) + with_checksum(record)
        for record in records[:length]
      )
    )
    records = records[length:]


def test_tfrecord_files_need_no_tensorflow(copy):
  task, folder, files = copy
  names, numbers = {}, {}
  for split in ("trainval", "test"):
    got = tfds_source.examples(task, split, folder)
    names[split] = got.names, got.labels.tolist()
    numbers[split] = [got.read(i) for i in range(len(got))]
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  info = json.loads((files / "dataset_info.json").read_text())
  builder = tfds.builder_from_directory(files)
  for split in info["splits"]:
    records = list(
      builder.as_data_source(split["name"], deserialize_method=raw)
    )
    tfrecords(records, (5, 4, 3), files, f"food101-{split['name']}.tfrecord")
    split["shardLengths"] = ["5", "4", "3"]
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  for path in files.glob("*.array_record-*"):
    path.unlink()
  info["fileFormat"] = "tfrecord"
  (files / "dataset_info.json").write_text(json.dumps(info))
  for split, (known, known_labels) in names.items():
    got = tfds_source.examples(task, split, folder)
    assert got.names == known and got.labels.tolist() == known_labels
    assert [got.read(i) for i in range(len(got))] == numbers[split]

  info["fileFormat"] = "riegeli"
  (files / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(ValueError, match="has riegeli files; expected array_rec"):
    tfds_source.examples(task, "train", folder)


@pytest.mark.parametrize("name", TASKS)
def test_tfrecord_files_that_tensorflow_wrote(tmp_path, name):
  pytest.importorskip("tensorflow")
  task = TASKS[name]
  made = prepare(
    task.tfds, sorted({part.split for part in task.parts}), tmp_path, "tfrecord"
  )
  assert list(tmp_path.rglob("*.tfrecord-*"))
  check(task, tmp_path, made)


def test_records(tmp_path):
  records = [bytes([i]) * i for i in range(7)]  # the first is empty
  tfrecords(records, (3, 1, 3), tmp_path, "a")
  paths = sorted(tmp_path.iterdir())
  got = tfrecord.Records(paths, (3, 1, 3))
  assert len(got) == 7 and list(got) == records
  assert [got[i] for i in (6, 0, 3, 2)] == [records[i] for i in (6, 0, 3, 2)]
  for i in (7, -1):
    with pytest.raises(IndexError, match=f"record {i} of 7"):
      got[i]  # pylint: disable=pointless-statement


def flip(path, place):
  data = bytearray(path.read_bytes())
  data[place] ^= 4
  path.write_bytes(data)


@pytest.mark.parametrize(
  "spoil,expected_text",
  [
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
    (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is damaged"),
    (lambda path: flip(path, 12), "record 0 has another checksum"),
    (lambda path: flip(path, 15), "record 0 has another checksum"),
    (
      lambda path: path.write_bytes(path.read_bytes() * 2),
      "more than 3 rec",
    ),
    (lambda path: path.write_bytes(b"\xff" * 100), "is damaged"),
    (lambda path: path.write_bytes(b""), "cannot read"),
    (lambda path: path.unlink(), "cannot read"),
  ],
)
def test_damaged_records_are_named(tmp_path, spoil, expected_text):
  tfrecords([b"one", b"two", b"three"], (3,), tmp_path, "a")
  (path,) = tmp_path.iterdir()
  spoil(path)
  with pytest.raises(ValueError, match=expected_text) as error:
    tfrecord.Records([path], [3])[0]  # pylint: disable=expression-not-assigned
  assert str(path) in str(error.value)


def test_every_label_function_is_used():
  assert {task.label for task in TASKS.values()} == tfds_labels.LABELS.keys()


def test_labels_of_large_splits_are_remembered(monkeypatch, tmp_path):
  monkeypatch.setenv("VPT_JAX_CACHE", str(tmp_path))
  calls = []

  def read(values=(3, 1, 2)):
    calls.append(1)
    return np.array(values, np.int32)

  get = lambda identity="a", read=read: tfds_labels.cached(identity, 3, read)
  assert get().tolist() == [3, 1, 2] and not [*tmp_path.iterdir()]  # small
  monkeypatch.setattr(tfds_labels, "LEAST_CACHED", 3)
  assert get().tolist() == get().tolist() == [3, 1, 2]
  assert len(calls) == 2
  assert get("b", lambda: read([0, 0, 1])).tolist() == [0, 0, 1]
  assert get().tolist() == [3, 1, 2] and len(calls) == 3
  first, _ = files = sorted((tmp_path / "data").glob("labels-*.npz"))
  for file in files:
    file.write_bytes(first.read_bytes()[:-2])
  assert get().tolist() == [3, 1, 2] and len(calls) == 4  # damaged: read anew
  assert get().tolist() == [3, 1, 2] and len(calls) == 4
