"""Operations that are written by hand for speed, each beside a plain form.

See README.md for where each is faster, and by how much.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={"switch": ["ATTENTION_FORMS", "KINDS", "Ops"]},
)
