"""Offers what backbones and methods are made of. See README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "layers": ["BatchNorm", "Dropout", "Head", "LayerNorm"],
    "tokens": ["Reads", "Spec", "Tokens"],
    "transformer": ["Attention", "Block", "Edit", "Mlp", "no_edit"],
  },
)
