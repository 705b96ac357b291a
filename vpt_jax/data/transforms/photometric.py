"""Distorts colours as mmsegmentation's `PhotoMetricDistortion` does.

On uint8 images, with OpenCV's hue, saturation and value. Needs NumPy alone.
"""

import dataclasses

import numpy as np

BRIGHTNESS = 32  # is added, at most
FACTOR = (0.5, 1.5)  # of contrast and of saturation
HUE = 18  # in units of two degrees
_HUES = 180  # in the circle
# Fixed-point numbers of the way to HSV have so many bits behind the point.
_BITS = 12
# Sixth of the circle -> which of (v, p, q, t) are red, green and blue.
_SECTORS = np.array(
  [[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]]
)


@dataclasses.dataclass(frozen=True)
class Distortion:
  """Says how the colours of an image are changed; None: not in this way.

  Attributes:
    brightness: is added to all colours.
    contrast: a factor of all colours.
    contrast_first: contrast comes before saturation and hue, else after them.
    saturation: a factor.
    hue: is added, an integer in units of two degrees.
  """

  brightness: float | None = None
  contrast: float | None = None
  contrast_first: bool = False
  saturation: float | None = None
  hue: int | None = None

  def __call__(self, image: np.ndarray) -> np.ndarray:
    """Returns the changed image, uint8 [H, W, 3] as the given one."""
    if self.brightness is not None:
      image = _linear(image, 1, self.brightness)
    if self.contrast is not None and self.contrast_first:
      image = _linear(image, self.contrast, 0)
    if self.saturation is not None:
      hue, saturation, value = to_hsv(image)
      image = from_hsv(hue, _linear(saturation, self.saturation, 0), value)
    if self.hue is not None:
      hue, saturation, value = to_hsv(image)
      turned = (hue.astype(np.int64) + self.hue) % _HUES
      image = from_hsv(turned.astype(np.uint8), saturation, value)
    if self.contrast is not None and not self.contrast_first:
      image = _linear(image, self.contrast, 0)
    return image


def draw(rng: np.random.Generator) -> Distortion:
  """Draws a distortion: each of its four parts is there with probability 1/2.

  Always draws as many numbers, whatever they are.
  """
  has_brightness, has_contrast, has_saturation, has_hue, is_first = (
    rng.integers(2, size=5).astype(bool)
  )
  brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
  contrast, saturation = rng.uniform(*FACTOR, size=2)
  hue = int(rng.integers(-HUE, HUE))
  return Distortion(
    brightness=float(brightness) if has_brightness else None,
    contrast=float(contrast) if has_contrast else None,
    contrast_first=bool(is_first),
    saturation=float(saturation) if has_saturation else None,
    hue=hue if has_hue else None,
  )


def to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns hue (0 .. 179), saturation and value as OpenCV has them.

  Args:
    image: uint8 [H, W, 3], red, green, blue.

  Returns:
    three times uint8 [H, W].
  """
  red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
  value = np.maximum(np.maximum(red, green), blue)
  range_ = value - np.minimum(np.minimum(red, green), blue)
  half = 1 << (_BITS - 1)
  saturation = (range_ * _inverses(255)[value] + half) >> _BITS
  hue = np.where(
    value == red,
    green - blue,
    np.where(value == green, blue - red + 2 * range_, red - green + 4 * range_),
  )
  hue = (hue * _inverses(_HUES / 6)[range_] + half) >> _BITS
  hue = np.where(hue < 0, hue + _HUES, hue)
  return (
    hue.astype(np.uint8),
    saturation.astype(np.uint8),
    value.astype(np.uint8),
  )


def from_hsv(
  hue: np.ndarray, saturation: np.ndarray, value: np.ndarray
) -> np.ndarray:
  """Returns the image of `to_hsv`, uint8 [H, W, 3]."""
  # float32 as there: a product that is 1e-7 off can round to another integer.
  one = np.float32(1)
  share = saturation.astype(np.float32) * np.float32(1 / 255)
  bright = value.astype(np.float32) * np.float32(1 / 255)
  place = hue.astype(np.float32) * np.float32(6 / _HUES)
  sector = np.floor(place)
  place -= sector
  levels = np.stack(
    [
      bright,
      bright * (one - share),
      bright * (one - share * place),
      bright * (one - share * (one - place)),
    ],
    axis=-1,
  )
  order = _SECTORS[sector.astype(np.int64) % 6]
  image = np.take_along_axis(levels, order, axis=-1)
  return np.rint(image * np.float32(255)).astype(np.uint8)


def _linear(pixels: np.ndarray, factor: float, shift: float) -> np.ndarray:
  """Returns factor * pixels + shift as uint8, cut off at both ends.

  What is behind the point is dropped, as `astype` does there.
  """
  changed = pixels.astype(np.float32) * np.float32(factor) + np.float32(shift)
  return np.clip(changed, 0, 255).astype(np.uint8)


def _inverses(numerator: float) -> np.ndarray:
  """Returns fixed-point numerator / i for i in 0 .. 255; 0 for 0."""
  table = np.zeros(256, np.int32)
  table[1:] = np.rint(numerator * (1 << _BITS) / np.arange(1, 256))
  return table
