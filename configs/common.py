"""Has what config files share: defaults, searches, sweeps, the embedded task.

A config file starts from `get_config()` and changes what it needs; the command
line overrides single fields: `--config.optim.lr=0.5`. Unknown fields are
errors. All fields, with their defaults and what they mean, are listed in
vpt_jax/config/sections.py, and printed by `python -m vpt_jax.config`.
"""

from typing import Any

from ml_collections import ConfigDict

from vpt_jax import config as config_lib

# What VPT searches, VAPT too: base rates (for 256 images) and decays; and the
# rates of full fine-tuning.
PROMPT_RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)
FULL_RATES = (1e-3, 1e-4, 5e-4, 5e-3)
DECAYS = (1e-2, 1e-3, 1e-4, 0.0)

# A value of `config.trainable`: bias tuning. By name, as published: on Swin the
# tables of relative positions are biases too.
BIAS = r"head/.*|backbone/.*bias"


def get_config() -> ConfigDict:
  """Returns the defaults: VPT's published protocol at ViT-B/16."""
  config = config_lib.defaults()
  config.sweep.grid = grid(PROMPT_RATES)
  return config


def grid(
  rates: tuple[float, ...], decays: tuple[float, ...] = DECAYS
) -> tuple[tuple[str, tuple[float, ...]], ...]:
  """Returns a search over rates and decays, for `config.sweep.grid`."""
  return ("optim.lr", rates), ("optim.weight_decay", decays)


def swept(
  config: ConfigDict, name: str, by_task: dict[str, ConfigDict]
) -> ConfigDict:
  """Makes a sweep over tasks of a config.

  Args:
    config: what all tasks share.
    name: what tables call it.
    by_task: each task's own config; where it differs from `config`, it holds,
      but for what is searched.

  Returns:
    `config`, changed.
  """
  config.task = ""
  config.mode = "sweep"
  config.name = name
  config.sweep.tasks = tuple(by_task)
  searched = [field for field, _ in config.sweep.grid]
  same_for_all = {"task", "mode", "name", *searched}
  shared = _fields(config)
  for task, own in by_task.items():
    changes = []
    for field, value in _fields(own).items():
      if field not in same_for_all and shared[field] != value:
        changes.append((field, value))
    if changes:
      config.sweep.per_task[task] = tuple(changes)
  return config


def _fields(config: ConfigDict) -> dict[str, Any]:
  """Returns dotted field -> value, without the section `sweep`."""
  fields = {}
  for name, value in config.items():
    if name == "sweep":
      continue
    if isinstance(value, ConfigDict):
      for inner, inner_value in value.items():
        fields[f"{name}.{inner}"] = inner_value
    else:
      fields[name] = value
  return fields


def embedded(config: ConfigDict) -> ConfigDict:
  """Gives a config the embedded task: digits, and a small ViT.

  Two CPU cores should be done in two minutes, so: few epochs, small batches,
  AdamW and a head that starts from zeros.
  """
  config.task = "digits"
  config.backbone.name = "vit_mini4_cifar10"
  config.backbone.gelu = ""
  config.image_size = 32
  config.data.normalize = "half"
  config.batch_size = 32
  config.head_init = "zeros"
  config.epochs = 24
  config.optim.name = "adamw"
  config.optim.lr = 0.01
  config.optim.scale_lr = False
  config.optim.weight_decay = 0.01
  config.sweep.grid = grid((0.005, 0.02), (0.01, 0.0001))
  config.optim.warmup_epochs = 2
  config.optim.warmup_from_zero = False
  return config
