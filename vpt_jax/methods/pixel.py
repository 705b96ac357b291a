"""Prompts elsewhere: VPT's ablations (figure 5 of its paper), visual prompting.

Added to tokens (`Add`), around the image (`Pad`), below it as further channels
(`Below`), before it as further patches (`PrependPixel`), on it (`Border`).
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.methods.method import (
  check_options,
  Method,
  per_image,
  prompt_init,
  prompt_sets,
)
from vpt_jax.nn.layers import Conv, Dropout

# Mean and std of the images that a learned image in [0, 1] is made comparable
# with; as published these, whatever `data.normalize` says.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def unit_uniform(
  key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32
) -> jax.Array:
  """U(0, 1)."""
  return jax.random.uniform(key, shape, dtype)


def normalised(image: jax.Array) -> jax.Array:
  """(image - mean) / std of [..., 3] in [0, 1]."""
  mean, std = map(jnp.array, IMAGENET)
  return (image - mean) / std


def framed(
  image: jax.Array, top_bottom: jax.Array, left_right: jax.Array
) -> jax.Array:
  """Puts a frame around images.

  Args:
    image: [B, H, W, 3].
    top_bottom: [2, T, W + 2 T, 3], with the corners.
    left_right: [2, H, T, 3].

  Returns:
    [B, H + 2 T, W + 2 T, 3].
  """
  spread = lambda x: jnp.broadcast_to(x, (len(image), *x.shape))
  (top, bottom), (left, right) = (
    map(spread, top_bottom),
    map(spread, left_right),
  )
  image = jnp.concatenate([left, image, right], axis=2)
  return jnp.concatenate([top, image, bottom], axis=1)


class Add(Method):
  """Adds prompts to the tokens instead of setting them beside these.

    x_i = L_i(x_{i-1} + P_{i-1}),   P_i = 0 for i > 0 if shallow

  Attributes:
    single: one vector for all tokens (`add-1`), not one for each.
    deep: before every block, not only the first.
    dropout: rate of the prompts' dropout, per image; one draw for all tokens
      if `single`.
  """

  needs_grid: ClassVar[bool] = True

  single: bool = False
  deep: bool = False
  dropout: float = 0.1

  def setup(self):
    check_options("add", {}, {"dropout": self.dropout})
    spec, sets = self.spec, []
    end = spec.depth if self.deep else 1
    for stage in spec.stages:  # of as many tokens each
      tokens = spec.num_cls + math.prod(spec.grids[stage.start])
      mine = range(stage.start, min(stage.stop, end))
      sets += prompt_sets(self, mine, 1 if self.single else tokens)[
        stage.start : stage.stop
      ]
    self.prompt = sets
    self.prompt_dropout = Dropout(self.dropout)

  def before(self, i, tokens, *, train):
    if self.prompt[i] is None:
      return tokens
    prompt = per_image(
      self.prompt[i], len(tokens.x), self.prompt_dropout, train
    )
    return tokens.replace(x=tokens.x + prompt.astype(tokens.x.dtype))


class Pad(Method):
  """A learned frame around a smaller image, as VPT prompts ConvNets.

  The frame is an image in [0, 1] that is normalised as ImageNet's are. Images
  are resized to what it leaves; to keep them at 224 x 224 as published, set
  `config.image_size` to 224 + 2 `width`.

  Attributes:
    width: T pixels on each side.
  """

  width: int = 16

  @property
  def input_size(self):
    size = tuple(side - 2 * self.width for side in self.spec.image_size)
    if self.width < 1 or min(size) < 1:
      raise ValueError(
        f"pad.width={self.width} on each side of {self.spec.image_size} "
        f"images; expected 1 to {(min(self.spec.image_size) - 1) // 2}"
      )
    return size

  def setup(self):
    rows, _ = self.input_size
    _, side = self.spec.image_size
    self.top_bottom = self.param(
      "top_bottom", unit_uniform, (2, self.width, side, 3)
    )
    self.left_right = self.param(
      "left_right", unit_uniform, (2, rows, self.width, 3)
    )

  def image(self, image, *, train):
    return framed(
      image, normalised(self.top_bottom), normalised(self.left_right)
    )


class Border(Method):
  """Visual prompting (Bahng et al. 2022, arXiv 2203.17274).

  A learned frame is added to the normalised image.

  Attributes:
    width: T pixels on each side; 0: 30 for images of 224, and so in proportion.
    init_std: of the initial values; they are standard normal as published, 0
      starts from the linear probe.
  """

  width: int = 0
  init_std: float = 1.0

  def setup(self):
    rows, columns = self.spec.image_size
    width = self.width or max(1, round(30 / 224 * min(rows, columns)))
    if not 0 < 2 * width < min(rows, columns):
      raise ValueError(
        f"border.width={self.width} on each side of {(rows, columns)} "
        f"images; expected 1 to {(min(rows, columns) - 1) // 2}, or 0"
      )
    init = nn.initializers.normal(self.init_std)
    self.top_bottom = self.param("top_bottom", init, (2, width, columns, 3))
    self.left_right = self.param(
      "left_right", init, (2, rows - 2 * width, width, 3)
    )

  def image(self, image, *, train):
    inner = (
      1,
      self.left_right.shape[1],
      image.shape[2] - 2 * self.left_right.shape[2],
      3,
    )
    return image + framed(jnp.zeros(inner), self.top_bottom, self.left_right)


class Below(Method):
  """A learned image of further channels, and an embedding trained with it.

    conv([image, C]) = conv_rgb(image) + conv_extra(C)

  so the first block's patches get one learned map added. The backbone's own
  embedding (conv_rgb and its bias) is trained too.

  Attributes:
    num_channels: T, channels of C [H, W, T].
  """

  trainable: ClassVar[str] = r"(method|head)/.*|backbone/embedding/.*"
  needs_grid: ClassVar[bool] = True

  num_channels: int = 1

  def setup(self):
    check_options("below", {"num_channels": (self.num_channels, 1)}, {})
    spec = self.spec
    if spec.stem_norm:
      raise ValueError(
        "method 'below' adds to the patch embedding, after which this "
        "backbone has a norm; use a plain ViT, or method 'add'"
      )
    patch, init = (spec.patch_size,) * 2, prompt_init(spec, spec.widths[0])
    self.channels = self.param(
      "channels", init, (1, *spec.image_size, self.num_channels)
    )
    self.embedding = Conv(
      spec.widths[0],
      patch,
      strides=patch,
      padding="VALID",
      use_bias=False,
      kernel_init=init,
    )

  def before(self, i, tokens, *, train):
    if i:
      return tokens
    extra = self.embedding(self.channels)
    extra = extra.reshape(1, -1, extra.shape[-1]).astype(tokens.x.dtype)
    return tokens.replace(
      x=jnp.concatenate(
        [tokens.cls, tokens.prompt, tokens.patch + extra], axis=1
      )
    )


class PrependPixel(Method):
  """Prompts that are patches of pixels, embedded as the image's are.

  They get no position and no dropout, and are carried through all blocks.

  Attributes:
    num_tokens: P patches.
    variant: `plain`: pixels start as VPT's prompts do, `gaussian`: from the
      standard normal distribution, both as if normalised; `imgnettransform`:
      they are in [0, 1] and normalised as ImageNet's images are.
  """

  num_tokens: int = 10
  variant: str = "plain"

  def setup(self):
    check_options("prepend_pixel", {"num_tokens": (self.num_tokens, 1)}, {})
    spec = self.spec
    inits = {
      "plain": prompt_init(spec, spec.widths[0]),
      "gaussian": nn.initializers.normal(1.0),
      "imgnettransform": unit_uniform,
    }
    if self.variant not in inits:
      raise ValueError(
        f"prepend_pixel.variant={self.variant!r}; expected one "
        f"of {', '.join(inits)}"
      )
    self.pixels = self.param(
      "pixels",
      inits[self.variant],
      (self.num_tokens, spec.patch_size, spec.patch_size, 3),
    )

  def patches(self, image):
    pixels = self.pixels[None]
    return normalised(pixels) if self.variant == "imgnettransform" else pixels
