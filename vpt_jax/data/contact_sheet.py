"""Contact sheets: samples of a split with their classes, as a picture."""

from collections import Counter

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vpt_jax.data.cache import decoding
from vpt_jax.data.cache.decoding import Geometry
from vpt_jax.data.examples import Examples, Split
from vpt_jax.data.transforms import views

ROWS = COLUMNS = 8
TILE, GAP, TEXT = 152, 10, 13  # pixels


def sample(examples: Examples, seed: int) -> Examples:
  """As many as a sheet has, of all classes alike, sorted by class."""
  seen: Counter[int] = Counter()
  order = []
  for i in np.random.default_rng(seed).permutation(len(examples)):
    label = int(examples.labels[i])
    order.append((seen[label], label, int(i)))
    seen[label] += 1
  # The first of each class in random order come before the second ones.
  order = sorted(order, key=lambda entry: entry[0])[: ROWS * COLUMNS]
  chosen = [i for _, _, i in sorted(order, key=lambda entry: entry[1:])]
  return decoding.subset(examples, chosen)


def seen(
  examples: Examples,
  family: str,
  image_size: tuple[int, int],
  augment: str | None,
  seed: int,
  workers: int = 0,
) -> tuple[np.ndarray, Split]:
  """Images as the backbone sees them, but not normalised; without bad ones.

  Args:
    examples: all of them are decoded.
    family: a name in `resize.FAMILIES`.
    image_size: (height, width).
    augment: None: as in evaluation; a name in `preprocess.AUGMENT`: as in
      training with it.
    seed: of the random views.
    workers: threads; 0: a few more than there are processors.

  Returns:
    uint8 [N, height, width, 3], and the split that they are of.
  """
  train = augment is not None
  split = decoding.decode_all(
    examples, Geometry(family, image_size, train), "skip", workers
  )
  rng, crop_rng = jax.random.split(jax.random.key(seed))
  images = split.images
  if split.strips is not None:
    images = views.crop_strips(
      images,
      split.strips.first,
      split.strips.wide,
      np.arange(len(split)),
      crop_rng,
      max(image_size),
    )
  if train:
    images = views.train_view(images, image_size, "none", augment, rng)
  else:
    images = views.prepare(images, image_size, "none")
  return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8), split


def sheet(images: np.ndarray, labels: list[str], title: str) -> Image.Image:
  """Draws images in rows of eight, each with its label below.

  Args:
    images: uint8 [N, H, W, 3].
    labels: N.
    title: above all.
  """
  rows = -(-len(images) // COLUMNS)
  step = TILE + GAP, TILE + GAP + TEXT + 6
  top = 2 * GAP + TEXT
  page = Image.new(
    "RGB", (COLUMNS * step[0] + GAP, rows * step[1] + top), "white"
  )
  draw = ImageDraw.Draw(page)
  font = ImageFont.load_default(TEXT)
  draw.text(
    (GAP, GAP), shorten(title, font, page.width - 2 * GAP), "black", font
  )
  for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
    image = ImageOps.contain(Image.fromarray(pixels), (TILE, TILE))
    x, y = GAP + i % COLUMNS * step[0], top + i // COLUMNS * step[1]
    page.paste(image, (x, y))
    draw.text((x, y + TILE + 2), shorten(label, font, TILE), "black", font)
  return page


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
  """The text, or as much of it as fits into so many pixels and an ellipsis."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(f"{text}...") > width:
    text = text[:-1]
  return f"{text.rstrip()}..."
