"""Finds the images of a task (`open_split`) and decodes them (`load`)."""

from collections.abc import Callable
import dataclasses
import os
from pathlib import Path
import sys
from typing import Any, NamedTuple, TYPE_CHECKING, TypeVar

import numpy as np

from vpt_jax.data import class_names, own_sources, tasks
from vpt_jax.data.cache import decoding, grey_range, prepared
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples, Split
from vpt_jax.data.sources import (
  arrays,
  class_folders,
  image_files,
  own_readers,
  tfds,
)
from vpt_jax.data.sources.arrays import check_images, from_arrays
from vpt_jax.data.sources.image_files import PACK_LISTS
from vpt_jax.data.transforms.decode import (
  decode_image,
  GREY_RANGES,
  UnknownGreyRange,
)
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.utils.logs import log

if TYPE_CHECKING:
  from ml_collections import ConfigDict

__all__ = [
  "PACK_LISTS",
  "Examples",
  "Split",
  "check_images",
  "decode_image",
  "from_arrays",
  "load",
  "open_split",
  "source_folders",
]


# A larger split is prepared on disk, see `cache.prepared`, not decoded in
# memory.
IN_MEMORY = 2**29  # bytes

Result = TypeVar("Result")


def open_split(
  task_name: str,
  split: str,
  *,
  source: str = "",
  folder: str | os.PathLike = "data",
  seed: int = 0,
  multi_label: bool = False,
  layout: str = "auto",
  as_text: bool = False,
  columns: str = "",
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
    layout: what the folders of `folder:PATH` mean, see `layouts.find_parts`.
    as_text: of the order of the user's own classes, see
      `class_names.in_order`.
    columns: of `csv:PATH`, see `table_columns.find`.

  Raises:
    ValueError: unknown names, missing or damaged files, labels out of range.
  """
  if split not in PACK_LISTS:
    raise ValueError(f"unknown split {split!r}; known: {', '.join(PACK_LISTS)}")
  source = own_sources.canonical(source)
  if own_sources.is_own(source):
    kind, _, path = source.partition(":")
    if kind not in own_readers.USER:
      raise ValueError(
        f"config.data.source={source!r} has masks, which are for "
        "config.problem=segmentation; for images of one class each name "
        "folder:PATH, in which subfolders are the classes"
      )
    reader = own_readers.USER[kind]
    reading = own_readers.Reading(seed, multi_label, layout, as_text, columns)
    examples = reader(Path(path).expanduser(), split, reading)
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


def reading_options(
  data: "ConfigDict", multi_label: bool = False
) -> dict[str, Any]:
  """Returns what `open_split` and `load` take of a config's section `data`.

  Args:
    data: of a resolved config, or of an adapter's, which may be older.
    multi_label: images may have several classes.
  """
  return {
    "source": data.source,
    "folder": data.dir,
    "seed": data.seed,
    "multi_label": multi_label,
    "layout": data.get("layout", "auto"),
    "columns": data.get("columns", ""),
  }


def summary_of(split: Examples | Split) -> str:
  """Returns which classes a split has, and how many images each."""
  return class_names.summary(split.labels, split.num_classes, split.class_names)


class SourceFolder(NamedTuple):
  """Says where a source of a task is looked for.

  Attributes:
    path: its folder.
    exists: whether it is there.
  """

  path: Path
  exists: bool


def source_folders(task: tasks.Task, folder: Path) -> dict[str, SourceFolder]:
  """Returns the sources of a task by their names, preferred ones first."""
  own = folder / task.folder
  found = {}
  if task.source != "tfds":
    # Digits have no folder: they come with scikit-learn.
    exists = task.source == "digits" or own.exists()
    found[task.source] = SourceFolder(own, exists)
  if task.tfds:
    try:
      found["tfds"] = SourceFolder(tfds.find(task, folder), True)
    except ValueError:
      path = folder / task.tfds.partition(":")[0]
      found["tfds"] = SourceFolder(path, False)
  return found


def is_there(
  task: tasks.Task, folder: str | os.PathLike, source: str = ""
) -> bool:
  """Returns whether one of its sources, or the one that is named, is there."""
  known = source_folders(task, Path(folder).expanduser())
  for kind, found in known.items():
    if source in ("", kind) and found.exists:
      return True
  return False


def _choose_source(
  name: str, task: tasks.Task, source: str, folder: Path
) -> str:
  """Returns the source that a task is read from.

  Raises:
    ValueError: it has no such source, or none of several is there.
  """
  known = source_folders(task, folder)
  if source and source not in known:
    own = [f"{kind}:PATH" for kind in own_readers.USER]
    raise ValueError(
      f"task {name!r} has no source {source!r}; it has {', '.join(known)}, "
      f"and every task has {', '.join(own)}"
    )
  if source:
    return source
  for kind, found in known.items():
    if found.exists:
      return kind
  if len(known) > 1:
    lines = [f"\n  {kind}: {found.path}" for kind, found in known.items()]
    raise ValueError(
      f"no images of task {name!r}; looked for{''.join(lines)}\n"
      "config.data.dir names the folder above these. "
      f"{how_to_get(task, folder)}"
    )
  # The reader of a source that is alone says by itself what is missing.
  return next(iter(known))


def _open_task(
  name: str, split: str, source: str, folder: Path, seed: int
) -> Examples:
  """Returns the images of a task's split, not decoded yet."""
  task = tasks.get(name)
  source = _choose_source(name, task, source, folder)
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
      return class_folders.folder(path, split, seed, task.num_classes)
    case _:
      return tfds.examples(task, split, folder)


def how_to_get(task: tasks.Task, folder: Path) -> str:
  """Returns what the user can do about missing images, licence, address."""
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
  preprocess: Preprocess,
  *,
  train: bool = False,
  folder: str | os.PathLike = "data",
  on_error: str = "raise",
  source: str = "",
  seed: int = 0,
  cache_dir: str | os.PathLike | None = None,
  workers: int = 0,
  multi_label: bool = False,
  layout: str = "auto",
  as_text: bool = False,
  columns: str = "",
) -> Split:
  """Loads the images of a split, decoded.

  From the prepared cache if it is there. Otherwise they are decoded now: into
  memory, or, if they are many, into the cache.

  Args:
    name: of the task, see `tasks.py`.
    split: `train`, `val`, `trainval` or `test`.
    preprocess: what happens to the images. Where they are 16-bit grey, and it
      has no range for that, the training images are looked through for it.
    train: the images are for training, not for evaluation.
    folder: `data.dir`.
    on_error: `raise`, or `skip` to leave bad images out and count them.
    source: see `open_split`.
    seed: see `open_split`.
    cache_dir: that holds the prepared caches; None:
      `prepared.default_folder()`.
    workers: threads; 0: `decoding.default_workers`.
    multi_label: see `open_split`.
    layout: see `open_split`.
    as_text: see `open_split`.
    columns: see `open_split`.

  Returns:
    The split; its `preprocess` is how it was decoded.

  Raises:
    ValueError: unknown names, missing or damaged files, labels out of range.
  """
  source = own_sources.canonical(source)
  if on_error not in ("raise", "skip"):
    raise ValueError(f"data.on_error={on_error!r}; expected 'raise' or 'skip'")
  where: dict[str, Any] = {
    "source": source,
    "folder": folder,
    "seed": seed,
    "multi_label": multi_label,
    "layout": layout,
    "as_text": as_text,
    "columns": columns,
  }
  examples = open_split(name, split, **where)
  log.info("%s: %s", split, summary_of(examples))
  title = cache_title(name, split, source, preprocess)

  def decode(preprocess: Preprocess) -> Split:
    layout = Layout(preprocess, train)
    path = prepared.cache_path(examples, layout, cache_dir, title)
    if not path.exists() and decoding.size(examples, layout) <= IN_MEMORY:
      return decoding.decode_all(examples, layout, on_error, workers)
    path = prepared.prepare(
      examples,
      layout,
      cache_dir,
      on_error=on_error,
      workers=workers,
      name=title,
      progress=sys.stderr.isatty(),
    )
    log.info("%s images from the cache %s", split, path)
    cached = prepared.open_cache(path)
    return dataclasses.replace(cached, preprocess=layout.of_split(cached))

  return with_grey_range(
    decode, preprocess, examples, name, cache_dir, workers, **where
  )


def with_grey_range(
  decode: Callable[[Preprocess], Result],
  preprocess: Preprocess,
  examples: Examples,
  name: str,
  cache_dir: str | os.PathLike | None = None,
  workers: int = 0,
  **where: Any,
) -> Result:
  """Decodes images, with the data set's range of 16-bit grey if they need it.

  Nothing is looked for before the first such image comes up. Then all training
  images are looked at: those of train and val, so that every split of the data
  set, in whatever run, gets the same range; where they have no such images,
  those at hand.

  Args:
    decode: called with the preprocessing, and again with another one if it
      raises `UnknownGreyRange`.
    preprocess: what happens to the images.
    examples: that are decoded.
    name: of the task, see `open_split` for it and for `where`.
    cache_dir: that holds the prepared caches.
    workers: threads.
    **where: `source`, `folder` and so on, see `open_split`.

  Returns:
    What `decode` returns.
  """
  try:
    return decode(preprocess)
  except UnknownGreyRange:
    pass
  folder = prepared.default_folder()
  if cache_dir is not None:
    folder = Path(cache_dir).expanduser()
  found = None
  for split in ("trainval", "train"):
    try:
      training = open_split(name, split, **where)
    except ValueError:  # a source may have no such split
      continue
    found = grey_range.find_grey_range(training, folder, workers)
    break
  if found is None:
    found = grey_range.find_grey_range(examples, folder, workers)
  # Nothing is found where all 16-bit images are damaged.
  found = found or GREY_RANGES[-1]
  return decode(dataclasses.replace(preprocess, grey_range=found))


def without_normalization(
  name: str, source: str, family: str, image_size: tuple[int, int]
) -> Preprocess:
  """Returns a task's preprocessing but for the backbone's normalisation.

  Args:
    name: of the task.
    source: see `open_split`.
    family: see `resize.FAMILIES`; "": the task's own.
    image_size: (height, width).
  """
  return Preprocess(
    image_size,
    normalize="none",
    family=family or own_family(name, source),
    upright=own_sources.is_own(source),
  )


def own_family(name: str, source: str) -> str:
  """Returns the preprocessing that a config gets which names none."""
  if own_sources.is_own(source):
    return "vtab"
  return tasks.get(name).preprocess


def cache_title(
  name: str, split: str, source: str, preprocess: Preprocess
) -> str:
  """Returns what a cache's folder begins with, for people to read."""
  if own_sources.is_own(source):
    name = own_sources.name_of(source)
  size = max(preprocess.image_size)
  return f"{name}-{split}-{preprocess.family}{size}"
