"""A mask is read right, or refused with what was found and what to do."""

import io
from pathlib import Path
import re
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from tests.fuzz import outcomes as outcomes_lib
from tests.fuzz import runner
from tests.fuzz.masks_kind import Masks
from vpt_jax.data.sources import masks
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.data.transforms import png_chunks

RECORDED = Path(__file__).parents[1] / "golden" / "seg_metrics.npz"
LABEL = np.kron(np.arange(12).reshape(3, 4) % 3, np.ones((4, 4)))
LABEL = LABEL.astype(np.uint8)
COLOURS = np.array([[0, 0, 0], [0, 128, 255], [255, 0, 0]], np.uint8)


def png(pixels, mode=None, file_format="PNG", **options):
  image = Image.fromarray(pixels, mode)
  if mode == "P":
    image.putpalette([7, 8, 9] * 256)
  buffer = io.BytesIO()
  image.save(buffer, file_format, **options)
  return buffer.getvalue()


def read(data, **meaning):
  return masks.decode_mask(data, "masks/a.png", Meaning(**meaning))


@pytest.mark.parametrize(
  "data",
  [
    png(LABEL),
    png(LABEL, "P"),
    png(LABEL, "P", bits=2),
    png(LABEL, "P", bits=4),
    png(LABEL.astype(np.uint16)),
    png(LABEL, "P", transparency=1),
  ],
  ids=["grey", "palette", "2 bits", "4 bits", "16 bits", "transparent colour"],
)
def test_numbers_are_read_as_they_are_stored(data):
  np.testing.assert_array_equal(read(data), LABEL)
  assert read(data).dtype == np.uint8


def packed_png(label, bits, height, is_interlaced=False):
  """Returns a grey PNG of few bits that says it has so many rows."""

  def chunk(name, content):
    crc = zlib.crc32(name + content).to_bytes(4, "big")
    return struct.pack(">I4s", len(content), name) + content + crc

  digits = np.unpackbits(label[..., None], axis=-1)[..., -bits:]
  rows = np.packbits(digits.reshape(len(label), -1), axis=-1)
  lines = b"".join(b"\0" + row.tobytes() for row in rows)
  size = (label.shape[1], height)
  header = struct.pack(">IIBBBBB", *size, bits, 0, 0, 0, is_interlaced)
  parts = [
    chunk(b"IHDR", header),
    chunk(b"IDAT", zlib.compress(lines)),
    chunk(b"IEND", b""),
  ]
  return png_chunks.SIGNATURE + b"".join(parts)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_not_spread_over_eight(bits):
  """Pillow shows the stored value 1 of two bits as 85."""
  label = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**bits
  data = packed_png(label, bits, 2)
  np.testing.assert_array_equal(read(data, thin=True), label)


@pytest.mark.parametrize("is_interlaced", [False, True])
def test_rows_that_are_missing_are_not_class_zero(is_interlaced):
  """Pillow fills them with zeros."""
  label = np.arange(16, dtype=np.uint8).reshape(2, 8) % 4
  with pytest.raises(ValueError, match="its rows have 6 bytes, expected"):
    read(packed_png(label, 2, 3000, is_interlaced))


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (16, 16), (13, 30)])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_bytes_of_interlaced_rows(size, bits):
  """Pillow cannot write them: equal to counting the pixels of each pass."""
  header = png_chunks.Header(*size, bits, 0, True)
  total = 0
  for left, top, across, down in png_chunks.PASSES:
    for _ in range(top, size[1], down):
      width = len(range(left, size[0], across))
      total += 1 + (width * bits + 7) // 8 if width else 0
  assert png_chunks.unpacked_bytes(header) == total


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_read_by_a_map(mode):
  image = Image.fromarray(COLOURS[LABEL])
  buffer = io.BytesIO()
  exact = Image.Palette.ADAPTIVE
  image.convert(mode, palette=exact).save(buffer, "PNG")
  colours = masks.parse_colours("000000=0, 0080ff=1, #FF0000=2")
  label = read(buffer.getvalue(), colours=colours, num_classes=3)
  np.testing.assert_array_equal(label, LABEL)


def test_colours_without_a_map_are_shown_with_one():
  """The map that the error shows is taken as it is."""
  data = png(COLOURS[LABEL])
  with pytest.raises(ValueError, match="colours \\(RGB\\) instead") as error:
    read(data)
  shown = re.search(r"segmentation.colours=(\S+)$", str(error.value))
  assert shown is not None
  label = read(data, colours=masks.parse_colours(shown[1]))
  np.testing.assert_array_equal(label, LABEL)


NOISE = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
ALPHA = np.dstack([COLOURS[LABEL], LABEL * 100])
DEEP = LABEL.astype(np.uint16) * 300


@pytest.mark.parametrize(
  ("data", "meaning", "found"),
  [
    (png(NOISE), {}, "an image, or a mask with soft edges"),
    (
      png(COLOURS[LABEL]),
      {"colours": {(0, 0, 0): 0}},
      "2 colours are not in the map of colours: 0080ff, ff0000",
    ),
    (png(ALPHA), {"colours": {(0, 0, 0): 0}}, "transparent pixels"),
    (png(DEEP), {}, "out of range: 300, 600, the first at row 0, column 4"),
    (png(LABEL), {"num_classes": 2}, "out of range: 2, .*expected 0..1 and"),
    (
      png(LABEL),
      {"num_classes": 1, "reduce_zero_label": True},
      "out of range: 2, .*expected 1..1 and",
    ),
    (
      png(LABEL.astype(np.uint16) + 254),
      {"reduce_zero_label": True},
      "out of range: 256",
    ),
    (png(LABEL), {"label_map": {1: 300}}, "out of range: 1"),
    (png(LABEL, None, "JPEG"), {}, "a JPEG, whose compression"),
    (png(LABEL, None, "BMP"), {}, "a BMP file; expected PNG"),
    (png(LABEL)[:-30], {}, "damaged|truncated|broken"),
    (b"", {}, "the file is empty"),
    (b"<html>", {}, "HTML"),
  ],
)
def test_what_is_unclear_is_refused_with_what_was_found(data, meaning, found):
  with pytest.raises(ValueError, match=f"(?s)mask masks/a.png: .*({found})"):
    read(data, **meaning)


@pytest.mark.parametrize("num_classes", [0, 2, 200])
def test_soft_edges_are_refused(num_classes):
  """Also where all of the numbers in between are in range."""
  disk = np.hypot(*np.mgrid[-30:31, -30:31]) < 21.3
  soft = Image.fromarray((disk * 190).astype(np.uint8))
  soft = np.array(soft.resize((47, 47), Image.Resampling.BILINEAR))
  soft[:, :3] = masks.IGNORED
  with pytest.raises(ValueError, match="soft edges"):
    read(png(soft), num_classes=num_classes)


def test_thin_labels_can_be_read():
  stripes = np.repeat(np.arange(30, dtype=np.uint8)[None], 20, axis=0)
  with pytest.raises(ValueError, match="thin=True"):
    read(png(stripes))
  np.testing.assert_array_equal(read(png(stripes), thin=True), stripes)


def test_labels_are_reduced_and_mapped_as_published():
  with np.load(RECORDED) as golden:
    values = png(golden["input/raw_png_values"])
    for is_reduced in (False, True):
      want = golden[f"out/reduce_zero_label_{str(is_reduced).lower()}"]
      got = read(values, reduce_zero_label=is_reduced, thin=True)
      np.testing.assert_array_equal(got, want)
    label_map = {0: 5, 1: 0, 2: 255, 3: 1, 4: 1}
    got = read(values, label_map=label_map, thin=True)
    np.testing.assert_array_equal(got, golden["out/label_map"])


@pytest.mark.parametrize(
  ("size", "found"),
  [((12, 17), "nearest neighbours"), ((16, 12), "EXIF")],
)
def test_other_sizes_name_both_files(size, found):
  masks.check_size(LABEL, LABEL.shape, "a.png", "a.jpg")
  match = f"mask a.png has 16 x 12 .* image a.jpg has .*{found}"
  with pytest.raises(ValueError, match=match):
    masks.check_size(LABEL, size, "a.png", "a.jpg")


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("", "found ''"),
    ("000000", "found '000000'"),
    ("000000=256", "in 0..255"),
    ("black=0", "RRGGBB=LABEL"),
    ("000000=0,000000=1", "in it twice"),
  ],
)
def test_maps_of_colours_that_are_none(text, found):
  with pytest.raises(ValueError, match=found):
    masks.parse_colours(text)


def counts(*labels):
  return masks.count_labels([np.array([labels], np.uint8)])


def test_the_number_of_classes_is_told_by_all_masks():
  assert masks.number_of_classes(counts(0, 1, 2, 2, 255), "x") == 3
  assert counts(2, 2, 255)[2] == 2


@pytest.mark.parametrize(
  ("labels", "found"),
  [
    ((0, 255), r"label_map=\(\(255,1\),\)"),
    ((0, 0), "two classes or more"),
    ((255,), "two classes or more"),
    ((0, 38, 75), r"label_map=\(\(0,0\),\(38,1\),\(75,2\)\)"),
  ],
)
def test_labels_that_may_mean_several_things_are_refused(labels, found):
  with pytest.raises(ValueError, match=f"^mine: .*{found}"):
    masks.number_of_classes(counts(*labels), "mine")


def test_mutated_masks_give_errors_only(tmp_path):
  """`python -m tests.fuzz masks --count 10000` is the long form."""
  kind = Masks()
  kind.make(tmp_path)
  kind.open(tmp_path, tmp_path)
  outcomes = [kind.run(runner.random_numbers(number)) for number in range(200)]
  faults = [one for one in outcomes if one.kind in outcomes_lib.FAULTS]
  assert not faults
  assert {one.kind for one in outcomes} >= {"refused", "same", "other"}
