"""Surveys what is there of a task: counts, caches, and what is wrong."""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vpt_jax.data import (
  class_names,
  datasets,
  own_sources,
  shared_files,
  tasks,
)
from vpt_jax.data.cache import decoding, prepared
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import image_files, parts
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.utils import texts

READY = "ready"
DOWNLOAD = "can be downloaded"
MANUAL = "needs manual steps"
BROKEN = "broken"

SPLITS = ("train", "val", "trainval", "test")
TRAINING_SPLITS = ("train", "trainval")
# Images of a split that are decoded even in a quick survey.
SAMPLE = 8
MOST_LISTED = 50

Opened = TypeVar("Opened")


@dataclasses.dataclass
class State:
  """What is there of a task.

  Attributes:
    state: one of the four above.
    steps: how to get what is missing.
    images: by split.
    classes: how many have training images.
    num_classes: K.
    smallest: training images of the rarest class.
    largest: training images of the most frequent class.
    prepared: splits that have a cache.
    summaries: of splits, which classes there are and how many images each.
    notes: what is broken, differs from the table of tasks, or should be known.
  """

  state: str = READY
  steps: str = ""
  images: dict[str, int] = dataclasses.field(default_factory=dict)
  classes: int = 0
  num_classes: int = 0
  smallest: int = 0
  largest: int = 0
  prepared: list[str] = dataclasses.field(default_factory=list)
  summaries: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


def survey_task(
  name: str,
  *,
  folder: str | os.PathLike = "data",
  source: str = "",
  seed: int = 0,
  family: str = "",
  image_size: tuple[int, int] = (224, 224),
  cache_dir: str | os.PathLike | None = None,
  deep: bool = False,
  workers: int = 0,
  multi_label: bool = False,
  layout: str = "auto",
  columns: str = "",
) -> State:
  """Returns what is there of a task.

  Args:
    name: of the task; see `datasets.load` for it and what follows.
    folder: `data.dir`.
    source: `data.source`.
    seed: `data.seed`.
    family: of preprocessing; "": the task's own.
    image_size: (height, width) that the backbone sees.
    cache_dir: that holds the prepared caches; None: the default.
    deep: decodes every image and reads all of the caches; otherwise files are
      only looked for, and a few decoded. The user's own files of the same size
      are compared in any case.
    workers: threads that decode; 0: a few more than there are processors.
    multi_label: images may have several classes.
    layout: see `datasets.open_split`.
    columns: see `datasets.open_split`.
  """
  source = own_sources.canonical(source)
  task = None if own_sources.is_own(source) else tasks.get(name)
  if task and not datasets.is_there(task, folder, source):
    # tfds does without the lists that FGVC tasks ask for.
    by_hand = task.manual and (task.source != "json" or not task.tfds)
    return State(
      MANUAL if by_hand or not task.tfds else DOWNLOAD,
      datasets.how_to_get(task, Path(folder)),
    )
  state = State()
  where: dict[str, Any] = {
    "source": source,
    "folder": folder,
    "seed": seed,
    "multi_label": multi_label,
    "layout": layout,
    "columns": columns,
  }
  preprocess = datasets.without_normalization(name, source, family, image_size)
  try:
    opened = open_each(
      SPLITS, functools.partial(datasets.open_split, name, **where), state
    )
  except ImportError as error:
    return State(MANUAL, str(error))
  for split, examples in opened.items():
    find_faults = functools.partial(
      _layout_and_faults, examples, split in TRAINING_SPLITS, deep, workers
    )
    stored_as, faults = datasets.with_grey_range(
      find_faults, preprocess, examples, name, cache_dir, workers, **where
    )
    title = datasets.cache_title(name, split, source, preprocess)
    path = prepared.cache_path(examples, stored_as, cache_dir, title)
    if path.exists():
      state.prepared.append(split)
      faults += _cache_faults(path, deep)
    if faults:
      state.state = BROKEN
      state.notes += [f"{split}: {fault}" for fault in faults]
    state.images[split] = len(examples)
    if split == "train":
      _count_classes(state, examples)
  opened.pop("trainval", None)  # it is what two others are
  for split, examples in opened.items():
    state.summaries[split] = datasets.summary_of(examples)
  if task:
    state.notes += _differences(task, state)
  if deep or not task:  # published sets are as they are
    state.notes += shared_files.notes(opened, deep)
  return state


def open_each(
  splits: Iterable[str], open_one: Callable[[str], Opened], state: State
) -> dict[str, Opened]:
  """Returns the splits that can be opened; notes why others cannot.

  Args:
    splits: their names.
    open_one: opens one by its name.
    state: is broken if there is an error.

  Raises:
    ImportError: reading them needs a package that is not there.
  """
  found = {}
  errors = set()
  for split in splits:
    try:
      found[split] = open_one(split)
    except parts.NoImages as error:
      if split == "test":  # a run would end with this
        state.notes.append(str(error))
    except (OSError, ValueError) as error:
      state.state = BROKEN
      if str(error) not in errors:  # most are those of all splits
        state.notes.append(f"{split}: {error}")
      errors.add(str(error))
  return found


def _count_classes(state: State, examples: Examples) -> None:
  """Fills in what the labels of the training images tell."""
  counts = class_names.counts(examples.labels, examples.num_classes)
  counts = counts[counts > 0]
  state.num_classes = examples.num_classes
  state.classes = len(counts)
  state.smallest = int(counts.min())
  state.largest = int(counts.max())


def _layout_and_faults(
  examples: Examples,
  train: bool,
  deep: bool,
  workers: int,
  preprocess: Preprocess,
) -> tuple[Layout, list[str]]:
  """Returns how images are stored, and what is wrong with them."""
  layout = Layout(preprocess, train)
  return layout, list(_image_faults(examples, layout, deep, workers))


def _image_faults(
  examples: Examples, layout: Layout, deep: bool, workers: int
) -> Iterator[str]:
  """Yields what is wrong with images; one line at most for a kind of fault."""
  if isinstance(examples.read, image_files.Files):
    missing = examples.read.missing()
    if missing:
      yield (
        f"{len(missing)} of {len(examples)} files are missing, such as "
        f"{texts.printable(str(examples.read.base / missing[0]))}"
      )
      return
  if not deep:
    chosen = np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(int))
    examples = decoding.subset(examples, chosen.tolist())
  bad = []
  with decoding.quiet():
    for image in decoding.fitted(examples, layout, None, workers=workers):
      if isinstance(image, str):  # why it could not be decoded
        bad.append(image)
  if bad:
    yield (
      f"{len(bad)} of {len(examples)} images that were decoded are bad: "
      f"{listed(bad)}"
    )


def listed(faults: list[str]) -> str:
  """Returns faults in lines of their own, unless it is one."""
  if len(faults) == 1:
    return faults[0]
  lines = faults[:MOST_LISTED]
  if len(faults) > MOST_LISTED:
    lines.append(f"... ({len(faults) - MOST_LISTED} more)")
  return "".join(f"\n  {line}" for line in lines)


def _cache_faults(path: Path, deep: bool) -> list[str]:
  """Returns what is wrong with a prepared cache."""
  try:
    if deep:
      prepared.open_cache(path, deep)
    else:
      prepared.read_meta(path)
  except ValueError as error:
    return [str(error)]
  return []


def _differences(task: tasks.Task, state: State) -> Iterator[str]:
  """Yields what is not as the table of tasks says."""
  # `sizes` is () where they depend on the user's copy.
  for split, count in zip(("train", "val", "test"), task.sizes, strict=False):
    if state.images.get(split, count) != count:
      yield f"{split}: {state.images[split]} images, as published {count}"
  if state.num_classes > state.classes > 0:
    yield (
      f"{state.num_classes - state.classes} of {state.num_classes} "
      "classes have no image in train"
    )
