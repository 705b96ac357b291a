"""Defines heads that give every pixel its logits.

They read patches [B, N, D] of one or several blocks (`tokens.Reads`), lay them
on their grid, and give logits [B, H, W, K] in float32. How large these are is
the head's affair; the loss resizes them to the labels.

Sources: SETR (Zheng et al. 2021, arXiv 2012.15840) in its authors' version and
in mmsegmentation's, see `DESIGNS`; the linear head is DINOv2's (Oquab et al.
2023, arXiv 2304.07193).
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.nn.layers import BatchNorm, Dropout, LayerNorm
from vpt_jax.ops.switch import Ops
from vpt_jax.utils import lookup

Grid = tuple[int, int]

NORM_EPS = 1e-6  # of the LayerNorm that a SETR head begins with
_CLASSIFIER_INIT = nn.initializers.normal(0.01)
_HIDDEN_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class Design:
  """What follows the LayerNorm of a SETR head.

  Attributes:
    scales: for each 3 x 3 convolution, BatchNorm, ReLU: how many times the map
      is enlarged after it.
    last_scale: how many times the logits are, after the classifier.
    use_bias: whether the convolutions have biases.
  """

  scales: tuple[int, ...]
  last_scale: int
  use_bias: bool

  @property
  def enlargement(self) -> int:
    """How many times as high and wide as the grid the logits are."""
    return math.prod(self.scales) * self.last_scale


# The factors are those for patches of 16 pixels, so that main heads give logits
# of the image's size; names with `_4` are for patches of 4.
DESIGNS = {
  # mmsegmentation: the classifier is last, convolutions have no biases.
  "pup": Design((2, 2, 2, 2), 1, use_bias=False),
  "aux2x4": Design((4, 4), 1, use_bias=False),  # auxiliary, ADE20K
  "aux1x4": Design((4,), 1, use_bias=False),  # auxiliary, Cityscapes
  # The authors': the classifier is before the last enlargement.
  "setr_pup": Design((2, 2, 2, 1), 2, use_bias=True),
  "setr_aux": Design((1,), 16, use_bias=True),  # auxiliary, one enlargement
  "setr_aux_ade": Design((4,), 4, use_bias=True),  # auxiliary, ADE20K
  # Ours, for small images.
  "pup_4": Design((2, 2), 1, use_bias=False),
  "aux_4": Design((4,), 1, use_bias=False),  # auxiliary
}


def design_of(name: str) -> Design:
  """Returns the design of this name in `DESIGNS`.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return DESIGNS[lookup.choose(name, DESIGNS, "design of a dense head")]


def to_map(patches: jax.Array, grid: Grid) -> jax.Array:
  """Returns patches [B, N, D] on their grid, [B, rows, columns, D].

  Raises:
    ValueError: the grid has another number of patches.
  """
  batch, count, width = patches.shape
  rows, columns = grid
  if count != rows * columns:
    raise ValueError(
      f"a dense head got {count} patches, expected {rows} x {columns} = "
      f"{rows * columns} of the grid {grid}; give it patches alone, without "
      "class token and prompts, and the grid of their block"
    )
  return patches.reshape(batch, rows, columns, width)


def _classifier(num_classes: int, ops: Ops) -> nn.Conv:
  """Returns the 1 x 1 convolution that gives logits, in float32."""
  return nn.Conv(
    num_classes,
    (1, 1),
    dtype=jnp.float32,
    name="classifier",
    kernel_init=_CLASSIFIER_INIT,
    conv_general_dilated=ops.map_convolution,
  )


class UpHead(nn.Module):
  """SETR's progressive upsampling: convolutions, each followed by enlarging.

  It begins with a LayerNorm of its own, so the patches are those without the
  backbone's final norm.

  Attributes:
    num_classes: K.
    grid: (rows, columns) of the patches.
    design: see `Design`.
    width: channels of the convolutions.
    align_corners: see `ops/bilinear.py`.
    dtype: that convolutions are computed in; norms and logits are float32.
    ops: form of its operations.
  """

  num_classes: int
  grid: Grid
  design: Design = DESIGNS["pup"]
  width: int = 256
  align_corners: bool = False
  dtype: Any = jnp.float32
  ops: Ops = Ops()

  @nn.compact
  def __call__(self, patches: jax.Array, train: bool = False) -> jax.Array:
    """Returns logits [B, H, W, K] of patches [B, N, D]."""
    normed = LayerNorm(NORM_EPS, self.ops, name="norm")(patches)
    x = to_map(normed, self.grid)
    scale = 1
    for i, next_scale in enumerate(self.design.scales):
      x = self._enlarged(x, scale)
      x = self._convolution(f"conv_{i}")(x)
      x = BatchNorm(name=f"norm_{i}")(x.astype(jnp.float32), train)
      x = nn.relu(x).astype(self.dtype)
      scale = next_scale
    # A 1 x 1 convolution and enlarging commute; in this order the classifier
    # sees fewer pixels, and the largest map is of K channels.
    logits = _classifier(self.num_classes, self.ops)(x)
    logits = self._enlarged(logits, scale)
    return self._enlarged(logits, self.design.last_scale)

  def _convolution(self, name: str) -> nn.Conv:
    """Returns a 3 x 3 convolution that keeps the size."""
    return nn.Conv(
      self.width,
      (3, 3),
      padding=1,
      use_bias=self.design.use_bias,
      dtype=self.dtype,
      name=name,
      kernel_init=_HIDDEN_INIT,
      conv_general_dilated=self.ops.map_convolution,
    )

  def _enlarged(self, x: jax.Array, scale: int) -> jax.Array:
    """Returns a map so many times as high and wide."""
    _, rows, columns, _ = x.shape
    size = (scale * rows, scale * columns)
    return self.ops.bilinear(x, size, self.align_corners)


class LinearHead(nn.Module):
  """BatchNorm and one 1 x 1 convolution, on the patches of several blocks.

  Features of blocks stand side by side; those on another grid than the first
  one's are resized to it.

  Attributes:
    num_classes: K.
    grids: (rows, columns) of the patches of each block.
    dropout: rate before the convolution.
    align_corners: see `ops/bilinear.py`.
    ops: form of its operations.
  """

  num_classes: int
  grids: tuple[Grid, ...]
  dropout: float = 0.0
  align_corners: bool = False
  ops: Ops = Ops()

  @nn.compact
  def __call__(
    self, patches: Sequence[jax.Array], train: bool = False
  ) -> jax.Array:
    """Returns logits [B, rows, columns, K] on the first block's grid."""
    _check_count(len(patches), len(self.grids))
    maps = []
    for of_block, grid in zip(patches, self.grids, strict=True):
      on_grid = to_map(of_block.astype(jnp.float32), grid)
      maps.append(self.ops.bilinear(on_grid, self.grids[0], self.align_corners))
    x = BatchNorm(name="norm")(jnp.concatenate(maps, axis=-1), train)
    x = Dropout(self.dropout)(x, deterministic=not train)
    return _classifier(self.num_classes, self.ops)(x)


class DeepSupervision(nn.Module):
  """A main head on the last of several blocks, auxiliary ones on the others.

  Auxiliary heads only guide the training: outside of it they are not computed.

  Attributes:
    main: head of the last block's patches.
    auxiliary: a head for each of the others, in their order.
  """

  main: nn.Module
  auxiliary: tuple[nn.Module, ...] = ()

  def __call__(
    self,
    patches: Sequence[jax.Array],
    train: bool = False,
    with_auxiliary: bool | None = None,
  ) -> tuple[jax.Array, ...]:
    """Returns the logits of the main head, then those of the auxiliary ones.

    Args:
      patches: [B, N, D] of each block that is read, the main head's last.
      train: batch statistics are taken, and dropout is drawn.
      with_auxiliary: compute the auxiliary heads; None: in training.
    """
    _check_count(len(patches), 1 + len(self.auxiliary))
    *others, last = patches
    outputs = [self.main(last, train)]
    if with_auxiliary is None:
      with_auxiliary = train
    if with_auxiliary or self.is_initializing():
      for head, of_block in zip(self.auxiliary, others, strict=True):
        outputs.append(head(of_block, train))
    return tuple(outputs)


def _check_count(found: int, expected: int) -> None:
  """Raises ValueError if a head gets patches of another number of blocks."""
  if found != expected:
    raise ValueError(
      f"a dense head got patches of {found} blocks, expected {expected}: name "
      "one block for each of its parts in `Reads(blocks=...)`"
    )


def setr(
  num_classes: int,
  grids: Sequence[Grid],
  main: str = "pup",
  auxiliary: str = "aux2x4",
  **options: Any,
) -> DeepSupervision:
  """Returns a SETR head: the main one on the last block, auxiliary on others.

  For example, of ViT-B/16 at 512 pixels, as mmsegmentation would read it at
  blocks 5, 9 and 12, counted from 1:

    reads = Reads(blocks=(4, 8, 11))
    head = setr(150, grids=[(32, 32)] * 3)

  Args:
    num_classes: K.
    grids: (rows, columns) of the patches of each block that is read.
    main: name in `DESIGNS`.
    auxiliary: likewise.
    **options: further fields of every `UpHead`.

  Raises:
    ValueError: unknown designs, or no block.
  """
  if not grids:
    raise ValueError(
      "a SETR head reads no block, expected one or more; name them in "
      "`Reads(blocks=...)`"
    )
  *others, last = grids
  main_design = design_of(main)
  auxiliary_design = design_of(auxiliary)
  heads = []
  for grid in others:
    heads.append(UpHead(num_classes, grid, auxiliary_design, **options))
  main_head = UpHead(num_classes, last, main_design, **options)
  return DeepSupervision(main_head, tuple(heads))
