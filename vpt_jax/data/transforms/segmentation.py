"""Makes views of images with label maps, as mmsegmentation's pipeline does.

Training: resize by a random factor, crop at random, flip, distort colours.
Testing: resize at a kept aspect ratio, at one scale or at several. The labels
of a test are never resized: logits are brought to their size. Needs NumPy
alone; `views.normalize_padded` ends it on the device.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses

import numpy as np

from vpt_jax.data.transforms import opencv_resize, photometric
from vpt_jax.data.transforms.opencv_resize import Box, Size

IGNORED = 255
# (longer, shorter side) that an image is brought within.
SCALE = (2048, 512)
# Factors of that in training, and those of a test at several scales.
FACTORS = (0.5, 2.0)
TEST_FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# Of a crop's pixels that count, the most frequent class may have ...
MOST_OF_ONE_CLASS = 0.75
# ... else another one is drawn, so many times.
REDRAWS = 10


def random_numbers(seed: int, step: int, row: int) -> np.random.Generator:
  """Returns the random numbers of one example of one step.

  They are a function of these three alone: a resumed run sees the same views,
  with any number of workers.

  Args:
    seed: of the run.
    step: number of the optimizer step, or of the epoch.
    row: number of the example in the batch, or in the data set.
  """
  words = np.random.SeedSequence((seed, step, row))
  return np.random.Generator(np.random.Philox(words))


def fitted_size(size: Size, scale: Sequence[float]) -> Size:
  """Returns the largest size within a scale that keeps the aspect ratio.

    factor = min(max(scale) / max(size), min(scale) / min(size))

  Args:
    size: (height, width) of the image.
    scale: two sides in any order.

  Returns:
    (height, width), each side int(side * factor + 1/2), at least 1.
  """
  factor = min(max(scale) / max(size), min(scale) / min(size))
  return _scaled(size, factor)


def evaluation_sizes(
  size: Size,
  factors: Sequence[float] = TEST_FACTORS,
  scale: tuple[int, int] | None = SCALE,
  shortest: int = 0,
) -> list[Size]:
  """Returns the sizes at which an image is seen in a test at several scales.

  Args:
    size: (height, width) of the image.
    factors: one for each scale.
    scale: what factors multiply, as SETR and mmsegmentation 0.x do; None: the
      image's own size, as the `tta_pipeline` of mmsegmentation 1.x does.
    shortest: least shorter side of `scale` times a factor, to which the
      image's shorter side is brought then: SETR's `setr_multi_scale` with the
      side of the crop. 0: as above.

  Raises:
    ValueError: `shortest` without a scale.
  """
  if shortest and scale is None:
    raise ValueError(
      f"a shortest side of {shortest} without a scale: SETR's rule is one of "
      f"scales such as {SCALE}; give a scale, or shortest=0"
    )
  sizes = []
  for factor in factors:
    if scale is None:
      sizes.append(_scaled(size, factor))
      continue
    sides = (int(scale[0] * factor), int(scale[1] * factor))
    if shortest:
      short = max(min(sides), shortest)
      sizes.append(_scaled(size, short / min(size)))
    else:
      sizes.append(fitted_size(size, sides))
  return sizes


def random_scale(
  uniform: float,
  scale: tuple[int, int] = SCALE,
  factors: tuple[float, float] = FACTORS,
) -> tuple[int, int]:
  """Returns a scale times a factor, each side cut to an integer.

  Args:
    uniform: a random number in [0, 1).
    scale: two sides.
    factors: least and largest.
  """
  factor = uniform * (factors[1] - factors[0]) + factors[0]
  return int(scale[0] * factor), int(scale[1] * factor)


def random_boxes(
  size: Size, crop: Size, rng: np.random.Generator
) -> Iterator[Box]:
  """Yields boxes of `crop` at random places, without end.

  Where the image is smaller the box begins at 0 and runs past its end.
  """
  while True:
    top = int(rng.integers(max(size[0] - crop[0], 0) + 1))
    left = int(rng.integers(max(size[1] - crop[1], 0) + 1))
    yield top, top + crop[0], left, left + crop[1]


def choose_box(
  label: np.ndarray, boxes: Iterable[Box], most: float = MOST_OF_ONE_CLASS
) -> Box:
  """Returns the first box with several classes, none of which has nearly all.

  Of ten boxes; if none of them is, the eleventh, as it is.

  Args:
    label: uint8 [H, W].
    boxes: candidates, at least eleven.
    most: share of one class in the pixels that are not ignored; 1: the first
      box is taken.
  """
  box = (0, label.shape[0], 0, label.shape[1])
  for number, box in enumerate(boxes):
    if most >= 1 or number == REDRAWS or is_varied(cut(label, box), most):
      return box
  return box


def is_varied(label: np.ndarray, most: float = MOST_OF_ONE_CLASS) -> bool:
  """Returns whether labels have two classes and none of a share of `most`.

  Args:
    label: uint8 [H, W]; ignored pixels do not count.
    most: see above.
  """
  counts = np.bincount(label.reshape(-1), minlength=IGNORED + 1)[:IGNORED]
  return bool((counts > 0).sum() > 1 and counts.max() / counts.sum() < most)


def cut(array: np.ndarray, box: Box) -> np.ndarray:
  """Returns the part of an array [H, W, ...] that is in a box."""
  top, bottom, left, right = box
  return array[top:bottom, left:right]


@dataclasses.dataclass(frozen=True)
class TrainView:
  """Makes random views of one size of images of any size.

  Attributes:
    crop: (height, width) of the view.
    scale: see `random_scale`.
    factors: see `random_scale`.
    most_of_one_class: see `choose_box`.
    flip: probability of a left-right flip.
    distort: colours are distorted, see `photometric`.
  """

  crop: Size = (512, 512)
  scale: tuple[int, int] = SCALE
  factors: tuple[float, float] = FACTORS
  most_of_one_class: float = MOST_OF_ONE_CLASS
  flip: float = 0.5
  distort: bool = True

  def __call__(
    self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, Size]:
    """Makes a view.

    Args:
      image: uint8 [H, W, 3], red, green, blue.
      label: uint8 [H, W].
      rng: of this view alone, see `random_numbers`.

    Returns:
      (uint8 [*crop, 3], uint8 [*crop], size of the part that is no padding);
      padding is at the bottom and at the right, its labels are ignored.

    Raises:
      ValueError: image and labels differ in size.
    """
    check_pair(image, label)
    scale = random_scale(float(rng.random()), self.scale, self.factors)
    size = fitted_size(label.shape[:2], scale)
    labels = opencv_resize.nearest(label, size)
    boxes = random_boxes(size, self.crop, rng)
    box = choose_box(labels, boxes, self.most_of_one_class)
    part = cut(labels, box)
    # Of the resized image only what is seen is computed.
    view = opencv_resize.bilinear(image, size, box)
    if rng.random() < self.flip:
      view = view[:, ::-1]
      part = part[:, ::-1]
    if self.distort:
      view = photometric.draw(rng)(view)
    return pad(view, self.crop, 0), pad(part, self.crop, IGNORED), part.shape


def check_pair(image: np.ndarray, label: np.ndarray) -> None:
  """Raises ValueError unless these are an image and a label map of its size."""
  is_image = image.ndim == 3 and image.shape[2] == 3 and image.size > 0
  if image.dtype != np.uint8 or not is_image:
    raise ValueError(
      f"an image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
    )
  if label.dtype != np.uint8 or label.shape != image.shape[:2]:
    raise ValueError(
      f"labels of an image of {list(image.shape[:2])} must be uint8 of that "
      f"size, got {label.dtype} {list(label.shape)}"
    )


def pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
  """Pads [h, w, ...] at the bottom and at the right to [*size, ...]."""
  height, width = array.shape[:2]
  ends = [(0, size[0] - height), (0, size[1] - width)]
  ends += [(0, 0)] * (array.ndim - 2)
  return np.pad(array, ends, constant_values=value)


def _scaled(size: Size, factor: float) -> Size:
  height, width = (max(1, int(side * factor + 0.5)) for side in size)
  return height, width
