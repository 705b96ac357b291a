"""A folder of tensorflow-datasets is data: nothing of it is run."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.data import test_tfds
from tests.fuzz import mutations
from vpt_jax.data import tasks
from vpt_jax.data.sources import tfds as tfds_source
from vpt_jax.data.sources import tfds_guard

ROOT = Path(__file__).resolve().parents[2]
CORE = "tensorflow_datasets.core.features"
LABEL = {
  "pythonClassName": f"{CORE}.class_label_feature.ClassLabel",
  "classLabel": {"numClasses": "10"},
}
IMAGE = {
  "pythonClassName": f"{CORE}.image_feature.Image",
  "image": {"shape": {"dimensions": ["64", "64", "3"]}, "dtype": "uint8"},
}
INFO = {
  "name": "eurosat",
  "version": "2.0.0",
  "configName": "rgb",
  "fileFormat": "array_record",
  "splits": [
    {
      "name": "train",
      "shardLengths": ["27000"],
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      "numBytes": "1",
    }
  ],
}


def features(**parts):
  return {
    "pythonClassName": f"{CORE}.features_dict.FeaturesDict",
    "featuresDict": {"features": {"image": IMAGE, "label": LABEL} | parts},
  }


def write(folder, described, info=INFO):
  """Writes the facts of `eurosat/rgb/2.0.0` below a data folder."""
  files = folder / "eurosat/rgb/2.0.0"
  files.mkdir(parents=True, exist_ok=True)
  (files / "features.json").write_text(json.dumps(described))
  (files / "dataset_info.json").write_text(json.dumps(info))
  return files


EVIL = {"pythonClassName": "data.eurosat.evil.X", "jsonFeature": {"json": "{}"}}
OLD = {"type": "data.eurosat.evil.X", "content": {}}
SEQUENCE = f"{CORE}.sequence_feature.Sequence"
HIDDEN = json.dumps({"feature": OLD, "length": 3})
PLACES = {
  "at the top": EVIL,
  "of a feature": features(evil=EVIL),
  "as the label": features(label=EVIL),
  "below a sequence": features(
    objects={
      "pythonClassName": SEQUENCE,
      "sequence": {"feature": features(deep=EVIL)},
    }
  ),
  "in the other spelling": features(
    evil={"python_class_name": EVIL["pythonClassName"]}
  ),
  "in an old file": {
    "type": f"{CORE}.features_dict.FeaturesDict",
    "content": {"image": OLD},
  },
  "in JSON inside of JSON": features(
    evil={"pythonClassName": SEQUENCE, "jsonFeature": {"json": HIDDEN}}
  ),
}


@pytest.fixture(scope="module", name="ran")
def ran_(tmp_path_factory):
  """Plants an evil.py, and runs the example once for all places.

  It is a process of its own, started above `data/`, which would import it.
  """
  outputs = {}
  for place, described in PLACES.items():
    folder = tmp_path_factory.mktemp("tfds")
    outputs[place] = folder
    write(folder / "data", described)
    (folder / "data/eurosat/evil.py").write_text(
      "import pathlib\npathlib.Path('it_ran').touch()\n"
    )
  return outputs


COMMAND = "python -m vpt_jax.data check eurosat --data_dir=data --source=tfds"


def example(folder):
  """Runs the command of the example as it is written."""
  _, *words = COMMAND.split()
  return subprocess.run(
    [sys.executable, *words],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=200,
    check=False,
  )


def test_the_library_alone_would_run_it(ran):
  """Else the tests below would show nothing."""
  folder = ran["at the top"]
  code = (
    "import tensorflow_datasets as tfds\n"
    "tfds.builder_from_directory('data/eurosat/rgb/2.0.0')"
  )
  subprocess.run(
    [sys.executable, "-c", code], cwd=folder, capture_output=True, check=False
  )
  assert (folder / "it_ran").exists()
  (folder / "it_ran").unlink()


def test_the_example_runs_nothing(ran):
  """With `evil.py` in the data folder, and started above it."""
  folder = ran["of a feature"]
  done = example(folder)
  assert done.returncode == 1 and not (folder / "it_ran").exists()
  text = done.stdout + done.stderr
  assert "names the class 'data.eurosat.evil.X'" in text
  assert "features.json" in text and "Traceback" not in text


@pytest.mark.parametrize("place", PLACES)
def test_only_the_librarys_own_classes_may_be_named(ran, monkeypatch, place):
  """Wherever a class is named, in whatever spelling and depth."""
  folder = ran[place]
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  with pytest.raises(ValueError, match="whose module would be run") as caught:
    tfds_source.examples(tasks.get("eurosat"), "train", "data")
  assert "data/eurosat/rgb/2.0.0/features.json" in str(caught.value)
  assert not (folder / "it_ran").exists()
  assert "data.eurosat.evil" not in sys.modules


@pytest.mark.parametrize(
  "name",
  [
    "evil.X",
    "X",
    "",
    "tensorflow_datasets_evil.core.features.X",
    "tensorflow_datasets.scripts.cli.main.X",
    "tensorflow_datasets.core.features",
    "tensorflow_datasets.core.features..X",
    "tensorflow_datasets.core.features.X\n",
    "os.path",
  ],
)
def test_names_that_only_look_like_the_librarys(tmp_path, name):
  write(tmp_path, features(x={"pythonClassName": name}))
  with pytest.raises(ValueError, match="whose module would be run"):
    tfds_guard.check_folder(tmp_path / "eurosat/rgb/2.0.0")


def test_the_librarys_own_classes_pass(tmp_path):
  """Those of all tasks, as the library writes them, are read elsewhere.

  See `test_tfds.test_every_layout_is_read_and_labelled_right`.
  """
  tfds_guard.check_folder(write(tmp_path, features()))
  own = f"{CORE}.feature.Tensor"  # the name that it had in old versions
  tfds_guard.check_folder(write(tmp_path, features(x={"type": own})))


def test_no_file_elsewhere_is_read_for_names(tmp_path):
  """Old files may name one; the library would open any path or address."""
  content = {"names_file": "/etc/passwd"}
  old = {"type": LABEL["pythonClassName"], "content": content}
  hidden = {
    "pythonClassName": LABEL["pythonClassName"],
    "jsonFeature": {"json": json.dumps(content)},
  }
  for label in (old, hidden):
    write(tmp_path, features(label=label))
    with pytest.raises(ValueError, match="names the file '/etc/passwd'"):
      tfds_source.examples(tasks.get("eurosat"), "train", tmp_path)


@pytest.fixture(scope="module", name="prepared")
def prepared_(tmp_path_factory):
  """A data set as the library prepared it."""
  folder = tmp_path_factory.mktemp("tfds")
  task = tasks.get("pgn_food101")
  test_tfds.prepare(task.tfds, ["train", "validation"], folder)
  return task, folder, folder / "food101/2.0.0"


@pytest.fixture(name="info")
def info_(prepared):
  """Its facts, which a test may change."""
  path = prepared[2] / "dataset_info.json"
  text = path.read_text()
  yield path, json.loads(text)
  path.write_text(text)


@pytest.mark.parametrize(
  "change",
  [
    {"filepathTemplate": "/etc/passwd"},
    {"filepathTemplate": "../{DATASET}-{SPLIT}.{FILEFORMAT}"},
    {"filepathTemplate": "gs://bucket/{DATASET}"},
    {"filepathTemplate": "a/../../x"},
    {"filepathTemplate": "{NO_SUCH_PART}"},
  ],
)
def test_files_stay_in_the_folder(prepared, info, change):
  """Absolute paths, `..` and addresses in the facts of a split."""
  task, folder, files = prepared
  path, facts = info
  for split in facts["splits"]:
    split.update(change)
  path.write_text(json.dumps(facts))
  with pytest.raises(ValueError, match="files in that folder|is damaged") as e:
    tfds_source.examples(task, "train", folder)
  assert str(files) in str(e.value)


def test_a_name_cannot_lead_outside(prepared, info):
  task, folder, _ = prepared
  path, facts = info
  facts["name"] = "../../../food101"
  path.write_text(json.dumps(facts))
  with pytest.raises(ValueError, match="files in that folder|is damaged"):
    tfds_source.examples(task, "train", folder)


@pytest.mark.parametrize("count", [10**12, -5])
def test_more_examples_than_bytes(prepared, info, count):
  """A number of examples takes memory before the first one is read."""
  task, folder, _ = prepared
  path, facts = info
  for split in facts["splits"]:
    split["shardLengths"] = [str(count)]
  path.write_text(json.dumps(facts))
  with pytest.raises(ValueError, match=f"has {count} examples for split"):
    tfds_source.examples(task, "train", folder)


@pytest.mark.parametrize("name", ["features.json", "x.labels.txt", "shard"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_files_are_regular(prepared, name, kind):
  """No pipe and no device: not the facts, the names, nor the records."""
  task, folder, files = prepared
  if name == "shard":
    (path,) = files.glob("*train.array_record*")
  else:
    path = files / name
  kept = files / "kept"
  if path.exists():
    path.rename(kept)
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to("/dev/zero")
  try:
    with pytest.raises(ValueError, match=f"{path.name} is a {kind}"):
      tfds_source.examples(task, "train", folder)
  finally:
    path.unlink()
    if kept.exists():
      kept.rename(path)


def test_facts_that_are_far_too_large(prepared):
  task, folder, files = prepared
  path = files / "huge.labels.txt"
  with path.open("wb") as file:
    file.truncate(10**13)
  with pytest.raises(ValueError, match="has 10,000,000,000,000 bytes"):
    tfds_source.examples(task, "train", folder)
  path.unlink()
  assert len(tfds_source.examples(task, "train", folder)) > 0


@pytest.mark.parametrize(
  "label",
  [
    {"pythonClassName": f"{CORE}.image_feature.Image", "tensor": {}},
    {"pythonClassName": f"{CORE}.tensor_feature.Tensor", "image": {}},
    {
      "pythonClassName": f"{CORE}.tensor_feature.Tensor",
      "tensor": {"shape": {"dimensions": ["7", "9"]}, "dtype": "int64"},
    },
    {
      "pythonClassName": f"{CORE}.tensor_feature.Tensor",
      "tensor": {"shape": {}, "dtype": "no such type"},
    },
    {"pythonClassName": f"{CORE}.no_such.Feature", "tensor": {}},
    {"pythonClassName": f"{CORE}.tensor_feature.Tensor"},
    {},
    [],
  ],
)
def test_features_of_other_kinds_are_told(prepared, label):
  """Whatever the library and the labels make of them: a sentence."""
  task, folder, files = prepared
  path = files / "features.json"
  text = path.read_text()
  facts = json.loads(text)
  facts["featuresDict"]["features"]["label"] = label
  path.write_text(json.dumps(facts))
  try:
    with pytest.raises(ValueError, match=str(files)):
      tfds_source.examples(task, "train", folder)
  finally:
    path.write_text(text)


def test_mutated_folders(prepared, tmp_path):
  """Any bytes in any file: what was stored, or an error with the folder."""
  task, folder, files = prepared
  copy = tmp_path / "food101/2.0.0"
  shutil.copytree(files, copy)
  (shard,) = copy.glob("*train.array_record*")
  sound = tfds_source.examples(task, "train", folder)
  expected = [sound.read(i) for i in range(len(sound))]
  outcomes = {"read": 0, "refused": 0}
  for path in (copy / "features.json", copy / "dataset_info.json", shard):
    whole = path.read_bytes()
    for number in range(60):
      rng = np.random.default_rng(number)
      path.write_bytes(mutations.mutate_bytes(whole, rng))
      try:
        examples = tfds_source.examples(task, "train", tmp_path)
        read = [examples.read(i) for i in range(len(examples))]
      except ValueError as error:
        outcomes["refused"] += 1
        assert str(copy) in str(error)
      else:
        outcomes["read"] += 1
        assert path != shard or read == expected
    path.write_bytes(whole)
  assert outcomes["refused"] > 60
