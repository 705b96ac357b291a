"""Decodes splits: into memory, or once into folders of memory-mapped arrays."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "decoding": ["Layout", "decode_all"],
    "grey_range": ["find_grey_range"],
    "prepared": ["cache_path", "default_folder", "open_cache", "prepare"],
  },
)
