"""Defines `Ops`, the one switch between plain and fast operations."""

from collections.abc import Callable
import dataclasses
import functools
from types import ModuleType

import jax

from vpt_jax.ops import (
  argmax,
  attention,
  batch_sum,
  bilinear,
  convolution,
  dense,
  depthwise,
  gelu,
  layer_norm,
  map_convolution,
  pooling,
)

Operation = Callable[..., jax.Array]

KINDS = ("auto", "reference")
# What computes attention: this package's own form (`ours` is the old name of
# `auto`), XLA's, or cuDNN's, which is for 16-bit numbers on NVIDIA GPUs.
ATTENTION_FORMS = ("auto", "ours", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class Ops:
  """Which form of every operation a model uses.

  It is an attribute of modules, so a model is compiled for what it says and
  nothing asks for the platform while it is traced.

  Attributes:
    kind: `auto`: the fast form where it is one; `reference`: plain forms.
    platform: that is compiled for: `cpu`, `gpu` or `tpu`.
    attention_form: of `ATTENTION_FORMS`; `reference` goes before it.
  """

  kind: str = "auto"
  platform: str = "cpu"
  attention_form: str = "auto"

  def __post_init__(self):
    """Gives models that compute the same one name of the attention's form."""
    if self.attention_form == "ours":
      object.__setattr__(self, "attention_form", "auto")

  def _choose(self, operation: ModuleType) -> Operation:
    return operation.reference if self.is_plain else operation.fast

  @property
  def is_plain(self) -> bool:
    """Whether every operation has its plain form."""
    return self.kind == "reference"

  @property
  def argmax(self) -> Operation:
    """The first place of the largest entry of the last axis."""
    return self._choose(argmax) if self.platform == "cpu" else argmax.reference

  @property
  def attention(self) -> Operation:
    """softmax(Q K^T + bias) V; see `attention.reference`."""
    if self.is_plain or self.attention_form == "auto":
      return self._choose(attention)
    return functools.partial(attention.library, self.attention_form)

  @property
  def bilinear(self) -> Operation:
    """Resizes maps; see `bilinear.reference`."""
    return self._choose(bilinear)

  @property
  def convolution(self) -> Operation:
    """`jax.lax.conv_general_dilated`, for `nn.Conv`."""
    return self._choose(convolution)

  @property
  def depthwise(self) -> Operation:
    """A convolution of every channel by itself."""
    return self._choose(depthwise)

  @property
  def dot_general(self) -> Operation:
    """`jax.lax.dot_general`, for `nn.Dense`."""
    # Only XLA's compiler for CPUs multiplies bfloat16 slowly.
    return self._choose(dense) if self.platform == "cpu" else dense.reference

  @property
  def gelu(self) -> Operation:
    """GELU(x, name), by the names of `gelu.NAMES`."""
    return self._choose(gelu)

  @property
  def layer_norm(self) -> Operation:
    """Normalises the last axis."""
    return self._choose(layer_norm)

  @property
  def map_convolution(self) -> Operation:
    """As `convolution`, of maps of many pixels and channels."""
    if self.platform == "cpu":
      return self._choose(map_convolution)
    return self.convolution

  @property
  def max_pool(self) -> Operation:
    """Maxima of 3 x 3 windows at stride 2."""
    return self._choose(pooling)

  @property
  def to_batch(self) -> Operation:
    """Repeats rows for all images; the gradient is a sum over the batch."""
    return self._choose(batch_sum)
