"""Holds Prompt Condensation: scores of prompts, and runs with the best ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "prompt_scores": ["STATISTICS", "leave_one_out", "scores"],
    "selection": ["condensed", "indices", "keep", "pack", "ranking"],
    "stages": ["table"],
  },
)
