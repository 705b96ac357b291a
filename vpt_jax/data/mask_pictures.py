"""Draws label maps: in the classes' colours, and over their images."""

from collections.abc import Sequence
import io

import numpy as np
from PIL import Image

from vpt_jax.data.transforms.segmentation import IGNORED

Colour = tuple[int, int, int]

_OF_LABELS = 0.6  # share of the colours in an overlay
_IGNORED_COLOUR = (224, 224, 192)  # that of borders in Pascal VOC
_GAP = 4  # white pixels between pictures


def palette_png(labels: np.ndarray, palette: Sequence[Colour]) -> bytes:
  """Returns a label map as a PNG whose pixels are the labels.

  Args:
    labels: uint8 [H, W].
    palette: colours of the classes; (): those of `default_palette`.
  """
  picture = Image.fromarray(labels)
  picture.putpalette(_table(palette).tobytes())
  buffer = io.BytesIO()
  picture.save(buffer, "PNG", optimize=True)
  return buffer.getvalue()


def overlay(
  image: np.ndarray, labels: np.ndarray, palette: Sequence[Colour]
) -> np.ndarray:
  """Returns an image with its labels' colours over it, uint8 [H, W, 3].

  Pixels without a class stay as they are.

  Args:
    image: uint8 [H, W, 3].
    labels: uint8 [H, W].
    palette: see `palette_png`.
  """
  colours = _table(palette)[labels]
  mixed = _OF_LABELS * colours + (1 - _OF_LABELS) * image
  has_class = (labels != IGNORED)[..., None]
  return np.where(has_class, mixed, image).astype(np.uint8)


def panel(
  image: np.ndarray,
  labels: np.ndarray,
  prediction: np.ndarray,
  palette: Sequence[Colour],
) -> np.ndarray:
  """Returns the image, its labels and a prediction side by side.

  Args:
    image: uint8 [H, W, 3].
    labels: uint8 [H, W].
    prediction: likewise.
    palette: see `palette_png`.
  """
  gap = np.full((len(image), _GAP, 3), 255, np.uint8)
  parts = [
    image,
    gap,
    overlay(image, labels, palette),
    gap,
    overlay(image, prediction, palette),
  ]
  return np.concatenate(parts, axis=1)


def default_palette(count: int) -> list[Colour]:
  """Returns so many colours, as Pascal VOC numbers them.

  The bits of a number, three at a time, are the highest bits of red, green and
  blue: 0 is black, 1 dark red, 2 dark green.
  """
  colours = []
  for number in range(count):
    colour = [0, 0, 0]
    for place in range(8):
      for channel in range(3):
        bit = number >> (3 * place + channel) & 1
        colour[channel] |= bit << (7 - place)
    red, green, blue = colour
    colours.append((red, green, blue))
  return colours


def _table(palette: Sequence[Colour]) -> np.ndarray:
  """Returns the colour of each label, uint8 [256, 3]."""
  table = np.array(default_palette(256), np.uint8)
  if len(palette):
    table[: len(palette)] = palette
  table[IGNORED] = _IGNORED_COLOUR
  return table
