"""Serves trained adapters: loads them and predicts with them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "map_predictor": ["MapPredictor"],
    "predictor": ["Predictor", "load_adapter", "read_model", "read_preprocess"],
  },
)
