"""The one object that says what happens to an image, and 16-bit grey."""

import dataclasses
import io
import logging
import struct
import zlib

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from tests import images as images_lib
from vpt_jax.data import datasets
from vpt_jax.data.cache import decoding, grey_range, prepared
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples
from vpt_jax.data.transforms import decode, resize, views
from vpt_jax.data.transforms.preprocess import Preprocess

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)


def config_of(source, family="fgvc"):
  data = {"normalize": "clip", "preprocess": family, "source": source}
  return ConfigDict({"data": data})


def test_what_a_config_asks_for():
  own = Preprocess.from_config(config_of("folder:x"), (4, 6))
  assert own == Preprocess((4, 6), "clip", "fgvc", upright=True)
  assert not Preprocess.from_config(config_of("pack"), (4, 6)).upright
  assert not Preprocess.from_config(config_of(""), (4, 6)).upright
  with pytest.raises(ValueError, match="did you mean 'fgvc'"):
    Preprocess((4, 6), "clip", "fvgc")


@pytest.mark.parametrize("grey", [None, 4095])
@pytest.mark.parametrize("kept", [None, (3, 4)])
def test_json_there_and_back(grey, kept):
  preprocess = Preprocess((4, 6), "half", "pgn", False, grey, kept)
  assert Preprocess.from_json(preprocess.to_json()) == preprocess
  lists = [x for x in preprocess.to_json().values() if isinstance(x, tuple)]
  assert lists == []


@pytest.mark.parametrize("family", resize.FAMILIES)
@pytest.mark.parametrize("train", [False, True])
def test_the_steps_are_those_of_the_family(family, train):
  preprocess = Preprocess((16, 12), "half", family)
  np.testing.assert_array_equal(
    preprocess.fit(IMAGE, train), resize.fit(family, IMAGE, (16, 12), train)
  )
  kept = dataclasses.replace(preprocess, kept_size=(30, 40))
  np.testing.assert_array_equal(kept.fit(IMAGE, train), IMAGE)
  images = IMAGE[None, :16, :12]
  np.testing.assert_array_equal(
    preprocess.prepare(images), views.prepare(images, (16, 12), "half")
  )
  prepared_images = np.asarray(preprocess.prepare(images))
  np.testing.assert_allclose(
    preprocess.denormalize(prepared_images), images / 255, atol=1e-6
  )


# Grey of 16 bits.


def chunk(name, data):
  body = name + data
  return (
    struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
  )


def png(values, significant=None, before=b""):
  """A grey PNG of 16 bits, maybe with the chunk sBIT."""
  values = np.asarray(values)
  height, width = values.shape
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
  head = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
  sbit = b""
  if significant is not None:
    sbit = chunk(b"sBIT", bytes([significant]))
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", head)
    + before
    + sbit
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def tiff(values, **tags):
  file = io.BytesIO()
  image = Image.fromarray(np.asarray(values, np.uint16))
  image.save(file, "TIFF", tiffinfo={int(k[1:]): v for k, v in tags.items()})
  return file.getvalue()


def pgm(values, largest):
  values = np.asarray(values)
  head = f"P5 {values.shape[1]} {values.shape[0]} {largest}\n".encode()
  return head + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
  "data,expected",
  [
    (png([[0, 200]]), 255),
    (png([[0, 255]]), 255),
    (png([[0, 256]]), 1023),
    (png([[0, 1024]]), 4095),
    (png([[0, 4096]]), 16383),
    (png([[0, 16384]]), 65535),
    (png([[0, 200]], significant=12), 4095),
    (png([[0, 200]], significant=16), 65535),
    (png([[0, 200]], 12, before=chunk(b"gAMA", bytes(4))), 4095),
    # Scaled to all 16 bits, as the specification asks writers to.
    (png([[0, 65520]], significant=12), 65535),
    (png([[0, 200]], significant=0), 255),
    (tiff([[0, 200]]), 255),
    (tiff([[0, 200]], t281=4095), 4095),
    (tiff([[0, 200]], t281=1000), 1000),
    (tiff([[0, 2000]], t281=1000), 4095),
    (pgm([[0, 200]], 4095), 65535),  # Pillow has scaled it
    (png([[0, 0]]), 255),
  ],
)
def test_the_range_of_16_bit_grey(data, expected):
  assert decode.measure_grey(data) == expected


def test_other_images_have_no_range():
  file = io.BytesIO()
  Image.fromarray(IMAGE).save(file, "PNG")
  assert decode.measure_grey(file.getvalue()) is None


@pytest.mark.parametrize("largest", [255, 1023, 4095, 16383, 65535, 1000])
def test_values_up_to_the_range_use_all_of_8_bits(largest):
  values = np.arange(largest + 1)[None]
  got = decode.decode_image(png(values), grey_range=largest)[0, :, 0]
  assert (got[0], got[-1]) == (0, 255)
  assert (np.diff(got.astype(int)) >= 0).all()
  assert len(np.unique(got)) == 256
  if largest == 255:
    np.testing.assert_array_equal(got, values[0])
  if largest == 65535:
    np.testing.assert_array_equal(got, values[0] >> 8)


def test_what_is_above_the_range_is_white():
  got = decode.decode_image(png([[1023, 1024, 60000]]), grey_range=1023)
  assert got[0, :, 0].tolist() == [255, 255, 255]


def test_without_a_range_an_image_is_judged_by_itself_or_refused():
  data = png([[0, 100, 255]])
  assert decode.decode_image(data)[0, :, 0].tolist() == [0, 100, 255]
  with pytest.raises(decode.UnknownGreyRange):
    decode.decode_image(data, strict=True)
  got = decode.decode_image(data, grey_range=1023, strict=True)
  assert got[0, :, 0].tolist() == [0, 25, 63]


def write_grey(folder, brightest, count=3, depth=16):
  """A folder of grey images in parts, each of its own brightest value."""
  for part, largest in brightest.items():
    for i in range(2 * count):
      path = folder / part / f"class_{i % 2}" / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      data = png([[i, largest], [0, 1]])
      if depth == 8 and i:  # all but the first
        file = io.BytesIO()
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(file, "PNG")
        data = file.getvalue()
      path.write_bytes(data)
  return f"folder:{folder}"


def load(source, split, tmp_path, **options):
  return images_lib.load(
    "",
    split,
    source=source,
    image_size=(4, 4),
    cache_dir=tmp_path / "cache",
    **options,
  )


BRIGHTEST = {"train": 300, "val": 2000, "test": 60000}


@pytest.mark.parametrize("split", ["train", "val", "trainval", "test"])
@pytest.mark.parametrize("in_memory", [0, 2**20])
def test_all_splits_have_the_range_of_the_training_images(
  tmp_path, monkeypatch, split, in_memory
):
  source = write_grey(tmp_path / "grey", BRIGHTEST)
  monkeypatch.setattr(datasets, "IN_MEMORY", in_memory)
  got = load(source, split, tmp_path)
  assert got.preprocess.grey_range == 4095  # of train and val
  assert got.preprocess.kept_size == (2, 2)
  largest = min(255, BRIGHTEST[split.replace("trainval", "val")] * 256 // 4096)
  assert got.images.max() == largest
  hidden = [x for x in tmp_path.glob("cache/.*") if x.is_dir()]
  assert hidden == []  # nothing is left of the try without a range


def test_nothing_is_looked_at_where_no_image_is_16_bit(tmp_path, monkeypatch):
  folder = tmp_path / "rgb"
  for i in range(8):
    path = folder / f"class_{i % 2}" / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGE).save(path)
  monkeypatch.setattr(grey_range, "find_grey_range", None)
  got = load(f"folder:{folder}", "trainval", tmp_path)
  assert got.preprocess.grey_range is None


def test_one_such_image_among_others(tmp_path, caplog):
  source = write_grey(tmp_path / "grey", BRIGHTEST, depth=8)
  with caplog.at_level(logging.INFO, "vpt_jax"):
    got = load(source, "train", tmp_path)
  assert got.preprocess.grey_range == 4095
  assert "2 of 12 images are grey of 16 bits" in caplog.text
  assert sorted(got.images[:, 0, 0, 0]) == [0, 1, 2, 3, 4, 5]


def test_only_the_test_images_are_16_bit(tmp_path):
  """Then these decide; nothing else is known."""
  folder = tmp_path / "grey"
  write_grey(folder, {"test": 2000})
  for i in range(8):
    path = folder / "train" / f"class_{i % 2}" / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGE).save(path)
  assert (
    load(f"folder:{folder}", "train", tmp_path).preprocess.grey_range is None
  )
  assert (
    load(f"folder:{folder}", "test", tmp_path).preprocess.grey_range == 4095
  )


def test_the_cache_of_another_range_is_another(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets, "IN_MEMORY", 0)
  source = write_grey(tmp_path / "grey", {"train": 900, "val": 9, "test": 9})
  first = load(source, "test", tmp_path)
  write_grey(tmp_path / "grey", {"train": 9000})
  second = load(source, "test", tmp_path)
  assert first.preprocess.grey_range == 1023
  assert second.preprocess.grey_range == 16383
  assert first.images.filename != second.images.filename
  assert (first.images.max(), second.images.max()) == (2, 0)


def examples_of(files, identity="x"):
  return Examples(
    [str(i) for i in range(len(files))],
    np.zeros(len(files), np.int32),
    1,
    files.__getitem__,
    "here",
    identity,
  )


def test_the_range_of_many_images_is_remembered(tmp_path, monkeypatch):
  monkeypatch.setattr(grey_range, "REMEMBERED", 2)
  files = [png([[0, 300]]), png([[0, 5]])]
  assert grey_range.find_grey_range(examples_of(files), tmp_path) == 1023
  nothing = dataclasses.replace(examples_of(files), read=None)
  assert grey_range.find_grey_range(nothing, tmp_path) == 1023
  other = examples_of(files[1:] * 2, identity="y")
  assert grey_range.find_grey_range(other, tmp_path) == 255
  for path in tmp_path.glob("grey-*.json"):
    path.write_text("{")
  assert grey_range.find_grey_range(examples_of(files), tmp_path) == 1023


def test_bad_images_have_no_say(tmp_path):
  files = [b"<html>", png([[0, 300]]), png([[0, 60000]])[:-30]]
  found = grey_range.find_grey_range(examples_of(files), tmp_path)
  assert found == 1023


def test_a_builder_without_a_range_refuses(tmp_path):
  layout = Layout(Preprocess((4, 4), "none"), train=False)
  examples = examples_of([png([[0, 300]])])
  with pytest.raises(decode.UnknownGreyRange):
    prepared.prepare(examples, layout, tmp_path)
  with pytest.raises(decode.UnknownGreyRange):
    decoding.decode_all(examples, layout)
