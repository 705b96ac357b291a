"""Tasks, readers, preprocessing and batches."""

import io
import re
import sys
import warnings

import jax
import numpy as np
from PIL import Image
import pytest

from tests import images as images_lib
from vpt_jax.data import datasets, pipeline, tasks
from vpt_jax.data.transforms import views
from vpt_jax.distributed import sharding

# Number of classes of the VTAB-1k tasks (Zhai et al. 2019, arXiv 1910.04867).
VTAB = {
  "natural": dict(
    caltech101=102,
    cifar100=100,
    dtd=47,
    oxford_flowers102=102,
    oxford_iiit_pet=37,
    sun397=397,
    svhn=10,
  ),
  "specialized": dict(
    diabetic_retinopathy=5, eurosat=10, patch_camelyon=2, resisc45=45
  ),
  "structured": dict(
    clevr_count=8,
    clevr_distance=6,
    dmlab=6,
    dsprites_location=16,
    dsprites_orientation=16,
    kitti=4,
    smallnorb_azimuth=18,
    smallnorb_elevation=9,
  ),
}


def picture(height=12, width=12, seed=0):
  """A random image."""
  return np.random.default_rng(seed).integers(
    0, 256, (height, width, 3), dtype=np.uint8
  )


def encoded(image, form="PNG"):
  file = io.BytesIO()
  Image.fromarray(image).save(file, form)
  return file.getvalue()


@pytest.fixture
def pack(tmp_path):
  """`pack(lines, files)` writes EuroSAT's train800.txt and its images."""

  def write(lines, files):
    folder = tmp_path / "vtab-1k/eurosat"
    for name, data in files.items():
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data if isinstance(data, bytes) else encoded(data))
    path = folder / "train800.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path

  return write


@pytest.fixture
def load(tmp_path):
  """Reads what `pack` wrote."""

  def read(split="train", task="eurosat", image_size=(12, 14), **options):
    return images_lib.load(
      task,
      split,
      folder=tmp_path,
      image_size=image_size,
      cache_dir=tmp_path / "cache",
      **options,
    )

  return read


# Tasks.


def test_the_table_of_vtab():
  for group, classes in VTAB.items():
    assert classes == {
      name: task.num_classes
      for name, task in tasks.TASKS.items()
      if task.group == group
    }
  vtab = [task for task in tasks.TASKS.values() if task.group]
  assert len(vtab) == len({task.folder for task in vtab}) == 19
  assert all(task.source == "pack" for task in vtab)


def test_unknown_names(load):
  with pytest.raises(
    ValueError, match=("^unknown task 'eurosatt'; did you mean 'eurosat'\\?")
  ):
    load(task="eurosatt")
  with pytest.raises(
    ValueError, match=("unknown split 'valid'.* train, val, trainval, test")
  ):
    load("valid")
  with pytest.raises(
    ValueError, match=("data.on_error='ignore'; expected 'raise' or 'skip'")
  ):
    load(on_error="ignore")


# Digits.


def test_digits_are_parted_into_800_200_797(load):
  from sklearn.datasets import load_digits

  split = {
    name: load(name, "digits") for name in ("train", "val", "trainval", "test")
  }
  assert {name: len(part) for name, part in split.items()} == {
    "train": 800,
    "val": 200,
    "trainval": 1000,
    "test": 797,
  }
  for part in split.values():
    assert part.images.dtype == np.uint8
    assert part.images.shape == (len(part), 8, 8, 3)
    assert part.labels.dtype == np.int32
    assert {*part.labels} == {*range(10)} and part.num_classes == 10
    assert (part.images == part.images[..., :1]).all()
  for field in ("images", "labels"):
    np.testing.assert_array_equal(
      getattr(split["trainval"], field),
      np.concatenate(
        [getattr(split[name], field) for name in ("train", "val")]
      ),
    )

  # Together they are the data set, each image once.
  rows = lambda image, label: sorted(
    (*x.ravel().tolist(), y) for x, y in zip(image, label.tolist())
  )
  data = load_digits()
  ours = np.concatenate([split[x].images[..., 0] for x in ("trainval", "test")])
  labels = np.concatenate([split[x].labels for x in ("trainval", "test")])
  assert ours.max() == 255
  assert rows(np.round(ours * (16 / 255)).astype(int), labels) == rows(
    data.images.astype(int), data.target
  )

  again = load("test", "digits")
  np.testing.assert_array_equal(again.images, split["test"].images)
  np.testing.assert_array_equal(again.labels, split["test"].labels)


# Packs.


def test_a_pack(pack, load, tmp_path):
  grey, palette = io.BytesIO(), io.BytesIO()
  Image.fromarray(picture(seed=1)[..., 0]).save(grey, "PNG")
  Image.fromarray(picture(seed=2)).quantize(8).save(palette, "PNG")
  folder = pack(
    ["images/a b  c.jpg 3", "", "sub/../grey.png 0", "deep/er/x.png 9"],
    {
      "images/a b  c.jpg": picture(),
      "grey.png": grey.getvalue(),
      "deep/er/x.png": palette.getvalue(),
    },
  ).parent
  part = load()
  assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32
  assert part.images.shape == (3, 12, 12, 3)  # of equal size: kept as they are
  assert (part.num_classes, part.skipped) == (10, 0)
  np.testing.assert_array_equal(part.labels, [3, 0, 9])
  np.testing.assert_array_equal(part.images[0], picture())
  np.testing.assert_array_equal(
    part.images[1], picture(seed=1)[..., :1].repeat(3, -1)
  )
  assert len(np.unique(part.images[2].reshape(-1, 3), axis=0)) == 8

  for i, name in enumerate(("val200", "train800val200", "test")):
    (folder / f"{name}.txt").write_text(f"grey.png {i}\n")
  for i, name in enumerate(("val", "trainval", "test")):
    np.testing.assert_array_equal(load(name).labels, [i])


def test_a_pack_is_read_in_the_order_of_its_list(pack, load):
  """Large and small files in turn, so that threads end out of order."""
  sizes = [(300, 300) if i % 2 else (4, 4) for i in range(40)]
  pack(
    [f"{i}.png {i % 10}" for i in range(40)],
    {
      f"{i}.png": np.full((*size, 3), 6 * i, np.uint8)
      for i, size in enumerate(sizes)
    },
  )
  part = load()
  np.testing.assert_array_equal(part.images[:, 0, 0, 0], 6 * np.arange(40))
  np.testing.assert_array_equal(part.labels, np.arange(40) % 10)


def test_images_of_unequal_size_are_resized_as_prepare_would(pack, load):
  sizes = [(9, 7), (20, 30), (30, 20), (5, 4), (1, 1), (7, 9), (18, 14)]
  images = [picture(*size, seed=i) for i, size in enumerate(sizes)]
  pack(
    [f"{i}.png 0" for i in range(len(sizes))],
    {f"{i}.png": image for i, image in enumerate(images)},
  )
  part = load(image_size=(9, 7))
  assert part.images.shape == (len(sizes), 9, 7, 3)
  assert part.images.dtype == np.uint8
  np.testing.assert_array_equal(part.images[0], images[0])
  for ours, image in zip(part.images, images):
    want = jax.image.resize(
      image.astype(np.float32), (9, 7, 3), "bilinear", antialias=False
    )
    np.testing.assert_allclose(ours, want, atol=1 + 1e-3)


@pytest.mark.parametrize(
  "line,message",
  [
    ("a.png", "expected 'PATH LABEL', got 'a.png'"),
    ("3", "expected 'PATH LABEL', got '3'"),
    ("a.png three", "expected 'PATH LABEL'"),
    ("a.png 1.0", "expected 'PATH LABEL'"),
    ("a.png -1", "expected 'PATH LABEL'"),
    ("a.png \u00b2", "expected 'PATH LABEL'"),  # a digit, but not to int()
    ("a.png 10", "label 10 is out of range 0..9"),
    ("../x.png 1", "'../x.png' is outside the pack's folder"),
    ("images/../../x.png 1", "is outside the pack's folder"),
    ("{parent}/x.png 1", "is outside the pack's folder"),
    ("a\0.png 1", ""),
  ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_bad_line_is_named(pack, load, line, message, on_error):
  """It is the list that is wrong: leaving images out does not mend it."""
  path = pack(["a.png 0"], {"a.png": picture(), "../x.png": picture()})
  line = line.format(parent=path.parents[1])
  path.write_text(f"a.png 0\n\n{line}\na.png 1\n", encoding="utf-8")
  with pytest.raises(ValueError) as error:
    load(on_error=on_error)
  assert str(error.value).startswith(f"{path}:3: ")
  assert message in str(error.value)


def test_a_missing_empty_or_binary_list(pack, load):
  path = pack([], {})
  with pytest.raises(ValueError, match=f"{re.escape(str(path))} lists no imag"):
    load()
  path.write_text("\n \n")
  with pytest.raises(ValueError, match="lists no image"):
    load(on_error="skip")
  path.write_bytes(b"\xff.png 1\n")  # not UTF-8
  with pytest.raises(ValueError, match=f"^{re.escape(str(path))}"):
    load()
  path.unlink()
  with pytest.raises(ValueError) as error:
    load(on_error="skip")
  assert str(error.value).startswith(f"{path} is missing; expected the vtab-1k")
  for name in (
    "train800.txt",
    "val200.txt",
    "train800val200.txt",
    "test.txt",
    "'PATH LABEL'",
    "config.data.dir",
  ):
    assert name in str(error.value)


JPEG = encoded(picture(64, 64), "JPEG")
BAD = {
  "missing": (None, "is missing"),
  "empty": (b"", "cannot decode"),
  "text": (b"<html>not found</html>", "cannot decode"),
  "truncated": (JPEG[: len(JPEG) // 2], "cannot decode"),
  "cut_header": (JPEG[:30], "cannot decode"),
  "corrupt": (b"\0" * 20 + JPEG[20:], "cannot decode"),
  "truncated_png": (encoded(picture(64, 64))[:-3000], "cannot decode"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_or_left_out(pack, load, kind):
  data, message = BAD[kind]
  files = {"a.png": picture(), "c.png": picture(seed=1)}
  path = pack(
    ["", "a.png 1", "b.jpg 2", "c.png 3"],
    files if data is None else {**files, "b.jpg": data},
  )
  with pytest.raises(ValueError) as error:
    load()
  assert str(error.value).startswith(f"{path}: ")
  for text in (message, " b.jpg", "1 of 3 images", "data.on_error='skip'"):
    assert text in str(error.value)

  part = load(on_error="skip")
  assert part.skipped == 1
  np.testing.assert_array_equal(part.labels, [1, 3])
  np.testing.assert_array_equal(part.images[1], files["c.png"])


def test_no_good_image_at_all_is_an_error(pack, load):
  path = pack(["a.png 1", "b.png 2"], {"a.png": b"x"})
  with pytest.raises(
    ValueError,
    match=(
      f"{re.escape(str(path))}: cannot .* a.png.* \\(2 of 2 images fail\\)"
    ),
  ):
    load(on_error="skip")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [14, 20])
def test_a_decompression_bomb_is_a_bad_image(pack, load, monkeypatch, side):
  """Pillow warns of pixels above its limit and raises above twice of it."""
  path = pack(
    ["a.png 1"] * 9 + ["b.png 2"] + ["a.png 3"] * 9,
    {"a.png": picture(), "b.png": picture(side, side)},
  )
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", picture()[..., 0].size)
  with pytest.raises(
    ValueError, match=(f"{re.escape(str(path))}: cannot decode b.png")
  ):
    load()
  part = load(on_error="skip")
  assert part.skipped == 1 and part.labels.tolist() == [1] * 9 + [3] * 9


def test_reading_leaves_the_filters_of_warnings_alone(pack, load):
  """They belong to the process; `catch_warnings` in threads loses them."""
  pack(["a.png 1"] * 200, {"a.png": picture()})
  interval = sys.getswitchinterval()
  with warnings.catch_warnings():
    before = list(warnings.filters)
    sys.setswitchinterval(1e-6)
    try:
      for _ in range(3):
        load()
        assert warnings.filters == before
    finally:
      sys.setswitchinterval(interval)


# JPEG bytes in one npz.


def write_npz(folder, jpegs=None, **changes):
  """cifar10_jpeg.npz of four images, the third of which is for testing."""
  jpegs = jpegs or [encoded(picture(8, 8, i), "JPEG") for i in range(4)]
  arrays = {
    "jpeg_bytes": np.frombuffer(b"".join(jpegs), np.uint8),
    "offsets": np.cumsum([0] + [len(jpeg) for jpeg in jpegs]),
    "labels": np.array([3, 1, 9, 0], np.int16),
    "split": np.array(["train", "train", "test", "train"]),
    **changes,
  }
  path = folder / "cifar10_jpeg.npz"
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return path


def test_npz(load, tmp_path):
  jpegs = [encoded(picture(8, 8, i), "JPEG") for i in range(4)]
  images = [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]
  write_npz(tmp_path, jpegs)
  train, test = load("train", "cifar10"), load("test", "cifar10")
  np.testing.assert_array_equal(train.images, [images[0], images[1], images[3]])
  np.testing.assert_array_equal(train.labels, [3, 1, 0])
  np.testing.assert_array_equal(test.images, images[2:3])
  np.testing.assert_array_equal(test.labels, [9])
  assert train.num_classes == test.num_classes == 10
  assert train.images.dtype == np.uint8 and train.labels.dtype == np.int32


def test_npz_errors(load, tmp_path):
  with pytest.raises(ValueError, match="npz is missing; set config.data.dir"):
    load("train", "cifar10")
  path = write_npz(tmp_path)
  with pytest.raises(
    ValueError, match=(f"{re.escape(str(path))} has no images of split 'val'")
  ):
    load("val", "cifar10")
  write_npz(tmp_path, labels=np.array([3, 10, 9, 0]))
  with pytest.raises(ValueError, match="label 10 .* out of range 0..9"):
    load("train", "cifar10")
  write_npz(tmp_path, labels=np.array([3, 1, 9, {}], object))
  with pytest.raises(ValueError, match="pickled content is never loaded"):
    load("train", "cifar10")


GOOD = encoded(picture(8, 8), "JPEG")


@pytest.mark.parametrize(
  "kind,changes",
  [
    ("image", {"jpegs": [GOOD, GOOD[:-200], GOOD, GOOD]}),
    ("array", {"offsets": None}),
    ("file", {}),
  ],
)
def test_a_damaged_npz_is_named(load, tmp_path, kind, changes):
  path = write_npz(tmp_path, **changes)
  if kind == "file":
    path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=re.escape(str(path))):
    load("train", "cifar10")


def test_a_damaged_image_of_an_npz_can_be_left_out(load, tmp_path):
  write_npz(tmp_path, [GOOD, GOOD[:-200], GOOD, GOOD])
  part = load("train", "cifar10", on_error="skip")
  assert part.skipped == 1 and part.labels.tolist() == [3, 0]


# Arrays.


def test_arrays():
  images = np.stack([picture(), picture(seed=1)])
  part = datasets.from_arrays(images, np.array([0, 4], np.uint8))
  np.testing.assert_array_equal(part.images, images)
  assert (len(part), part.num_classes, part.skipped) == (2, 2, 0)
  assert part.labels.dtype == np.int32
  assert datasets.from_arrays(images, [0, 4], 7).num_classes == 7
  for grey in (images[..., 0], images[..., :1]):
    part = datasets.from_arrays(grey, [0, 4])
    np.testing.assert_array_equal(
      part.images, images[..., :1].repeat(3, axis=-1)
    )


@pytest.mark.parametrize(
  "images,labels,classes,message",
  [
    (
      np.zeros((2, 4, 4, 3)),
      [0, 1],
      None,
      "images must be uint8 .* got float64 \\[2, 4, 4, 3\\]",
    ),
    (
      np.zeros((2, 4, 4, 4), np.uint8),
      [0, 1],
      None,
      "got uint8 \\[2, 4, 4, 4\\]",
    ),
    (np.zeros((4, 4), np.uint8), [0, 1], None, "got uint8 \\[4, 4\\]"),
    (
      np.zeros((2, 4, 4), np.uint8),
      [0, 1, 2],
      None,
      "labels must be integers \\[2\\], or names, got int64 \\[3\\]",
    ),
    (np.zeros((2, 4, 4), np.uint8), [[0, 1]], None, "got int64 \\[1, 2\\]"),
    (np.zeros((2, 4, 4), np.uint8), [0.0, 1.0], None, "got float64 \\[2\\]"),
    (np.zeros((0, 4, 4), np.uint8), np.zeros(0, int), None, "no images"),
    (
      np.zeros((2, 4, 4), np.uint8),
      [0, 3],
      3,
      "label 3 of image 1 is out of range 0..2",
    ),
    (np.zeros((2, 4, 4), np.uint8), [-1, 1], None, "label -1 of image 0"),
  ],
)
def test_arrays_that_cannot_be_used(images, labels, classes, message):
  with pytest.raises(ValueError, match=message):
    datasets.from_arrays(images, labels, classes)


# Preprocessing.


@pytest.mark.parametrize(
  "name,mean,std",
  [
    ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("half", 0.5, 0.5),
    (
      "clip",
      (0.48145466, 0.4578275, 0.40821073),
      (0.26862954, 0.26130258, 0.27577711),
    ),
    ("none", 0.0, 1.0),
  ],
)
def test_normalisation(name, mean, std):
  image = np.stack([picture(4, 6, i) for i in range(2)])
  out = views.prepare(image, (4, 6), name)
  assert out.dtype == np.float32
  np.testing.assert_allclose(
    out, (image / 255 - np.array(mean)) / np.array(std), atol=1e-6
  )


def test_the_normalisations_tested_are_all():
  assert {*views.NORMALIZE} == {"imagenet", "half", "clip", "none"}


def bilinear(image, height, width):
  """[H, W, C] at the centres of the target's pixels, edges held."""
  for axis, n in ((0, height), (1, width)):
    size = image.shape[axis]
    x = np.clip((np.arange(n) + 0.5) * size / n - 0.5, 0, size - 1)
    low = np.floor(x).astype(int)
    high = np.minimum(low + 1, size - 1)
    part = (x - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
  return image


@pytest.mark.parametrize(
  "size,target", [((8, 8), (32, 32)), ((20, 9), (8, 12))]
)
def test_resizing_is_bilinear_between_centres_of_pixels(size, target):
  image = np.stack([picture(*size, seed=i) for i in range(2)])
  np.testing.assert_allclose(
    views.prepare(image, target, "none"),
    [bilinear(x / 255, *target) for x in image],
    atol=1e-6,
  )


PREPARED = (
  np.random.default_rng(0).normal(size=(64, 16, 24, 3)).astype(np.float32)
)


def test_no_augmentation():
  out = views.augment(PREPARED, "none", jax.random.key(0))
  np.testing.assert_array_equal(out, PREPARED)


def test_flip_mirrors_about_half_of_the_images():
  out = np.asarray(views.augment(PREPARED, "flip", jax.random.key(0)))
  kept = (out == PREPARED).all((1, 2, 3))
  mirrored = (out == PREPARED[:, :, ::-1]).all((1, 2, 3))
  assert (kept ^ mirrored).all()
  assert 16 < kept.sum() < 48


def test_flip_crop_crops_the_padded_image():
  out = np.asarray(views.augment(PREPARED, "flip_crop", jax.random.key(0)))
  padded = np.pad(PREPARED, ((0, 0), (2, 2), (3, 3), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (16, 24), axis=(1, 2)
  ).transpose(0, 1, 2, 4, 5, 3)
  seen = []
  for crop, all_of_it in zip(out, windows):
    found = [
      (int(row), int(column), flip)
      for flip, x in ((False, crop), (True, crop[:, ::-1]))
      for row, column in np.argwhere((all_of_it == x).all((2, 3, 4)))
    ]
    assert len(found) == 1
    seen += found
  rows, columns, flips = map(set, zip(*seen))
  assert rows == {*range(5)} and columns == {*range(7)}
  assert flips == {False, True}


@pytest.mark.parametrize("kind", ["flip", "flip_crop"])
def test_the_key_decides_the_views(kind):
  view = lambda seed: np.asarray(
    views.augment(PREPARED, kind, jax.random.key(seed))
  )
  np.testing.assert_array_equal(view(0), view(0))
  assert (view(0) != view(1)).any()


# Batches.


def test_order_is_of_seed_and_epoch_alone():
  np.testing.assert_array_equal(
    np.sort(pipeline.order(100, 1, 2)), np.arange(100)
  )
  orders = {
    (seed, epoch): pipeline.order(100, seed, epoch)
    for seed in range(3)
    for epoch in range(3)
  }
  np.random.seed(7)
  for (seed, epoch), order in orders.items():
    np.testing.assert_array_equal(order, pipeline.order(100, seed, epoch))
  assert len({tuple(order) for order in orders.values()}) == 9


def counted(n):
  """A split whose image i is filled with i and has label 2 i."""
  images = np.broadcast_to(
    np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 2, 3)
  )
  return datasets.from_arrays(images, 2 * np.arange(n), 2 * n)


@pytest.mark.parametrize("n", [1, 3, 4, 8, 9, 11])
def test_every_image_counts_exactly_once(n):
  order = pipeline.order(n, 0, 0)
  mesh = sharding.make_mesh(4)
  resident, streamed = (
    pipeline.Feed(counted(n), 4, mesh, size) for size in (1e9, 0)
  )
  batches = jax.device_get(list(resident.batches(order)))
  assert len(resident) == len(streamed) == len(batches) == -(-n // 4)
  for ours, other in zip(
    batches, jax.device_get(list(streamed.batches(order))), strict=True
  ):
    assert ours.keys() == other.keys() == {"image", "label", "mask"}
    for name in ours:
      np.testing.assert_array_equal(ours[name], other[name])
      assert ours[name].dtype == other[name].dtype
    assert ours["image"].shape == (4, 2, 2, 3)
    assert ours["image"].dtype == np.uint8
    assert ours["mask"].dtype == np.float32

  join = lambda name: np.concatenate([batch[name] for batch in batches])
  mask, image, label = join("mask"), join("image"), join("label")
  np.testing.assert_array_equal(mask, np.arange(len(mask)) < n)
  np.testing.assert_array_equal(image[:n, 0, 0, 0], order)
  np.testing.assert_array_equal(label, 2 * image[:, 1, 1, 2].astype(int))


def test_a_split_stays_on_the_device_if_it_fits(monkeypatch):
  replicated = []
  replicate = sharding.replicate
  monkeypatch.setattr(
    sharding,
    "replicate",
    lambda values, mesh: (
      replicated.append(values[0].nbytes),
      replicate(values, mesh),
    )[1],
  )
  split, mesh = counted(5), sharding.make_mesh(4)
  pipeline.Feed(split, 4, mesh, split.images.nbytes - 1)
  assert replicated == []
  pipeline.Feed(split, 4, mesh, split.images.nbytes)
  assert replicated == [split.images.nbytes]
