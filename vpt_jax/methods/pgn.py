"""Defines Prompt Generation Networks (Loedeman et al., BMVC 2024).

A small network reads the image and mixes its prompts from a learned library:
arXiv 2210.06466.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.methods import pgn_weights
from vpt_jax.methods.method import check_options, Method
from vpt_jax.methods.resnet import ResNet, resnet18
from vpt_jax.utils import lookup

ACTS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "softmax": nn.softmax,
  "sigmoid": nn.sigmoid,  # not normalised, as published
}
NETWORKS = ("resnet10", "resnet18")


def resize(image: jax.Array, resolution: int) -> jax.Array:
  """Returns images [B, H, W, 3] with their smaller side at `resolution`.

  Bilinear without antialiasing, as published. Resolution 0: as they are.
  """
  height, width = image.shape[1:3]
  smaller = min(height, width)
  if resolution in (0, smaller):
    return image
  height = height * resolution // smaller
  width = width * resolution // smaller
  return jax.image.resize(
    image,
    (len(image), height, width, image.shape[-1]),
    "bilinear",
    antialias=False,
  )


class PGN(Method):
  """Mixes prompts of a library's vectors; they are carried through all blocks.

    P_t = sum_m act(g(x))_{t,m} V_m,   g(x) in R^{T x M},  V in R^{M x D}

  Attributes:
    num_tokens: T, prompts per image.
    library: M, vectors to mix.
    act: of the mixture: `softmax` over the library or `sigmoid`.
    network: g, see `resnet.py`: resnet10, or resnet18, which has sizes of its
      own and does not read the next four options.
    init_max_pool: a maximum of stride 2 follows the first convolution.
    initial_channels: width of the first group of blocks.
    groups: of blocks; each has twice the width of the one before.
    blocks_per_group: residual blocks.
    resolution: what the image's smaller side is resized to for g; 0: as it is.
    weights: file with a published generator, "" for new values.
  """

  num_tokens: int = 16
  library: int = 256
  act: str = "softmax"
  network: str = "resnet10"
  init_max_pool: bool = True
  initial_channels: int = 16
  groups: int = 4
  blocks_per_group: int = 1
  resolution: int = 0
  weights: str = ""

  def check(self):
    """Raises ValueError for sizes that are too small and unknown names."""
    check_options(
      self,
      "pgn",
      at_least={
        "num_tokens": 1,
        "library": 1,
        "initial_channels": 1,
        "groups": 1,
        "blocks_per_group": 1,
        "resolution": 0,
      },
    )
    lookup.choose(self.act, ACTS, "pgn.act")
    lookup.choose(self.network, NETWORKS, "pgn.network")

  def setup(self):
    """Makes the library V and the generator g."""
    self.check()
    self.vectors = self.param(
      "library",
      nn.initializers.normal(0.02),
      (self.library, self.spec.widths[0]),
    )
    features = self.num_tokens * self.library
    if self.network == "resnet18":
      self.generator = resnet18(features, self.spec.ops)
    else:
      self.generator = ResNet(
        features,
        self.initial_channels,
        self.groups,
        self.blocks_per_group,
        pool=self.init_max_pool,
        ops=self.spec.ops,
      )

  def prompts(self, image, tokens, *, train):
    """Returns the image's own prompts [B, T, D]."""
    logits = self.generator(resize(image, self.resolution), train)
    self.sow("intermediates", "generator_logits", logits)
    shape = (len(image), self.num_tokens, self.library)
    mixture = ACTS[self.act](logits.reshape(shape))
    prompts = jnp.einsum("btm,md->btd", mixture, self.vectors)
    self.sow("intermediates", "prompts", prompts)
    return prompts

  def pretrained(self, flat: Mapping[str, np.ndarray]):
    """Reads the arrays of a published generator, see `load_generator`."""
    return pgn_weights.load_generator(flat)


class IIP(Method):
  """Learns input-independent prompts, PGN's baseline.

  Attributes:
    num_tokens: T.
  """

  num_tokens: int = 16

  def check(self):
    """Raises ValueError for no prompt."""
    check_options(self, "iip", at_least={"num_tokens": 1})

  def setup(self):
    """Makes the prompts [1, T, D]."""
    self.check()
    self.prompt = self.param(
      "prompt",
      nn.initializers.normal(0.02),
      (1, self.num_tokens, self.spec.widths[0]),
    )

  def prompts(self, image, tokens, *, train):
    """Returns the prompts, the same for every image."""
    return self.prompt


class Inverted(Method):
  """Reads patches of pixels that come with the images; has no parameters.

  They are [B or 1, P, p, p, 3] in the variable `given/method/pixels`; see
  `vpt_jax/analysis/inversion.py`.
  """

  def patches(self, image):
    """Returns the pixels that were given, or None."""
    return self.get_variable("given", "pixels")
