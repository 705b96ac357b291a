"""Brings decoded images to the size in which they are stored.

Each family of benchmarks has its geometry, pixel by pixel as published. Needs
NumPy and Pillow alone.
"""

from collections.abc import Callable
import dataclasses
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
  """Resizes straight to `size`, bilinear without antialiasing, rounded.

  Equals `tf.image.resize`, hence the VTAB-1k protocol, operation by operation:
  between the centres of pixels, in float32, first along rows.

  Args:
    image: uint8 [H, W, 3].
    size: (height, width).

  Returns:
    uint8 [height, width, 3].
  """
  top, bottom, down = _neighbours(image.shape[0], size[0])
  left, right, across = _neighbours(image.shape[1], size[1])
  # As wide as the colours: broadcasting over an axis of 3 is slow.
  across = np.repeat(across[:, None], 3, axis=1)
  upper = image.take(top, axis=0)
  lower = image.take(bottom, axis=0)
  upper = _mix(upper.take(left, axis=1), upper.take(right, axis=1), across)
  lower = _mix(lower.take(left, axis=1), lower.take(right, axis=1), across)
  out = _mix(upper, lower, down[:, None, None])
  return np.rint(out, out=out).astype(np.uint8)


def short_side(image: np.ndarray, side: int) -> np.ndarray:
  """Resizes the shorter side to `side`, antialiased.

  Equals `torchvision.transforms.Resize`.

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
  size = (long, side) if height > width else (side, long)
  return _resample(image, size, BILINEAR)


def center_crop(image: np.ndarray, size: Size) -> np.ndarray:
  """Crops the middle, as `torchvision.transforms.CenterCrop`.

  Half pixels are rounded to even offsets, and what is too small is padded with
  black.

  Args:
    image: uint8 [H, W, 3].
    size: (height, width).
  """
  for axis, wanted in enumerate(size):
    excess = image.shape[axis] - wanted
    if excess < 0:
      pad = [(0, 0)] * image.ndim
      pad[axis] = (-excess // 2, (1 - excess) // 2)
      image = np.pad(image, pad)
    else:
      first = round(excess / 2)
      image = image.take(range(first, first + wanted), axis=axis)
  return image


def squash(
  image: np.ndarray, size: Size, resample: Image.Resampling = BICUBIC
) -> np.ndarray:
  """Resizes the image to `size`, whatever its aspect ratio, antialiased.

  Equals `torchvision.transforms.RandomResizedCrop(size, scale=(1, 1))`: all of
  the image is taken where its aspect ratio is within 3/4 .. 4/3, else its
  middle of the nearer bound. (Where the ratio that it draws is the image's own
  to within a pixel, torchvision leaves out one row or column; that chance is
  not kept.)

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
  top = (image.shape[0] - height) // 2
  left = (image.shape[1] - width) // 2
  middle = image[top : top + height, left : left + width]
  return _resample(middle, size, resample)


@dataclasses.dataclass(frozen=True)
class Family:
  """Says how the images of a group of benchmarks come to their size.

  Attributes:
    train: (image uint8 [H, W, 3], image size) -> image.
    test: the same, for evaluation: always of the image size.
    strips: `train` only fixes the shorter side, and a random square is cropped
      each time, see `views.crop_strips`.
  """

  train: Callable[[np.ndarray, Size], np.ndarray]
  test: Callable[[np.ndarray, Size], np.ndarray]
  strips: bool = False


def _short_side(image: np.ndarray, size: Size) -> np.ndarray:
  return short_side(image, max(size))


def _short_side_middle(image: np.ndarray, size: Size) -> np.ndarray:
  return center_crop(_short_side(image, size), size)


def _with_margin(image: np.ndarray, size: Size) -> np.ndarray:
  """Resizes the shorter side to 256 for 224, 438 for 384, 512 for 448."""
  return short_side(image, max(size) * 8 // 7)


def _with_margin_middle(image: np.ndarray, size: Size) -> np.ndarray:
  return center_crop(_with_margin(image, size), size)


FAMILIES = {
  # VTAB-1k.
  "vtab": Family(vtab, vtab),
  # CUB, NABirds, Flowers, Dogs and Cars as in VPT.
  "fgvc": Family(_with_margin, _with_margin_middle, strips=True),
  # PGN's data sets: bicubic in training, but bilinear in testing.
  "pgn": Family(squash, _short_side_middle),
  # Its CLEVR alone, which is not squeezed but cropped at random.
  "pgn_crop": Family(_short_side, _short_side_middle, strips=True),
}


def as_rgb(image: np.ndarray) -> np.ndarray:
  """Returns an image with three channels; grey is repeated.

  Args:
    image: uint8 [H, W, 3] or [H, W, 1].

  Raises:
    ValueError: another type or shape, or no pixels.
  """
  fits = image.ndim == 3 and image.shape[2] in (1, 3) and image.size
  if image.dtype != np.uint8 or not fits:
    raise ValueError(
      "an image must be uint8 [H, W, 3] or [H, W, 1], got "
      f"{image.dtype} {list(image.shape)}"
    )
  return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def fit(
  family: str, image: np.ndarray, image_size: Size, train: bool
) -> np.ndarray:
  """Brings an image to the size in which it is stored.

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
  resize = chosen.train if train else chosen.test
  return resize(as_rgb(image), image_size)


def _neighbours(
  count: int, outputs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns between which pixels of `count` the centres of the outputs lie.

  Returns:
    (index of the pixel before, of the pixel after, share of the latter), each
    [outputs].
  """
  centres = np.arange(outputs, dtype=np.float32) + np.float32(0.5)
  position = centres * np.float32(count / outputs) - np.float32(0.5)
  before = np.floor(position)
  after = np.minimum(before + 1, count - 1)
  share = position - before
  return np.maximum(before, 0).astype(int), after.astype(int), share


def _mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
  """Returns a + (b - a) * share in float32, in place: images are large."""
  a = a.astype(np.float32)
  out = b - a
  out *= share
  out += a
  return out


def _resample(
  image: np.ndarray, size: Size, resample: Image.Resampling
) -> np.ndarray:
  """Resizes by Pillow, antialiased; returns it as it is at the right size."""
  height, width = size
  return np.asarray(Image.fromarray(image).resize((width, height), resample))
