"""Holds the prompt methods: each is a file, by name in `registry`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "gated": ["Gated"],
    "inside": ["Adapter", "LoRA"],
    "method": [
      "Full",
      "Method",
      "check_options",
      "per_image",
      "prompt_init",
      "prompt_sets",
    ],
    "pgn": ["IIP", "PGN"],
    "pixel": ["Add", "Below", "Border", "Pad", "PrependPixel"],
    "registry": ["METHODS", "build", "get"],
    "vapt": ["VAPT"],
    "vpt": ["VPT"],
  },
)
