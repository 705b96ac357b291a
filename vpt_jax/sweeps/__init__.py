"""Holds the papers' protocol: searches, and runs that train together."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "protocol": ["Run", "Sweep", "run_configs"],
    "searches": ["SEARCHES", "AllDiverged", "cells"],
    "vmapped_runs": ["VmappedRuns", "group_key", "most_together"],
  },
)
