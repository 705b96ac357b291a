"""The table of tasks, its splits, and what records are labelled with."""

import itertools
import re

import numpy as np
import pytest

from vpt_jax.data import tasks
from vpt_jax.data.sources import tfds, tfds_labels
from vpt_jax.data.transforms import resize

# Examples by split that tensorflow-datasets lists for these data sets.
COUNTS = {
  "caltech101": {"train": 3057, "test": 6084},
  "caltech_birds2011": {"train": 5994, "test": 5794},
  "cifar10": {"train": 50000, "test": 10000},
  "cifar100": {"train": 50000, "test": 10000},
  "clevr": {"train": 70000, "validation": 15000, "test": 15000},
  "diabetic_retinopathy_detection/btgraham-300": {
    "sample": 10,
    "train": 35126,
    "validation": 10906,
    "test": 42670,
  },
  "dmlab": {"train": 65550, "validation": 22628, "test": 22735},
  "dsprites": {"train": 737280},
  "dtd": {"train": 1880, "validation": 1880, "test": 1880},
  "eurosat/rgb": {"train": 27000},
  "food101": {"train": 75750, "validation": 25250},
  "kitti": {"train": 6347, "validation": 423, "test": 711},
  "oxford_flowers102": {"train": 1020, "validation": 1020, "test": 6149},
  "oxford_iiit_pet": {"train": 3680, "test": 3669},
  "patch_camelyon": {"train": 262144, "validation": 32768, "test": 32768},
  "resisc45": {"train": 31500},
  "smallnorb": {"train": 24300, "test": 24300},
  "stanford_dogs": {"train": 12000, "test": 8580},
  "sun397/standard-part1-120k": {"train": 19850, "test": 19850},
  "sun397/tfds": {"train": 76128, "validation": 10875, "test": 21750},
  "svhn_cropped": {"train": 73257, "test": 26032, "extra": 531131},
}
IN_TFDS = {name: task for name, task in tasks.TASKS.items() if task.tfds}


def spans(name, split):
  task = tasks.get(name)
  return tfds.spans(task, split, COUNTS[task.tfds.partition(":")[0]])


def test_the_suites_are_complete():
  sizes = {
    suite: sum(task.suite == suite for task in tasks.TASKS.values())
    for suite in ("vtab", "fgvc", "pgn")
  }
  assert sizes == {"vtab": 19, "fgvc": 5, "pgn": 12}
  assert {name for name, task in tasks.TASKS.items() if not task.suite} == {
    "digits",
    "cifar10",
  }
  assert all(
    (task.suite == "vtab") == bool(task.group) for task in tasks.TASKS.values()
  )


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_row(name):
  task = tasks.get(name)
  assert task.num_classes > 1
  assert len(task.class_names) in (0, task.num_classes)
  assert task.label in tfds_labels.LABELS
  assert task.metric in ("top1", "mean_per_class")
  assert task.preprocess in resize.FAMILIES
  assert task.licence
  assert bool(task.tfds) == bool(task.parts)
  if task.tfds:
    assert re.fullmatch(r"\w+(/[\w-]+)?:\d+\.\d+\.\d+", task.tfds)
    assert re.fullmatch(r"(\d+\.\d+\.\d+)?", task.published)
  if task.suite:
    assert task.address.startswith("http")
    assert task.gigabytes > 0
    assert name.startswith(f"{task.suite}_") or task.suite == "vtab"
  if task.suite and not task.tfds:  # nobody can download it for the user
    assert task.manual
  if task.suite == "vtab":
    assert task.source == "pack" and task.folder.startswith("vtab-1k/")
    assert task.limits == (800, 200) and task.preprocess == "vtab"
  else:
    assert task.limits == (None, None)


def test_every_pack_has_its_own_folder():
  folders = [task.folder for task in tasks.TASKS.values() if task.folder]
  assert len(set(folders)) == len(folders)


def test_a_typo_is_told_the_nearest_name():
  with pytest.raises(ValueError, match="did you mean 'pgn_flowers'"):
    tasks.get("pgn_flower")


@pytest.mark.parametrize("name", IN_TFDS)
def test_splits_have_the_published_sizes(name):
  sizes = {
    split: sum(s.stop - s.first for s in spans(name, split))
    for split in tfds.SPLITS
  }
  train, val, test = tasks.get(name).sizes
  assert sizes == {
    "train": train,
    "val": val,
    "trainval": train + val,
    "test": test,
  }


@pytest.mark.parametrize("name", IN_TFDS)
def test_splits_share_no_example(name):
  ordered = sorted(spans(name, "trainval") + spans(name, "test"))
  assert all(
    a.split != b.split or a.stop <= b.first
    for a, b in itertools.pairwise(ordered)
  )
  assert spans(name, "trainval") == spans(name, "train") + spans(name, "val")


def test_vtab_takes_the_first_of_each_part():
  assert spans("cifar100", "trainval") == [
    ("train", 0, 800),
    ("train", 45000, 45200),
  ]
  assert spans("dsprites_location", "trainval") == [
    ("train", 0, 800),
    ("train", 589824, 590024),
  ]
  assert spans("dsprites_location", "test") == [("train", 663552, 737280)]
  assert spans("smallnorb_azimuth", "trainval") == [
    ("train", 0, 800),
    ("test", 0, 200),
  ]
  assert spans("smallnorb_azimuth", "test") == [("test", 12150, 24300)]
  assert spans("clevr_count", "val") == [("train", 63000, 63200)]
  assert spans("clevr_count", "test") == [("validation", 0, 15000)]
  assert spans("caltech101", "val") == [("train", 2751, 2951)]
  assert spans("svhn", "val") == [("train", 65931, 66131)]


def test_counts_are_rounded_down_but_to_the_closest_where_tfds_slices():
  half = lambda count, closest: (
    tfds.span(tasks.Slice("test", 50, 100, closest), count).first
  )
  assert [half(n, False) for n in (9, 10, 11)] == [4, 5, 5]
  assert [half(n, True) for n in (9, 10, 11)] == [4, 5, 6]
  assert tfds.span(tasks.Slice("train", 0, 90), 19) == ("train", 0, 17)
  assert tfds.span(tasks.Slice("train", 90), 19, 1) == ("train", 17, 18)
  assert tfds.span(tasks.Slice("train"), 19, 800) == ("train", 0, 19)


def test_splits_that_are_not_there():
  with pytest.raises(ValueError, match="unknown split 'dev'; known: train"):
    spans("cifar100", "dev")
  with pytest.raises(
    ValueError,
    match="'validation' of dtd:3.0.1 is missing; there are train, test",
  ):
    tfds.spans(tasks.get("dtd"), "val", {"train": 9, "test": 9})


def clevr(*depths):
  return {
    "objects": {
      "size": np.zeros(len(depths), np.int64),
      "pixel_coords": np.array(
        [(99, -99, depth) for depth in depths], np.float32
      ),
    }
  }


@pytest.mark.parametrize(
  "depths,expected",
  [
    ([8.01, 12, 9], 1),
    ([8.0], 0),
    ([0.5], 0),
    ([8.5], 1),
    ([8.51], 2),
    ([9.0], 2),
    ([9.5], 3),
    ([9.75], 4),
    ([10.0], 4),
    ([10.5, 99], 5),
    ([100.0], 5),
  ],
)
def test_clevr_distance(depths, expected):
  assert tfds_labels.clevr_distance(clevr(*depths)) == expected


def test_clevr_distance_that_cannot_be():
  with pytest.raises(ValueError, match="0.0 is not above 0"):
    tfds_labels.clevr_distance(clevr(0.0, 9))
  with pytest.raises(ValueError, match="at least one object"):
    tfds_labels.clevr_distance(clevr())
  # Beyond the last bin, as in the original: a label that sources refuse.
  assert tfds_labels.clevr_distance(clevr(100.5)) == 6


@pytest.mark.parametrize("count", range(3, 11))
def test_clevr_count(count):
  assert tfds_labels.clevr_count(clevr(*range(count))) == count - 3


@pytest.mark.parametrize(
  "objects,expected",
  [
    ([], 3),
    ([(3, 5.0), (7, -1000.0)], 3),
    ([(0, 8.0)], 0),
    ([(0, 8.1)], 1),
    ([(1, 20.0)], 1),
    ([(2, 20.5)], 2),
    ([(2, 500.0)], 2),
    ([(0, -5.0)], 0),
    ([(3, 1.0), (0, 50.0), (1, 12.0)], 1),
    ([(0, 999.0)], 2),
  ],
)
def test_kitti_distance(objects, expected):
  record = {
    "objects": {
      "type": np.array([kind for kind, _ in objects], np.int64),
      "location": np.array([(0, 0, z) for _, z in objects], np.float32),
    }
  }
  assert tfds_labels.kitti_distance(record) == expected


def test_dsprites():
  by_bin = lambda function, key, count: [
    function({key: np.int64(value)}) for value in range(count)
  ]
  assert by_bin(tfds_labels.dsprites_x, "label_x_position", 32) == [
    i for i in range(16) for _ in range(2)
  ]
  orientation = by_bin(
    tfds_labels.dsprites_orientation, "label_orientation", 40
  )
  assert orientation == [int(i // 2.5) for i in range(40)]
  assert orientation[:8] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_plain_labels():
  record = {
    "label": np.int64(7),
    "label_azimuth": np.int64(17),
    "label_elevation": np.int64(8),
  }
  got = [
    tfds_labels.label(record),
    tfds_labels.smallnorb_azimuth(record),
    tfds_labels.smallnorb_elevation(record),
  ]
  assert got == [7, 17, 8] and {type(value) for value in got} == {int}


@pytest.mark.parametrize("name", tfds_labels.LABELS)
def test_what_a_record_lacks_is_named(name):
  key, function = tfds_labels.LABELS[name]
  with pytest.raises(
    ValueError,
    match=re.escape(f"record['{key}'] is missing; record has ['other']"),
  ):
    function({"other": 1})
  if key == "objects":
    with pytest.raises(
      ValueError,
      match=r"record\['objects'\]\['\w+'\] is "
      r"missing; record\['objects'\] has ",
    ):
      function({"objects": {"color": [1]}})
