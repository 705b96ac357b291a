"""Makes what the backbone sees of stored uint8 images, in the jitted step.

They are resized, moved at random in training (drawn for each image alone), and
normalised by the backbone's mean and standard deviation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.data.transforms import colour

# (mean, std) of RGB in [0, 1].
NORMALIZE = {
  # What the VPT, VAPT and GPT code feeds to every backbone.
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  # To [-1, 1]: how big_vision's and Google's ViTs were trained.
  "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  "clip": (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
  ),
  "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

# Kinds of random views and their parts.
AUGMENT = {
  "none": (),
  "flip": ("flip",),
  "crop": ("crop",),
  "flip_crop": ("flip", "crop"),
  # PGN's twelve data sets; its CLEVR is turned upside down too.
  "pgn": ("colour", "flip"),
  "pgn_crop": ("colour", "flip", "upside_down"),
}

# Families of preprocessing, see `resize.FAMILIES`, and their published views.
OWN = {"vtab": "none", "fgvc": "flip", "pgn": "pgn", "pgn_crop": "pgn_crop"}

# Torchvision's RandomResizedCrop: aspect ratios; ten draws, then the whole.
RATIO = (3 / 4, 4 / 3)
TRIES = 11


def prepare(
  image: jax.Array | np.ndarray, image_size: tuple[int, int], normalize: str
) -> jax.Array:
  """Resizes and normalises images: what evaluation sees.

  Straight to the target size, bilinear without antialiasing: what
  `tf.image.resize`, hence the VTAB-1k protocol, does.

  Args:
    image: uint8 [B, H, W, 3].
    image_size: (height, width).
    normalize: a name in `NORMALIZE`.

  Returns:
    float32 [B, height, width, 3].
  """
  return _normalize(_resize(image, image_size), normalize)


def train_view(
  image: jax.Array | np.ndarray,
  image_size: tuple[int, int],
  normalize: str,
  kind: str,
  rng: jax.Array,
  min_scale: float = 1.0,
) -> jax.Array:
  """Makes what training sees: resized, random colours, normalised, moved.

  Args:
    image: uint8 [B, H, W, 3].
    image_size: (height, width).
    normalize: a name in `NORMALIZE`.
    kind: a name in `AUGMENT`: `pgn` and `pgn_crop` are `colour.recolour`, in
      [0, 1], then `augment`; the others only that.
    rng: key of this batch.
    min_scale: see `random_resized_crop`, done first; 1, PGN's default: none.

  Returns:
    float32 [B, height, width, 3].
  """
  view = _resize(image, image_size)
  if min_scale < 1:
    rng, crop_rng = jax.random.split(rng)
    view = random_resized_crop(view, min_scale, crop_rng)
  if "colour" in AUGMENT[kind]:
    rng, colour_rng = jax.random.split(rng)
    view = colour.recolour(view, colour_rng)
  return augment(_normalize(view, normalize), kind, rng)


def normalize_padded(
  image: jax.Array | np.ndarray, size: jax.Array | np.ndarray, normalize: str
) -> jax.Array:
  """Normalises images whose bottom and right may be padding, which becomes 0.

  Segmentation's code pads after it has normalised.

  Args:
    image: uint8 [B, H, W, 3].
    size: integers [B, 2], (height, width) of what is no padding.
    normalize: a name in `NORMALIZE`.

  Returns:
    float32 [B, H, W, 3].
  """
  pixels = _normalize(jnp.asarray(image, jnp.float32) / 255, normalize)
  size = jnp.asarray(size)
  rows = jnp.arange(image.shape[1]) < size[:, :1]
  columns = jnp.arange(image.shape[2]) < size[:, 1:]
  inside = rows[:, :, None] & columns[:, None, :]
  return jnp.where(inside[..., None], pixels, 0)


def augment(image: jax.Array, kind: str, rng: jax.Array) -> jax.Array:
  """Moves prepared images at random.

  Args:
    image: float32 [B, H, W, 3].
    kind: `none`, `flip` (left-right with probability 1/2), `crop` (at a random
      place of the image padded by an eighth of its side), `flip_crop`; `pgn`
      is `flip`, `pgn_crop` turns upside down with probability 1/2 as well.
    rng: key of this batch.
  """
  parts = AUGMENT[kind]
  batch, height, width, channels = image.shape
  flip_rng, row_rng, column_rng, upside_rng = jax.random.split(rng, 4)
  if "crop" in parts:
    pad_h = height // 8
    pad_w = width // 8
    padded = jnp.pad(image, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    rows = jax.random.randint(row_rng, (batch,), 0, 2 * pad_h + 1)
    columns = jax.random.randint(column_rng, (batch,), 0, 2 * pad_w + 1)

    def crop(image, row, column):
      return jax.lax.dynamic_slice(
        image, (row, column, 0), (height, width, channels)
      )

    image = jax.vmap(crop)(padded, rows, columns)
  if "flip" in parts:
    image = jnp.where(_chance(flip_rng, batch, 0.5), image[:, :, ::-1], image)
  if "upside_down" in parts:
    image = jnp.where(_chance(upside_rng, batch, 0.5), image[:, ::-1], image)
  return image


def random_resized_crop(
  image: jax.Array, min_scale: float, rng: jax.Array
) -> jax.Array:
  """Crops as torchvision's `RandomResizedCrop(scale=(min_scale, 1))`.

  The size stays. Draws areas and aspect ratios until one fits into the image
  (as it is stored: squeezed to a square, see `resize.squash`), else takes all
  of it.

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    min_scale: smallest share of the area.
    rng: key of this batch.
  """
  batch, height, width, _ = image.shape
  area_rng, ratio_rng, place_rng = jax.random.split(rng, 3)
  shape = (batch, TRIES)
  share = min_scale + (1 - min_scale) * jax.random.uniform(area_rng, shape)
  area = height * width * share
  log_ratio = jax.random.uniform(ratio_rng, shape)
  ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** log_ratio
  place = jax.random.uniform(place_rng, shape)
  sides = jnp.round(jnp.sqrt(jnp.stack([area / ratio, area * ratio], -1)))
  # The last one is all of the image, which always fits.
  full = jnp.array([height, width], jnp.float32)
  sides = sides.at[:, -1].set(full)
  first = ((sides >= 1) & (sides <= full)).all(-1).argmax(1)
  side = jnp.take_along_axis(sides, first[:, None, None], axis=1)[:, 0]
  start = jnp.floor(place[:, :2] * (full - side + 1))
  return crop_resize(image, start, side)


def crop_resize(
  image: jax.Array, start: jax.Array, side: jax.Array
) -> jax.Array:
  """Enlarges rectangles of images to the image's size, as Pillow does.

  Bicubic, of nothing outside of the rectangle.

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    start: float32 [B, 2], first row and column.
    side: float32 [B, 2], rows and columns.
  """
  _, height, width, _ = image.shape
  columns = _weights(width, start[:, 1], side[:, 1])
  rows = _weights(height, start[:, 0], side[:, 0])
  exact = jax.lax.Precision.HIGHEST
  image = jnp.einsum("bpw,bhwc->bhpc", columns, image, precision=exact)
  image = jnp.clip(image, 0, 1)
  image = jnp.einsum("bqh,bhpc->bqpc", rows, image, precision=exact)
  return jnp.clip(image, 0, 1)


def crop_strips(
  rows: jax.Array | np.ndarray,
  first: jax.Array | np.ndarray,
  wide: jax.Array | np.ndarray,
  index: jax.Array | np.ndarray,
  rng: jax.Array,
  size: int,
) -> jax.Array:
  """Crops random squares of images of unequal length.

  Equals torchvision's RandomCrop.

  Args:
    rows: uint8 [R, S, 3], all images one below the other, see
      `examples.Strips`.
    first: integers [N + 1]: image i is rows first[i] : first[i + 1].
    wide: bool [N]: its height and width are swapped there.
    index: integers [B], which images.
    rng: key of this batch.
    size: pixels of a side.

  Returns:
    uint8 [B, size, size, 3].

  Raises:
    ValueError: the images' shorter side S is below `size`.
  """
  first = jnp.asarray(first)
  wide = jnp.asarray(wide)
  start = first[index]
  length = first[index + 1] - start
  place = jax.random.uniform(rng, (len(index), 2))
  return crop_at(rows, start, length, wide[index], place, size)


def crop_at(
  rows: jax.Array | np.ndarray,
  first: jax.Array,
  length: jax.Array,
  wide: jax.Array,
  place: jax.Array,
  size: int,
) -> jax.Array:
  """Crops squares of images of unequal length, see `examples.Strips.crop`.

  Args:
    rows: uint8 [R, S, 3].
    first: integers [B], where the images begin.
    length: integers [B], their longer sides.
    wide: bool [B].
    place: float32 [B, 2], along the longer and the shorter side, in [0, 1).
    size: pixels of a side.

  Returns:
    uint8 [B, size, size, 3].

  Raises:
    ValueError: the images' shorter side S is below `size`.
  """
  if rows.shape[1] < size:
    raise ValueError(
      f"crops of side {size} from images of shorter side {rows.shape[1]}: "
      f"prepare them for this image size; nearest that they have room for: "
      f"{rows.shape[1]}"
    )
  sides = jnp.stack([length, jnp.full_like(length, rows.shape[1])], 1)
  free = sides - size
  row, column = jnp.int32(place * (free + 1)).T

  def crop(row, column):
    return jax.lax.dynamic_slice(
      rows, (row, column, 0), (size, size, rows.shape[2])
    )

  square = jax.vmap(crop)(first + row, column)
  return jnp.where(wide[:, None, None, None], square.swapaxes(1, 2), square)


def _resize(
  image: jax.Array | np.ndarray, image_size: tuple[int, int]
) -> jax.Array:
  """Resizes uint8 [B, H, W, 3] to float32 [B, *image_size, 3] in [0, 1]."""
  pixels: Any = image.astype(jnp.float32) / 255
  if pixels.shape[1:3] == tuple(image_size):
    return pixels
  shape = (len(pixels), *image_size, pixels.shape[-1])
  return jax.image.resize(pixels, shape, "bilinear", antialias=False)


def _normalize(image: jax.Array, name: str) -> jax.Array:
  mean, std = NORMALIZE[name]
  return (image - jnp.array(mean)) / jnp.array(std)


def _chance(rng: jax.Array, batch: int, p: float) -> jax.Array:
  """Draws bool [B, 1, 1, 1], each true with probability p."""
  return jax.random.bernoulli(rng, p, (batch, 1, 1, 1))


def _weights(size: int, start: jax.Array, side: jax.Array) -> jax.Array:
  """Returns each output pixel i as a mean of input pixels j: [B, size, size].

  Keys' cubic with a = -1/2, at distance x:

    (1.5 x - 2.5) x^2 + 1             x < 1
    ((-0.5 x + 2.5) x - 4) x + 2      1 <= x < 2
    0                                 else

  It only enlarges: there is nothing to antialias.
  """
  centres = jnp.arange(size) + 0.5
  zoom = (side / size)[:, None, None]
  start = start[:, None, None]
  end = start + side[:, None, None]
  x = jnp.abs(centres - (start + centres[:, None] * zoom))
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-0.5 * x + 2.5) * x - 4) * x + 2
  cubic = jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
  inside = (centres > start) & (centres < end)
  cubic = jnp.where(inside, cubic, 0)
  return cubic / cubic.sum(-1, keepdims=True)
