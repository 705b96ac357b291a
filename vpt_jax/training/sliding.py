"""Labels every pixel of images of any size: sliding windows, several scales.

A model sees windows of one shape, many at a time and of several images
together. What it says of each is summed on the device into a canvas, and a
canvas has one of few sizes: so few programs are compiled however many sizes
images have. It works with any function from images to logits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.data.transforms import opencv_resize, views
from vpt_jax.data.transforms.opencv_resize import Size

# (top, left, bottom, right).
Window = tuple[int, int, int, int]


def windows(size: Size, crop: Size, stride: Size) -> list[Window]:
  """Returns the windows that cover an image, row by row.

  The last one of a row or column is moved back so that it ends at the border;
  of a side that is shorter than the crop there is one, as long as the side.

  Args:
    size: (height, width) of the image.
    crop: of a window.
    stride: from one to the next.

  Raises:
    ValueError: a crop or stride below 1, or a stride above the crop, which
      would leave out pixels.
  """
  for side, step in zip(crop, stride, strict=True):
    if not 1 <= step <= side:
      raise ValueError(
        f"windows of {list(crop)} with stride {list(stride)}: expected a "
        "stride of at least 1 and at most the window's side, such as two "
        "thirds of it"
      )
  found = []
  for top, bottom in _spans(size[0], crop[0], stride[0]):
    for left, right in _spans(size[1], crop[1], stride[1]):
      found.append((top, left, bottom, right))
  return found


def counts(size: Size, crop: Size, stride: Size) -> np.ndarray:
  """Returns in how many windows each pixel of an image is, float32 [H, W]."""
  found = np.zeros(size, np.float32)
  for top, left, bottom, right in windows(size, crop, stride):
    found[top:bottom, left:right] += 1
  return found


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Holds the logits of an image on the device.

  Attributes:
    logits: float32 [h, w, K], of which the first rows and columns count; or
      other scores.
    size: (height, width) of what counts.
  """

  logits: jax.Array
  size: Size

  def cut(self) -> np.ndarray:
    """Returns the logits that count, float32 [H, W, K]."""
    height, width = self.size
    return np.asarray(self.logits)[:height, :width]

  def label_map(self) -> np.ndarray:
    """Returns the class of the largest one for every pixel, int32 [H, W]."""
    height, width = self.size
    return np.asarray(_argmax(self.logits))[:height, :width]


@dataclasses.dataclass
class SlidingWindows:
  """Computes the logits of images of any size.

  Attributes:
    logits_of: float32 [B, h, w, 3] -> [B, h, w, K]; compiled, it is compiled
      again for each shape that it is given.
    crop: (height, width) of a window; None: the whole image is one.
    stride: from one window to the next; None: as crop.
    at_once: windows of a call, B.
    grain: sides of canvases are multiples of it.
    shapes: of windows that `logits_of` was given.
  """

  logits_of: Callable[[np.ndarray], Any]
  crop: Size | None = None
  stride: Size | None = None
  at_once: int = 8
  grain: int = 128
  shapes: set[Size] = dataclasses.field(default_factory=set)

  def __call__(self, images: Iterable[np.ndarray]) -> Iterator[Canvas]:
    """Yields the logits of each image, in order.

    Windows wait until there are `at_once` of one shape, or no more images.

    Args:
      images: float32 [H, W, 3] of any sizes, normalised.
    """
    waiting: list[_Waiting] = []
    opened: list[_Open] = []
    shape = None
    for image in images:
      size: Size = (image.shape[0], image.shape[1])
      crop = self.crop or size
      stride = self.stride or crop
      found = windows(size, crop, stride)
      opened.append(_Open(size, counts(size, crop, stride), len(found)))
      for top, left, bottom, right in found:
        if (bottom - top, right - left) != shape:
          self._compute(waiting)
          shape = (bottom - top, right - left)
        pixels = image[top:bottom, left:right]
        waiting.append(_Waiting(pixels, top, left, opened[-1]))
        if len(waiting) == self.at_once:
          self._compute(waiting)
      while opened and not opened[0].missing:
        yield self._finished(opened.pop(0))
    self._compute(waiting)
    for image_sums in opened:
      yield self._finished(image_sums)

  def _compute(self, waiting: "list[_Waiting]") -> None:
    """Adds the logits of waiting windows to their images; empties the list."""
    if not waiting:
      return
    pixels = [window.pixels for window in waiting]
    # A call always has the same shape: the last window fills it up.
    pixels += pixels[-1:] * (self.at_once - len(waiting))
    batch = np.stack(pixels).astype(np.float32)
    self.shapes.add((batch.shape[1], batch.shape[2]))
    logits = jnp.asarray(self.logits_of(batch))
    if logits.ndim != 4 or logits.shape[:3] != batch.shape[:3]:
      raise ValueError(
        f"the logits of windows {list(batch.shape)} are {list(logits.shape)}; "
        f"expected {list(batch.shape[:3])} and the classes: resize them to the "
        "windows"
      )
    for number, window in enumerate(waiting):
      of = window.image
      if of.sums is None:
        height, width = self._canvas_size(of.size)
        of.sums = jnp.zeros((height, width, logits.shape[-1]), jnp.float32)
      of.sums = _add(of.sums, logits, number, window.top, window.left)
      of.missing -= 1
    waiting.clear()

  def _finished(self, image: "_Open") -> Canvas:
    height, width = self._canvas_size(image.size)
    times = np.ones((height, width), np.float32)
    times[: image.size[0], : image.size[1]] = image.counts
    return Canvas(_mean(image.sums, times), image.size)

  def _canvas_size(self, size: Size) -> Size:
    return _rounded_up(size, self.grain)


@dataclasses.dataclass
class _Open:
  """An image whose windows are not all computed."""

  size: Size
  counts: np.ndarray
  missing: int
  sums: jax.Array | None = None


@dataclasses.dataclass
class _Waiting:
  """A window that waits for others."""

  pixels: np.ndarray
  top: int
  left: int
  image: _Open


def views_of(
  image: np.ndarray, sizes: Sequence[Size], flip: bool, normalize: str
) -> list[np.ndarray]:
  """Returns an image at several sizes, normalised.

  Args:
    image: uint8 [H, W, 3].
    sizes: see `segmentation.evaluation_sizes`.
    flip: each is there twice, the second time from left to right.
    normalize: a name in `views.NORMALIZE`.

  Returns:
    float32 [h, w, 3], with `flip` two for each size.
  """
  mean, std = np.array(views.NORMALIZE[normalize], np.float32)
  found = []
  for size in sizes:
    resized = opencv_resize.bilinear(image, size).astype(np.float32)
    view = (resized / 255 - mean) / std
    found.append(view)
    if flip:
      found.append(view[:, ::-1])
  return found


def combined(
  canvases: Iterable[Canvas],
  size: Size,
  flip: bool = False,
  align_corners: bool = False,
  grain: int = 128,
) -> Canvas:
  """Returns what the views of an image say of each pixel, at its own size.

  Logits are resized to the image, bilinear. Those of one view stay logits; of
  several it is the sum of their softmax.

  Args:
    canvases: logits of the image's views, in the order of `views_of`.
    size: (height, width) of the image as it was stored.
    flip: every second view was flipped.
    align_corners: of the resizing, as the head has it.
    grain: sides of what is computed are multiples of it.

  Raises:
    ValueError: there is no view.
  """
  first: jax.Array | None = None
  total: jax.Array | None = None
  for number, canvas in enumerate(canvases):
    is_flipped = flip and number % 2 == 1
    logits = _resized(canvas, size, is_flipped, align_corners, grain)
    if first is None:
      first = logits
      continue
    if total is None:
      total = jax.nn.softmax(first)
    total = _add_softmax(total, logits)
  scores = first if total is None else total
  if scores is None:
    raise ValueError("no view of the image; expected one at least")
  return Canvas(scores, size)


def label_map(
  canvases: Iterable[Canvas],
  size: Size,
  flip: bool = False,
  align_corners: bool = False,
  grain: int = 128,
) -> np.ndarray:
  """Returns the class of every pixel of an image, int32 [H, W].

  Of one view that of the largest logit; of several that of the largest mean of
  their softmax. See `combined`.
  """
  return combined(canvases, size, flip, align_corners, grain).label_map()


def resize_logits(
  canvas: Canvas,
  size: Size,
  is_flipped: bool = False,
  align_corners: bool = False,
  grain: int = 128,
) -> np.ndarray:
  """Returns logits at another size, float32 [*size, K]; see `label_map`."""
  resized = _resized(canvas, size, is_flipped, align_corners, grain)
  return np.asarray(resized)[: size[0], : size[1]]


def _resized(
  canvas: Canvas,
  size: Size,
  is_flipped: bool,
  align_corners: bool,
  grain: int,
) -> jax.Array:
  """Returns the logits of a canvas on one of another size."""
  outer = _rounded_up(size, grain)
  inner = canvas.logits.shape[:2]
  rows = _weights(canvas.size[0], size[0], align_corners)
  columns = _weights(canvas.size[1], size[1], align_corners)
  if is_flipped:
    columns = columns[:, ::-1]
  return _apply(
    canvas.logits,
    _embedded(rows, (outer[0], inner[0])),
    _embedded(columns, (outer[1], inner[1])),
  )


def _spans(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
  """Returns (first, end) of the windows along one side."""
  spans = []
  for number in range(math.ceil(max(length - crop, 0) / stride) + 1):
    end = min(number * stride + crop, length)
    spans.append((max(end - crop, 0), end))
  return spans


def _rounded_up(size: Size, grain: int) -> Size:
  height, width = (math.ceil(side / grain) * grain for side in size)
  return height, width


def _weights(count: int, outputs: int, align_corners: bool) -> np.ndarray:
  """Returns each output as a mean of pixels, float32 [outputs, count].

  Between centres of pixels or, with `align_corners`, from the first to the
  last one; without antialiasing, as PyTorch's `interpolate`.
  """
  places = np.arange(outputs)
  if align_corners:
    position = places * ((count - 1) / max(outputs - 1, 1))
  else:
    position = np.maximum((places + 0.5) * (count / outputs) - 0.5, 0)
  before = np.minimum(position.astype(int), count - 1)
  after = np.minimum(before + 1, count - 1)
  share = position - before
  found = np.zeros((outputs, count), np.float32)
  found[places, before] += 1 - share
  found[places, after] += share
  return found


def _embedded(array: np.ndarray, shape: Size) -> np.ndarray:
  """Returns an array at the beginning of a larger one of zeros."""
  larger = np.zeros(shape, array.dtype)
  larger[: array.shape[0], : array.shape[1]] = array
  return larger


@functools.partial(jax.jit, donate_argnums=0)
def _add(
  sums: jax.Array, logits: jax.Array, number: int, top: int, left: int
) -> jax.Array:
  """Adds the logits of one window of a batch where the window is."""
  window = logits[number].astype(jnp.float32)
  start = (top, left, 0)
  there = jax.lax.dynamic_slice(sums, start, window.shape)
  return jax.lax.dynamic_update_slice(sums, there + window, start)


@functools.partial(jax.jit, donate_argnums=0)
def _mean(sums: jax.Array, times: jax.Array) -> jax.Array:
  return sums / times[..., None]


@jax.jit
def _apply(logits: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
  """Applies weights to rows and columns, in full float32."""
  exact = jax.lax.Precision.HIGHEST
  across = jnp.einsum("pw,hwk->hpk", columns, logits, precision=exact)
  return jnp.einsum("qh,hpk->qpk", rows, across, precision=exact)


@functools.partial(jax.jit, donate_argnums=0)
def _add_softmax(total: jax.Array, logits: jax.Array) -> jax.Array:
  return total + jax.nn.softmax(logits)


@jax.jit
def _argmax(scores: jax.Array) -> jax.Array:
  return scores.argmax(-1).astype(jnp.int32)
