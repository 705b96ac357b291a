"""Images are got ready: `python -m vpt_jax.data prepare|check|show`."""

import argparse
from collections.abc import Sequence
import logging
from pathlib import Path
import sys
from typing import Any

from vpt_jax.data import contact_sheet, datasets, survey, tasks
from vpt_jax.data.cache import prepared
from vpt_jax.data.cache.decoding import Geometry
from vpt_jax.data.transforms import resize
from vpt_jax.data.transforms import views as preprocess

log = logging.getLogger("vpt_jax")

TRAIN = ("train", "trainval")  # other splits are for evaluation


def parser() -> argparse.ArgumentParser:
  """The command line."""
  common = argparse.ArgumentParser(add_help=False)
  add = common.add_argument
  add(
    "--data_dir",
    default="data",
    help="config.data.dir: the folder with all images (default: %(default)s)",
  )
  add(
    "--source",
    default="",
    help="config.data.source: pack, json or tfds; or "
    "folder:PATH, csv:PATH, npz:PATH, then without TASK",
  )
  add(
    "--seed",
    type=int,
    default=0,
    help="config.data.seed: parts of images "
    "that are not parted (default: %(default)s)",
  )
  add(
    "--image_size",
    type=int,
    default=224,
    help="pixels that the backbone sees (default: %(default)s)",
  )
  add(
    "--preprocess",
    default="",
    choices=["", *resize.FAMILIES],
    help="config.data.preprocess (default: the task's own)",
  )
  add(
    "--cache",
    help="folder of the prepared images (default: "
    f"{prepared.default_folder()})",
  )
  add("--workers", type=int, default=0, help="threads")
  main = argparse.ArgumentParser(
    "python -m vpt_jax.data", description=__doc__.split("`", maxsplit=1)[0]
  )
  commands = main.add_subparsers(dest="command", required=True)

  one = commands.add_parser(
    "prepare",
    parents=[common],
    help="decode and resize once, so that training starts at once",
  )
  one.add_argument(
    "task",
    nargs="?",
    default="",
    metavar="TASK|all",
    help="all: those whose images are there",
  )
  one.add_argument(
    "--splits", default="trainval,test", help="which (default: %(default)s)"
  )
  one.add_argument(
    "--on_error",
    default="raise",
    choices=("raise", "skip"),
    help="what bad images do (default: %(default)s)",
  )
  one.add_argument("--force", action="store_true", help="even if it is done")

  one = commands.add_parser(
    "check",
    parents=[common],
    help="what is there, what is missing, what is broken",
  )
  one.add_argument("task", nargs="?", default="all", metavar="TASK|all")
  one.add_argument("--deep", action="store_true", help="decode every image")

  one = commands.add_parser(
    "show", parents=[common], help="draw samples of a split"
  )
  one.add_argument("task", nargs="?", default="", metavar="TASK")
  one.add_argument("--split", default="train", help="(default: %(default)s)")
  one.add_argument(
    "--augment",
    nargs="?",
    const="",
    choices=("", *preprocess.AUGMENT),
    help="draw random views as in training "
    "(default: those of the preprocessing)",
  )
  one.add_argument("--out", default="", help="PNG (default: TASK-SPLIT.png)")
  return main


def names(args: argparse.Namespace) -> list[str]:
  """The tasks that are meant; one, whatever its name, for a user's images."""
  if ":" in args.source:
    return [Path(args.source.partition(":")[2]).stem]
  if args.task == "all" and args.command != "show":
    return list(tasks.TASKS)
  if not args.task:
    raise ValueError(
      "name a task (`python -m vpt_jax.data check` lists them), "
      "or give --source=folder:PATH"
    )
  tasks.get(args.task)
  return [args.task]


def where(args: argparse.Namespace) -> dict[str, Any]:
  """What says where images are."""
  return dict(source=args.source, folder=args.data_dir, seed=args.seed)


def prepare(args: argparse.Namespace) -> int:
  """Prepares splits of tasks; 1 if one of them cannot be."""
  status, every = 0, args.task == "all"
  for name in names(args):
    if every and not datasets.is_there(tasks.TASKS[name], args.data_dir):
      log.info("%s: no images", name)
      continue
    for split in args.splits.split(","):
      try:
        _prepare(name, split, args)
      except (OSError, ValueError, ImportError) as error:
        if not every:
          raise
        status = 1
        log.error("%s, %s: %s", name, split, error)
  return status


def _prepare(name: str, split: str, args: argparse.Namespace) -> None:
  examples = datasets.open_split(name, split, **where(args))
  geometry = Geometry(
    args.preprocess or datasets.own_family(name, args.source),
    (args.image_size,) * 2,
    split in TRAIN,
  )
  path = prepared.prepare(
    examples,
    args.cache,
    family=geometry.family,
    train=geometry.train,
    image_size=geometry.image_size,
    on_error=args.on_error,
    workers=args.workers,
    progress=True,
    force=args.force,
    name=datasets.title(name, split, args.source, geometry),
  )
  done = prepared.open_cache(path)
  skipped = f", {done.skipped} left out" if done.skipped else ""
  log.info(
    "%s, %s: %d images%s, %s in %s",
    name,
    split,
    len(done),
    skipped,
    size(done.images.nbytes),
    path,
  )


def size(count: int) -> str:
  """Bytes for people."""
  return (
    f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
  )


def check(args: argparse.Namespace) -> int:
  """Prints what is there; 1 if something is broken."""
  rows = [
    [
      "task",
      "suite",
      "state",
      "train/val/test",
      "classes",
      "images each",
      "prepared",
    ]
  ]
  found = {}
  for name in names(args):
    found[name] = state = survey.look(
      name,
      **where(args),
      family=args.preprocess,
      image_size=(args.image_size,) * 2,
      cache_dir=args.cache,
      deep=args.deep,
      workers=args.workers,
    )
    suite = "" if ":" in args.source else tasks.TASKS[name].suite
    images = "/".join(
      str(state.images.get(split, "-")) for split in ("train", "val", "test")
    )
    rows.append(
      [
        name,
        suite,
        state.state,
        *(
          [
            images,
            f"{state.classes} of {state.num_classes}",
            f"{state.smallest} to {state.largest}",
            " ".join(state.prepared),
          ]
          if state.images
          else [""] * 4
        ),
      ]
    )
  widths = [max(map(len, column)) for column in zip(*rows)]
  for row in rows:
    sys.stdout.write(
      "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
      + "\n"
    )
  for name, state in found.items():
    for note in state.notes:
      sys.stdout.write(f"{name}: {note}\n")
  # The steps of all tasks would be pages.
  if len(found) == 1:
    sys.stdout.write(
      "".join(f"{state.steps}\n" for state in found.values() if state.steps)
    )
  else:
    sys.stdout.write("`check TASK` tells how to get one that is missing\n")
  return int(any(state.state == survey.BROKEN for state in found.values()))


def show(args: argparse.Namespace) -> int:
  """Draws a contact sheet."""
  (name,) = names(args)
  family = args.preprocess or datasets.own_family(name, args.source)
  augment = preprocess.OWN[family] if args.augment == "" else args.augment
  examples = datasets.open_split(name, args.split, **where(args))
  images, split = contact_sheet.seen(
    contact_sheet.sample(examples, args.seed),
    family,
    (args.image_size,) * 2,
    augment,
    args.seed,
    args.workers,
  )
  views = (
    "as in evaluation"
    if augment is None
    else (f"as in training, augment={augment}")
  )
  classes = split.class_names or range(split.num_classes)
  page = contact_sheet.sheet(
    images,
    [str(classes[label]) for label in split.labels],
    f"{name}, {args.split}: {len(examples)} images of "
    f"{examples.num_classes} classes; {family} {args.image_size}, {views}",
  )
  path = Path(args.out or f"{name}-{args.split}.png").expanduser()
  page.save(path, "PNG")
  sys.stdout.write(f"{path}\n")
  return 0


COMMANDS = {"prepare": prepare, "check": check, "show": show}


def main(argv: Sequence[str]) -> int:
  """Does what a command line says; returns the exit status."""
  args = parser().parse_args(argv[1:])
  handler = logging.StreamHandler()
  log.addHandler(handler)
  log.setLevel(logging.WARNING if args.command == "check" else logging.INFO)
  try:
    return COMMANDS[args.command](args)
  except (OSError, ValueError, ImportError) as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  except KeyboardInterrupt:
    sys.stderr.write("interrupted; the same command goes on\n")
    return 130
  finally:
    log.removeHandler(handler)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
