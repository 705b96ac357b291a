"""Turns image files into what a model sees: see `preprocess.Preprocess`.

`decode`, `resize` and `preprocess` work on the host, with NumPy and Pillow;
`views` and `colour` on the device, with JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "decode": ["UnknownGreyRange", "decode_image"],
    "preprocess": ["Preprocess"],
    "resize": ["FAMILIES"],
    "views": ["AUGMENT", "NORMALIZE"],
  },
)
