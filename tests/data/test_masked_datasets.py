"""Images with masks are found by a config, with one meaning for all splits."""

import io
import re

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from vpt_jax.config import resolution, sections
from vpt_jax.data import datasets, masked_datasets
from vpt_jax.data.cache import mask_counts
from vpt_jax.data.sources import masks

# What `python -c "from vpt_jax.data.sources import digit_scenes as d;
# print({s: d.read(s).identity for s in d.COUNTS})"` printed.
SCENES = {
  "train": "arrays 320 3270856938",
  "val": "arrays 80 2781075908",
  "test": "arrays 100 3534607110",
}
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
  with pytest.raises(ValueError, match="expected segfolder:PATH or npz:PATH"):
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


# npz and arrays.


def packed(mask_files, image_files, **arrays):
  """Arrays of an npz with files of images and masks."""
  found = {}
  for data, offsets, contents in (
    ("jpeg_bytes", "jpeg_offsets", image_files),
    ("mask_png_bytes", "mask_offsets", mask_files),
  ):
    ends = np.cumsum([0, *map(len, contents)])
    found[data] = np.frombuffer(b"".join(contents), np.uint8)
    found[offsets] = ends.astype(np.int64)
  return found | arrays


def three_packed(**arrays):
  """Three images of different sizes, one a part."""
  label_maps = [STRIPES, STRIPES.T.copy(), np.minimum(STRIPES, 1)]
  images = []
  for label in label_maps:
    pixels = np.repeat(60 * label[..., None], 3, axis=-1)
    images.append(encoded(pixels, "PNG"))
  parts = np.array(["train", "val", "test"])
  files = packed(list(map(encoded, label_maps)), images, split=parts)
  return files | arrays


def saved(tmp_path, arrays):
  path = tmp_path / "scenes.npz"
  np.savez(path, **arrays)
  return {"source": f"npz:{path}"}


def test_an_npz_has_files_of_images_and_masks(tmp_path):
  """Of any sizes, with names of images and of classes."""
  arrays = three_packed(
    names=np.array(["a", "b", "c"]), classes=np.array(["sky", "sea", "boat"])
  )
  where = saved(tmp_path, arrays)
  found = load("val", **where)
  assert (list(found.names), found.classes) == (["b"], ("sky", "sea", "boat"))
  image, labels = found.decoded(0)
  np.testing.assert_array_equal(labels, STRIPES.T)
  np.testing.assert_array_equal(image[..., 1], 60 * STRIPES.T)
  assert len(load("trainval", **where)) == 2
  assert load("test", **where).num_classes == 3
  identities = {
    load(part, **where).examples.identity for part in ("val", "test")
  }
  assert len(identities) == 2


@pytest.mark.parametrize("grey", [False, True])
def test_an_npz_has_arrays_of_one_size(tmp_path, grey):
  """Without parts they are divided; other settings mean what they mean."""
  images = np.full((20, *STRIPES.shape, 3), 9, np.uint8)
  arrays = {
    "images": images[..., 0] if grey else images,
    "masks": np.repeat(STRIPES[None].astype(np.int64), 20, axis=0),
  }
  where = saved(tmp_path, arrays)
  counts = [len(load(part, **where)) for part in ("train", "val", "test")]
  assert counts == [16, 2, 2]
  image, labels = load("test", **where).decoded(1)
  assert image.shape == (*STRIPES.shape, 3)
  np.testing.assert_array_equal(labels, STRIPES)
  mapped = load(**where, label_map=((2, 255),))
  assert mapped.num_classes == 2
  assert mapped.decoded(0)[1].max() == 255


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"mask_offsets": None}, "no array mask_offsets; it has jpeg_bytes"),
    ({"jpeg_bytes": np.zeros(3, np.uint8)}, "jpeg_offsets int64 [4]; expected"),
    ({"mask_offsets": np.array([0, 9, 4, 7])}, "that rise from 0 to M"),
    ({"mask_offsets": np.array([0.0, 1.0])}, "mask_offsets float64 [2]"),
    ({"split": np.array(["train"])}, "split must be names [3]"),
    ({"split": np.array(["val", "val", "test"])}, "nothing for training"),
    ({"split": np.array(["train", "val", "val"])}, "no images for test"),
    ({"names": np.array(["a"])}, "names is <U1 [1]; expected texts [3]"),
    ({"classes": np.array(["a", "b", "a"])}, "a is the name of two classes"),
    ({"classes": np.array([1, 2])}, "classes is int64 [2]; expected texts [K]"),
    ({"classes": np.array(["a", "b"])}, "labels out of range: 2"),
    ({"masks": None, "jpeg_bytes": None}, "has no array jpeg_bytes"),
  ],
)
def test_an_npz_that_cannot_be_used_is_refused(tmp_path, changes, words):
  """Each error has the file, what is wrong and what is expected."""
  arrays = three_packed() | changes
  kept = {name: array for name, array in arrays.items() if array is not None}
  where = saved(tmp_path, kept)
  with pytest.raises(ValueError, match=re.escape(words)) as caught:
    load("train", **where)
    load("test", **where)
    load("train", **where).decoded(0)
  assert "scenes.npz" in str(caught.value)


@pytest.mark.parametrize(
  ("arrays", "words"),
  [
    ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "has no array masks"),
    (
      {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "labels": np.zeros(2, np.int64),
      },
      "labels are of classification",
    ),
    (
      {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "masks": np.zeros((3, 4, 4), np.uint8),
      },
      "has 2 images, but 3 masks",
    ),
    (
      {
        "images": np.zeros((2, 4, 4, 3), np.float32),
        "masks": np.zeros((2, 4, 4), np.uint8),
      },
      "images must be uint8",
    ),
    (
      {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "masks": np.zeros((2, 4, 4), np.float32),
      },
      "masks float32 [2, 4, 4]",
    ),
    (
      {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "masks": np.full((2, 4, 4), -1, np.int8),
      },
      "labels from -1 to -1",
    ),
    (
      {
        "images": np.zeros((20, 4, 4, 3), np.uint8),
        "masks": np.repeat(np.eye(5, dtype=np.uint8)[None], 20, 0),
      },
      "has 5 x 5 pixels, but its image",
    ),
  ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, arrays, words):
  where = saved(tmp_path, arrays)
  with pytest.raises(ValueError, match=re.escape(words)) as caught:
    load("train", **where).decoded(0)
  assert "scenes.npz" in str(caught.value)


@pytest.mark.parametrize(
  "damage", [b"", b"\x93NUMPY", b"PK\x03\x04" + b"0" * 99]
)
def test_a_damaged_npz_is_an_error_with_its_name(tmp_path, damage):
  path = tmp_path / "scenes.npz"
  path.write_bytes(damage)
  with pytest.raises(ValueError, match="cannot read .*scenes.npz"):
    load(source=f"npz:{path}")


def test_arrays_in_memory_may_be_of_any_sizes():
  images = [np.zeros((*shape, 3), np.uint8) for shape in ((12, 9), (5, 7))]
  label_maps = [STRIPES, np.full((5, 7), 255)]
  names = ("a", "b", "c", "d")
  found = masked_datasets.from_arrays(images, label_maps, 4, names)
  assert (len(found), found.num_classes, found.class_names) == (2, 4, names)
  assert found.decoded(1)[0].shape == (5, 7, 3)
  np.testing.assert_array_equal(found.decoded(0)[1], STRIPES)
  other = masked_datasets.from_arrays(images, [STRIPES, label_maps[1] * 0], 4)
  assert other.examples.identity != found.examples.identity
  stacked = np.zeros((2, 12, 9, 3), np.uint8)
  both = masked_datasets.from_arrays(stacked, [STRIPES, STRIPES], 3)
  assert both.class_names == ()


@pytest.mark.parametrize(
  ("label_maps", "options", "words"),
  [
    ([STRIPES], {}, "1 images and 2 label maps"),
    ([STRIPES + 1, STRIPES], {}, "image 0 .*labels out of range: 3"),
    ([STRIPES, STRIPES / 2], {}, "image 1 or its label map: float64"),
    ([STRIPES, STRIPES - 1.0], {}, "image 1"),
    ([STRIPES, -STRIPES.astype(int)], {}, "labels from -2 to 0"),
    ([STRIPES, STRIPES[:-1]], {}, "of image 1 has 9 x 11 pixels"),
    ([STRIPES, STRIPES], {"num_classes": 1}, "num_classes=1; expected 2..255"),
    (
      [STRIPES, STRIPES],
      {"class_names": ("a", "b")},
      "has 2 names; expected 3",
    ),
  ],
)
def test_arrays_that_cannot_be_used_are_refused(label_maps, options, words):
  images = [np.zeros((*STRIPES.shape, 3), np.uint8)] * len(label_maps)
  if len(label_maps) == 1:
    label_maps = [*label_maps, STRIPES]
  with pytest.raises(ValueError, match=words):
    masked_datasets.from_arrays(
      images, label_maps, **{"num_classes": 3, **options}
    )


def test_an_npz_of_masks_is_not_for_classification(tmp_path):
  source = saved(tmp_path, three_packed())["source"]
  with pytest.raises(ValueError, match="config.problem=segmentation"):
    datasets.open_split("x", "train", source=source)


# The embedded task.


def test_scenes_of_digits_are_the_same_bits_everywhere():
  """Exact masks, all classes, and no digit in two parts."""
  crc = {}
  for split, count in (("train", 320), ("val", 80), ("test", 100)):
    found = load(split, task="digit_scenes")
    assert (len(found), found.num_classes) == (count, 11)
    assert found.class_names[:2] == ("background", "0")
    image, labels = found.decoded(0)
    assert image.shape == (64, 64, 3) and labels.shape == (64, 64)
    present = masks.count_labels(found.examples.mask(i) for i in range(count))
    assert (present[:11] > 0).all() and not present[11:].any()
    crc[split] = found.examples.identity
  assert crc == SCENES
  assert len(load("trainval", task="digit_scenes")) == 400
  with pytest.raises(ValueError, match="num_classes: the masks of digit_scen"):
    load(task="digit_scenes", num_classes=3)


def test_own_images_do_not_have_the_name_of_a_published_set(own):
  """Their results would be taken for that set's, unless they are a copy."""
  settings = {"problem": "segmentation", "data.source": f"segfolder:{own}"}

  def named(task, **more):
    config = sections.defaults()
    config.update_from_flattened_dict({**settings, "task": task, **more})
    resolution.name_task(config, True)
    return config.task

  assert named("") == "own"
  with pytest.raises(ValueError, match="'ade20k' is the name of a known task"):
    named("ade20k")
  assert named("ade20k", **{"data.own_copy": True}) == "ade20k"
