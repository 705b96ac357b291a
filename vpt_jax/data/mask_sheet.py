"""Draws contact sheets of images with their masks' colours over them."""

from collections.abc import Sequence
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vpt_jax.data import contact_sheet, mask_pictures
from vpt_jax.data.contact_sheet import COLUMNS, GAP, ROWS, TEXT
from vpt_jax.data.examples import MaskedSplit
from vpt_jax.data.sources.masks import Colour
from vpt_jax.data.transforms.segmentation import IGNORED
from vpt_jax.utils.logs import log

_SWATCH = 14  # pixels of a side
_ENTRY = 186  # pixels that an entry of the legend is wide


def draw(split: MaskedSplit, title: str, seed: int) -> Image.Image:
  """Draws a sample of a split, with a legend of the classes that are in it.

  Images that cannot be used are left out, and told.

  Args:
    split: images with masks.
    title: above all.
    seed: of the sample.

  Raises:
    ValueError: none can be used.
  """
  pictures: list[np.ndarray] = []
  captions = []
  present: set[int] = set()
  for i in np.random.default_rng(seed).permutation(len(split)).tolist():
    try:
      image, labels = split.decoded(i)
    except ValueError as error:
      log.warning("left out: %s", error)
      continue
    pictures.append(mask_pictures.overlay(image, labels, split.palette))
    captions.append(split.names[i])
    present.update(np.unique(labels).tolist())
    if len(pictures) == ROWS * COLUMNS:
      break
  if not pictures:
    raise ValueError(f"{split.examples.origin}: no image can be used")
  page = contact_sheet.sheet(pictures, captions, title)
  entries = []
  for label in sorted(present - {IGNORED}):
    entries.append((split.classes[label], split.palette[label]))
  return _with_legend(page, entries)


def _with_legend(
  page: Image.Image, entries: Sequence[tuple[str, Colour]]
) -> Image.Image:
  """Returns a page with names and colours of classes at its end."""
  columns = (page.width - GAP) // _ENTRY
  line = _SWATCH + 6
  rows = math.ceil(len(entries) / columns)
  whole = Image.new(
    "RGB", (page.width, page.height + rows * line + GAP), "white"
  )
  whole.paste(page, (0, 0))
  pen = ImageDraw.Draw(whole)
  font = ImageFont.load_default(TEXT)
  for i, (name, colour) in enumerate(entries):
    row, column = divmod(i, columns)
    x = GAP + column * _ENTRY
    y = page.height + row * line
    box = (x, y, x + _SWATCH, y + _SWATCH)
    pen.rectangle(box, fill=colour, outline="black")
    free = _ENTRY - _SWATCH - 12
    shown = contact_sheet.shorten(name, font, free)
    pen.text((x + _SWATCH + 6, y), shown, "black", font)
  return whole
