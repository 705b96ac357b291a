"""Is the part of `python -m vpt_jax.data` that is about masks."""

import argparse
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from vpt_jax.data import mask_sheet, mask_survey, masked_datasets, own_sources
from vpt_jax.data.sources import masked_arrays
from vpt_jax.data.survey import State

ALL = masked_datasets.TASKS


def add_options(options: argparse.ArgumentParser) -> None:
  """Adds the options that say what the pixels of own masks mean."""
  group = options.add_argument_group(
    "masks", "of segfolder:PATH and npz:PATH, see config.segmentation"
  )
  group.add_argument(
    "--num_classes",
    type=int,
    default=0,
    help="(default: as the training masks say)",
  )
  group.add_argument(
    "--colours",
    default="",
    help="map of colours to labels, such as 000000=0,ff0000=1",
  )
  group.add_argument(
    "--reduce_zero_label",
    action="store_true",
    help="0 means no class, and k class k - 1",
  )
  group.add_argument(
    "--label_map",
    default="",
    help="stored labels and what they mean, such as 7=0,8=255",
  )
  group.add_argument(
    "--thin",
    action="store_true",
    help="masks with many labels that lie on edges only are meant so",
  )


def are_meant(args: argparse.Namespace, name: str) -> bool:
  """Returns whether a command is about images with masks.

  Args:
    args: of the command line; `source` is canonical.
    name: of the task.
  """
  if not own_sources.is_own(args.source):
    return name in ALL
  kind, _, path = args.source.partition(":")
  if kind == "npz":
    return masked_arrays.has_masks(Path(path).expanduser())
  return kind in own_sources.MASKED


def _sections(args: argparse.Namespace) -> tuple[ConfigDict, ConfigDict]:
  """Returns config.data and config.segmentation of a command line."""
  pairs = []
  for part in filter(None, args.label_map.split(",")):
    stored, equals, label = part.partition("=")
    if not (equals and stored.isdecimal() and label.isdecimal()):
      raise ValueError(
        f"--label_map={args.label_map}: found {part!r}; expected STORED=LABEL, "
        "such as 7=0,8=255"
      )
    pairs.append((int(stored), int(label)))
  data = {
    "source": args.source,
    "dir": args.data_dir,
    "seed": args.seed,
    "on_error": "raise",
    "cache": args.cache or "",
  }
  section = {
    "num_classes": args.num_classes,
    "colours": args.colours,
    "reduce_zero_label": args.reduce_zero_label,
    "label_map": tuple(pairs),
    "thin": args.thin,
  }
  return ConfigDict(data), ConfigDict(section)


def survey(name: str, args: argparse.Namespace) -> State:
  """Returns what is there of a task with masks."""
  data, section = _sections(args)
  return mask_survey.survey(name, data, section, args.deep, args.workers)


def sheet(name: str, args: argparse.Namespace) -> Image.Image:
  """Returns a contact sheet of overlays."""
  if args.augment is not None:
    raise ValueError(
      "--augment draws views of classification; images with masks are shown as "
      "they are stored: leave it out"
    )
  split = masked_datasets.load(name, args.split, *_sections(args))
  title = (
    f"{name}, {args.split}: {len(split)} images, {split.num_classes} classes; "
    "what is ignored has no colour"
  )
  return mask_sheet.draw(split, title, args.seed)
