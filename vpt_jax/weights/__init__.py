"""Reads pretrained weights of any published layout. See README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "agreement": ["Told"],
    "download": ["FetchError", "fetch", "location"],
    "facts": ["Facts"],
    "file_formats": ["read"],
    "grids": ["split_class_position"],
    "identify": ["module_of"],
    "load": ["Loaded", "fit", "restore", "save", "sha256"],
    "name_maps": ["EXTRAS", "LAYOUTS"],
    "translate": ["Translated"],
  },
)
