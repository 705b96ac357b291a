"""Composes a small segmentation task of scikit-learn's digits.

A scene has five to eight digits of 16 x 16 pixels (as far as there is room), in
one light colour each on a dark ground, plain or noisy. Places are multiples of
four pixels, the patches of the embedded backbone: so a few hundred steps learn
to read. The mask is exact: it says which pixels have ink, and of which digit.
Every part is made of digits of its own. Arithmetic is of integers: the scenes
are the same bits everywhere.
"""

import dataclasses

import numpy as np

from vpt_jax.data.sources import arrays, masked_arrays, parts
from vpt_jax.data.sources.masked_arrays import MaskedArrays
from vpt_jax.data.sources.masks import Meaning

NAME = "digit_scenes"
CLASS_NAMES = ("background", *"0123456789")
MEANING = Meaning(num_classes=len(CLASS_NAMES), thin=True)
# Scenes of each part, and the seed that they are drawn with.
COUNTS = {"train": 320, "val": 80, "test": 100}
_SEEDS = {"train": 1, "val": 2, "test": 3}
SIDE = 64
_DIGITS = (5, 9)  # of a scene: least, and one more than most
_SIZE = 16  # pixels of a digit's side
_STEP = 4  # pixels from one place to the next
_GROUND = (0, 61)  # values of a colour: least, and one more than most
_INK = (195, 256)  # likewise
_NOISE = 24  # most that a pixel of a noisy ground is off
_TRIES = 12  # places that are tried for a digit


def read(split: str) -> MaskedArrays:
  """Returns the scenes of a split.

  Args:
    split: train, val, trainval or test.
  """
  images: list[np.ndarray] = []
  label_maps: list[np.ndarray] = []
  names: list[str] = []
  for part in parts.of(split):
    digits = arrays.digits(part)
    random = np.random.RandomState(_SEEDS[part])
    for i in range(COUNTS[part]):
      image, label = _scene(digits, random)
      images.append(image)
      label_maps.append(label)
      names.append(f"{part}_{i:03d}")
  made = masked_arrays.of_arrays(images, label_maps, "scenes of digits")
  return dataclasses.replace(
    made, names=names, meaning=MEANING, class_names=CLASS_NAMES
  )


def _scene(
  digits: arrays.Examples, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a scene and its labels: uint8 [64, 64, 3] and uint8 [64, 64]."""
  ground = random.randint(*_GROUND, 3)
  image = np.broadcast_to(ground, (SIDE, SIDE, 3)).astype(np.int64)
  if random.randint(2):
    image = image + random.randint(-_NOISE, _NOISE + 1, image.shape)
  label = np.zeros((SIDE, SIDE), np.uint8)
  is_free = np.ones((SIDE, SIDE), bool)
  for _ in range(random.randint(*_DIGITS)):
    number = random.randint(len(digits))
    ink_colour = random.randint(*_INK, 3)
    place = _free_place(is_free, random)
    if place is None:
      continue
    ink = _enlarged(np.asarray(digits.read(number))[..., 0], _SIZE)
    is_free[place] = False
    # Ink of more than half its strength is the digit.
    label[place][2 * ink > 255] = 1 + digits.labels[number]
    mixed = image[place] * (255 - ink)[..., None] + ink_colour * ink[..., None]
    image[place] = mixed // 255
  return np.clip(image, 0, 255).astype(np.uint8), label


def _free_place(
  is_free: np.ndarray, random: np.random.RandomState
) -> tuple[slice, slice] | None:
  """Returns a square that no digit is in, None if none was found."""
  for _ in range(_TRIES):
    top, left = _STEP * random.randint(0, (SIDE - _SIZE) // _STEP + 1, 2)
    place = slice(top, top + _SIZE), slice(left, left + _SIZE)
    if is_free[place].all():
      return place
  return None


def _enlarged(digit: np.ndarray, size: int) -> np.ndarray:
  """Returns a digit's ink, brought to another size by linear interpolation.

  Args:
    digit: uint8 [8, 8].
    size: pixels of a side.

  Returns:
    integers 0..255, [size, size].
  """
  side = len(digit)
  weights = np.zeros((size, side), np.int64)
  unit = 2 * size
  for row in range(size):
    # The centre of a pixel, among those of the digit, in parts of 2 size.
    place = (2 * row + 1) * side - size
    place = min(max(place, 0), unit * (side - 1))
    first, part = divmod(place, unit)
    weights[row, first] += unit - part
    weights[row, min(first + 1, side - 1)] += part
  return weights @ digit.astype(np.int64) @ weights.T // unit**2
