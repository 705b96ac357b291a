"""Images with masks are found by a config, with one meaning for all splits."""

import io
import re

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from vpt_jax.data import datasets, masked_datasets
from vpt_jax.data.cache import mask_counts

STRIPES = np.repeat(np.arange(3, dtype=np.uint8), 4)[:, None].repeat(9, 1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("VPT_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
  mask_counts._kept.clear()


def config(**changes):
  """(config.data, config.segmentation) with some fields of either changed."""
  data = ConfigDict(
    {"source": "", "dir": "data", "seed": 0, "on_error": "raise", "cache": ""}
  )
  masks = ConfigDict(
    {
      "num_classes": 0,
      "colours": "",
      "reduce_zero_label": False,
      "label_map": (),
      "thin": False,
    }
  )
  for name, value in changes.items():
    section = data if name in data else masks
    section[name] = value
  return data, masks


def load(split="train", task="own", **changes):
  return masked_datasets.load(task, split, *config(**changes))


def encoded(pixels, file_format="PNG"):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, file_format)
  return buffer.getvalue()


def write(root, folder, masks, image=None):
  """Writes images with these masks into `folder`, numbered from 0 on."""
  for side in ("images", "masks"):
    (root / folder / side).mkdir(parents=True, exist_ok=True)
  for i, mask in enumerate(masks):
    pixels = np.full((*mask.shape, 3), 40 * i, np.uint8)
    content = encoded(pixels) if image is None else image
    (root / folder / f"images/{i}.png").write_bytes(content)
    (root / folder / f"masks/{i}.png").write_bytes(encoded(mask))
  return root


@pytest.fixture
def own(tmp_path):
  """Three classes in train, two of them in val and test."""
  root = tmp_path / "own"
  write(root, "train", [STRIPES, STRIPES.T.copy()])
  write(root, "val", [np.minimum(STRIPES, 1)])
  write(root, "test", [np.minimum(STRIPES, 1), STRIPES])
  return root


def test_splits_agree_on_the_classes_of_the_training_masks(own):
  source = f"segfolder:{own}"
  for split, count in (("train", 2), ("val", 1), ("trainval", 3), ("test", 2)):
    found = load(split, source=source)
    assert found.num_classes == found.examples.meaning.num_classes == 3
    assert (len(found), len(found.names), found.skipped) == (count, count, 0)
  image, labels = load("test", source=source).decoded(1)
  assert image.shape == (12, 9, 3)
  np.testing.assert_array_equal(labels, STRIPES)


def test_a_label_beyond_those_of_training_is_refused_with_its_file(own):
  write(own, "test", [STRIPES + 1])
  found = load("test", source=f"segfolder:{own}")
  with pytest.raises(ValueError, match=r"test/masks/0.png: labels out of .*3"):
    found.decoded(0)


def test_masks_are_counted_once_by_all_runs(own, monkeypatch):
  monkeypatch.setattr(mask_counts, "REMEMBERED", 2)
  source = f"segfolder:{own}"
  first = load("train", source=source)
  reads = []
  original = type(first.examples).mask
  monkeypatch.setattr(
    type(first.examples),
    "mask",
    lambda self, i: reads.append(i) or original(self, i),
  )
  load("val", source=source)
  mask_counts._kept.clear()  # as in another process
  assert load("test", source=source).num_classes == 3
  assert not reads
  assert load("test", source=source, label_map=((2, 1),)).num_classes == 2
  assert len(reads) == 2
  write(own, "train", [np.minimum(STRIPES, 1)])
  assert load("test", source=source).num_classes == 3
  assert len(reads) == 4


def test_identity_changes_with_files(own):
  source = f"segfolder:{own}"
  first = load("train", source=source).examples.identity
  assert load("train", source=source).examples.identity == first
  write(own, "train", [STRIPES[::-1].copy()])
  assert load("train", source=source).examples.identity != first


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"on_error": "skip"}, "on_error='skip': with masks a bad image"),
    ({"num_classes": 1}, "config.segmentation.num_classes=1; expected 2..255"),
    ({"num_classes": 256}, "num_classes=256"),
    ({"colours": "red=1"}, "config.segmentation.colours: a map of colours"),
    ({"label_map": ((0, 1), (0, 2))}, "stored label 0 twice"),
    ({"label_map": ((0, 256),)}, "label_map: found (0, 256)"),
    ({"label_map": ("0=1",)}, "label_map: found '0=1'"),
    ({"label_map": (255, 1)}, "label_map: found 255; expected pairs"),
  ],
)
def test_settings_that_cannot_be_used_are_refused(own, changes, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    load(source=f"segfolder:{own}", **changes)


@pytest.mark.parametrize(
  "source", ["folder:{}", "csv:{}/a.csv", "{}", "tfds", "pack"]
)
def test_other_sources_have_no_masks(own, source):
  with pytest.raises(ValueError, match="expected segfolder:PATH"):
    load(source=source.format(own))


def test_unknown_tasks_are_refused_with_those_that_have_masks(own):
  with pytest.raises(ValueError, match="known: ade20k"):
    load(task="eurosat")


def write_voc(root):
  """Writes two images in VOC's layout, and their lists."""
  voc = root / "VOCdevkit/VOC2012"
  lists = voc / "ImageSets/Segmentation"
  for folder in ("JPEGImages", "SegmentationClass", lists):
    (voc / folder).mkdir(parents=True, exist_ok=True)
  for name in ("train", "val"):
    (lists / f"{name}.txt").write_text(f"{name}\n")
    image = encoded(np.zeros((*STRIPES.shape, 3), np.uint8), "JPEG")
    (voc / f"JPEGImages/{name}.jpg").write_bytes(image)
    (voc / f"SegmentationClass/{name}.png").write_bytes(encoded(STRIPES))
  return root


def test_published_sets_have_a_meaning_of_their_own(tmp_path):
  where = {"task": "voc2012", "dir": str(write_voc(tmp_path))}
  assert load(**where).num_classes == 21
  assert load(num_classes=21, thin=True, **where).num_classes == 21
  for changes in (
    {"num_classes": 20},
    {"colours": "000000=0"},
    {"label_map": ((1, 0),)},
    {"reduce_zero_label": True},
  ):
    (field,) = changes
    words = f"config.segmentation.{field}: the masks of voc2012 have a meaning"
    with pytest.raises(ValueError, match=words):
      load(**changes, **where)


def test_grey_of_16_bits_has_the_range_of_the_training_images(own):
  """As for classification; without such in training it is refused."""
  source = f"segfolder:{own}"
  deep = encoded(np.full(STRIPES.shape, 2000, np.uint16))
  write(own, "test", [STRIPES], image=deep)
  with pytest.raises(ValueError, match="test/images/0.png is grey of 16 bits"):
    load("test", source=source).decoded(0)
  write(own, "train", [STRIPES], image=deep)
  found = load("test", source=source)
  assert found.grey_range == 4095
  image, _ = found.decoded(0)
  assert (image == 2000 * 256 // 4096).all()


@pytest.mark.parametrize("kind", ["folder:", ""])
@pytest.mark.parametrize("below", ["", "/train"])
def test_folders_of_masks_are_no_classes(own, kind, below):
  """A run of classification says how they are meant, however they are given."""
  (own / "train/extra").mkdir()
  with pytest.raises(ValueError, match="kinds of files") as caught:
    datasets.open_split("own", "train", source=f"{kind}{own}{below}")
  for word in ("config.problem=segmentation", f"segfolder:{own}{below}"):
    assert word in str(caught.value)


def test_segfolder_is_not_for_classification(own):
  with pytest.raises(ValueError, match="config.problem=segmentation"):
    datasets.open_split("own", "train", source=f"segfolder:{own}")


def test_a_list_of_names_says_how_many_classes_there_are(own):
  """Also where the training masks have fewer of them."""
  names = ("sky", "sea", "Übel", "boat")
  (own / "classes.txt").write_text("\n".join(names) + "\n", "utf-8")
  found = load("test", source=f"segfolder:{own}")
  assert (found.num_classes, found.class_names) == (4, names)
  assert len(found.palette) == 4
  with pytest.raises(ValueError, match="has names of 4 classes"):
    load(source=f"segfolder:{own}", num_classes=3)
  for content, words in (
    (b"sky\nsky\n", "classes.txt: sky is the name of two classes"),
    (b"sky\n", "has 1 names"),
    (b"\xff\xfe\n", "no text in UTF-8"),
  ):
    (own / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
      load(source=f"segfolder:{own}")
