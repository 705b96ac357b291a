"""Encoded images of every kind -> uint8 RGB, or an error that says what else
the bytes are."""

import io
import math
import re
import struct

import numpy as np
from PIL import ExifTags, Image

# Drawn by other programs (Ghostscript) that an image file should not start.
VECTOR = ("EPS", "WMF")

# What first bytes look like that are no image, most telling first.
SIGNATURES = (
  (rb"$", "the file is empty"),
  (rb"\0+$", "nothing but zeros, as an unfinished download leaves"),
  (rb"version https://git-lfs", "a Git LFS pointer: run 'git lfs pull'"),
  (rb"(?i)\s*<(!doctype )?html", "HTML, such as a failed download's page"),
  (rb"(?is)\s*(<\?xml.*)?<svg", "SVG: draw it as PNG first"),
  (rb"\s*<\?xml", "XML"),
  (rb"\s*[{\[]\s*[\"{\[]", "JSON"),
  (rb"(?s).{4}ftyp(hei|hev|mif1|msf1)", "HEIC: convert it to JPEG first"),
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

# Turns that make EXIF's orientations upright: rows and columns of [H, W].
UPRIGHT = {
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: x[::-1].swapaxes(0, 1),
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


def decode_image(data: bytes, upright: bool = False) -> np.ndarray:
  """Encoded image -> uint8 [H, W, 3].

  Whatever Pillow reads, as its `convert("RGB")` gives it, which is what the
  papers' loaders call: alpha and transparent colours are dropped (the colour
  below a transparent pixel shows), a palette is looked up, grey is repeated,
  CMYK is converted without a colour profile. Of an animation, the first frame.
  Where `convert` would clip 16-bit grey to 255, its high byte is taken instead.

  Args:
    data: the file's content.
    upright: turns the image as its EXIF orientation says. False is what the
      benchmarks' code does, with PIL and TensorFlow alike; a user's own photos
      should be True. (TIFF is always turned: Pillow does so itself.)

  Raises:
    ValueError: not an image, a damaged or unfinished one, pixels without a
      known range, or more of them than `PIL.Image.MAX_IMAGE_PIXELS`. (From one
      to two times that, Pillow warns too: with DecompressionBombWarning, from
      `PIL.Image`. Whoever decodes in threads may silence it around all of
      them, as filters of warnings belong to the process.)
  """
  try:
    with Image.open(io.BytesIO(data)) as image:
      limit = Image.MAX_IMAGE_PIXELS or math.inf
      if image.width * image.height > limit:  # a small file, gigabytes in RAM
        raise ValueError(
          f"{image.width} x {image.height} pixels, above "
          f"Pillow's limit of {limit}"
        )
      if image.format in VECTOR:
        raise ValueError(f"{image.format} is a drawing: save it as PNG first")
      image.load()
      pixels = _rgb(image)
      turn = UPRIGHT.get(_orientation(image)) if upright else None
  except Image.UnidentifiedImageError:
    raise ValueError(f"not an image: {looks_like(data)}") from None
  except MemoryError:
    raise
  except Exception as error:  # Pillow's readers raise what damage leads to
    if type(error) is ValueError:
      raise
    raise ValueError(str(error) or type(error).__name__) from error
  return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def looks_like(data: bytes) -> str:
  """What the first bytes of a file that is no image tell about it."""
  head = bytes(data[:512])
  for pattern, what in SIGNATURES:
    if re.match(pattern, head):
      return f"looks like {what} ({head[:16]!r})" if head else what
  return f"starts with {head[:16]!r}"


def _rgb(image: Image.Image) -> np.ndarray:
  """Loaded image -> uint8 [H, W, 3]."""
  if image.mode == "F":
    raise ValueError(
      "float pixels, whose range the file does not tell; save "
      "it with 8 or 16 bits"
    )
  if image.mode.startswith("I"):
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 0xFFFF:
      raise ValueError(
        f"integer pixels {grey.min()} .. {grey.max()}; expected "
        "grey of 16 bits; save it with 8 or 16 bits"
      )
    return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=-1)
  # The same pixels; with it, Pillow warns that RGB cannot keep it.
  image.info.pop("transparency", None)
  return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
  """EXIF's; 1 (upright) if there is none that can be read."""
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
