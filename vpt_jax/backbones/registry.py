"""Backbones by name: architecture, where the weights are, what they expect."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from vpt_jax import tree
from vpt_jax.backbones.vit import ViT


@dataclasses.dataclass(frozen=True)
class Entry:
  """One pretrained model.

  Attributes:
    arch: arguments of `ViT`.
    url: where its checkpoint is, "" if only a local file will do, or
      "package:NAME" for a file inside this package.
    checksum: `ALGORITHM:HEX` of that file; HEX may be its first digits where
      no more was published.
    gelu: the GELU that it was trained with.
  """

  arch: dict[str, int]
  url: str = ""
  checksum: str = ""
  gelu: str = "tanh"


def _vit(size: str, patch: int) -> dict[str, int]:
  width, depth, mlp, heads = {
      "mini": (96, 4, 384, 3),
      "ti": (192, 12, 768, 3),
      "s": (384, 12, 1536, 6),
      "b": (768, 12, 3072, 12),
      "l": (1024, 24, 4096, 16),
      "h": (1280, 32, 5120, 16),
  }[size]
  return dict(patch_size=patch, width=width, depth=depth, mlp_dim=mlp,
              num_heads=heads)


_IN21K = "https://storage.googleapis.com/vit_models/imagenet21k/"

BACKBONES: dict[str, Entry] = {
    # The first six digits of the md5 are all that VPT's README publishes.
    "vit_b16_in21k": Entry(_vit("b", 16), _IN21K + "ViT-B_16.npz",
                           "md5:d9715d"),
    "vit_l16_in21k": Entry(_vit("l", 16), _IN21K + "ViT-L_16.npz"),
    "vit_h14_in21k": Entry(_vit("h", 14), _IN21K + "ViT-H_14.npz"),
    # Of our own, see assets/README.md.
    "vit_mini4_cifar10": Entry(_vit("mini", 4),
                               "package:vit_mini4_cifar10.npz",
                               "sha256:85f59192cfd6862e3aed7e1c86307acd"
                               "55b07cc9fece6999139ec6f699130eb4"),
    # Architectures alone; config.backbone.checkpoint names a file or address.
    "vit_mini4": Entry(_vit("mini", 4)),
    "vit_ti16": Entry(_vit("ti", 16)),
    "vit_s16": Entry(_vit("s", 16)),
    "vit_b16": Entry(_vit("b", 16)),
    "vit_b32": Entry(_vit("b", 32)),
    "vit_l16": Entry(_vit("l", 16)),
}


def get(name: str) -> Entry:
  """Entry of a backbone.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return BACKBONES[tree.choose(name, BACKBONES, "backbone")]


def build(config: ConfigDict, image_size: int | tuple[int, int],
          dtype: str) -> ViT:
  """The module of `config.backbone` for images of this size.

  Raises:
    ValueError: unknown name, or a size that patches do not tile.
  """
  entry = get(config.name)
  size: Any = image_size
  height, width = (size, size) if isinstance(size, int) else tuple(size)
  patch = entry.arch["patch_size"]
  if height % patch or width % patch or min(height, width) < patch:
    nearest = max(patch, round(height / patch) * patch)
    raise ValueError(f"image_size={image_size} is not a multiple of the patch "
                     f"size {patch} of {config.name!r}; nearest: {nearest}")
  gelu = config.gelu or entry.gelu
  tree.choose(gelu, ("tanh", "exact"), "backbone.gelu")
  return ViT(image_size=(height, width), gelu=gelu, dtype=jnp.dtype(dtype),
             **entry.arch)
