"""Configs: checked before anything runs, comparable, and named by content."""

from collections.abc import Mapping
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from vpt_jax import optim, tree
from vpt_jax.data import preprocess, sources, tasks
from vpt_jax.methods import registry as methods


def resolve(config: ConfigDict) -> ConfigDict:
  """A checked copy: other methods' sections dropped, defaults filled in.

  Raises:
    ValueError: a value that no run could use, naming field and choices.
  """
  config = ConfigDict(config.to_dict())
  method = methods.get(config.method)
  for section in methods.METHODS:
    if section != config.method and section in config:
      del config[section]
  config.trainable = config.trainable or method.trainable
  tasks.get(config.task)
  for what, value, known in (
      ("data.normalize", config.data.normalize, preprocess.NORMALIZE),
      ("data.augment", config.data.augment, preprocess.AUGMENT),
      ("data.train_split", config.data.train_split, sources.PACK_LISTS),
      ("data.test_split", config.data.test_split, sources.PACK_LISTS),
      ("data.on_error", config.data.on_error, ("raise", "skip")),
      ("optim.schedule", config.optim.schedule, optim.SCHEDULES),
      ("compute.dtype", config.compute.dtype, ("float32", "bfloat16")),
      ("compute.matmul_precision", config.compute.matmul_precision,
       ("highest", "high", "default")),
      ("backbone.frozen_dtype", config.backbone.frozen_dtype,
       ("float32", "bfloat16"))):
    tree.choose(value, known, what)
  for name in ("batch_size", "epochs", "image_size", "checkpoint.every_epochs",
               "checkpoint.keep"):
    value = config
    for part in name.split("."):
      value = value[part]
    if value < 1:
      raise ValueError(f"config.{name}={value}; expected at least 1")
  if not 0 <= config.optim.warmup_epochs <= config.epochs:
    raise ValueError(f"config.optim.warmup_epochs={config.optim.warmup_epochs}; "
                     f"expected 0 to epochs={config.epochs}")
  return config


def plain(config: ConfigDict) -> dict[str, Any]:
  """The config as JSON values."""
  return json.loads(json.dumps(config.to_dict()))


def digest(config: ConfigDict) -> str:
  """Eight hex digits that change with any field."""
  text = json.dumps(plain(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Lines `field: old -> new` for every field that differs."""
  a, b = tree.flatten(old), tree.flatten(new)
  missing = "(no such field)"
  return [f"{name.replace('/', '.')}: {a.get(name, missing)!r} -> "
          f"{b.get(name, missing)!r}" for name in sorted(a.keys() | b.keys())
          if a.get(name, missing) != b.get(name, missing)]
