"""Serves trained adapters: loading them and predicting with them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__, submod_attrs={"predictor": ["load_adapter", "read_model"]}
)
