"""Says what the benchmark's cases of segmentation are, for both sides.

A case's `segmentation` names the head: `setr` is SETR-PUP as in mmsegmentation,
a main head on the last block and two auxiliary ones; `linear` is BatchNorm and
a 1 x 1 convolution on the patches of the last block.
"""

from typing import Any

import numpy as np

HEADS = ("setr", "linear")
IGNORE = 255  # the label of pixels without a class
AUXILIARY_WEIGHT = 0.4
HEAD_RATE = 10.0  # times the rate of the prompts, as in SETR's configs

_UNLABELLED = 0.05  # share of the pixels
_SAMPLED = 16  # rows and columns of logits that are compared


def blocks(head: str, depth: int) -> tuple[int, ...]:
  """Returns the blocks that a head reads, the main one's last.

  Of twelve these are, counted from 1, the blocks 5, 9 and 12.

  Args:
    head: a name in `HEADS`.
    depth: blocks of the backbone.
  """
  last = depth - 1
  if head == "linear":
    return (last,)
  return (depth // 3, 2 * depth // 3, last)


def labels(
  case: dict[str, Any], size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
  """Returns random labels of a case's images, int32 [B, H, W]."""
  shape = (case["batch"], *size)
  classes = rng.integers(0, case["classes"], shape, np.int32)
  is_unlabelled = rng.random(shape) < _UNLABELLED
  return np.where(is_unlabelled, np.int32(IGNORE), classes)


def sampled(logits: Any) -> Any:
  """Returns the logits [B, n, n, K] of some pixels, to be compared.

  An odd distance between them has pixels of every place within a patch.

  Args:
    logits: [B, H, W, K].
  """
  _, rows, columns, _ = logits.shape
  down = max(1, rows // _SAMPLED - 1) | 1
  right = max(1, columns // _SAMPLED - 1) | 1
  return logits[:, ::down, ::right]
