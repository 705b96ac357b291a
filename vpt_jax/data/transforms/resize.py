"""Decoded images -> the size that is stored: the geometry of each family of
benchmarks, pixel by pixel as published (NumPy and Pillow alone)."""

from collections.abc import Callable
import dataclasses
import functools
import math

import numpy as np
from PIL import Image

from vpt_jax.utils import lookup

Size = tuple[int, int]  # (height, width).

BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC
# Aspect ratios (width / height) that `RandomResizedCrop` draws from.
RATIO = (3 / 4, 4 / 3)


def vtab(image: np.ndarray, size: Size) -> np.ndarray:
  """Straight to `size`, bilinear without antialiasing, rounded.

  Equals `tf.image.resize`, hence the VTAB-1k protocol, operation by operation:
  between the centres of pixels, in float32, first along rows.

  Args:
    image: uint8 [H, W, 3].
    size: (height, width).

  Returns:
    uint8 [height, width, 3].
  """
  (top, bottom, y), (left, right, x) = map(_between, image.shape[:2], size)
  # As wide as the colours: broadcasting over an axis of 3 is slow.
  x, y = np.repeat(x[:, None], 3, axis=1), y[:, None, None]
  rows = (
    _mix(row.take(left, axis=1), row.take(right, axis=1), x)
    for row in (image.take(top, axis=0), image.take(bottom, axis=0))
  )
  out = _mix(*rows, y)
  return np.rint(out, out=out).astype(np.uint8)


def short_side(image: np.ndarray, side: int) -> np.ndarray:
  """Shorter side to `side`, antialiased, as `torchvision.transforms.Resize`.

  Args:
    image: uint8 [H, W, 3].
    side: pixels; the longer side is int(side * long / short).

  Returns:
    uint8, [side, S, 3] or [S, side, 3].

  Raises:
    ValueError: so long an image that more than `PIL.Image.MAX_IMAGE_PIXELS`
      would come out.
  """
  height, width = image.shape[:2]
  long = int(side * max(height, width) / min(height, width))
  limit = Image.MAX_IMAGE_PIXELS or math.inf
  if side * long > limit:
    raise ValueError(
      f"an image of {width} x {height} pixels is too long: with "
      f"a shorter side of {side} it has {side * long} pixels, "
      f"above Pillow's limit of {limit}; crop it"
    )
  return _pil(image, (long, side) if height > width else (side, long), BILINEAR)


def center_crop(image: np.ndarray, size: Size) -> np.ndarray:
  """The middle, as `torchvision.transforms.CenterCrop`: half pixels are rounded
  to even offsets, and what is too small is padded with black.

  Args:
    image: uint8 [H, W, 3].
    size: (height, width).
  """
  for axis, want in enumerate(size):
    more = image.shape[axis] - want
    if more < 0:
      pad = [(0, 0)] * image.ndim
      pad[axis] = (-more // 2, (1 - more) // 2)
      image = np.pad(image, pad)
    else:
      first = round(more / 2)
      image = image.take(range(first, first + want), axis=axis)
  return image


def squash(
  image: np.ndarray, size: Size, resample: Image.Resampling = BICUBIC
) -> np.ndarray:
  """What `torchvision.transforms.RandomResizedCrop(size, scale=(1, 1))` does.

  All of the image where its aspect ratio is within 3/4 .. 4/3, else its middle
  of the nearer bound; then antialiased to `size`, whatever the ratio. (Where
  the ratio that it draws is the image's own to within a pixel, torchvision
  leaves out one row or column; that chance is not kept.)

  Args:
    image: uint8 [H, W, 3].
    size: (height, width).
    resample: bilinear or bicubic.

  Returns:
    uint8 [height, width, 3].
  """
  height, width = image.shape[:2]
  ratio = width / height
  if ratio < RATIO[0]:
    height = round(width / RATIO[0])
  elif ratio > RATIO[1]:
    width = round(height * RATIO[1])
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return _pil(image[top : top + height, left : left + width], size, resample)


@dataclasses.dataclass(frozen=True)
class Family:
  """How the images of a group of benchmarks come to their size.

  Attributes:
    train: (image uint8 [H, W, 3], image size) -> image.
    test: the same, for evaluation: always of the image size.
    strips: `train` only fixes the shorter side, and a random square is cropped
      each time, see `preprocess.crop_strips`.
  """

  train: Callable[[np.ndarray, Size], np.ndarray]
  test: Callable[[np.ndarray, Size], np.ndarray]
  strips: bool = False


def _short(image: np.ndarray, size: Size) -> np.ndarray:
  return short_side(image, max(size))


def _margin(image: np.ndarray, size: Size) -> np.ndarray:
  """Shorter side 256 for 224, 438 for 384, 512 for 448."""
  return short_side(image, max(size) * 8 // 7)


def _middle(
  resize: Callable[[np.ndarray, Size], np.ndarray],
  image: np.ndarray,
  size: Size,
) -> np.ndarray:
  return center_crop(resize(image, size), size)


_short_middle = functools.partial(_middle, _short)

FAMILIES = {
  # VTAB-1k.
  "vtab": Family(vtab, vtab),
  # CUB, NABirds, Flowers, Dogs and Cars as in VPT.
  "fgvc": Family(_margin, functools.partial(_middle, _margin), strips=True),
  # PGN's data sets: bicubic in training, but bilinear in testing.
  "pgn": Family(squash, _short_middle),
  # Its CLEVR alone, which is not squeezed but cropped at random.
  "pgn_crop": Family(_short, _short_middle, strips=True),
}


def host(
  family: str, image: np.ndarray, image_size: Size, train: bool
) -> np.ndarray:
  """An image as it is stored for training or evaluation.

  Args:
    family: a name in `FAMILIES`.
    image: uint8 [H, W, 3], or [H, W, 1] for grey.
    image_size: (height, width).
    train: for training, else for evaluation.

  Returns:
    uint8 [*image_size, 3]; of families with `strips`, in training, of another
    length.

  Raises:
    ValueError: unknown family, another type or shape, no pixels, or too long.
  """
  chosen = FAMILIES[lookup.choose(family, FAMILIES, "data.preprocess")]
  if (
    image.dtype != np.uint8
    or image.ndim != 3
    or image.shape[2] not in (1, 3)
    or not image.size
  ):
    raise ValueError(
      "an image must be uint8 [H, W, 3] or [H, W, 1], got "
      f"{image.dtype} {list(image.shape)}"
    )
  if image.shape[2] == 1:
    image = np.repeat(image, 3, axis=2)
  return (chosen.train if train else chosen.test)(image, image_size)


def _between(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """m places among n pixels: (pixel before, pixel after, share of it)."""
  x = (np.arange(m, dtype=np.float32) + np.float32(0.5)) * np.float32(
    n / m
  ) - np.float32(0.5)
  low = np.floor(x)
  high = np.minimum(low + 1, n - 1)
  return np.maximum(low, 0).astype(int), high.astype(int), x - low


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
  """a + (b - a) * share in float32, in place: images are large."""
  a = a.astype(np.float32)
  out = b - a
  out *= share
  out += a
  return out


def _pil(
  image: np.ndarray, size: Size, resample: Image.Resampling
) -> np.ndarray:
  """Antialiased by Pillow; itself where the size is right."""
  return np.asarray(Image.fromarray(image).resize(size[::-1], resample))
