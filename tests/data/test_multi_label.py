"""Labels of several classes an image, from every source that has them."""

import json

import numpy as np
from PIL import Image
import pytest

from tests import images as images_lib
from vpt_jax.data import datasets
from vpt_jax.data.sources import parts

LABELS = [("a", "b"), ("b",), (), ("c", "a")] * 5


@pytest.fixture
def photos(tmp_path):
  """Twenty images 0.png .. 19.png."""
  for i in range(len(LABELS)):
    pixels = np.full((8, 8, 3), i, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"{i}.png")
  return tmp_path


def expected(rows):
  return np.array(
    [[name in LABELS[i] for name in "abc"] for i in rows], np.uint8
  )


def part_of(i):
  return ("train", "val", "test")[min(i // 8, 2)]


@pytest.mark.parametrize("split", ["train", "val", "trainval", "test"])
def test_a_csv(photos, split):
  lines = ["path,label,split"]
  for i, label in enumerate(LABELS):
    lines.append(f"{i}.png,{'|'.join(label)},{part_of(i)}")
  table = photos / "labels.csv"
  table.write_text("\n".join(lines) + "\n")
  found = datasets.open_split(
    "", split, source=f"csv:{table}", multi_label=True
  )
  wanted = parts.of(split)
  rows = [i for i in range(len(LABELS)) if part_of(i) in wanted]
  assert found.labels.dtype == np.uint8
  assert found.class_names == ("a", "b", "c")
  assert found.num_classes == 3
  np.testing.assert_array_equal(found.labels, expected(rows))


def test_json_lists(photos):
  for part in ("train", "val", "test"):
    rows = {
      f"{i}.png": list(label)
      for i, label in enumerate(LABELS)
      if part_of(i) == part
    }
    (photos / f"{part}.json").write_text(json.dumps(rows))
  found = datasets.open_split(
    "", "train", source=f"json:{photos}", multi_label=True
  )
  np.testing.assert_array_equal(found.labels, expected(range(8)))


def test_an_npz(tmp_path):
  path = tmp_path / "some.npz"
  np.savez(
    path,
    images=np.zeros((20, 8, 8, 3), np.uint8),
    labels=expected(range(20)),
    split=np.array([part_of(i) for i in range(20)]),
  )
  found = datasets.open_split(
    "", "train", source=f"npz:{path}", multi_label=True
  )
  np.testing.assert_array_equal(found.labels, expected(range(8)))
  assert found.class_names == ()
  with pytest.raises(ValueError, match="config.problem wants one class"):
    datasets.open_split("", "train", source=f"npz:{path}")


def test_without_parts_a_tenth_is_taken(photos):
  lines = ["path,label"]
  for i, label in enumerate(LABELS):
    lines.append(f"{i}.png,{'|'.join(label)}")
  table = photos / "labels.csv"
  table.write_text("\n".join(lines) + "\n")
  counts = [
    len(datasets.open_split("", split, source=f"csv:{table}", multi_label=True))
    for split in ("train", "val", "test")
  ]
  assert counts == [16, 2, 2]


def test_decoded_splits_keep_the_labels(photos):
  lines = ["path,label,split"]
  for i, label in enumerate(LABELS):
    lines.append(f"{i}.png,{'|'.join(label)},{part_of(i)}")
  table = photos / "labels.csv"
  table.write_text("\n".join(lines) + "\n")
  split = images_lib.load(
    "", "test", source=f"csv:{table}", image_size=(8, 8), multi_label=True
  )
  np.testing.assert_array_equal(split.labels, expected(range(16, 20)))


@pytest.mark.parametrize(
  "content",
  ['{"0.png": "a"}', '{"0.png": [1, "a"]}', '{"0.png": [true]}'],
)
def test_json_that_is_no_list_of_classes(photos, content):
  (photos / "train.json").write_text(content)
  (photos / "test.json").write_text(content)
  with pytest.raises(ValueError, match="train.json"):
    datasets.open_split("", "train", source=f"json:{photos}", multi_label=True)


def test_a_class_that_is_not_trained(photos):
  table = photos / "labels.csv"
  table.write_text(
    "path,label,split\n0.png,a|b,train\n1.png,a|z,test\n2.png,b,val\n"
  )
  with pytest.raises(ValueError, match=r"1\.png of test is of class 'z'"):
    datasets.open_split("", "test", source=f"csv:{table}", multi_label=True)


def test_sources_of_one_class_an_image(tmp_path):
  with pytest.raises(ValueError, match="folders give every image one class"):
    datasets.open_split(
      "", "train", source=f"folder:{tmp_path}", multi_label=True
    )
  with pytest.raises(ValueError, match="task 'digits' gives every image one"):
    datasets.open_split("digits", "train", multi_label=True)
