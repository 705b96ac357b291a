"""Defines prompts elsewhere: VPT's ablations (figure 5), visual prompting.

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
from vpt_jax.nn.layers import Dropout
from vpt_jax.utils import lookup

# Mean and std of the images that a learned image in [0, 1] is made comparable
# with; as published these, whatever `data.normalize` says.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What the pixels of `PrependPixel` start from.
PIXEL_VARIANTS = ("plain", "gaussian", "imgnettransform")


def unit_uniform(
  key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32
) -> jax.Array:
  """Draws from U(0, 1)."""
  return jax.random.uniform(key, shape, dtype)


def normalised(image: jax.Array) -> jax.Array:
  """Returns (image - mean) / std of an image [..., 3] in [0, 1]."""
  mean, std = IMAGENET
  return (image - jnp.array(mean)) / jnp.array(std)


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
  batch = len(image)

  def for_each_image(strip):
    return jnp.broadcast_to(strip, (batch, *strip.shape))

  left = for_each_image(left_right[0])
  right = for_each_image(left_right[1])
  top = for_each_image(top_bottom[0])
  bottom = for_each_image(top_bottom[1])
  rows = jnp.concatenate([left, image, right], axis=2)
  return jnp.concatenate([top, rows, bottom], axis=1)


def _nearest(number: int, low: int, high: int) -> int:
  """Returns the number of a range that is nearest to this one."""
  return max(low, min(high, number))


class Add(Method):
  """Adds prompts to the tokens instead of setting them beside these.

    x_i = L_i(x_{i-1} + P_{i-1}),   P_i = 0 for i > 0 if shallow

  Attributes:
    single: one vector for all tokens (`add-1`), not one for each.
    deep: before every block, not only the first.
    dropout: rate of the prompts' dropout, per image; one draw for all tokens
      if `single`.
  """

  needs_grid = True

  single: bool = False
  deep: bool = False
  dropout: float = 0.1

  def check(self):
    """Raises ValueError for a rate out of range."""
    check_options(self, "add", rates=["dropout"])

  def setup(self):
    """Makes the prompts; within a stage all blocks have as many tokens."""
    self.check()
    spec = self.spec
    end = spec.depth if self.deep else 1
    prompts = []
    for stage in spec.stages:
      num_tokens = spec.num_cls + math.prod(spec.grids[stage.start])
      prompted = range(stage.start, min(stage.stop, end))
      sets = prompt_sets(self, prompted, 1 if self.single else num_tokens)
      prompts += sets[stage.start : stage.stop]
    self.prompt = prompts
    self.prompt_dropout = Dropout(self.dropout)

  def before(self, i, tokens, *, train):
    """Adds the prompts of block i."""
    if self.prompt[i] is None:
      return tokens
    prompt = per_image(self.prompt[i], tokens, self.prompt_dropout, train)
    return tokens.replace(x=tokens.x + prompt.astype(tokens.x.dtype))


class Pad(Method):
  """Learns a frame around a smaller image, as VPT prompts ConvNets.

  The frame is an image in [0, 1] that is normalised as ImageNet's are. Images
  are resized to what it leaves; to keep them at 224 x 224 as published, set
  `config.image_size` to 224 + 2 `width`.

  Attributes:
    width: T pixels on each side.
  """

  width: int = 16

  @property
  def input_size(self):
    """(height, width) of what the frame leaves of the backbone's images."""
    self.check()
    height, width = self.spec.image_size
    return height - 2 * self.width, width - 2 * self.width

  def check(self):
    """Raises ValueError for a frame that leaves no image."""
    smaller = min(self.spec.image_size)
    if not 1 <= self.width <= (smaller - 1) // 2:
      raise ValueError(
        f"pad.width={self.width} on each side of {self.spec.image_size} "
        f"images; expected 1 to {(smaller - 1) // 2}, nearest: "
        f"{_nearest(self.width, 1, (smaller - 1) // 2)}"
      )

  def setup(self):
    """Makes the frame's four sides."""
    self.check()
    rows, _ = self.input_size
    _, columns = self.spec.image_size
    self.top_bottom = self.param(
      "top_bottom", unit_uniform, (2, self.width, columns, 3)
    )
    self.left_right = self.param(
      "left_right", unit_uniform, (2, rows, self.width, 3)
    )

  def image(self, image, *, train):
    """Returns the images [B, H - 2 T, W - 2 T, 3] within the frame."""
    return framed(
      image, normalised(self.top_bottom), normalised(self.left_right)
    )


class Border(Method):
  """Learns a frame on the image: visual prompting (Bahng et al. 2022).

  The frame is added to the normalised image (arXiv 2203.17274).

  Attributes:
    width: T pixels on each side; 0: 30 for images of 224, and so in proportion.
    init_std: of the initial values; they are standard normal as published, 0
      starts from the linear probe.
  """

  width: int = 0
  init_std: float = 1.0

  @property
  def pixels(self) -> int:
    """T."""
    smaller = min(self.spec.image_size)
    return self.width or max(1, round(30 / 224 * smaller))

  def check(self):
    """Raises ValueError for a frame that covers the image."""
    smaller = min(self.spec.image_size)
    if not 0 < 2 * self.pixels < smaller:
      raise ValueError(
        f"border.width={self.width} on each side of {self.spec.image_size} "
        f"images; expected 1 to {(smaller - 1) // 2}, or 0; nearest: "
        f"{_nearest(self.width, 1, (smaller - 1) // 2)}"
      )
    if self.init_std < 0:
      raise ValueError(f"border.init_std={self.init_std}; expected at least 0")

  def setup(self):
    """Makes the frame's four sides."""
    self.check()
    rows, columns = self.spec.image_size
    width = self.pixels
    init = nn.initializers.normal(self.init_std)
    self.top_bottom = self.param("top_bottom", init, (2, width, columns, 3))
    self.left_right = self.param(
      "left_right", init, (2, rows - 2 * width, width, 3)
    )

  def image(self, image, *, train):
    """Returns the images with the frame added, which is zero inside."""
    rows, columns = self.spec.image_size
    width = self.pixels
    inside = jnp.zeros((1, rows - 2 * width, columns - 2 * width, 3))
    return image + framed(inside, self.top_bottom, self.left_right)


class Below(Method):
  """Learns an image of further channels, and an embedding trained with it.

    conv([image, C]) = conv_rgb(image) + conv_extra(C)

  so the first block's patches get one learned map added. The backbone's own
  embedding (conv_rgb and its bias) is trained too.

  Attributes:
    num_channels: T, channels of C [H, W, T].
  """

  trainable: ClassVar[str] = r"(method|head)/.*|backbone/embedding/.*"
  needs_grid = True

  num_channels: int = 1

  def check(self):
    """Raises ValueError for no channel, or a backbone with a stem's norm."""
    check_options(self, "below", at_least={"num_channels": 1})
    if self.spec.stem_norm:
      raise ValueError(
        "method 'below' adds to the patch embedding, after which this "
        "backbone has a norm; use a plain ViT, or method 'add'"
      )

  def setup(self):
    """Makes the channels C and their embedding."""
    self.check()
    spec = self.spec
    patch = (spec.patch_size, spec.patch_size)
    init = prompt_init(spec, spec.widths[0])
    self.channels = self.param(
      "channels", init, (1, *spec.image_size, self.num_channels)
    )
    self.embedding = nn.Conv(
      spec.widths[0],
      patch,
      strides=patch,
      padding="VALID",
      use_bias=False,
      conv_general_dilated=spec.ops.convolution,
      kernel_init=init,
    )

  def before(self, i, tokens, *, train):
    """Adds the embedded channels to the patches that enter the first block."""
    if i > 0:
      return tokens
    extra = self.embedding(self.channels)
    extra = extra.reshape(1, -1, extra.shape[-1]).astype(tokens.x.dtype)
    parts = [tokens.cls, tokens.prompt, tokens.patch + extra]
    return tokens.replace(x=jnp.concatenate(parts, axis=1))


class PrependPixel(Method):
  """Learns prompts that are patches of pixels, embedded as the image's are.

  They get no position and no dropout, and are carried through all blocks.

  Attributes:
    num_tokens: P patches.
    variant: `plain`: pixels start as VPT's prompts do, `gaussian`: from the
      standard normal distribution, both as if normalised; `imgnettransform`:
      they are in [0, 1] and normalised as ImageNet's images are.
  """

  num_tokens: int = 10
  variant: str = "plain"

  def check(self):
    """Raises ValueError for no patch or an unknown variant."""
    check_options(self, "prepend_pixel", at_least={"num_tokens": 1})
    lookup.choose(self.variant, PIXEL_VARIANTS, "prepend_pixel.variant")

  def setup(self):
    """Makes the pixels [P, p, p, 3]."""
    self.check()
    spec = self.spec
    if self.variant == "plain":
      init = prompt_init(spec, spec.widths[0])
    elif self.variant == "gaussian":
      init = nn.initializers.normal(1.0)
    else:
      init = unit_uniform
    side = spec.patch_size
    self.pixels = self.param("pixels", init, (self.num_tokens, side, side, 3))

  def patches(self, image):
    """Returns the patches [1, P, p, p, 3], the same for every image."""
    pixels = self.pixels[None]
    if self.variant == "imgnettransform":
      return normalised(pixels)
    return pixels
