"""Draws what the papers look at, from adapters and records. See README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "attention_maps": ["Attention", "Shares", "matrices"],
    "attention_spectra": ["spectra"],
    "condensation_curves": ["condensed"],
    "figures": ["figure", "write_csv"],
    "gate_weights": ["Gates"],
    "gradcam": ["gradients", "heat"],
    "prompt_importance": ["scores_without_blocks"],
    "subject": ["Adapter", "Images"],
  },
)
