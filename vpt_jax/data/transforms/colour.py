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
  order_draw, jitter_draw, grey_draw, solarize_draw = draw[:, :4].T
  orders = jnp.array(list(itertools.permutations(range(4))))
  number = jnp.int32(len(orders) * order_draw)
  around = JITTER * (2 * draw[:, 4:] - 1)
  factor = 1 + around[:, :3]
  turn = around[:, 3]
  jittered = jitter(image, orders[number], factor, turn)
  is_jittered = _per_image(jitter_draw < JITTER_PROBABILITY)
  image = jnp.where(is_jittered, jittered, image)
  is_grey = _per_image(grey_draw < GREY_PROBABILITY)
  image = jnp.where(is_grey, grey(image), image)
  is_solarized = _per_image(solarize_draw < SOLARIZE_PROBABILITY)
  is_inverted = is_solarized & (image > SOLARIZE_ABOVE)
  return jnp.where(is_inverted, 1 - image, image)


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
    is_brightness = _per_image(what == 0)
    is_contrast = _per_image(what == 1)
    is_hue = _per_image(what == 3)
    other = jnp.where(is_contrast, mean_luma, luma)
    other = jnp.where(is_brightness, 0, other)
    # Of the hue, which has no factor, it does not matter.
    number = jnp.minimum(what, 2)[:, None]
    of_image = jnp.take_along_axis(factor, number, axis=1)
    strength = _per_image(of_image)
    difference = image - other
    blended = other + strength * difference
    blended = jnp.clip(blended, 0, 1)
    turned = turn_hue(image, _per_image(turn))
    return jnp.where(is_hue, turned, blended), None

  image, _ = jax.lax.scan(change, image, order.T)
  return image


def grey(image: jax.Array) -> jax.Array:
  """Returns the luma [..., 1] of an image [..., 3]."""
  red, green, blue = jnp.split(image, 3, axis=-1)
  of_red, of_green, of_blue = LUMA
  return of_red * red + of_green * green + of_blue * blue


def turn_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
  """Turns the hue; the largest and the smallest of red, green, blue stay.

  With top and low of the three, chroma c = top - low and hue h in sixths of the
  circle, a channel whose colour is at hue n is

    low + c clip(2 - |(h - n + 3 mod 6) - 3|, 0, 1).

  Args:
    image: float32 [..., H, W, 3] in [0, 1].
    turn: [..., 1, 1, 1], in turns of the circle.
  """
  red, green, blue = jnp.split(image, 3, axis=-1)
  top = image.max(-1, keepdims=True)
  low = image.min(-1, keepdims=True)
  chroma = top - low
  is_coloured = chroma > 0
  safe = jnp.where(is_coloured, chroma, 1)
  # In sixths of the circle: red is at 0, green at 2, blue at 4.
  near_red = (green - blue) / safe
  near_green = 2 + (blue - red) / safe
  near_blue = 4 + (red - green) / safe
  is_red = top == red
  is_green = top == green
  hue = jnp.where(is_green, near_green, near_blue)
  hue = jnp.where(is_red, near_red, hue)
  channels = jnp.arange(0, 6, 2)
  hue = hue + 6 * turn
  opposite = (hue - channels + 3) % 6
  away = jnp.abs(opposite - 3)
  strength = jnp.clip(2 - away, 0, 1)
  return low + chroma * strength


def _per_image(values: jax.Array) -> jax.Array:
  """Returns a number for each image, [B] or [B, 1], as [B, 1, 1, 1]."""
  return values.reshape(-1, 1, 1, 1)
