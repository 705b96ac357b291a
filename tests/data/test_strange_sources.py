"""Data of strangers: whatever a source names or holds is data, and bounded."""

import io
import json
import os
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from tests.utils.test_strange_files import declared, npy, packed
from vpt_jax.data import __main__ as command
from vpt_jax.data import datasets
from vpt_jax.data.sources import arrays, image_files
from vpt_jax.data.transforms import decode
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.serving import inputs

PREPROCESS = Preprocess((8, 8), "none", "vtab")


def check(capsys, source, *options):
  """Returns what `python -m vpt_jax.data check` says of a source."""
  status = command.main(["data", "check", f"--source={source}", *options])
  captured = capsys.readouterr()
  text = captured.out + captured.err
  assert "Traceback" not in text
  assert status == 1
  return text


def photos(folder, count=8):
  """Writes CLASS/NAME.png of two classes."""
  for i in range(count):
    path = folder / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
  return folder


# npz files.


LABELS = npy(np.arange(8) % 2)
IMAGES = npy(np.zeros((8, 4, 4, 3), np.uint8))
MATRIX = npy(np.zeros((8, 2), np.uint8))
UNUSABLE = {
  "a bomb": ({"images.npy": bytes(2**28 + 1)}, "suspiciously large"),
  "a huge shape": (
    {"images.npy": declared((90_000_000_000, 1, 3))},
    "not the 270000000000",
  ),
  "0-d images": ({"images.npy": npy(np.uint8(1))}, r"got uint8 \[\]"),
  "0-d labels": ({"labels.npy": npy(np.array(1))}, r"got int64 \[\]"),
  "0-d parts": ({"split.npy": npy(np.array("train"))}, "split must be"),
  "parts that are no names": (
    {"split.npy": npy(np.zeros(8, "i4, 2i4"))},
    "split must be",
  ),
  "objects": (
    {"labels.npy": npy(np.array([{}] * 8), allow_pickle=True)},
    "pickled content is never loaded",
  ),
  "no height": (
    {"images.npy": npy(np.zeros((8, 0, 4, 3), np.uint8))},
    r"images of no pixels: \[1, 0, 4, 3\]",
  ),
  "10^12 images of none": (
    {"images.npy": declared((10**12, 0, 0, 3))},
    "images of no pixels",
  ),
  "a matrix": ({"labels.npy": MATRIX}, "config.problem wants one class"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_npz_files_of_strangers(tmp_path, capsys, kind):
  """Sizes that are declared are compared with those of the file; no objects.

  Every shape and type of every array ends in a sentence that names the file.
  """
  changes, message = UNUSABLE[kind]
  members = {"images.npy": IMAGES, "labels.npy": LABELS} | changes
  path = packed(tmp_path / "x.npz", members)
  with pytest.raises(ValueError, match=message) as caught:
    datasets.open_split("x", "train", source=f"npz:{path}")
  assert str(path) in str(caught.value)
  assert str(path) in check(capsys, f"npz:{path}")


def test_an_array_that_is_named_npz(tmp_path, capsys):
  path = tmp_path / "x.npz"
  path.write_bytes(IMAGES)
  assert "a single array (.npy)" in check(capsys, f"npz:{path}")


def test_the_guards_let_good_files_pass(tmp_path):
  path = packed(
    tmp_path / "x.npz", {"images.npy": IMAGES, "labels.npy": LABELS}
  )
  assert len(datasets.open_split("x", "train", source=f"npz:{path}")) == 4


@pytest.mark.parametrize("name", ["jpeg_bytes", "offsets", "labels", "split"])
@pytest.mark.parametrize(
  "change", [lambda x: x[:-1], lambda x: x[0], lambda x: x[:0], np.stack]
)
def test_embedded_images_that_do_not_fit_together(tmp_path, name, change):
  """The npz of JPEG bytes that tasks have: each array is checked."""
  whole = {
    "jpeg_bytes": np.arange(9, dtype=np.uint8),
    "offsets": np.array([0, 4, 9]),
    "labels": np.array([0, 1]),
    "split": np.array(["train", "test"]),
  }
  path = tmp_path / "x.npz"
  np.savez(path, **whole)
  assert arrays.jpeg_npz(path, "test", 2, ()).read(0) == bytes(range(4, 9))
  if change is np.stack:
    changed = np.stack([whole[name]] * 2)
  else:
    changed = change(whole[name])
  np.savez(path, **whole | {name: changed})
  with pytest.raises(ValueError, match="x.npz is damaged.*get the file again"):
    arrays.jpeg_npz(path, "test", 2, ())


# What tables and folders name.


@pytest.mark.parametrize("kind", ["csv", "json", "folder", "pack"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "huge"])
def test_images_are_regular_files_of_a_sensible_size(tmp_path, kind, what):
  """No pipe, no /dev/zero, no folder, no terabyte: named by every source."""
  photos(tmp_path / "D")
  strange = tmp_path / "D/a/0.png"
  strange.unlink()
  match what:
    case "pipe":
      os.mkfifo(strange)
    case "device":
      strange.symlink_to("/dev/zero")
    case "folder":
      strange.mkdir()
    case "huge":
      with strange.open("wb") as file:
        file.truncate(10**12)
  rows = {f"{'ab'[i % 2]}/{i}.png": i % 2 for i in range(8)}
  match kind:
    case "csv":
      lines = [f"{name},{label}" for name, label in rows.items()]
      table = tmp_path / "D/t.csv"
      table.write_text("\n".join(["path,label", *lines]))
      source = f"csv:{table}"
    case "json":
      for part in ("train", "val", "test"):
        (tmp_path / f"D/{part}.json").write_text(json.dumps(rows))
      source = f"json:{tmp_path}/D"
    case "folder":
      source = f"folder:{tmp_path}/D"
    case "pack":
      lines = [f"{name} {label}" for name, label in rows.items()]
      for name in image_files.PACK_LISTS.values():
        (tmp_path / "D" / name).write_text("\n".join(lines))
      source = ""
  bad = []
  for split in ("train", "val", "test"):
    if source:
      examples = datasets.open_split("x", split, source=source)
    else:
      examples = image_files.pack(tmp_path / "D", split, 2)
    for i, name in enumerate(examples.names):
      try:
        examples.read(i)
      except ValueError as error:
        bad.append(f"{name}: {error}")
  if kind == "folder" and what != "huge":  # there it is no image at all
    assert not bad
  else:
    expected = "at most" if what == "huge" else f"is a {what}; expected a reg"
    assert bad and all("0.png" in text for text in bad)
    assert all(expected in text for text in bad)


@pytest.mark.parametrize("kind", ["csv", "json", "npz"])
def test_tables_themselves_are_regular_files(tmp_path, capsys, kind):
  """The example of a pipe: `mkfifo t.csv`, which nobody writes into."""
  path = tmp_path / ("train.json" if kind == "json" else f"t.{kind}")
  os.mkfifo(path)
  text = check(capsys, f"{kind}:{tmp_path if kind == 'json' else path}")
  assert str(path) in text


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "1" * 10**5])
def test_json_that_is_nested_or_too_long(tmp_path, capsys, text):
  (tmp_path / "train.json").write_text(text)
  assert "train.json" in check(capsys, f"json:{tmp_path}")


# Images of odd sizes.


def png(width, height):
  def chunk(name, data):
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + checksum

  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  pixels = zlib.compress(bytes((width + 1) * min(height, 9)))
  parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(kind):
  stream = io.BytesIO()
  Image.new("RGB", (300, 200)).save(stream, kind)
  return bytearray(stream.getvalue())


def with_height(kind, height):
  """Returns an image file whose header tells another height."""
  data = saved(kind)
  match kind:
    case "BMP":
      data[22:26] = struct.pack("<i", height)
    case "GIF":
      data[8:10] = struct.pack("<H", height)  # of all frames together
      at = data.index(b",\0\0\0\0") + 7  # of the first one
      data[at : at + 2] = struct.pack("<H", height)
    case "JPEG":
      at = data.index(b"\xff\xc0") + 5
      data[at : at + 2] = struct.pack(">H", height)
    case "PPM":
      data = bytearray(f"P6 300 {height} 255\n".encode() + bytes(900))
    case "TIFF":
      at = data.index(struct.pack("<HH", 257, 4)) + 8
      data[at : at + 2] = struct.pack("<H", height)
  return bytes(data)


KINDS = ("BMP", "GIF", "JPEG", "PPM", "TIFF")
BAD_SIZES = {f"{kind} of no height": with_height(kind, 0) for kind in KINDS}
BAD_SIZES |= {
  "PNG of no height": png(4, 0),
  "PNG of no width": png(0, 4),
  "PNG of gigapixels": png(10**5, 10**5),
  "PNG beyond 31 bits": png(2**31, 2**31),
  "cut PNG": png(4, 4)[:35],
  "cut JPEG": bytes(saved("JPEG")[:900]),
  "cut BMP": bytes(saved("BMP")[:400]),
  "cut TIFF": bytes(saved("TIFF")[:400]),
}


@pytest.mark.parametrize("kind", BAD_SIZES)
def test_images_without_pixels_or_cut_or_far_too_large(tmp_path, kind):
  """On every way to a decoded image: a sentence with the file's name."""
  data = BAD_SIZES[kind]
  with pytest.raises(ValueError):
    decode.decode_image(data)
  with pytest.raises(ValueError):
    inputs.decode_image(data, PREPROCESS)
  folder = photos(tmp_path / "D")
  (folder / "a/0.png").write_bytes(data)
  with pytest.raises(ValueError, match="cannot read image .*a/0.png"):
    PREPROCESS.read(folder / "a/0.png")
  with pytest.raises(ValueError) as caught:
    for split in ("train", "val", "test"):
      datasets.load("x", split, PREPROCESS, source=f"folder:{folder}")
  assert "cannot decode a/0.png" in str(caught.value)


def test_images_that_a_user_gives_without_pixels():
  """Arrays, and images of Pillow, which may be read from their file late."""
  for array in (np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 1), np.uint8)):
    with pytest.raises(ValueError, match="expected at least one each way"):
      inputs.decode_image(array, PREPROCESS)
    with pytest.raises(ValueError, match="images of no pixels"):
      arrays.from_arrays(array[None], np.zeros(1, int), 2)
  with pytest.raises(ValueError, match="expected at least one each way"):
    inputs.decode_image(Image.new("RGB", (4, 0)), PREPROCESS)
  cut = Image.open(io.BytesIO(BAD_SIZES["cut JPEG"]))
  with pytest.raises(ValueError, match="truncated"):
    inputs.decode_image(cut, PREPROCESS)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
@pytest.mark.parametrize("family", ["vtab", "fgvc", "pgn", "pgn_crop"])
def test_images_that_are_one_pixel_wide(size, family):
  stream = io.BytesIO()
  Image.new("RGB", size, (9, 8, 7)).save(stream, "PNG")
  preprocess = Preprocess((8, 8), "none", family)
  image = preprocess.fit(preprocess.decode(stream.getvalue()))
  assert image.shape == (8, 8, 3)
  assert image[4, 4].tolist() == [9, 8, 7]
