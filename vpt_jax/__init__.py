"""Adapts frozen vision transformers with prompts, in JAX.

  config = vpt_jax.load_config("configs/vapt_vtab.py:eurosat")
  vpt_jax.run(config, "runs/eurosat")
  predict = vpt_jax.load_adapter("runs/eurosat/adapter.npz")

These names are stable; what else the package has may change with any version.

  run(config, workdir, data=None)     adapts, evaluates and saves
  load_config(path)                   the config that `--config=PATH` names
  load_adapter(path)                  predict function of a saved adapter
  from_arrays(images, labels)         a data split from NumPy arrays
  Data(train, test)                   the two splits of a run
  register_method(name, cls)          adds a method of your own
  register_problem(name, cls)         adds a problem of your own
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
  from vpt_jax.config.config_files import load_config as load_config
  from vpt_jax.config.registration import register_method as register_method
  from vpt_jax.config.registration import register_problem as register_problem
  from vpt_jax.data.datasets import from_arrays as from_arrays
  from vpt_jax.main import run as run
  from vpt_jax.serving.predictor import load_adapter as load_adapter
  from vpt_jax.training.experiment import Data as Data

__version__ = "0.2.0"

# Imported on first use, so that `import vpt_jax` stays cheap.
__getattr__, __dir__, __all__ = lazy_loader.attach(
  __name__,
  submod_attrs={
    "config.config_files": ["load_config"],
    "config.registration": ["register_method", "register_problem"],
    "data.datasets": ["from_arrays"],
    "main": ["run"],
    "serving.predictor": ["load_adapter"],
    "training.experiment": ["Data"],
  },
)
