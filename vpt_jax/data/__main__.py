"""Prepares, checks and shows images: `python -m vpt_jax.data COMMAND`."""

import argparse
from collections.abc import Sequence
import logging
from pathlib import Path
import sys
from typing import Any

import numpy as np
from PIL import Image

from vpt_jax.data import (
  contact_sheet,
  datasets,
  mask_commands,
  own_sources,
  survey,
  tasks,
)
from vpt_jax.data.cache import prepared
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Split
from vpt_jax.data.sources import layouts
from vpt_jax.data.transforms import resize, views
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.utils import command_line, files, signals, text_tables
from vpt_jax.utils.logs import log, Once

PART_NAMES = ("train", "val", "test")
HEAD = (
  "task",
  "suite",
  "state",
  "/".join(PART_NAMES),
  "classes",
  "images per class",
  "prepared",
)


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  common = _common_options()
  main = argparse.ArgumentParser(
    "python -m vpt_jax.data", description="Prepares, checks and shows images."
  )
  commands = main.add_subparsers(dest="command", required=True)

  command = commands.add_parser(
    "prepare",
    parents=[common],
    help="decode and resize once, so that training starts at once",
  )
  command.add_argument(
    "task",
    nargs="?",
    default="",
    metavar="TASK|all",
    help="all: those whose images are there",
  )
  command.add_argument(
    "--splits", default="trainval,test", help="which (default: %(default)s)"
  )
  command.add_argument(
    "--on_error",
    default="raise",
    choices=("raise", "skip"),
    help="what bad images do (default: %(default)s)",
  )
  command.add_argument(
    "--force", action="store_true", help="even if it is done"
  )

  command = commands.add_parser(
    "check",
    parents=[common],
    help="what is there, what is missing, what is broken",
  )
  command.add_argument("task", nargs="?", default="all", metavar="TASK|all")
  command.add_argument(
    "--deep",
    action="store_true",
    help="decode every image, and name all that are damaged",
  )

  command = commands.add_parser(
    "show", parents=[common], help="draw samples of a split"
  )
  command.add_argument("task", nargs="?", default="", metavar="TASK")
  command.add_argument(
    "--split", default="train", help="(default: %(default)s)"
  )
  command.add_argument(
    "--augment",
    nargs="?",
    const="",
    choices=("", *views.AUGMENT),
    help="draw random views as in training "
    "(default: those of the preprocessing)",
  )
  command.add_argument(
    "--out", default="", help="PNG (default: TASK-SPLIT.png)"
  )
  return main


def _common_options() -> argparse.ArgumentParser:
  """Returns the options that all commands have."""
  common = argparse.ArgumentParser(add_help=False)
  common.add_argument(
    "--data_dir",
    default="data",
    help="config.data.dir: the folder with all images (default: %(default)s)",
  )
  common.add_argument(
    "--source",
    default="",
    help="config.data.source: pack, json or tfds; or "
    "folder:PATH, csv:PATH, npz:PATH, segfolder:PATH, then without TASK",
  )
  common.add_argument(
    "--multi_label",
    action="store_true",
    help="images may have several classes (config.problem=multi_label)",
  )
  common.add_argument(
    "--layout",
    default="auto",
    choices=layouts.LAYOUTS,
    help="config.data.layout: what the folders of folder:PATH mean "
    "(default: %(default)s)",
  )
  common.add_argument(
    "--columns",
    default="",
    help="config.data.columns: which columns of csv:PATH have images, labels "
    "and, if any, parts (default: those with the usual names)",
  )
  common.add_argument(
    "--seed",
    type=int,
    default=0,
    help="config.data.seed: of the division of images that are not divided "
    "into parts (default: %(default)s)",
  )
  common.add_argument(
    "--image_size",
    type=int,
    default=224,
    help="pixels that the backbone sees (default: %(default)s)",
  )
  common.add_argument(
    "--preprocess",
    default="",
    choices=["", *resize.FAMILIES],
    help="config.data.preprocess (default: the task's own)",
  )
  common.add_argument(
    "--cache",
    help="folder of the prepared images (default: "
    f"{prepared.default_folder()})",
  )
  common.add_argument("--workers", type=int, default=0, help="threads")
  mask_commands.add_options(common)
  return common


def task_names(args: argparse.Namespace) -> list[str]:
  """Returns the tasks that are meant; a user's images are one of any name."""
  if own_sources.is_own(args.source):
    return [own_sources.name_of(args.source)]
  if args.task == "all" and args.command == "check":
    return [*tasks.TASKS, *mask_commands.ALL]
  if args.task == "all" and args.command == "prepare":
    return list(tasks.TASKS)
  if not args.task:
    raise ValueError(
      "name a task (`python -m vpt_jax.data check` lists them), "
      "or give --source=folder:PATH"
    )
  if args.task not in mask_commands.ALL:
    tasks.get(args.task)
  return [args.task]


def source_options(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the options that say where images are."""
  return {
    "source": args.source,
    "folder": args.data_dir,
    "seed": args.seed,
    "multi_label": args.multi_label,
    "layout": args.layout,
    "columns": args.columns,
  }


def _preprocess(name: str, args: argparse.Namespace) -> Preprocess:
  """Returns what happens to a task's images but for normalisation."""
  return datasets.without_normalization(
    name, args.source, args.preprocess, (args.image_size, args.image_size)
  )


def prepare(args: argparse.Namespace) -> int:
  """Prepares splits of tasks; returns 1 if one of them cannot be."""
  status = 0
  all_tasks = args.task == "all"
  for name in task_names(args):
    if mask_commands.are_meant(args, name):
      raise ValueError(
        f"{name}: images with masks need no preparation; they are decoded "
        "ahead of the training"
      )
    if all_tasks and not datasets.is_there(tasks.TASKS[name], args.data_dir):
      log.info("%s: no images", name)
      continue
    for split in args.splits.split(","):
      try:
        _prepare_split(name, split, args)
      except (OSError, ValueError, ImportError) as error:
        if not all_tasks:
          raise
        status = 1
        log.error("%s, %s: %s", name, split, error)
  return status


def _prepare_split(name: str, split: str, args: argparse.Namespace) -> None:
  examples = datasets.open_split(name, split, **source_options(args))
  preprocess = _preprocess(name, args)

  def decode(preprocess: Preprocess) -> Path:
    return prepared.prepare(
      examples,
      Layout(preprocess, split in survey.TRAINING_SPLITS),
      args.cache,
      on_error=args.on_error,
      workers=args.workers,
      progress=True,
      force=args.force,
      name=datasets.cache_title(name, split, args.source, preprocess),
    )

  path = datasets.with_grey_range(
    decode,
    preprocess,
    examples,
    name,
    args.cache,
    args.workers,
    **source_options(args),
  )
  done = prepared.open_cache(path)
  skipped = f", {done.skipped} left out" if done.skipped else ""
  log.info(
    "%s, %s: %d images%s, %s in %s",
    name,
    split,
    len(done),
    skipped,
    readable_size(done.images.nbytes),
    path,
  )


def readable_size(count: int) -> str:
  """Returns bytes as people read them."""
  if count >= 2**30:
    return f"{count / 2**30:.1f} GiB"
  return f"{count / 2**20:.1f} MiB"


def check(args: argparse.Namespace) -> int:
  """Prints what is there; returns 1 if something is broken."""
  states = {}
  for name in task_names(args):
    if mask_commands.are_meant(args, name):
      states[name] = mask_commands.survey(name, args)
      continue
    states[name] = survey.survey_task(
      name,
      **source_options(args),
      family=args.preprocess,
      image_size=(args.image_size, args.image_size),
      cache_dir=args.cache,
      deep=args.deep,
      workers=args.workers,
    )
  rows: list[tuple[str, ...]] = [HEAD]
  for name, state in states.items():
    suite = ""
    if not own_sources.is_own(args.source) and name in tasks.TASKS:
      suite = tasks.TASKS[name].suite
    rows.append((name, suite, *_cells(state)))
  sys.stdout.write(text_tables.align(rows) + "\n")
  for name, state in states.items():
    if len(states) == 1:
      for split, summary in state.summaries.items():
        sys.stdout.write(f"{name}: {split}: {summary}\n")
    for note in state.notes:
      sys.stdout.write(f"{name}: {note}\n")
  if len(states) > 1:  # the steps of all tasks would be pages
    sys.stdout.write("`check TASK` tells how to get one that is missing\n")
  else:
    for state in states.values():
      if state.steps:
        sys.stdout.write(f"{state.steps}\n")
  broken = [state for state in states.values() if state.state == survey.BROKEN]
  return 1 if broken else 0


def _cells(state: survey.State) -> tuple[str, ...]:
  """Returns the cells of a task's row from its state on."""
  if not state.images:
    return state.state, "", "", "", ""
  counts = [str(state.images.get(part, "-")) for part in PART_NAMES]
  return (
    state.state,
    "/".join(counts),
    f"{state.classes} of {state.num_classes}",
    f"{state.smallest} to {state.largest}",
    " ".join(state.prepared),
  )


def show(args: argparse.Namespace) -> int:
  """Draws a contact sheet."""
  (name,) = task_names(args)
  if mask_commands.are_meant(args, name):
    page = mask_commands.sheet(name, args)
  else:
    page = _sheet(name, args)
  path = Path(args.out or f"{name}-{args.split}.png").expanduser()
  with files.replacing(path) as file:
    page.save(file, "PNG")
  sys.stdout.write(f"{path}\n")
  return 0


def _sheet(name: str, args: argparse.Namespace) -> Image.Image:
  """Returns a contact sheet of images as the backbone sees them."""
  preprocess = _preprocess(name, args)
  family = preprocess.family
  # `--augment` without a value takes the family's own views.
  augment = views.OWN[family] if args.augment == "" else args.augment
  examples = datasets.open_split(name, args.split, **source_options(args))
  sample = contact_sheet.sample(examples, args.seed)

  def decode(preprocess: Preprocess) -> tuple[np.ndarray, Split]:
    return contact_sheet.model_views(
      sample, preprocess, augment, args.seed, args.workers
    )

  images, split = datasets.with_grey_range(
    decode,
    preprocess,
    examples,
    name,
    args.cache,
    args.workers,
    **source_options(args),
  )
  shown_as = "as in evaluation"
  if augment is not None:
    shown_as = f"as in training, augment={augment}"
  return contact_sheet.sheet(
    images,
    _captions(split.labels, split.class_names or range(split.num_classes)),
    f"{name}, {args.split}: {len(examples)} images of "
    f"{examples.num_classes} classes; {family} {args.image_size}, {shown_as}",
  )


def _captions(labels: Any, classes: Sequence[Any]) -> list[str]:
  """Returns the classes of every image, as text."""
  captions = []
  for label in labels:
    # Zeros and ones [K] where images may have several classes.
    numbers = label.nonzero()[0] if label.ndim else [label]
    captions.append(", ".join(str(classes[number]) for number in numbers))
  return captions


COMMANDS = {"prepare": prepare, "check": check, "show": show}


def main(argv: Sequence[str]) -> int:
  """Runs a command line; returns the exit status."""
  args = parser().parse_args(argv[1:])
  handler = logging.StreamHandler()
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  if args.command == "check":
    handler.addFilter(Once())  # several splits tell the same
    if args.task == "all" and not args.source:
      log.setLevel(logging.WARNING)
  try:
    return command_line.exit_status(lambda: _run(args))
  finally:
    log.removeHandler(handler)


def _run(args: argparse.Namespace) -> int:
  if args.command == "prepare":
    signals.tell_saved(lambda: "the images that are done")
  try:
    args.source = own_sources.canonical(args.source)
    return COMMANDS[args.command](args)
  except ImportError as error:  # what only some sources need
    raise ValueError(str(error)) from error


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv))
