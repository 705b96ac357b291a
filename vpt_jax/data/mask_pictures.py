"""Draws label maps: as PNG files with a palette, and over their images."""

from collections.abc import Sequence
import io

import numpy as np
from PIL import Image

from vpt_jax.data import mask_classes
from vpt_jax.data.sources.masks import Colour
from vpt_jax.data.transforms.segmentation import check_pair, IGNORED

# Share of a class's colour in an overlay.
STRENGTH = 0.55
# Between the pictures of a panel, in pixels.
GAP = 4
# What Pascal VOC draws ignored pixels in.
IGNORED_COLOUR = (224, 224, 192)


def palette_png(labels: np.ndarray, palette: Sequence[Colour]) -> bytes:
  """Returns a PNG whose pixels are the labels, shown in colours.

  Whoever reads it by its numbers gets the labels back, 255 included.

  Args:
    labels: uint8 [H, W], below the length of the palette or 255.
    palette: red, green, blue of each class; (): as Pascal VOC numbers them.

  Raises:
    ValueError: not such labels.
  """
  _check(labels, palette)
  # Not by `convert`, which would change the numbers.
  height, width = labels.shape
  image = Image.frombytes("P", (width, height), labels.tobytes())
  image.putpalette(_table(palette).tobytes())
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  return buffer.getvalue()


def overlay(
  image: np.ndarray, labels: np.ndarray, palette: Sequence[Colour]
) -> np.ndarray:
  """Returns an image with its classes' colours over it.

  Pixels that are ignored stay as they are.

  Args:
    image: uint8 [H, W, 3].
    labels: uint8 [H, W], below the length of the palette or 255.
    palette: red, green, blue of each class.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: not such an image, or not such labels.
  """
  check_pair(image, labels)
  _check(labels, palette)
  colours = _table(palette)[labels].astype(np.float32)
  mixed = (1 - STRENGTH) * image + STRENGTH * colours
  mixed = np.round(mixed).astype(np.uint8)
  return np.where((labels == IGNORED)[..., None], image, mixed)


def panel(
  image: np.ndarray,
  labels: np.ndarray,
  prediction: np.ndarray,
  palette: Sequence[Colour],
) -> np.ndarray:
  """Returns an image, its labels over it and a prediction over it, in a row.

  Args:
    image: uint8 [H, W, 3].
    labels: uint8 [H, W].
    prediction: uint8 [H, W].
    palette: red, green, blue of each class.

  Returns:
    uint8 [H, 3 W + 2 GAP, 3].
  """
  gap = np.full((len(image), GAP, 3), 255, np.uint8)
  labelled = overlay(image, labels, palette)
  predicted = overlay(image, prediction, palette)
  return np.concatenate([image, gap, labelled, gap, predicted], axis=1)


def _table(palette: Sequence[Colour]) -> np.ndarray:
  """Returns the colours of all values of 8 bits, uint8 [256, 3]."""
  table = np.array(mask_classes.voc_palette(IGNORED + 1), np.uint8)
  if palette:
    table[: len(palette)] = np.array(palette, np.uint8)
  table[IGNORED] = IGNORED_COLOUR
  return table


def _check(labels: np.ndarray, palette: Sequence[Colour]) -> None:
  """Raises ValueError unless every label has a colour, or is ignored."""
  if labels.dtype != np.uint8 or labels.ndim != 2:
    raise ValueError(
      f"labels must be uint8 [H, W], got {labels.dtype} {list(labels.shape)}"
    )
  if not palette:
    return
  if len(palette) > IGNORED:
    raise ValueError(
      f"a palette of {len(palette)} colours; expected at most {IGNORED}, one a "
      "class"
    )
  wrong = labels[(labels >= len(palette)) & (labels != IGNORED)]
  if wrong.size:
    raise ValueError(
      f"label {wrong[0]} has no colour: the palette has {len(palette)}; give "
      f"one colour for every class, or {IGNORED} to pixels of none"
    )
