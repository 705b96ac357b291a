"""Configs: checked before anything runs, comparable, and named by content."""

from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
import re
import sys
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags, ConfigDict

from vpt_jax.backbones import factory as backbones
from vpt_jax.data import datasets, tasks
from vpt_jax.data.transforms import resize, views
from vpt_jax.distributed import sharding as shard
from vpt_jax.methods import registry as methods
from vpt_jax.training import optim
from vpt_jax.utils import lookup, trees

USAGE = """usage: python -m vpt_jax.main --config=FILE[:TASK] [--workdir=DIR]
                              [--config.FIELD=VALUE ...]

  --config=configs/vapt_vtab.py            the embedded data and backbone
  --config=configs/vapt_vtab.py:eurosat    a VTAB-1k task, ViT-B/16 IN-21k
  --config.mode=sweep                      search, then train with all seeds
  --distributed=auto                       several processes: Cloud TPU, SLURM,
                                           or HOST:PORT,N,I
  --shard=3/8                              of a sweep: every eighth task
  --config.optim.lr=0.5                    overrides one field; all of them are
                                           in configs/common.py"""


class Command(NamedTuple):
  """What a command line says.

  Attributes:
    config: not resolved.
    path: the value of `--config`.
    workdir: "" if not given.
    shard: (i, n).
    distributed: see `processes.join`.
  """

  config: ConfigDict
  path: str
  workdir: str
  shard: tuple[int, int]
  distributed: str


def parse(argv: Sequence[str]) -> Command:
  """Reads a command line.

  Raises:
    ValueError: an argument that can't be used, with what to do.
  """
  path = next(
    (
      arg.split("=", 1)[1]
      for arg in argv
      if arg.startswith(("--config=", "-config="))
    ),
    "",
  )
  if not path:
    raise ValueError(f"no --config given\n{USAGE}")
  file = path.split(":")[0]
  if not Path(file).is_file():
    raise ValueError(
      f"--config: no file {file!r}; run from the folder that holds configs/"
    )
  # Config files import `configs.common`.
  sys.path.insert(0, str(Path(file).absolute().parent.parent))
  try:
    # Once without overrides, to know the fields.
    check_fields(argv, _parse(["", f"--config={path}"])[0].config)
    values, rest = _parse(argv)
  except (flags.Error, TypeError) as error:
    raise ValueError(
      f"{error}; fields and defaults are in configs/common.py"
    ) from None
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}\n{USAGE}")
  part = re.fullmatch(r"(\d+)/(\d+)", values.shard)
  if not part:
    raise ValueError(f"--shard={values.shard}; expected i/n, for example 3/8")
  return Command(
    values.config,
    path,
    values.workdir,
    (int(part[1]), int(part[2])),
    values.distributed,
  )


def _parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  flags.DEFINE_string("workdir", "", "where the run is kept", values)
  flags.DEFINE_string("shard", "1/1", "part of a sweep's tasks", values)
  flags.DEFINE_string("distributed", "", "auto, or HOST:PORT,N,I", values)
  return values, values(argv)


def check_fields(argv: Sequence[str], config: ConfigDict) -> None:
  """Raises ValueError for `--config.FIELD` that the config does not have."""
  known = {name.replace("/", ".") for name in trees.flatten(config.to_dict())}
  for arg in argv:
    name, equals, _ = arg.lstrip("-").partition("=")
    if arg.startswith("-") and name.startswith("config.") and equals:
      lookup.choose(name.removeprefix("config."), known, "config field")


def resolve(config: ConfigDict, named_task: bool = True) -> ConfigDict:
  """A checked copy: other methods' sections dropped, defaults filled in.

  Args:
    config: see `configs/common.py`.
    named_task: False if the caller brings the data.

  Raises:
    ValueError: a value that no run could use, naming field and choices.
  """
  config = ConfigDict(config.to_dict())
  method = methods.get(config.method)
  for section in methods.METHODS:
    if section != config.method and section in config:
      del config[section]
  if "condense" in config and not config.condense.shares:
    del config.condense
  lookup.choose(config.mode, ("train", "sweep"), "mode")
  if config.mode == "train" and "sweep" in config:
    del config.sweep
  config.trainable = config.trainable or method.trainable
  data = config.data
  if ":" in data.source:  # the user's own, named after its file or folder
    config.task = config.task or Path(data.source.partition(":")[2]).stem
  elif named_task:
    tasks.get(config.task)
  data.preprocess = data.preprocess or (
    datasets.own_family(config.task, data.source) if named_task else "vtab"
  )
  lookup.choose(data.preprocess, resize.FAMILIES, "data.preprocess")
  data.augment = data.augment or views.OWN[data.preprocess]
  entry = backbones.get(config.backbone.name)
  if data.normalize == "backbone":
    data.normalize = entry.normalize
  for what, value, known in (
    ("data.normalize", data.normalize, views.NORMALIZE),
    ("data.augment", data.augment, views.AUGMENT),
    ("data.train_split", data.train_split, datasets.PACK_LISTS),
    ("data.test_split", data.test_split, datasets.PACK_LISTS),
    ("data.on_error", data.on_error, ("raise", "skip")),
    ("optim.schedule", config.optim.schedule, optim.SCHEDULES),
    ("compute.dtype", config.compute.dtype, ("float32", "bfloat16")),
    (
      "compute.matmul_precision",
      config.compute.matmul_precision,
      ("highest", "high", "default"),
    ),
    ("compute.attention", config.compute.attention, backbones.ATTENTION),
    ("shard.strategy", config.shard.strategy, shard.STRATEGIES),
    (
      "backbone.frozen_dtype",
      config.backbone.frozen_dtype,
      ("float32", "bfloat16"),
    ),
  ):
    lookup.choose(value, known, what)
  if config.compute.attention == "cudnn" and config.compute.dtype == "float32":
    raise ValueError(
      "compute.attention='cudnn' takes 16-bit numbers only; set "
      "config.compute.dtype=bfloat16"
    )
  for name, least in (
    ("batch_size", 1),
    ("epochs", 0),
    ("image_size", 1),
    ("checkpoint.every_epochs", 1),
    ("checkpoint.keep", 1),
  ):
    value = config
    for part in name.split("."):
      value = value[part]
    if value < least:
      raise ValueError(f"config.{name}={value}; expected at least {least}")
  if not 0 < data.min_scale <= 1:
    raise ValueError(
      f"config.data.min_scale={data.min_scale}; expected above 0, at most 1"
    )
  if not 0 < data.train_share <= 1:
    raise ValueError(
      f"config.data.train_share={data.train_share}; expected above 0, at most 1"
    )
  if not 0 <= config.optim.warmup_epochs <= config.epochs:
    raise ValueError(
      f"config.optim.warmup_epochs={config.optim.warmup_epochs}; expected 0 "
      f"to epochs={config.epochs}"
    )
  return config


def plain(config: ConfigDict) -> dict[str, Any]:
  """The config as JSON values."""
  return json.loads(json.dumps(config.to_dict()))


def digest(config: ConfigDict, digits: int = 8) -> str:
  """Hex digits that change with any field."""
  text = json.dumps(plain(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:digits]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Lines `field: old -> new` for every field that differs."""
  a, b = trees.flatten(old), trees.flatten(new)
  missing = "(no such field)"
  return [
    f"{name.replace('/', '.')}: {a.get(name, missing)!r} -> "
    f"{b.get(name, missing)!r}"
    for name in sorted(a.keys() | b.keys())
    if a.get(name, missing) != b.get(name, missing)
  ]
