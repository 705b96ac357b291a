"""Reads the command line of the main job."""

from collections.abc import Sequence
import re
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags, ConfigDict

from vpt_jax.config import config_files
from vpt_jax.utils import lookup, trees

USAGE = """usage: python -m vpt_jax.main --config=FILE[:TASK] [--workdir=DIR]
                              [--config.FIELD=VALUE ...]

  --config=configs/vapt_vtab.py            the embedded data and backbone
  --config=configs/vapt_vtab.py:eurosat    a VTAB-1k task, ViT-B/16 IN-21k
  --config.mode=sweep                      search, then train with all seeds
  --start=OLD/adapter.npz                  trains on from what a run has
                                           learned, in another workdir
  --distributed=auto                       several processes: Cloud TPU, SLURM,
                                           or HOST:PORT,N,I
  --shard=3/8                              of a sweep: every eighth task
  --config.optim.lr=0.5                    overrides one field; all fields:
                                           python -m vpt_jax.config

A file of your own goes first; configs/NAME.py is else one of those that come
with vpt_jax. VPT_JAX_KEEP_MEMORY=0 in the environment leaves glibc's memory
settings alone, see vpt_jax/utils/malloc.py."""


class Command(NamedTuple):
  """What a command line says.

  Attributes:
    config: not resolved.
    path: the value of `--config`.
    workdir: "" if not given.
    shard: (i, n).
    distributed: see `processes.join`.
    start: path of the adapter that the run starts from; "" if not given.
  """

  config: ConfigDict
  path: str
  workdir: str
  shard: tuple[int, int]
  distributed: str
  start: str = ""


def parse(argv: Sequence[str]) -> Command:
  """Reads a command line; `argv[0]` is the program.

  Raises:
    ValueError: an argument that can't be used, with what to do.
  """
  program, *arguments = argv
  path, arguments = take_config_path(join_values(arguments))
  config = config_files.load_config(path)
  check_overrides(arguments, config)
  values, rest = parse_flags([program, *arguments], config)
  if len(rest) > 1:
    raise ValueError(f"unexpected argument {rest[1]!r}\n{USAGE}")
  part = re.fullmatch(r"(\d+)/(\d+)", values.shard)
  if not part:
    raise ValueError(f"--shard={values.shard}; expected i/n, for example 3/8")
  return Command(
    config=values.config,
    path=path,
    workdir=values.workdir,
    shard=(int(part[1]), int(part[2])),
    distributed=values.distributed,
    start=values.start,
  )


def join_values(arguments: Sequence[str]) -> list[str]:
  """Returns `--config VALUE` and `--config.FIELD VALUE` with an = instead."""
  joined: list[str] = []
  waiting = False  # the last argument may have its value in the next one
  for argument in arguments:
    if waiting and not argument.startswith("--"):
      joined[-1] += f"={argument}"
      waiting = False
    else:
      joined.append(argument)
      waiting = bool(re.fullmatch(r"--?config(\.[^=]*)?", argument))
  return joined


def take_config_path(arguments: Sequence[str]) -> tuple[str, list[str]]:
  """Returns the value of `--config`, and the other arguments.

  Raises:
    ValueError: it is not given, or more than once.
  """
  paths, others = [], []
  for argument in arguments:
    name, _, value = argument.partition("=")
    if name in ("--config", "-config"):
      paths.append(value)
    else:
      others.append(argument)
  if not any(paths):
    raise ValueError(f"no --config given\n{USAGE}")
  if len(paths) > 1:
    raise ValueError(
      f"--config is given {len(paths)} times: {', '.join(paths)}; expected one "
      "file"
    )
  return paths[0], others


def check_overrides(arguments: Sequence[str], config: ConfigDict) -> None:
  """Raises ValueError for `--config.FIELD` without such a field, or a value."""
  flat = trees.flatten(config.to_dict())
  values = {name.replace("/", "."): value for name, value in flat.items()}
  for argument in arguments:
    override = re.match(r"--?(?:no)?config\.([^=]*)(=?)", argument)
    if not override:
      continue
    field, equals = override.groups()
    lookup.choose(field, values, "config field")
    # `--config.compute.remat` and `--noconfig.compute.remat` are good.
    if not equals and not isinstance(values[field], bool):
      raise ValueError(f"{argument} has no value; expected {argument}=VALUE")


def parse_flags(
  argv: Sequence[str], config: ConfigDict
) -> tuple[flags.FlagValues, list[str]]:
  """Returns the flags' values, `config` with its overrides, and what is left.

  Raises:
    ValueError: an unknown flag, or a value of another type.
  """
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", "", "where the run is kept", values)
  flags.DEFINE_string("start", "", "adapter that a run starts from", values)
  flags.DEFINE_string("shard", "1/1", "part of a sweep's tasks", values)
  flags.DEFINE_string("distributed", "", "auto, or HOST:PORT,N,I", values)
  try:
    config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, sys_argv=list(argv)
    )
    rest = values(list(argv))
  # What ml_collections raises of values that it cannot parse.
  except (flags.Error, TypeError, ValueError, SyntaxError) as error:
    raise ValueError(
      f"{error}; `python -m vpt_jax.config` lists all fields"
    ) from None
  return values, rest
