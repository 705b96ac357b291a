"""Stored uint8 images -> what the backbone sees, inside the jitted step: random
views, drawn for each image alone, and the backbone's mean and deviation."""

import jax
import jax.numpy as jnp

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

# Kinds of random views -> their parts.
AUGMENT = {
  "none": (),
  "flip": ("flip",),
  "crop": ("crop",),
  "flip_crop": ("flip", "crop"),
  # PGN's twelve data sets; its CLEVR is turned upside down too.
  "pgn": ("colour", "flip"),
  "pgn_crop": ("colour", "flip", "upside_down"),
}

# Families of preprocessing, see `resize.FAMILIES` -> their published views.
OWN = {"vtab": "none", "fgvc": "flip", "pgn": "pgn", "pgn_crop": "pgn_crop"}

# torchvision's RandomResizedCrop: aspect ratios; ten draws, then the whole.
RATIO, TRIES = (3 / 4, 4 / 3), 11


def prepare(
  image: jax.Array, image_size: tuple[int, int], normalize: str
) -> jax.Array:
  """Resizes and normalises: what evaluation sees.

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
  image: jax.Array,
  image_size: tuple[int, int],
  normalize: str,
  kind: str,
  rng: jax.Array,
  min_scale: float = 1.0,
) -> jax.Array:
  """What training sees: resized, a random view in colour, normalised, flipped.

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
  image = _resize(image, image_size)
  if min_scale < 1:
    rng, crop_rng = jax.random.split(rng)
    image = random_resized_crop(image, min_scale, crop_rng)
  if "colour" in AUGMENT[kind]:
    rng, colour_rng = jax.random.split(rng)
    image = colour.recolour(image, colour_rng)
  return augment(_normalize(image, normalize), kind, rng)


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
    pad_h, pad_w = height // 8, width // 8
    padded = jnp.pad(image, ((0, 0), (pad_h, pad_h), (pad_w, pad_w), (0, 0)))
    rows = jax.random.randint(row_rng, (batch,), 0, 2 * pad_h + 1)
    columns = jax.random.randint(column_rng, (batch,), 0, 2 * pad_w + 1)
    crop = lambda x, r, c: jax.lax.dynamic_slice(
      x, (r, c, 0), (height, width, channels)
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
  """torchvision's `RandomResizedCrop(scale=(min_scale, 1))` to the same size.

  Draws areas and aspect ratios until one fits into the image (as it is stored:
  squeezed to a square, see `resize.squash`), else takes all of it.

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    min_scale: smallest share of the area.
    rng: key of this batch.
  """
  batch, height, width, _ = image.shape
  area, ratio, place = (
    jax.random.uniform(key, (batch, TRIES)) for key in jax.random.split(rng, 3)
  )
  area = height * width * (min_scale + (1 - min_scale) * area)
  ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
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
  """Rectangles of images, enlarged to the image's size as Pillow does: bicubic,
  of nothing outside of the rectangle.

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    start: float32 [B, 2], first row and column.
    side: float32 [B, 2], rows and columns.
  """
  for axis, terms in ((1, "bpw,bhwc->bhpc"), (0, "bqh,bhpc->bqpc")):
    weights = _weights(image.shape[1 + axis], start[:, axis], side[:, axis])
    image = jnp.clip(
      jnp.einsum(terms, weights, image, precision=jax.lax.Precision.HIGHEST),
      0,
      1,
    )
  return image


def crop_strips(
  rows: jax.Array,
  first: jax.Array,
  wide: jax.Array,
  index: jax.Array,
  rng: jax.Array,
  size: int,
) -> jax.Array:
  """Random squares of images of unequal length, as torchvision's RandomCrop.

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
  first, wide = jnp.asarray(first), jnp.asarray(wide)
  start = first[index]
  return crop_at(
    rows,
    start,
    first[index + 1] - start,
    wide[index],
    jax.random.uniform(rng, (len(index), 2)),
    size,
  )


def crop_at(
  rows: jax.Array,
  first: jax.Array,
  length: jax.Array,
  wide: jax.Array,
  place: jax.Array,
  size: int,
) -> jax.Array:
  """Squares of images of unequal length, see `examples.Strips.crop`.

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
      f"crops of side {size} from images of shorter side "
      f"{rows.shape[1]}: prepare them for this image size"
    )
  free = jnp.stack([length, jnp.full_like(length, rows.shape[1])], 1) - size
  row, column = jnp.int32(place * (free + 1)).T
  crop = jax.vmap(
    lambda r, c: jax.lax.dynamic_slice(
      rows, (r, c, 0), (size, size, rows.shape[2])
    )
  )(first + row, column)
  return jnp.where(wide[:, None, None, None], crop.swapaxes(1, 2), crop)


def _resize(image: jax.Array, image_size: tuple[int, int]) -> jax.Array:
  """uint8 [B, H, W, 3] -> float32 [B, *image_size, 3] in [0, 1]."""
  image = image.astype(jnp.float32) / 255
  if image.shape[1:3] == tuple(image_size):
    return image
  shape = (len(image), *image_size, image.shape[-1])
  return jax.image.resize(image, shape, "bilinear", antialias=False)


def _normalize(image: jax.Array, name: str) -> jax.Array:
  mean, std = (jnp.array(value) for value in NORMALIZE[name])
  return (image - mean) / std


def _chance(rng: jax.Array, batch: int, p: float) -> jax.Array:
  """bool [B, 1, 1, 1], each true with probability p."""
  return jax.random.bernoulli(rng, p, (batch, 1, 1, 1))


def _weights(size: int, start: jax.Array, side: jax.Array) -> jax.Array:
  """[B, size, size]: output pixel i as a mean of input pixels j.

  Keys' cubic with a = -1/2. It only enlarges: nothing to antialias.
  """
  place = jnp.arange(size) + 0.5
  zoom = (side / size)[:, None, None]
  start, end = start[:, None, None], (start + side)[:, None, None]
  x = jnp.abs(place - (start + place[:, None] * zoom))
  cubic = jnp.where(
    x < 1,
    (1.5 * x - 2.5) * x * x + 1,
    jnp.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0),
  )
  cubic = jnp.where((place > start) & (place < end), cubic, 0)
  return cubic / cubic.sum(-1, keepdims=True)
