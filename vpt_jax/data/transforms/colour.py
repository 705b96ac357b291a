"""PGN's random colours: torchvision's operations on images in [0, 1], drawn for
each image of a batch alone (BMVC 2024, arXiv 2210.06466).

The published code draws ColorJitter(0.4, 0.4, 0.4, 0.4) with probability 0.8,
grey with 0.2 and solarisation with 0.2, in this order.
"""

import itertools

import jax
import jax.numpy as jnp

JITTER, JITTER_P, GREY_P, SOLARIZE_P = 0.4, 0.8, 0.2, 0.2
# Of red, green and blue in grey (ITU-R 601).
LUMA = (0.299, 0.587, 0.114)


def recolour(image: jax.Array, rng: jax.Array) -> jax.Array:
  """PGN's colours: jitter, then grey, then solarisation, each by chance.

  The jitter changes brightness, contrast, saturation and hue in random order,
  as `torchvision.transforms.ColorJitter`, but without rounding in between.

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    rng: key of this batch.

  Returns:
    The same shape and range.
  """
  draw = jax.random.uniform(rng, (len(image), 8))
  chance = lambda i, p: (draw[:, i] < p)[:, None, None, None]
  orders = jnp.array([*itertools.permutations(range(4))])
  around = JITTER * (2 * draw[:, 4:] - 1)
  jittered = jitter(
    image,
    orders[jnp.int32(len(orders) * draw[:, 0])],
    1 + around[:, :3],
    around[:, 3],
  )
  image = jnp.where(chance(1, JITTER_P), jittered, image)
  image = jnp.where(chance(2, GREY_P), grey(image), image)
  # 128 and more of 255 are inverted; halfway, for what is not rounded.
  return jnp.where(
    chance(3, SOLARIZE_P) & (image > 127.5 / 255), 1 - image, image
  )


def jitter(
  image: jax.Array, order: jax.Array, factor: jax.Array, turn: jax.Array
) -> jax.Array:
  """Changes brightness (0), contrast (1), saturation (2) and hue (3).

    x <- clip(d + factor (x - d)), d = black | the image's mean grey | its grey
    hue <- hue + turn

  Args:
    image: float32 [B, H, W, 3] in [0, 1].
    order: [B, 4], which of the four is done first, second, ...
    factor: [B, 3], of the first three; 1 changes nothing.
    turn: [B], of the hue, in turns of the colour circle; 0 changes nothing.
  """
  per_image = lambda x: x[:, None, None, None]

  def change(image, what):
    luma = grey(image)
    far = jnp.where(
      per_image(what == 0),
      0,
      jnp.where(
        per_image(what == 1), luma.mean((1, 2, 3), keepdims=True), luma
      ),
    )
    by = jnp.take_along_axis(factor, jnp.minimum(what, 2)[:, None], axis=1)
    blended = jnp.clip(far + by[..., None, None] * (image - far), 0, 1)
    return jnp.where(
      per_image(what == 3), turn_hue(image, per_image(turn)), blended
    ), None

  return jax.lax.scan(change, image, order.T)[0]


def grey(image: jax.Array) -> jax.Array:
  """[..., 3] -> its luma [..., 1]."""
  return sum(share * image[..., i : i + 1] for i, share in enumerate(LUMA))


def turn_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
  """Moves the hue; the largest and the smallest of red, green, blue stay.

  With top and low of the three, chroma c = top - low and hue h in sixths of the
  circle, a channel whose colour is at hue n is

    low + c clip(2 - |(h - n + 3 mod 6) - 3|, 0, 1).

  Args:
    image: float32 [..., H, W, 3] in [0, 1].
    turn: [..., 1, 1, 1], in turns of the circle.
  """
  red, green, blue = (image[..., i : i + 1] for i in range(3))
  top = image.max(-1, keepdims=True)
  low = image.min(-1, keepdims=True)
  chroma = top - low
  safe = jnp.where(chroma > 0, chroma, 1)
  hue = jnp.where(
    top == red,
    (green - blue) / safe,
    jnp.where(top == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
  )
  away = jnp.abs((hue + 6 * turn - jnp.arange(0, 6, 2) + 3) % 6 - 3)
  return low + chroma * jnp.clip(2 - away, 0, 1)
