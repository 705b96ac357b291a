"""Builds the dense head that a section `segmentation` names."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import linen as nn

from vpt_jax.nn import dense_heads
from vpt_jax.nn.dense_heads import Grid
from vpt_jax.nn.tokens import Reads, Spec

# Name of the decoder -> design of SETR's main head; "": it is linear.
DECODERS = {
  "pup": "pup",
  "setr_pup": "setr_pup",
  "pup_4": "pup_4",
  "linear": "",
}
# Where SETR's auxiliary heads read, in twelfths of the depth: Gated Prompt
# Tuning names blocks 5 and 9 of ViT-B, and not from which number it counts.
AUXILIARY_TWELFTHS = (5, 9)
# How many times as high and wide as the image logits may be.
_MOST_ENLARGED = 2


def blocks_of(section: Mapping[str, Any], depth: int) -> tuple[int, ...]:
  """Returns the indices, from 0, of the blocks that a head reads.

  Raises:
    ValueError: blocks that are not there, twice, or not in order.
  """
  named = tuple(section["blocks"])
  if not named:
    named = _own_blocks(section, depth)
  is_ascending = list(named) == sorted(set(named))
  if not is_ascending or named[0] < 1 or named[-1] > depth:
    raise ValueError(
      f"config.segmentation.blocks={named}; expected blocks of this backbone, "
      f"1 to {depth}, in ascending order, the main head's last"
    )
  is_linear = not DECODERS[section["decoder"]]
  if len(named) > 1 and not is_linear and not section["auxiliary"]:
    raise ValueError(
      f"config.segmentation.blocks={named} names {len(named) - 1} blocks for "
      "auxiliary heads, but config.segmentation.auxiliary is empty; name one "
      "block, or a design"
    )
  return tuple(block - 1 for block in named)


def _own_blocks(section: Mapping[str, Any], depth: int) -> tuple[int, ...]:
  """Returns the blocks, from 1, of a config that names none."""
  if not DECODERS[section["decoder"]] or not section["auxiliary"]:
    return (depth,)
  found = {depth}
  for twelfths in AUXILIARY_TWELFTHS:
    found.add(max(1, round(twelfths * depth / 12)))
  return tuple(sorted(found))


def build(
  section: Mapping[str, Any], num_classes: int, spec: Spec, dtype: Any
) -> tuple[nn.Module, Reads]:
  """Returns the head, and what it reads of a backbone.

  Args:
    section: `config.segmentation`.
    num_classes: K.
    spec: of the backbone.
    dtype: that the convolutions are computed in.

  Raises:
    ValueError: blocks that the backbone lacks, that have no grid, or whose
      patches are so small that the head would give more pixels than the image.
  """
  blocks = blocks_of(section, spec.depth)
  grids = _grids(spec, blocks)
  design = DECODERS[section["decoder"]]
  align_corners = section["align_corners"]
  if not design:
    linear = dense_heads.LinearHead(
      num_classes,
      grids,
      dropout=section["dropout"],
      align_corners=align_corners,
      ops=spec.ops,
    )
    return linear, Reads(blocks)
  *others, _ = blocks
  for block in others:
    _check_enlargement(spec, block, section["auxiliary"])
  _check_enlargement(spec, blocks[-1], design)
  head = dense_heads.setr(
    num_classes,
    grids,
    main=design,
    auxiliary=section["auxiliary"] or design,  # not used without blocks
    width=section["width"],
    align_corners=align_corners,
    dtype=dtype,
    ops=spec.ops,
  )
  return head, Reads(blocks, final_norm=False)


def _check_enlargement(spec: Spec, block: int, design: str) -> None:
  """Raises ValueError for logits of far more pixels than the image has.

  Patches of 14 and 8 pixels are enlarged 16 times as well, those of 4 are not.
  """
  rows, _ = spec.grids[block] or (1, 1)
  patch = spec.image_size[0] // rows
  enlargement = dense_heads.design_of(design).enlargement
  if enlargement > _MOST_ENLARGED * patch:
    raise ValueError(
      f"the head {design!r} enlarges {enlargement} times, but the patches of "
      f"block {block + 1} have {patch} pixels, so that its logits would be "
      f"{enlargement // patch} times as high and wide as the image; expected "
      f"patches of 8 pixels or more: set config.segmentation.decoder=pup_4 and "
      "auxiliary=aux_4, made for 4 pixels, or decoder=linear"
    )


def _grids(spec: Spec, blocks: Sequence[int]) -> tuple[Grid, ...]:
  """Returns the grids of blocks.

  Raises:
    ValueError: a block has none.
  """
  grids = []
  for block in blocks:
    grid = spec.grids[block]
    if grid is None:
      raise ValueError(
        f"block {block + 1} has no grid of patches, which segmentation needs; "
        "choose a ViT or Swin in config.backbone.name"
      )
    grids.append(grid)
  return tuple(grids)


def at_size(head: nn.Module | None, spec: Spec, reads: Reads) -> nn.Module:
  """Returns a dense head for images of another size.

  Args:
    head: from `build`.
    spec: of the backbone at that size.
    reads: from `build`.
  """
  grids = _grids(spec, reads.blocks)
  if isinstance(head, dense_heads.LinearHead):
    return head.clone(grids=grids)
  if not isinstance(head, dense_heads.DeepSupervision):
    raise TypeError(f"no dense head of this room: {type(head).__name__}")
  *others, last = grids
  auxiliary = []
  for part, grid in zip(head.auxiliary, others, strict=True):
    auxiliary.append(part.clone(grid=grid))
  return head.clone(main=head.main.clone(grid=last), auxiliary=tuple(auxiliary))
