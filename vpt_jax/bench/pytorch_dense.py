"""Defines the benchmark's models of segmentation in PyTorch.

The heads are written from SETR's paper and the description of mmsegmentation's
version (see `vpt_jax/nn/dense_heads.py`), and have the parameters' names that
they have in vpt_jax.

In the shapes B is images, N patches, T tokens, D width, K classes.
"""

from collections.abc import Sequence

import torch
from torch import nn
import torch.nn.functional as F

from vpt_jax.bench import dense_cases
from vpt_jax.bench.pytorch_methods import Arrays
from vpt_jax.bench.pytorch_models import PromptedViT

# How many times the map is enlarged after each convolution.
MAIN_SCALES = (2, 2, 2, 2)
AUXILIARY_SCALES = (4, 4)
NORM_EPS = 1e-6


def _to_map(patches: torch.Tensor) -> torch.Tensor:
  """Returns patches [B, N, D] of a square grid as maps [B, D, H, W]."""
  batch, count, width = patches.shape
  side = round(count**0.5)
  return patches.mT.reshape(batch, width, side, side)


def _classifier(arrays: Arrays, prefix: str) -> nn.Conv2d:
  """Returns a 1 x 1 convolution of the sizes that the arrays have."""
  *_, width, classes = arrays[f"{prefix}/classifier/kernel"].shape
  return nn.Conv2d(width, classes, 1)


class UpHead(nn.Module):
  """LayerNorm, then convolution, BatchNorm, ReLU, enlarging; a classifier."""

  def __init__(self, arrays: Arrays, prefix: str, scales: tuple[int, ...]):
    """Makes a head of the sizes of `arrays` below `prefix`.

    Args:
      arrays: under the names of vpt_jax.
      prefix: of the head's.
      scales: see above.
    """
    super().__init__()
    self.scales = scales
    self.norm = nn.LayerNorm(arrays[f"{prefix}/norm/scale"].shape, NORM_EPS)
    for i in range(len(scales)):
      *_, inputs, outputs = arrays[f"{prefix}/conv_{i}/kernel"].shape
      conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
      self.add_module(f"conv_{i}", conv)
      self.add_module(f"norm_{i}", nn.BatchNorm2d(outputs))
    self.classifier = _classifier(arrays, prefix)

  def forward(self, patches: torch.Tensor) -> torch.Tensor:
    """Returns logits [B, K, H, W] of patches [B, N, D]."""
    x = _to_map(self.norm(patches))
    for i, scale in enumerate(self.scales):
      x = getattr(self, f"conv_{i}")(x)
      x = F.relu(getattr(self, f"norm_{i}")(x))
      x = F.interpolate(
        x, scale_factor=scale, mode="bilinear", align_corners=False
      )
    return self.classifier(x)


class SETRHead(nn.Module):
  """A main head on the last of several blocks, auxiliary ones on the others."""

  def __init__(self, arrays: Arrays):
    """Makes heads of the sizes of `arrays`."""
    super().__init__()
    self.main = UpHead(arrays, "head/main", MAIN_SCALES)
    self.count = 0
    while f"head/auxiliary_{self.count}/norm/scale" in arrays:
      name = f"auxiliary_{self.count}"
      head = UpHead(arrays, f"head/{name}", AUXILIARY_SCALES)
      self.add_module(name, head)
      self.count += 1

  def forward(self, patches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the main head's logits, in training the auxiliary ones' too."""
    *others, last = patches
    out = [self.main(last)]
    if self.training:
      for i, of_block in enumerate(others):
        out.append(getattr(self, f"auxiliary_{i}")(of_block))
    return out


class LinearHead(nn.Module):
  """BatchNorm and a 1 x 1 convolution on the patches of one block."""

  def __init__(self, arrays: Arrays):
    """Makes a head of the sizes of `arrays`."""
    super().__init__()
    self.norm = nn.BatchNorm2d(len(arrays["head/norm/scale"]))
    self.classifier = _classifier(arrays, "head")

  def forward(self, patches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns logits [B, K, rows, columns] of the patches' grid."""
    (of_block,) = patches
    return [self.classifier(self.norm(_to_map(of_block)))]


HEADS = {"setr": SETRHead, "linear": LinearHead}


class SegmentingViT(PromptedViT):
  """A prompted ViT that gives every pixel its logits.

  Attributes:
    reads: the blocks whose patches the head gets.
    normed: the last block's have the backbone's final norm.
  """

  def __init__(
    self, arrays: Arrays, method: str, dropout: float, fused: bool, head: str
  ):
    """Makes a model; see `PromptedViT`.

    Args:
      arrays: see there.
      method: see there.
      dropout: see there.
      fused: see there.
      head: of `dense_cases.HEADS`.
    """
    self._head_name = head
    super().__init__(arrays, method, dropout, fused)
    self.reads = dense_cases.blocks(head, len(self.vit.blocks))
    self.normed = head == "linear"

  def _make_head(self, arrays: Arrays) -> nn.Module:
    return HEADS[self._head_name](arrays)

  def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
    """Returns logits [B, K, H, W] of each head that is computed."""
    patches = []
    for x in self.tokens(image, self.reads):
      count = self.vit.patch_embed.num_patches
      patches.append(x[:, -count:])
    if self.normed:
      patches[-1] = self.vit.norm(patches[-1])
    return self.head([x.float() for x in patches])


def loss(outputs: Sequence[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
  """Returns the mean cross entropy over all pixels, auxiliary heads weighted.

  Args:
    outputs: logits of the main head, then of auxiliary ones.
    label: [B, H, W]; pixels without a class add 0.
  """
  main, *auxiliary = outputs
  total = _cross_entropy(main, label)
  for logits in auxiliary:
    weight = dense_cases.AUXILIARY_WEIGHT
    total = total + weight * _cross_entropy(logits, label)
  return total


def _cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
  size = label.shape[1:]
  if logits.shape[2:] != size:
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
  of_pixels = F.cross_entropy(
    logits, label, ignore_index=dense_cases.IGNORE, reduction="none"
  )
  return of_pixels.mean()
