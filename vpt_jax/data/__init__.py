"""Finds, decodes, prepares and feeds images. See README.md."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "datasets": ["from_arrays", "load", "open_split"],
    "examples": ["Examples", "Split", "Strips"],
    "pipeline": ["Feed"],
    "tasks": ["TASKS", "Task"],
  },
)
