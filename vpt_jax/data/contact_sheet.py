"""Draws contact sheets: samples of a split with their classes."""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vpt_jax.data.cache import decoding
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples, Split
from vpt_jax.data.transforms import views
from vpt_jax.data.transforms.preprocess import Preprocess

ROWS = COLUMNS = 8
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# In pixels.
TILE = 152
GAP = 10
TEXT = 13


class _Drawn(NamedTuple):
  """Is an example in random order.

  Attributes:
    before: how many of its class came before it.
    label: its classes.
    number: in the split.
  """

  before: int
  label: tuple[int, ...]
  number: int


def sample(examples: Examples, seed: int) -> Examples:
  """Returns as many as a sheet has, of all classes alike, sorted by class."""
  counts: Counter[tuple[int, ...]] = Counter()
  drawn = []
  for i in np.random.default_rng(seed).permutation(len(examples)):
    # Zeros and ones [K] where images may have several classes.
    label = tuple(np.atleast_1d(examples.labels[i]).tolist())
    drawn.append(_Drawn(counts[label], label, int(i)))
    counts[label] += 1
  # The first of each class in random order come before the second ones.
  drawn.sort(key=lambda entry: entry.before)
  chosen = drawn[: ROWS * COLUMNS]
  chosen.sort(key=lambda entry: (entry.label, entry.number))
  return decoding.subset(examples, [entry.number for entry in chosen])


def model_views(
  examples: Examples,
  preprocess: Preprocess,
  augment: str | None,
  seed: int,
  workers: int = 0,
) -> tuple[np.ndarray, Split]:
  """Returns images as the backbone sees them, but not normalised.

  Bad ones are left out.

  Args:
    examples: all of them are decoded.
    preprocess: what happens to them.
    augment: None: as in evaluation; a name in `views.AUGMENT`: as in training
      with it.
    seed: of the random views.
    workers: threads; 0: `decoding.default_workers`.

  Returns:
    uint8 [N, height, width, 3], and the split that they are of.

  Raises:
    UnknownGreyRange: there is 16-bit grey without a range.
  """
  train = augment is not None
  preprocess = dataclasses.replace(preprocess, normalize="none")
  split = decoding.decode_all(
    examples, Layout(preprocess, train), "skip", workers
  )
  rng, crop_rng = jax.random.split(jax.random.key(seed))
  images: jax.Array | np.ndarray = split.images
  if split.strips is not None:
    images = views.crop_strips(
      images,
      split.strips.first,
      split.strips.wide,
      np.arange(len(split)),
      crop_rng,
      max(preprocess.image_size),
    )
  if augment is None:
    images = preprocess.prepare(images)
  else:
    images = preprocess.train_view(images, augment, rng)
  return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8), split


def sheet(
  images: Sequence[np.ndarray] | np.ndarray, labels: list[str], title: str
) -> Image.Image:
  """Draws images in rows of eight, each with its label below.

  Args:
    images: uint8 [H, W, 3] each, N of them, of any sizes.
    labels: N.
    title: above all.
  """
  rows = math.ceil(len(images) / COLUMNS)
  across = TILE + GAP
  down = TILE + GAP + TEXT + 6
  top = 2 * GAP + TEXT
  page = Image.new("RGB", (COLUMNS * across + GAP, rows * down + top), "white")
  draw = ImageDraw.Draw(page)
  font = ImageFont.load_default(TEXT)
  title = shorten(title, font, page.width - 2 * GAP)
  draw.text((GAP, GAP), title, "black", font)
  for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
    row, column = divmod(i, COLUMNS)
    x = GAP + column * across
    y = top + row * down
    image = ImageOps.contain(Image.fromarray(pixels), (TILE, TILE))
    page.paste(image, (x, y))
    draw.text((x, y + TILE + 2), shorten(label, font, TILE), "black", font)
  return page


def shorten(text: str, font: Font, width: int) -> str:
  """Returns the text, or as much of it as fits, and an ellipsis.

  Args:
    text: in one line.
    font: that it is drawn in.
    width: pixels that are free.
  """
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(f"{text}...") > width:
    text = text[:-1]
  return f"{text.rstrip()}..."
