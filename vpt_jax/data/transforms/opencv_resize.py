"""Resizes images and labels as OpenCV does, whose numbers were published.

`bilinear` is the fixed-point arithmetic of `cv2.resize` for uint8, without
antialiasing; `nearest` is its rule for labels. Needs NumPy alone.
"""

import numpy as np

Size = tuple[int, int]  # (height, width).
# (first row, end of rows, first column, end of columns).
Box = tuple[int, int, int, int]

# Weights are integers of so many bits; the sum of both is 2**_BITS.
_BITS = 11


def bilinear(
  image: np.ndarray, size: Size, box: Box | None = None
) -> np.ndarray:
  """Resizes an image, or computes a part of what would be the resized one.

  Args:
    image: uint8 [H, W, C].
    size: (height, width) of the whole resized image.
    box: the part that is computed, which may run past the end; None: all.

  Returns:
    uint8 [h, w, C], within 1 of OpenCV.
  """
  top, bottom, left, right = clipped(box, size)
  upper, lower, down = _neighbours(image.shape[0], size[0], top, bottom)
  before, after, across = _neighbours(image.shape[1], size[1], left, right)
  first_row = int(upper[0])
  rows = image[first_row : int(lower[-1]) + 1]
  across = across[:, None]
  mixed = rows.take(before, axis=1).astype(np.int32)
  mixed *= (1 << _BITS) - across
  mixed += rows.take(after, axis=1) * across
  # OpenCV drops bits here, so that 32 of them are enough.
  mixed >>= 4
  down = down[:, None, None]
  out = mixed.take(upper - first_row, axis=0) * ((1 << _BITS) - down) >> 16
  out += mixed.take(lower - first_row, axis=0) * down >> 16
  return np.clip((out + 2) >> 2, 0, 255).astype(np.uint8)


def nearest(label: np.ndarray, size: Size) -> np.ndarray:
  """Resizes labels; each pixel takes that at floor(place * old / new).

  Args:
    label: [H, W] of any type.
    size: (height, width).
  """
  rows = _nearest_index(label.shape[0], size[0])
  columns = _nearest_index(label.shape[1], size[1])
  return label.take(rows, axis=0).take(columns, axis=1)


def clipped(box: Box | None, size: Size) -> Box:
  """Returns the part of a box that is within an image; None: all of it."""
  if box is None:
    return 0, size[0], 0, size[1]
  top, bottom, left, right = box
  return top, min(bottom, size[0]), left, min(right, size[1])


def _neighbours(
  count: int, outputs: int, first: int, end: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns between which pixels of `count` the outputs first .. end lie.

  Returns:
    (index of the pixel before, of the pixel after, the latter's weight in
    units of 2**-11), each int32 [end - first].
  """
  centres = np.arange(first, end) + 0.5
  position = (centres * (count / outputs) - 0.5).astype(np.float32)
  before = np.floor(position)
  share = position - before
  is_outside = (before < 0) | (before >= count - 1)
  share[is_outside] = 0
  before = np.clip(before, 0, count - 1).astype(np.int32)
  after = np.minimum(before + 1, count - 1)
  return before, after, np.rint(share * (1 << _BITS)).astype(np.int32)


def _nearest_index(count: int, outputs: int) -> np.ndarray:
  """Returns which pixel of `count` each output takes, [outputs]."""
  # The inverse of an inverse, as there: it decides where places are integers.
  step = 1 / (outputs / count)
  index = np.floor(np.arange(outputs) * step).astype(np.int64)
  return np.minimum(index, count - 1)
