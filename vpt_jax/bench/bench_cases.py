"""Defines the command line of the benchmark, and the cases that it names."""

import argparse
from collections.abc import Iterator
import dataclasses
import itertools

from vpt_jax.bench import dense_cases, measure
from vpt_jax.bench.measure import Case
from vpt_jax.utils import lookup

SEED = 0


@dataclasses.dataclass(frozen=True)
class Defaults:
  """What is measured where the command line does not say it.

  Attributes:
    backbones: see `--backbones`.
    methods: see `--methods`.
    prompts: see `--prompts`.
    batch: see `--batch`.
    image_size: see `--image_size`.
    classes: of the head; no option changes them.
  """

  backbones: tuple[str, ...]
  methods: tuple[str, ...]
  prompts: tuple[int, ...]
  batch: tuple[int, ...]
  image_size: int
  classes: int


CLASSIFICATION = Defaults(
  backbones=("vit_ti16", "vit_b16"),
  methods=measure.METHODS,
  prompts=(0, 10, 50, 100, 200),
  batch=(8,),
  image_size=224,
  classes=100,
)
# As ADE20K is published; a backbone and a batch that CPUs do in seconds.
SEGMENTATION = Defaults(
  backbones=("vit_ti16",),
  methods=("vpt_deep", "gated"),
  prompts=(24,),
  batch=(2,),
  image_size=512,
  classes=150,
)


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(map(int, text.split(",")))


# argparse names a type in its errors: "invalid list of numbers value: 'a'".
_words.__name__ = "list of names"
_numbers.__name__ = "list of numbers"


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  out = argparse.ArgumentParser(
    prog="python -m vpt_jax.bench",
    description="Times vpt_jax against PyTorch, in one run.",
  )
  _add_cases(out)
  _add_measuring(out)
  return out


def _add_cases(out: argparse.ArgumentParser) -> None:
  """Adds what is measured."""
  out.add_argument(
    "--segmentation",
    type=_words,
    default=(),
    metavar="A,B",
    help="every pixel gets its logits by one of these heads: "
    f"{','.join(dense_cases.HEADS)} (default: classification)",
  )
  out.add_argument(
    "--backbones",
    type=_words,
    metavar="A,B",
    help="plain ViTs of `python -m vpt_jax.backbones` "
    "(default vit_ti16,vit_b16; of segmentation vit_ti16)",
  )
  out.add_argument(
    "--methods",
    type=_words,
    metavar="A,B",
    help=f"of {','.join(measure.METHODS)} (default: all; of segmentation "
    "vpt_deep,gated)",
  )
  out.add_argument(
    "--prompts",
    type=_numbers,
    metavar="N,M",
    help="per block; 0 is for linear alone (default 0,10,50,100,200; of "
    "segmentation 24)",
  )
  out.add_argument(
    "--batch",
    type=_numbers,
    metavar="N,M",
    help="images (default 8; of segmentation 2)",
  )
  out.add_argument(
    "--dtype",
    type=_words,
    default=("float32",),
    metavar="A,B",
    help="float32,bfloat16 (default float32)",
  )
  out.add_argument(
    "--image_size",
    type=int,
    help="pixels (default 224; of segmentation 512)",
  )
  out.add_argument(
    "--dropout",
    type=float,
    default=0.1,
    help="of prompts in training steps (default %(default)s)",
  )
  out.add_argument(
    "--variants",
    type=_words,
    default=measure.VARIANTS,
    metavar="A,B",
    help="of PyTorch (default eager,sdpa,compile)",
  )
  out.add_argument(
    "--attention",
    default=measure.ATTENTION,
    metavar="A",
    help="config.compute.attention of vpt_jax: ours, xla, cudnn (GPUs, "
    "bfloat16) (default %(default)s)",
  )


def _add_measuring(out: argparse.ArgumentParser) -> None:
  """Adds how it is measured, and what is written."""
  out.add_argument(
    "--repeats", type=int, default=5, help="samples (default %(default)s)"
  )
  out.add_argument(
    "--threads",
    type=int,
    default=0,
    help="cores to use (default: all that there are)",
  )
  out.add_argument(
    "--start_up",
    action="store_true",
    help="also time the start of a process, with and without a cache",
  )
  out.add_argument(
    "--scoring",
    type=int,
    nargs="?",
    const=64,
    default=0,
    metavar="N",
    help="also time scoring the prompts of vpt_deep on N images (64)",
  )
  out.add_argument(
    "--out",
    default="bench",
    metavar="FOLDER",
    help="gets bench.md, .json, .png (default %(default)s)",
  )


def cases(args: argparse.Namespace) -> list[Case]:
  """Returns all that is to be measured.

  Raises:
    ValueError: an unknown name, a number that is too small, or nothing to do.
  """
  args = with_defaults(args)
  _check_names(args)
  _check_numbers(args)
  out = list(_combinations(args))
  if not out:
    raise ValueError(
      "nothing to measure: linear has 0 prompts, the other "
      "methods have more; see --methods and --prompts"
    )
  return out


def _defaults(args: argparse.Namespace) -> Defaults:
  return SEGMENTATION if args.segmentation else CLASSIFICATION


def with_defaults(args: argparse.Namespace) -> argparse.Namespace:
  """Returns arguments, those that were not given taken from the defaults."""
  defaults = dataclasses.asdict(_defaults(args))
  given = {}
  for name, value in vars(args).items():
    given[name] = defaults.get(name) if value is None else value
  return argparse.Namespace(**given)


def _check_names(args: argparse.Namespace) -> None:
  for what, names, known in (
    ("method", args.methods, measure.METHODS),
    ("dtype", args.dtype, measure.TOLERANCE),
    ("variant", args.variants, measure.VARIANTS),
    ("head of segmentation", args.segmentation, dense_cases.HEADS),
  ):
    for name in names:
      lookup.choose(name, known, what)


def _check_numbers(args: argparse.Namespace) -> None:
  for option, value, least in (
    ("--prompts", min(args.prompts), 0),
    ("--batch", min(args.batch), 1),
    ("--repeats", args.repeats, 1),
    ("--threads", args.threads, 0),
    ("--scoring", args.scoring, 0),
    ("--dropout", args.dropout, 0),
  ):
    if value < least:
      raise ValueError(f"{option} {value}; expected at least {least}")
  if args.scoring and args.segmentation:
    raise ValueError(
      "--scoring is of classification; leave it or --segmentation out"
    )


def _combinations(args: argparse.Namespace) -> Iterator[Case]:
  combinations = itertools.product(
    args.backbones,
    args.batch,
    args.dtype,
    args.segmentation or ("",),
    args.methods,
    args.prompts,
  )
  for backbone, batch, dtype, head, method, prompts in combinations:
    # The linear probe has no prompts, all other methods have.
    if (method == "linear") != (prompts == 0):
      continue
    yield Case(
      backbone=backbone,
      image_size=args.image_size,
      method=method,
      prompts=prompts,
      dtype=dtype,
      batch=batch,
      dropout=args.dropout,
      classes=_defaults(args).classes,
      seed=SEED,
      segmentation=head,
      attention=args.attention,
    )
