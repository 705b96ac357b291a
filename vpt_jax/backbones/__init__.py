"""Offers pretrained vision transformers, by name or as modules."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "factory": ["build", "get", "make"],
    "model_zoo": ["BACKBONES", "Entry"],
    "swin": ["Swin"],
    "vit": ["ViT"],
  },
)
