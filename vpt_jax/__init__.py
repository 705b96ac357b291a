"""Adapting frozen vision transformers with prompts, in JAX.

run(config, workdir, data=None)     adapts, evaluates and saves
load_adapter(path)                  predict function of a saved adapter
from_arrays(images, labels)         a data split from numpy arrays
Data(train, test)                   the two splits of a run
"""

import importlib

__version__ = "0.1.0"

_WHERE = {
  "run": "main",
  "Data": "training.experiment",
  "load_adapter": "serving.predictor",
  "from_arrays": "data.datasets",
}


def __getattr__(name: str):
  """Imports on first use, so that `import vpt_jax` stays cheap."""
  if name not in _WHERE:
    raise AttributeError(f"module 'vpt_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(f"vpt_jax.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_WHERE])
