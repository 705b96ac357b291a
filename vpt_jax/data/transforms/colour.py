"""Changes the colours of training images at random, as PGN's code does.

These are torchvision's operations on images in [0, 1], drawn for each image of
a batch alone. The published code (BMVC 2024, arXiv 2210.06466) draws
ColorJitter(0.4, 0.4, 0.4, 0.4) with probability 0.8, grey with 0.2 and
solarisation with 0.2, in this order.
"""

import itertools

import jax
import jax.numpy as jnp

JITTER = 0.4
JITTER_PROBABILITY = 0.8
GREY_PROBABILITY = 0.2
SOLARIZE_PROBABILITY = 0.2
# 128 and more of 255 are inverted; halfway, for what is not rounded.
SOLARIZE_ABOVE = 127.5 / 255
# Of red, green and blue in grey (ITU-R 601).
LUMA = (0.299, 0.587, 0.114)


def recolour(image: jax.Array, rng: jax.Array) -> jax.Array:
  """Draws PGN's colours: jitter, then grey, then solarisation, each by chance.

  The jitter changes brightness, contrast, saturation and hue in random order,
  as `torchvision.transforms.ColorJitter`, but without rounding in between.

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    rng: key of this batch.

  Returns:
    The same shape and range.
  """
  # Of each image: the order, three chances, three factors and the hue's turn.
  draw = jax.random.uniform(rng, (len(image), 8))
  orders = jnp.array(list(itertools.permutations(range(4))))
  order = orders[jnp.int32(len(orders) * draw[:, 0])]
  around = JITTER * (2 * draw[:, 4:] - 1)
  jittered = jitter(image, order, 1 + around[:, :3], around[:, 3])
  is_jittered = _per_image(draw[:, 1] < JITTER_PROBABILITY)
  image = jnp.where(is_jittered, jittered, image)
  is_grey = _per_image(draw[:, 2] < GREY_PROBABILITY)
  image = jnp.where(is_grey, grey(image), image)
  is_solarized = _per_image(draw[:, 3] < SOLARIZE_PROBABILITY)
  return jnp.where(is_solarized & (image > SOLARIZE_ABOVE), 1 - image, image)


def jitter(
  image: jax.Array, order: jax.Array, factor: jax.Array, turn: jax.Array
) -> jax.Array:
  """Changes brightness (0), contrast (1), saturation (2) and hue (3).

  With d = 0 (brightness), the image's mean grey (contrast) or the pixel's own
  grey (saturation):

    x <- clip(d + factor (x - d), 0, 1)
    hue <- hue + turn

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    order: [B, 4], which of the four is done first, second, ...
    factor: [B, 3], of the first three; 1 changes nothing.
    turn: [B], of the hue, in turns of the colour circle; 0 changes nothing.
  """

  def change(image, what):
    """Does to each image what its number in `what` [B] says."""
    luma = grey(image)
    mean_luma = luma.mean((1, 2, 3), keepdims=True)
    blend_with = jnp.where(_per_image(what == 1), mean_luma, luma)
    blend_with = jnp.where(_per_image(what == 0), 0, blend_with)
    of_image = jnp.take_along_axis(
      factor, jnp.minimum(what, 2)[:, None], axis=1
    )
    strength = of_image[..., None, None]
    blended = jnp.clip(blend_with + strength * (image - blend_with), 0, 1)
    turned = turn_hue(image, _per_image(turn))
    return jnp.where(_per_image(what == 3), turned, blended), None

  image, _ = jax.lax.scan(change, image, order.T)
  return image


def grey(image: jax.Array) -> jax.Array:
  """Returns the luma [..., 1] of an image [..., 3]."""
  return sum(share * image[..., i : i + 1] for i, share in enumerate(LUMA))


def turn_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
  """Turns the hue; the largest and the smallest of red, green, blue stay.

  With top and low of the three, chroma c = top - low and hue h in sixths of the
  circle, a channel whose colour is at hue n is

    low + c clip(2 - |(h - n + 3 mod 6) - 3|, 0, 1).

  Args:
    image: float32 [..., H, W, 3] in [0, 1].
    turn: [..., 1, 1, 1], in turns of the circle.
  """
  red = image[..., 0:1]
  green = image[..., 1:2]
  blue = image[..., 2:3]
  top = image.max(-1, keepdims=True)
  low = image.min(-1, keepdims=True)
  chroma = top - low
  safe = jnp.where(chroma > 0, chroma, 1)
  # In sixths of the circle: red is at 0, green at 2, blue at 4.
  near_red = (green - blue) / safe
  near_green = 2 + (blue - red) / safe
  near_blue = 4 + (red - green) / safe
  hue = jnp.where(top == green, near_green, near_blue)
  hue = jnp.where(top == red, near_red, hue)
  channels = jnp.arange(0, 6, 2)
  away = jnp.abs((hue + 6 * turn - channels + 3) % 6 - 3)
  return low + chroma * jnp.clip(2 - away, 0, 1)


def _per_image(values: jax.Array) -> jax.Array:
  """Returns [B] as [B, 1, 1, 1]: a number for each image."""
  return values[:, None, None, None]
