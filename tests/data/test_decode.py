"""Every kind of image file is decoded right or refused by name."""

import gzip
import io
import json
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps
import pytest

from vpt_jax.data.transforms.decode import decode_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(RGB).resize((48, 32)))


def encoded(image, form="PNG", **options):
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def grey(values):
  return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


def png(pixels, color):
  """A PNG of 16 bits a channel, which Pillow reads but does not write."""
  chunk = lambda name, data: (
    struct.pack(">I", len(data))
    + name
    + data
    + struct.pack(">I", zlib.crc32(name + data))
  )
  height, width = pixels.shape[:2]
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


# Files that keep every pixel.


@pytest.mark.parametrize(
  "form,options",
  [
    ("PNG", {}),
    ("BMP", {}),
    ("PPM", {}),
    ("TGA", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
    ("JPEG2000", {}),
  ],
)
@pytest.mark.parametrize("shape", [(6, 9), (1, 1), (1, 9), (6, 1)])
def test_lossless(form, options, shape):
  image = RGB[: shape[0], : shape[1]]
  ours = decode_image(encoded(image, form, **options))
  assert ours.dtype == np.uint8
  np.testing.assert_array_equal(ours, image)


@pytest.mark.parametrize("shape", [(3, 20000), (20000, 3)])
def test_very_long(shape):
  image = (np.arange(60000).reshape(*shape, 1) * [1, 7, 31] // 100).astype(
    np.uint8
  )
  np.testing.assert_array_equal(decode_image(encoded(image)), image)
  ours = decode_image(encoded(image, "JPEG", quality=95, subsampling=0))
  assert ours.shape == image.shape


@pytest.mark.parametrize(
  "options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 30}]
)
def test_jpeg(options):
  data = encoded(SMOOTH, "JPEG", **options)
  ours = decode_image(data)
  np.testing.assert_array_equal(ours, Image.open(io.BytesIO(data)))
  assert np.abs(ours.astype(int) - SMOOTH).mean() < 12


def test_alpha_is_dropped_not_blended():
  alpha = np.arange(54, dtype=np.uint8).reshape(6, 9, 1)
  for form in ("PNG", "TIFF"):
    np.testing.assert_array_equal(
      decode_image(encoded(np.concatenate([RGB, alpha], -1), form)), RGB
    )
  data = encoded(np.concatenate([RGB[..., :1], alpha], -1))
  assert Image.open(io.BytesIO(data)).mode == "LA"
  np.testing.assert_array_equal(decode_image(data), grey(RGB[..., 0]))


def test_grey():
  np.testing.assert_array_equal(
    decode_image(encoded(RGB[..., 0])), grey(RGB[..., 0])
  )
  data = encoded(SMOOTH[..., 0], "JPEG")
  np.testing.assert_array_equal(
    decode_image(data), grey(Image.open(io.BytesIO(data)))
  )


def test_one_bit():
  bits = RGB[..., 0] > 127
  for form in ("PNG", "TIFF", "BMP", "PPM"):
    data = encoded(Image.fromarray(bits), form)
    assert Image.open(io.BytesIO(data)).mode == "1"
    np.testing.assert_array_equal(decode_image(data), grey(255 * bits))


@pytest.mark.parametrize("transparency", [None, 2, bytes([0, 9, 255])])
def test_palette(transparency):
  """The transparent entry's own colour shows, and nothing warns of it."""
  index = np.arange(54, dtype=np.uint8).reshape(6, 9) % 4
  colours = [10, 20, 30, 200, 0, 0, 0, 150, 50, 255, 255, 255]
  image = Image.fromarray(index)
  image.putpalette(colours)
  options = {} if transparency is None else {"transparency": transparency}
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    ours = decode_image(encoded(image, **options))
  np.testing.assert_array_equal(
    ours, np.array(colours, np.uint8).reshape(4, 3)[index]
  )


@pytest.mark.parametrize(
  "ink,rgb",
  [
    ((0, 255, 255, 0), (255, 0, 0)),
    ((255, 0, 255, 0), (0, 255, 0)),
    ((0, 0, 0, 255), (0, 0, 0)),
    ((0, 0, 0, 0), (255, 255, 255)),
  ],
)
def test_cmyk(ink, rgb):
  """JPEGs of Adobe's programs, as Pillow's own, store inks inverted."""
  image = Image.new("CMYK", (16, 16), ink)
  for form in ("JPEG", "TIFF"):
    data = encoded(image, form)
    assert (b"Adobe" in data) == (form == "JPEG")
    np.testing.assert_allclose(
      decode_image(data).astype(int), np.broadcast_to(rgb, (16, 16, 3)), atol=3
    )


# More than 8 bits.

DEEP = np.array([[0, 255, 256], [0x7FFF, 0x8000, 0xFFFF]], np.uint16)
HIGH = [[0, 0, 1], [0x7F, 0x80, 0xFF]]


@pytest.mark.parametrize(
  "data",
  [
    encoded(DEEP),
    encoded(DEEP, "TIFF"),
    encoded(DEEP, "PPM"),
    encoded(
      Image.frombytes("I;16B", (3, 2), DEEP.astype(">u2").tobytes()), "TIFF"
    ),
    encoded(DEEP.astype(np.int32), "TIFF"),
    png(DEEP, 0),
  ],
)
def test_16_bit_grey_keeps_its_high_byte(data):
  assert Image.open(io.BytesIO(data)).mode.startswith("I")
  np.testing.assert_array_equal(decode_image(data), grey(HIGH))


def test_16_bit_colours_and_alpha():
  deep = DEEP[..., None] ^ np.array([0, 0xFF00, 0x00FF], np.uint16)
  alpha = DEEP[..., None]
  np.testing.assert_array_equal(decode_image(png(deep, 2)), deep >> 8)
  np.testing.assert_array_equal(
    decode_image(png(np.concatenate([deep, alpha], -1), 6)), deep >> 8
  )
  np.testing.assert_array_equal(
    decode_image(png(np.concatenate([alpha, alpha], -1), 4)), grey(HIGH)
  )


def test_unknown_ranges_are_refused():
  with pytest.raises(ValueError, match="^float pixels"):
    decode_image(encoded(RGB[..., 0].astype(np.float32), "TIFF"))
  for values in ([-1, 5], [3, 65536]):
    with pytest.raises(
      ValueError,
      match=(
        f"^integer pixels {values[0]} .. {values[1]}; expected grey of 16"
      ),
    ):
      decode_image(encoded(np.array([values], np.int32), "TIFF"))


# Orientation.


def tagged(form, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encoded(SMOOTH, form, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(form, orientation):
  data = tagged(form, orientation)
  plain = decode_image(tagged(form, 1))
  np.testing.assert_array_equal(decode_image(data, upright=False), plain)
  with Image.open(io.BytesIO(data)) as image:
    want = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
  ours = decode_image(data, upright=True)
  np.testing.assert_array_equal(ours, want)
  assert ours.flags.c_contiguous
  assert (ours.shape == plain.shape) == (orientation < 5)


def test_a_photo_taken_on_its_side():
  """Orientation 6: the first stored row is the right edge of the scene."""
  scene = np.full((32, 16, 3), 200, np.uint8)
  scene[:, 8:] = 20
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encoded(np.rot90(scene), "JPEG", exif=exif)
  np.testing.assert_allclose(decode_image(data, upright=True), scene, atol=5)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
  "exif",
  [
    b"Exif\0\0",
    b"Exif\0\0nonsense",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
  ],
)
def test_a_damaged_orientation_is_none(exif):
  data = encoded(SMOOTH, "JPEG", exif=exif)
  np.testing.assert_array_equal(
    decode_image(data, upright=True), decode_image(encoded(SMOOTH, "JPEG"))
  )


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_unknown_orientation_is_none(orientation):
  assert decode_image(tagged("PNG", orientation), upright=True).shape == (
    SMOOTH.shape
  )


# Animations.


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame(form):
  frames = [np.full((8, 8, 3), value, np.uint8) for value in (10, 100, 200)]
  options = {"lossless": True} if form == "WEBP" else {}
  data = encoded(
    frames[0],
    form,
    save_all=True,
    append_images=[Image.fromarray(frame) for frame in frames[1:]],
    **options,
  )
  assert Image.open(io.BytesIO(data)).n_frames == 3
  np.testing.assert_array_equal(decode_image(data), frames[0])


# What is no image, or not all of one.


@pytest.mark.parametrize(
  "data,message",
  [
    (b"", "^not an image: the file is empty$"),
    (
      b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
      "looks like a Git LFS pointer: run 'git lfs pull'",
    ),
    (b"\n<!DOCTYPE html><html><body>404</body></html>", "looks like HTML"),
    (b"<html>not found</html>", "looks like HTML"),
    (
      b'<?xml version="1.0"?>\n<!-- a -->\n<svg width="9" height="9"></svg>',
      "looks like SVG: draw it as PNG",
    ),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "looks like SVG"),
    (
      b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
      "looks like XML",
    ),
    (json.dumps({"error": "quota"}).encode(), "looks like JSON"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "HEIC"),
    (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "looks like a video"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "looks like JPEG XL"),
    (gzip.compress(b"image", mtime=0), "looks like gzip: unpack it"),
    (b"PK\x03\x04" + bytes(40), "looks like zip"),
    (b"%PDF-1.7\n", "looks like PDF"),
    (b"\x93NUMPY\x01\0v\0{'descr'", "looks like a NumPy array"),
    (b"image 3\nimage 4\n", "looks like text .b'image 3"),
    (bytes(4096), "nothing but zeros"),
    (b"\x07\xf3\x02\x91 and more", "^not an image: starts with b'.x07.xf3"),
    (b"GIF89" + bytes(40), "looks like a damaged image"),
    (encoded(SMOOTH, "JPEG")[:12], "Truncated"),
  ],
)
def test_what_else_a_file_is_is_said(data, message):
  with pytest.raises(ValueError, match=message):
    decode_image(data)


def test_a_drawing_starts_no_other_program():
  data = encoded(RGB, "EPS")
  assert Image.open(io.BytesIO(data)).format == "EPS"
  with pytest.raises(ValueError, match="^EPS is a drawing: save it as PNG"):
    decode_image(data)


@pytest.mark.parametrize(
  "form,options",
  [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("WEBP", {}),
    ("BMP", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
  ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_unfinished_file(form, options):
  """Never pixels that the whole file does not have."""
  image = Image.fromarray(SMOOTH)
  data = encoded(
    image.quantize(16) if form == "GIF" else image, form, **options
  )
  whole, refused = decode_image(data), 0
  lengths = [*range(0, len(data), 1 + len(data) // 40)]
  for length in lengths:
    try:
      np.testing.assert_array_equal(decode_image(data[:length]), whole)
    except ValueError as error:
      assert str(error)
      refused += 1
  assert refused >= len(lengths) - 1  # PNG's last chunk says nothing


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_damage_is_a_value_error_at_most(form):
  data, rng = encoded(SMOOTH, form), np.random.default_rng(0)
  for _ in range(60):
    bad = np.frombuffer(data, np.uint8).copy()
    bad[rng.integers(0, len(bad), 4)] = rng.integers(0, 256, 4)
    try:
      assert decode_image(bad.tobytes(), upright=True).ndim == 3
    except ValueError as error:
      assert str(error)


@pytest.mark.parametrize("image", ["colour", "palette", "grey of 16 bits"])
def test_a_flipped_bit_of_a_png_changes_no_pixel(image):
  """Of a format with checksums, other pixels are never taken without a word.

  Pillow looks at the checksums of the headers only.
  """
  if image == "grey of 16 bits":
    data = png(np.arange(54).reshape(6, 9), 0)
  else:
    colour = Image.fromarray(RGB)
    is_palette = image == "palette"
    data = encoded(colour.convert("P") if is_palette else colour)
  want = decode_image(data)
  refused = 0
  for place in range(8 * len(data)):
    flipped = bytearray(data)
    flipped[place // 8] ^= 1 << place % 8
    try:
      got = decode_image(bytes(flipped))
    except ValueError:
      refused += 1
      continue
    np.testing.assert_array_equal(got, want, err_msg=f"bit {place}")
  assert refused > 4 * len(data)


@pytest.mark.parametrize("side", [14, 20])
def test_too_many_pixels(monkeypatch, side):
  """Pillow warns of pixels above its limit and raises above twice of it."""
  data = encoded(np.zeros((side, side, 3), np.uint8))
  fits = encoded(np.zeros((12, 12, 3), np.uint8))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 144)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with pytest.raises(ValueError, match="pixels"):
      decode_image(data)
  assert decode_image(fits).shape == (12, 12, 3)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
  assert decode_image(data).shape == (side, side, 3)
