"""Where images come from: `open_split` finds them, `load` decodes them."""

from collections.abc import Callable
import logging
import os
from pathlib import Path
import sys

import numpy as np

from vpt_jax.data import tasks
from vpt_jax.data.cache import decoding, prepared
from vpt_jax.data.examples import Examples, Split
from vpt_jax.data.sources import arrays, csv_tables, image_files, tfds
from vpt_jax.data.sources.arrays import check_images, from_arrays
from vpt_jax.data.sources.image_files import PACK_LISTS
from vpt_jax.data.transforms.decode import decode_image
from vpt_jax.utils import lookup

__all__ = [
  "PACK_LISTS",
  "Examples",
  "Split",
  "check_images",
  "decode_image",
  "from_arrays",
  "load",
  "open_split",
  "places",
]

log = logging.getLogger("vpt_jax")


def _read_folder(
  path: Path, split: str, seed: int, multi_label: bool
) -> Examples:
  if multi_label:
    raise ValueError(
      f"{path}: folders give every image one class; for images of several "
      "classes name a csv:PATH with labels a|b|c, a json:PATH with lists, or "
      "an npz:PATH with zeros and ones [N, K]"
    )
  return image_files.folder(path, split, seed)


def _read_json(
  path: Path, split: str, seed: int, multi_label: bool
) -> Examples:
  return image_files.json_splits(path, split, 0, seed, multi_label=multi_label)


# What the user brings: kind -> reader(path, split, seed, multi_label).
USER: dict[str, Callable[[Path, str, int, bool], Examples]] = {
  "folder": _read_folder,
  "csv": csv_tables.read_csv,
  "json": _read_json,
  "npz": arrays.npz,
}
# A larger split is prepared on disk, see `cache.py`, not decoded in memory.
IN_MEMORY = 2**29  # bytes


def open_split(
  task_name: str,
  split: str,
  *,
  source: str = "",
  folder: str | os.PathLike = "data",
  seed: int = 0,
  multi_label: bool = False,
) -> Examples:
  """Returns the images of a split, not decoded yet.

  Args:
    task_name: see `tasks.py`; not read where `source` has a path.
    split: `train`, `val`, `trainval` or `test`.
    source: `pack` (vtab-1k), `json` (VPT's lists), `tfds`, `folder:PATH`,
      `csv:PATH`, `json:PATH`, `npz:PATH`; "": the first of the task's own that
      is there.
    folder: `data.dir`.
    seed: of the division of what is not divided into train, val and test.
    multi_label: images may have several classes: labels are uint8 [N, K].

  Raises:
    ValueError: unknown names, missing or damaged files, labels out of range.
  """
  if split not in PACK_LISTS:
    raise ValueError(f"unknown split {split!r}; known: {', '.join(PACK_LISTS)}")
  kind, colon, path = source.partition(":")
  if colon:
    reader = USER[lookup.choose(kind, USER, "data.source")]
    if not path:
      raise ValueError(
        f"config.data.source={source!r} lacks a path; expected {kind}:PATH"
      )
    examples = reader(Path(path).expanduser(), split, seed, multi_label)
  elif multi_label:
    raise ValueError(
      f"task {task_name!r} gives every image one class; images of several "
      "classes are read from csv:PATH, json:PATH or npz:PATH"
    )
  else:
    examples = _open_task(
      task_name, split, source, Path(folder).expanduser(), seed
    )
  if not multi_label:
    _check_range(examples)
  return examples


def _check_range(examples: Examples) -> None:
  """Raises ValueError for a label that is no class."""
  labels = examples.labels
  outside = np.flatnonzero((labels < 0) | (labels >= examples.num_classes))
  if len(outside):
    raise ValueError(
      f"{examples.origin}: label {labels[outside[0]]} of "
      f"{examples.names[outside[0]]} is out of range "
      f"0..{examples.num_classes - 1}"
    )


def places(task: tasks.Task, folder: Path) -> dict[str, tuple[Path, bool]]:
  """Sources of a task, preferred first -> (its place, whether it is there)."""
  own = folder / task.folder
  found = {}
  if task.source != "tfds":
    # Digits have no folder: they come with scikit-learn.
    found[task.source] = own, own.exists() or task.source == "digits"
  if task.tfds:
    try:
      found["tfds"] = tfds.find(task, folder), True
    except ValueError:
      found["tfds"] = folder / task.tfds.partition(":")[0], False
  return found


def is_there(
  task: tasks.Task, folder: str | os.PathLike, source: str = ""
) -> bool:
  """Whether one of its sources, or the one that is named, is there."""
  known = places(task, Path(folder).expanduser())
  return any(
    there for kind, (_, there) in known.items() if source in ("", kind)
  )


def _open_task(
  name: str, split: str, source: str, folder: Path, seed: int
) -> Examples:
  task = tasks.get(name)
  known = places(task, folder)
  if source and source not in known:
    raise ValueError(
      f"task {name!r} has no source {source!r}; it has {', '.join(known)}, "
      f"and every task has {', '.join(f'{kind}:PATH' for kind in USER)}"
    )
  there = [kind for kind, (_, is_there) in known.items() if is_there]
  if not source and not there and len(known) > 1:
    lines = "".join(f"\n  {kind}: {path}" for kind, (path, _) in known.items())
    raise ValueError(
      f"no images of task {name!r}; looked for{lines}\n"
      "config.data.dir names the folder above these. "
      f"{how_to_get(task, folder)}"
    )
  # One that is alone, or named, tells by itself what it lacks.
  source = source or (there or list(known))[0]
  path = folder / task.folder
  match source:
    case "digits":
      return arrays.digits(split)
    case "npz":
      return arrays.jpeg_npz(path, split, task.num_classes, task.class_names)
    case "pack":
      return image_files.pack(path, split, task.num_classes, task.class_names)
    case "json":
      return image_files.json_splits(
        path, split, task.num_classes, seed, task.images, task.class_names
      )
    case "folder":
      return image_files.folder(path, split, seed, task.num_classes)
    case _:
      return tfds.examples(task, split, folder)


def how_to_get(task: tasks.Task, folder: Path) -> str:
  """What the user can do about missing images, licence and address."""
  steps = []
  if task.tfds:
    steps.append(tfds.how_to_get(task, folder))
  if task.manual and task.manual not in "".join(steps):
    steps.append(f"By hand: {task.manual}.")
  if task.address:
    steps.append(f"See {task.address}; licence: {task.licence}.")
  return "\n".join(steps)


def load(
  name: str,
  split: str,
  *,
  folder: str | os.PathLike = "data",
  image_size: tuple[int, int],
  on_error: str = "raise",
  source: str = "",
  seed: int = 0,
  family: str = "",
  train: bool = False,
  cache_dir: str | os.PathLike | None = None,
  workers: int = 0,
  multi_label: bool = False,
) -> Split:
  """The images of a split, decoded.

  From the prepared cache if it is there. Otherwise they are decoded now: into
  memory, or, if they are many, into the cache.

  Args:
    name: of the task, see `tasks.py`.
    split: `train`, `val`, `trainval` or `test`.
    folder: `data.dir`.
    image_size: (height, width) that the backbone sees.
    on_error: `raise`, or `skip` to leave bad images out and count them.
    source: see `open_split`.
    seed: see `open_split`.
    family: of preprocessing, see `resize.FAMILIES`; "": the task's own.
    train: the images are for training, not for evaluation.
    cache_dir: that holds the prepared caches; None: `cache.default_folder()`.
    workers: threads; 0: a few more than there are processors.
    multi_label: see `open_split`.

  Raises:
    ValueError: unknown names, missing or damaged files, labels out of range.
  """
  if on_error not in ("raise", "skip"):
    raise ValueError(f"data.on_error={on_error!r}; expected 'raise' or 'skip'")
  examples = open_split(
    name,
    split,
    source=source,
    folder=folder,
    seed=seed,
    multi_label=multi_label,
  )
  geometry = decoding.Geometry(
    family or own_family(name, source), tuple(image_size), train
  )
  called = title(name, split, source, geometry)
  if not (
    prepared.place(examples, geometry, cache_dir, called).exists()
    or decoding.size(examples, geometry) > IN_MEMORY
  ):
    return decoding.decode_all(examples, geometry, on_error, workers)
  path = prepared.prepare(
    examples,
    cache_dir,
    family=geometry.family,
    image_size=image_size,
    train=train,
    on_error=on_error,
    workers=workers,
    name=called,
    progress=sys.stderr.isatty(),
  )
  log.info("%s images from the cache %s", split, path)
  return prepared.open_cache(path)


def own_family(name: str, source: str) -> str:
  """The preprocessing that a config gets which names none."""
  return "vtab" if ":" in source else tasks.get(name).preprocess


def title(
  name: str, split: str, source: str, geometry: decoding.Geometry
) -> str:
  """What a cache's folder begins with, for people to read."""
  if ":" in source:
    name = Path(source.partition(":")[2]).stem
  return f"{name}-{split}-{geometry.family}{max(geometry.image_size)}"
