"""Decodes image files of every kind to uint8 RGB.

What is no image is refused with an error that says what the bytes look like.
Needs NumPy and Pillow alone.
"""

from collections.abc import Iterator
import contextlib
import io
import math
import os
import re
import struct

import numpy as np
from PIL import ExifTags, Image

from vpt_jax.data.transforms import heic, png_chunks
from vpt_jax.utils import strange_files

# Formats that Pillow has drawn by other programs (Ghostscript), which an image
# file should not start.
VECTOR = ("EPS", "WMF")

# Bytes of an image file: the largest image that is decoded has half of that,
# with 8 bits of each colour and not compressed.
MOST_BYTES = 2**29

# (pattern of the first bytes, what they look like), most telling first.
SIGNATURES = (
  (rb"$", "the file is empty"),
  (rb"\0+$", "nothing but zeros, as an unfinished download leaves"),
  (rb"version https://git-lfs", "a Git LFS pointer: run 'git lfs pull'"),
  (rb"(?i)\s*<(!doctype )?html", "HTML, such as a failed download's page"),
  (rb"(?is)\s*(<\?xml.*)?<svg", "SVG: draw it as PNG first"),
  (rb"\s*<\?xml", "XML"),
  (rb"\s*[{\[]\s*[\"{\[]", "JSON"),
  (rb"(?s).{4}ftyp(hei|hev|mif1|msf1)", "HEIC, but cannot be read"),
  (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL: convert it to PNG first"),
  (rb"(?s).{4}ftyp", "a video"),
  (rb"%PDF", "PDF"),
  (rb"\x1f\x8b", "gzip: unpack it first"),
  (rb"PK\x03\x04", "zip: unpack it first"),
  (rb"(?s).{257}ustar", "tar: unpack it first"),
  (
    rb"\x28\xb5\x2f\xfd|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!",
    "an archive: unpack it first",
  ),
  (rb"\x93NUMPY", "a NumPy array"),
  (rb"\xff\xd8|\x89PNG|GIF8|BM|RIFF|II\*\0|MM\0\*", "a damaged image"),
  (rb"[\t\n\r -~]+$", "text"),
)

# EXIF's orientation -> what makes the image upright.
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

# Largest values of the usual depths of grey: 8, 10, 12, 14 and 16 bits.
GREY_RANGES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
# Formats whose 16-bit grey Pillow has already scaled to all 16 bits.
SCALED_BY_PILLOW = ("PPM", "JPEG2000")
TIFF_BITS_PER_SAMPLE = 258
TIFF_MAX_SAMPLE_VALUE = 281


class UnknownGreyRange(Exception):
  """Is raised for 16-bit grey whose range is to be that of a data set."""


def read_file(path: str | os.PathLike) -> bytes:
  """Returns the content of an image file, which is not decoded.

  Raises:
    ValueError: it is no regular file (but a pipe, say), or too large.
    OSError: it is not there, or cannot be read.
  """
  return strange_files.read_bytes(path, MOST_BYTES)


def check_sides(width: int, height: int) -> None:
  """Raises ValueError for an image without pixels, or with far too many."""
  if width < 1 or height < 1:
    raise ValueError(
      f"{width} x {height} pixels; expected at least one each way"
    )
  limit = Image.MAX_IMAGE_PIXELS or math.inf
  if width * height > limit:  # a small file, gigabytes in RAM
    raise ValueError(
      f"{width} x {height} pixels, above Pillow's limit of {limit}"
    )


def decode_image(
  data: bytes,
  upright: bool = True,
  grey_range: int | None = None,
  strict: bool = False,
) -> np.ndarray:
  """Decodes an image file's content.

  Reads whatever Pillow reads, as its `convert("RGB")` gives it, which is what
  the papers' loaders call: alpha and transparent colours are dropped (the
  colour below a transparent pixel shows), a palette is looked up, grey is
  repeated, CMYK is converted without a colour profile. Of an animation, the
  first frame. Of 16-bit colours, or 16-bit grey with alpha, Pillow keeps the
  high byte.

  Where `convert` would clip 16-bit grey to 255, it is scaled instead:

    8-bit = min(255, floor(256 value / (grey_range + 1)))

  which is the high byte where the range is all 16 bits.

  Args:
    data: the file's content.
    upright: turns the image as its EXIF orientation says. The benchmarks' code
      does not, with PIL and TensorFlow alike, so their images are decoded with
      False. (TIFF is always turned: Pillow does so itself.)
    grey_range: largest value of 16-bit grey, the same for a whole data set;
      None: by this image alone, see `measure_grey`.
    strict: where `grey_range` is None, refuses 16-bit grey.

  Returns:
    uint8 [H, W, 3].

  Raises:
    UnknownGreyRange: see `strict`.
    ValueError: not an image, a damaged or unfinished one, pixels without a
      known range, or more of them than `PIL.Image.MAX_IMAGE_PIXELS`. (From one
      to two times that, Pillow warns too: with DecompressionBombWarning, from
      `PIL.Image`. Whoever decodes in threads may silence it around all of
      them, as filters of warnings belong to the process.)
  """
  with _opened(data) as image:
    if grey_range is None and is_deep_grey(image):
      if strict:
        raise UnknownGreyRange
      _load(image, data)
      grey_range = _grey_range(image, data)
    _load(image, data)
    return convert_to_rgb(image, upright, grey_range)


def convert_to_rgb(
  image: Image.Image, upright: bool = True, grey_range: int | None = None
) -> np.ndarray:
  """Converts an image of Pillow, see `decode_image`.

  Args:
    image: of any mode.
    upright: turns the image as its EXIF orientation says.
    grey_range: largest value of 16-bit grey; None: by this image alone.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: pixels without a known range.
  """
  check_sides(image.width, image.height)
  if image.mode == "F":
    raise ValueError(
      "float pixels, whose range the file does not tell; save "
      "it with 8 or 16 bits"
    )
  # An image that a user has opened may be read from its file only now.
  with _as_value_errors():
    if is_deep_grey(image):
      grey_range = grey_range or _grey_range(image)
      rgb = Image.fromarray(_scale_grey(image, grey_range)).convert("RGB")
    else:
      rgb = _convert_without_transparency(image)
    if upright:
      turn = UPRIGHT.get(_orientation(image))
      if turn is not None:
        rgb = rgb.transpose(turn)
  return np.asarray(rgb)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
  """Opens an image file's content, with its pixels read as they are stored.

  Raises:
    ValueError: see `decode_image`, or a PNG without all of its rows; so does
      whatever goes wrong in the body.
  """
  with _opened(data) as image:
    if image.format == "PNG":
      png_chunks.check_rows(data)
    _load(image, data)
    yield image


def measure_grey(data: bytes) -> int | None:
  """Returns the range of a file's 16-bit grey, None if it is no such file.

  Of other files only the header is read. The range is what the file states,
  where no value is above that: significant bits (PNG's sBIT), bits per sample
  or the largest sample value (TIFF). (A PNG that states fewer bits than 16 may
  use them all: the specification asks writers to scale.) Else it is the
  largest value that is there, rounded up to 8, 10, 12, 14 or 16 bits.

  Raises:
    ValueError: see `decode_image`.
  """
  with _opened(data) as image:
    if not is_deep_grey(image):
      return None
    _load(image, data)
    return _grey_range(image, data)


def is_deep_grey(image: Image.Image) -> bool:
  """Returns whether an image is grey of more than 8 bits."""
  return image.mode.startswith("I")


def looks_like(data: bytes) -> str:
  """Returns what the first bytes of a file that is no image tell about it."""
  head = bytes(data[:512])
  for pattern, what in SIGNATURES:
    if re.match(pattern, head):
      return f"looks like {what} ({head[:16]!r})" if head else what
  return f"starts with {head[:16]!r}"


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  """Opens an image; whatever is wrong with it becomes a ValueError."""
  with _as_value_errors():
    try:
      image = _open(data)
    except Image.UnidentifiedImageError:
      raise ValueError(f"not an image: {looks_like(data)}") from None
    with image:
      check_sides(image.width, image.height)
      if image.format in VECTOR:
        raise ValueError(f"{image.format} is a drawing: save it as PNG first")
      yield image


def _open(data: bytes) -> Image.Image:
  """Opens an image, with the reader of HEIC if it needs that."""
  try:
    return Image.open(io.BytesIO(data))
  except Image.UnidentifiedImageError:
    if not heic.is_heic(data):
      raise
  heic.enable()
  return Image.open(io.BytesIO(data))


@contextlib.contextmanager
def _as_value_errors() -> Iterator[None]:
  """Makes a ValueError of whatever Pillow raises for a damaged image."""
  try:
    yield
  except (MemoryError, UnknownGreyRange):
    raise
  except Exception as error:  # Pillow's readers raise what damage leads to
    if type(error) is ValueError:
      raise
    raise ValueError(str(error) or type(error).__name__) from error


def _load(image: Image.Image, data: bytes) -> None:
  """Reads the pixels of an image from the content of its file.

  Raises:
    ValueError: a PNG whose pixels do not have their checksum, which Pillow
      would show all the same.
  """
  if image.format == "PNG":
    png_chunks.check_sums(data)
  image.load()


def _grey_range(image: Image.Image, data: bytes = b"") -> int:
  """Returns what `measure_grey` says of a loaded image of 16-bit grey."""
  largest = _check_grey(np.asarray(image))
  stated = _stated_range(image, data)
  if stated is not None and largest <= stated:
    return stated
  return next(limit for limit in GREY_RANGES if largest <= limit)


def _check_grey(grey: np.ndarray) -> int:
  """Returns the largest value of 16-bit grey.

  Raises:
    ValueError: values outside of 16 bits.
  """
  if grey.min() < 0 or grey.max() > 0xFFFF:
    raise ValueError(
      f"integer pixels {grey.min()} .. {grey.max()}; expected "
      "grey of 16 bits; save it with 8 or 16 bits"
    )
  return int(grey.max())


def _stated_range(image: Image.Image, data: bytes) -> int | None:
  """Returns the largest value that a file says its grey may have, if any."""
  if image.format in SCALED_BY_PILLOW:
    return 0xFFFF
  if image.format == "PNG":
    bits = png_chunks.significant_bits(data)
    return None if bits is None else 2**bits - 1
  if image.format == "TIFF":
    tags = getattr(image, "tag_v2", {})
    stated = _first_integer(tags.get(TIFF_MAX_SAMPLE_VALUE))
    if stated is not None:
      return stated
    bits = _first_integer(tags.get(TIFF_BITS_PER_SAMPLE))
    # 16 and more are how it is stored, and say nothing of its values.
    if bits is not None and bits < 16:
      return 2**bits - 1
  return None


def _first_integer(value: object) -> int | None:
  """Returns a TIFF tag's value, or the first of several, if it is above 0."""
  if isinstance(value, tuple):
    value = value[0] if value else None
  return value if isinstance(value, int) and value > 0 else None


def _scale_grey(image: Image.Image, grey_range: int) -> np.ndarray:
  """Scales 16-bit grey to uint8 [H, W]; what is above the range is white."""
  grey = np.asarray(image)
  _check_grey(grey)
  scaled = grey.astype(np.int64) * 256 // (grey_range + 1)
  return np.minimum(scaled, 255).astype(np.uint8)


def _convert_without_transparency(image: Image.Image) -> Image.Image:
  """Converts to RGB; a transparent colour shows.

  The pixels are the same with it, but Pillow warns that RGB cannot keep it.
  """
  transparency = image.info.pop("transparency", None)
  rgb = image.convert("RGB")
  if transparency is not None:
    image.info["transparency"] = transparency
  return rgb


def _orientation(image: Image.Image) -> int:
  """Returns EXIF's orientation; 1 (upright) if there is none to be read."""
  try:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  except (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    struct.error,
  ):
    return 1
