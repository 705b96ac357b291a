"""An adapter predicts what its run's evaluation said, from any image."""

import csv
import io
import json
import logging

import jax
import numpy as np
from PIL import Image
import pytest

from tests.conftest import trained
import vpt_jax
from vpt_jax.analysis import inversion, subject
from vpt_jax.data.transforms import resize
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.serving import inputs, predictor
from vpt_jax.training import evaluation

HEIGHT, WIDTH = 48, 160
COUNT = 12  # images of each part


def photo(seed):
  """A photo three times as wide as high, unlike in its middle and its ends."""
  small = np.random.default_rng(seed).integers(0, 256, (6, 20, 3), np.uint8)
  image = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.BICUBIC)
  return np.asarray(image)


def write_photos(folder, **options):
  """A folder of two classes, in the parts train, val and test."""
  for part in ("train", "val", "test"):
    for i in range(COUNT):
      path = folder / part / f"class_{i % 2}" / f"{i:02d}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = photo(1000 * len(part) + i)
      Image.fromarray(pixels).save(path, **options)
  return folder


def run(config, folder, workdir, **data):
  """Trains on a folder; returns (predict, lines of predictions.csv)."""
  config.method = "vpt"
  config.epochs = 2
  config.optim.warmup_epochs = 1
  config.batch_size = 8
  config.task = ""
  config.data.source = f"folder:{folder}"
  config.data.update(data)
  vpt_jax.run(config, workdir)
  with (workdir / "predictions.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  return vpt_jax.load_adapter(workdir / "adapter.npz"), lines


def assert_as_predicted(probabilities, lines):
  """The class and its probability are those of predictions.csv."""
  assert len(probabilities) == len(lines)
  expected = []
  for line in lines:
    expected.append(int(line["prediction"].removeprefix("class_")))
  assert probabilities.argmax(-1).tolist() == expected
  confidence = [float(line["confidence"]) for line in lines]
  np.testing.assert_allclose(probabilities.max(-1), confidence, atol=2e-6)


@pytest.mark.parametrize("family", resize.FAMILIES)
def test_predictions_are_those_of_the_evaluation(config, tmp_path, family):
  folder = write_photos(tmp_path / "photos")
  predict, lines = run(config, folder, tmp_path / "run", preprocess=family)
  assert predict.preprocess.family == family
  paths = [folder / line["path"] for line in lines]
  arrays = [np.asarray(Image.open(path)) for path in paths]
  stack = np.stack(arrays)
  assert stack.shape == (COUNT, HEIGHT, WIDTH, 3)
  for images in (paths, arrays, stack, [str(path) for path in paths]):
    assert_as_predicted(predict(images), lines)
  assert_as_predicted(predict([path.read_bytes() for path in paths]), lines)
  assert_as_predicted(predict([Image.open(path) for path in paths]), lines)
  # Stretched to a square, as the device alone would do, they are others.
  model, variables, _ = predictor.read_model(tmp_path / "run/adapter.npz")
  apply = jax.jit(evaluation.make_apply(model, predict.preprocess))
  stretched = jax.nn.softmax(apply(variables, stack))
  confidence = np.array([float(line["confidence"]) for line in lines])
  difference = np.abs(stretched.max(-1) - confidence).max()
  assert (difference > 1e-3) == (family != "vtab")


def test_images_of_any_size_beside_each_other(config, tmp_path):
  folder = write_photos(tmp_path / "photos")
  predict, _ = run(config, folder, tmp_path / "run", preprocess="fgvc")
  images = [photo(1), photo(2)[:, :40], photo(3)[:7, :5], photo(4)] * 5
  together = predict(images)
  assert together.shape == (20, 2)
  for image, probabilities in zip(images[:4], together, strict=False):
    np.testing.assert_allclose(predict(image), probabilities, atol=2e-6)


def test_small_images_keep_their_size_as_in_evaluation(config, tmp_path):
  """Of VTAB-1k: resized on the device, without rounding."""
  config.image_size = 16
  for part in ("train", "val", "test"):
    for i in range(COUNT):
      path = tmp_path / "small" / part / f"class_{i % 2}" / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(photo(i)[:11, :9]).save(path)
  predict, lines = run(config, tmp_path / "small", tmp_path / "run")
  assert predict.preprocess.kept_size == (11, 9)
  paths = [tmp_path / "small" / line["path"] for line in lines]
  assert_as_predicted(predict(paths), lines)
  # One image of another size: all are brought to size on the host.
  Image.fromarray(photo(0)[:10, :10]).save(paths[0])
  predict, lines = run(config, tmp_path / "small", tmp_path / "other")
  assert predict.preprocess.kept_size is None
  assert_as_predicted(predict(paths), lines)


def test_arrays_in_memory(config, tmp_path):
  """Evaluation resizes them on the device, whatever the family."""
  images = np.stack([photo(i) for i in range(COUNT)])
  data = vpt_jax.from_arrays(images, np.arange(COUNT) % 2)
  config.method = "linear"
  config.epochs = 0
  config.optim.warmup_epochs = 0
  vpt_jax.run(config, tmp_path, vpt_jax.Data(data, data))
  with (tmp_path / "predictions.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  predict = vpt_jax.load_adapter(tmp_path / "adapter.npz")
  assert predict.preprocess.upright
  assert predict.preprocess.kept_size == (HEIGHT, WIDTH)
  assert_as_predicted(predict(images), lines)


# Files of old versions.


def without_preprocess(path):
  """Makes an adapter file one of a version that did not save it."""
  with np.load(path) as file:
    arrays = {name: file[name] for name in file.files}
  meta = json.loads(str(arrays.pop("meta")))
  del meta["preprocess"]
  np.savez(path, meta=json.dumps(meta), **arrays)


@pytest.mark.parametrize("family", ["vtab", "fgvc"])
def test_an_old_adapter_takes_it_from_its_config(config, tmp_path, family):
  folder = write_photos(tmp_path / "photos")
  predict, lines = run(config, folder, tmp_path / "run", preprocess=family)
  without_preprocess(tmp_path / "run/adapter.npz")
  old = vpt_jax.load_adapter(tmp_path / "run/adapter.npz")
  assert old.preprocess == predict.preprocess
  assert old.preprocess.family == family and old.preprocess.upright
  assert_as_predicted(old([folder / line["path"] for line in lines]), lines)


def test_an_old_adapter_of_small_images(config, tmp_path):
  config.image_size = 16
  config.method = "linear"
  config.epochs = 0
  config.optim.warmup_epochs = 0
  vpt_jax.run(config, tmp_path)
  digits = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
  new = vpt_jax.load_adapter(tmp_path / "adapter.npz")
  without_preprocess(tmp_path / "adapter.npz")
  old = vpt_jax.load_adapter(tmp_path / "adapter.npz")
  assert old.preprocess.kept_size is None
  assert new.preprocess.kept_size == (8, 8)
  np.testing.assert_array_equal(old(digits), new(digits))


# Orientation.


def test_a_photo_on_its_side_is_one_photo_everywhere(config, tmp_path):
  """Orientation 6: the file holds it turned by a quarter."""
  exif = Image.Exif()
  exif[0x0112] = 6
  folder = write_photos(tmp_path / "photos", exif=exif)
  predict, lines = run(config, folder, tmp_path / "run", preprocess="pgn")
  path = folder / lines[0]["path"]
  assert_as_predicted(predict([folder / line["path"] for line in lines]), lines)
  stored = np.asarray(Image.open(path))
  upright = np.rot90(stored, -1)
  probabilities = predict(path)
  np.testing.assert_allclose(predict(upright), probabilities, atol=2e-6)
  np.testing.assert_allclose(
    predict(Image.open(path)), probabilities, atol=2e-6
  )
  assert np.abs(predict(stored) - probabilities).max() > 1e-4
  adapter = subject.read(str(tmp_path / "run/adapter.npz"))
  wanted = predict.preprocess.fit(upright)
  shown = subject.files(adapter, [str(path)])
  np.testing.assert_array_equal(shown.pixels[0], wanted)
  evaluated = subject.test(adapter)
  np.testing.assert_array_equal(evaluated.pixels[0], wanted)


def test_inversion_sees_what_evaluation_saw(config, tmp_path, monkeypatch):
  exif = Image.Exif()
  exif[0x0112] = 6
  folder = write_photos(tmp_path / "photos", exif=exif)
  config.vpt.deep = False
  predict, lines = run(config, folder, tmp_path / "run", preprocess="fgvc")
  path = folder / lines[0]["path"]
  seen = []
  prepare = Preprocess.prepare

  def remember(self, images):
    seen.append(np.asarray(images))
    return prepare(self, images)

  monkeypatch.setattr(Preprocess, "prepare", remember)
  inversion.export(
    str(tmp_path / "run/adapter.npz"), str(path), tmp_path / "out", threshold=9
  )
  upright = np.rot90(np.asarray(Image.open(path)), -1)
  np.testing.assert_array_equal(seen[0][0], predict.preprocess.fit(upright))


# Grey of 16 bits.


def test_16_bit_grey_is_scaled_alike_in_all_splits(config, tmp_path, caplog):
  """Values up to 1000 of 12 bits; the test images alone are darker."""
  for part, brightest in (("train", 1000), ("val", 900), ("test", 200)):
    for i in range(COUNT):
      path = tmp_path / "grey" / part / f"class_{i % 2}" / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = np.random.default_rng(i).integers(0, brightest, (20, 20))
      pixels[0, 0] = brightest
      Image.fromarray(pixels.astype(np.uint16)).save(path)
  with caplog.at_level(logging.INFO, "vpt_jax"):
    predict, lines = run(config, tmp_path / "grey", tmp_path / "run")
  assert predict.preprocess.grey_range == 1023
  assert "24 of 24 images are grey of 16 bits" in caplog.text
  assert "0 .. 1023 become 0 .. 255" in caplog.text
  paths = [tmp_path / "grey" / line["path"] for line in lines]
  assert_as_predicted(predict(paths), lines)
  pixels = np.asarray(Image.open(paths[0]))
  scaled = (pixels // 4).astype(np.uint8)  # 10 bits to 8
  np.testing.assert_array_equal(
    predict.preprocess.decode(paths[0].read_bytes())[..., 0], scaled
  )
  np.testing.assert_allclose(predict(scaled), predict(paths[0]), atol=2e-6)
  assert predict.meta["preprocess"]["grey_range"] == 1023
  assert len(trained(tmp_path / "run")[0])


# What users give.

RGB = np.zeros((5, 7, 3), np.uint8)
GREY = np.zeros((5, 7), np.uint8)


def png(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  return file.getvalue()


@pytest.mark.parametrize(
  "images,grey,shapes,is_single",
  [
    (RGB, False, [(5, 7, 3)], True),
    (RGB[..., :1], False, [(5, 7, 1)], True),
    (GREY, False, [(5, 7, 1)], True),
    (GREY, True, [(5, 7, 1)], True),
    (np.zeros((4, 5, 7, 3), np.uint8), False, [(5, 7, 3)] * 4, False),
    (np.zeros((4, 5, 7, 1), np.uint8), False, [(5, 7, 1)] * 4, False),
    (np.zeros((4, 5, 7), np.uint8), True, [(5, 7, 1)] * 4, False),
    (np.zeros((4, 5, 3), np.uint8), True, [(5, 3, 1)] * 4, False),
    (np.zeros((1, 5, 7, 3), np.uint8), False, [(5, 7, 3)], False),
    ([RGB], False, [(5, 7, 3)], False),
    ([RGB, GREY, RGB[:2]], False, [(5, 7, 3), (5, 7, 1), (2, 7, 3)], False),
    (Image.fromarray(RGB), False, [(5, 7, 3)], True),
    (Image.fromarray(GREY), False, [(5, 7, 3)], True),
    ([Image.fromarray(RGB), png(GREY)], False, [(5, 7, 3)] * 2, False),
    (png(RGB), False, [(5, 7, 3)], True),
  ],
)
def test_one_image_or_several(images, grey, shapes, is_single):
  parts, single = inputs.split_images(images, grey)
  preprocess = Preprocess((4, 4), "half")
  decoded = [inputs.decode_image(part, preprocess) for part in parts]
  assert [image.shape for image in decoded] == shapes
  assert single == is_single


@pytest.mark.parametrize(
  "images,grey,message",
  [
    (np.zeros((4, 5, 7), np.uint8), False, "say grey=True"),
    (np.zeros((4, 5, 7, 2), np.uint8), False, r"uint8 \[4, 5, 7, 2\]"),
    (np.zeros((4, 5, 7, 3), np.float32), False, r"float32 \[4, 5, 7, 3\]"),
    (np.zeros(3, np.uint8), False, r"uint8 \[3\]"),
    (np.zeros((0, 5, 7, 3), np.uint8), False, "^no images$"),
    ([], False, "^no images$"),
    ([RGB, RGB[None]], False, r"image 1 of the list is uint8 \[1, 5, 7, 3\]"),
    ([RGB.astype(float)], False, "image 0 of the list is float64"),
  ],
)
def test_what_is_no_image_is_refused(images, grey, message):
  with pytest.raises(ValueError, match=message):
    inputs.split_images(images, grey)


def test_one_image_gets_one_answer(config, tmp_path):
  folder = write_photos(tmp_path / "photos")
  predict, lines = run(config, folder, tmp_path / "run")
  path = folder / lines[0]["path"]
  image = np.asarray(Image.open(path))
  answers = predict([path])
  assert answers.shape == (1, 2)
  for one in (path, str(path), image, Image.open(path), path.read_bytes()):
    assert predict(one).shape == (2,)
    np.testing.assert_allclose(predict(one), answers[0], atol=2e-6)
  np.testing.assert_allclose(
    predict(Image.open(path).convert("RGBA")), answers[0], atol=2e-6
  )
  grey = image[..., 0]
  repeated = predict(np.repeat(grey[..., None], 3, axis=-1))
  for one in (grey, grey[..., None], Image.fromarray(grey)):
    np.testing.assert_allclose(predict(one), repeated, atol=2e-6)
  np.testing.assert_allclose(
    predict(grey[None], grey=True)[0], repeated, atol=2e-6
  )
  (tmp_path / "page.png").write_bytes(b"<html>")
  with pytest.raises(ValueError, match="cannot read image .*page.png: .*HTML"):
    predict(tmp_path / "page.png")
  with pytest.raises(ValueError, match="cannot read image .*none.png"):
    predict([path, tmp_path / "none.png"])
