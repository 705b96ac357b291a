"""What is there of a task: counts, prepared caches, and what is wrong."""

from collections.abc import Iterator
import dataclasses
import os
from pathlib import Path

import numpy as np

from vpt_jax.data import datasets, tasks
from vpt_jax.data.cache import decoding
from vpt_jax.data.cache import prepared as cache
from vpt_jax.data.cache.decoding import Geometry
from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import image_files, parts

READY, DOWNLOAD, MANUAL, BROKEN = (
  "ready",
  "can be downloaded",
  "needs manual steps",
  "broken",
)
# Images of a split that are decoded even in a quick look.
SAMPLE = 8


@dataclasses.dataclass
class State:
  """What is there of a task.

  Attributes:
    state: one of the four above.
    steps: how to get what is missing.
    images: by split.
    classes: that have training images.
    num_classes: K.
    smallest: training images of the rarest class.
    largest: training images of the most frequent class.
    prepared: splits that have a cache.
    notes: what is broken, or differs from the table of tasks.
  """

  state: str = READY
  steps: str = ""
  images: dict[str, int] = dataclasses.field(default_factory=dict)
  classes: int = 0
  num_classes: int = 0
  smallest: int = 0
  largest: int = 0
  prepared: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)


def look(
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
) -> State:
  """Looks at all that is there of a task.

  Args:
    name: of the task; see `sources.load` for it and what follows.
    deep: decodes every image and reads all of the caches; otherwise files are
      only looked for, and a few decoded.
  """
  task = None if ":" in source else tasks.get(name)
  if task and not datasets.is_there(task, folder, source):
    # tfds does without the lists that FGVC tasks ask for.
    by_hand = task.manual and (task.source != "json" or not task.tfds)
    return State(
      MANUAL if by_hand or not task.tfds else DOWNLOAD,
      datasets.how_to_get(task, Path(folder)),
    )
  state = State()
  for split in ("train", "val", "trainval", "test"):
    try:
      examples = datasets.open_split(
        name, split, source=source, folder=folder, seed=seed
      )
    except parts.NoImages:
      continue
    except ImportError as error:
      return State(MANUAL, f"{error}; pip install 'vpt_jax[data]'")
    except (OSError, ValueError) as error:
      state.state = BROKEN
      state.notes.append(f"{split}: {error}")
      continue
    geometry = Geometry(
      family or datasets.own_family(name, source),
      image_size,
      split in ("train", "trainval"),
    )
    path = cache.place(
      examples,
      geometry,
      cache_dir,
      datasets.title(name, split, source, geometry),
    )
    faults = [*_faults(examples, geometry, deep, workers)]
    if path.exists():
      state.prepared.append(split)
      try:
        (cache.open_cache(path, deep) if deep else cache.read_meta(path))
      except ValueError as error:
        faults.append(str(error))
    if faults:
      state.state = BROKEN
      state.notes += [f"{split}: {fault}" for fault in faults]
    state.images[split] = len(examples)
    if split == "train":
      state.num_classes = examples.num_classes
      counts = np.bincount(examples.labels)
      counts = counts[counts > 0]
      state.classes = len(counts)
      state.smallest, state.largest = int(counts.min()), int(counts.max())
  if task:
    state.notes += _differences(task, state)
  return state


def _faults(
  examples: Examples, geometry: Geometry, deep: bool, workers: int
) -> Iterator[str]:
  """What is wrong with images; at most one line for each kind of fault."""
  if isinstance(examples.read, image_files.Files):
    missing = examples.read.missing()
    if missing:
      yield (
        f"{len(missing)} of {len(examples)} files are missing, such as "
        f"{examples.read.base / missing[0]}"
      )
      return
  if not deep:
    chosen = np.unique(np.linspace(0, len(examples) - 1, SAMPLE).astype(int))
    examples = decoding.subset(examples, chosen.tolist())
  with decoding.quiet():
    bad = [
      image
      for image in decoding.fitted(examples, geometry, None, workers=workers)
      if isinstance(image, str)
    ]
  if bad:
    yield (
      f"{len(bad)} of {len(examples)} images that were decoded are bad: "
      f"{bad[0]}"
    )


def _differences(task: tasks.Task, state: State) -> Iterator[str]:
  """What is not as the table of tasks says."""
  for split, count in zip(("train", "val", "test"), task.sizes):
    if state.images.get(split, count) != count:
      yield f"{split}: {state.images[split]} images, as published {count}"
  if state.num_classes > state.classes > 0:
    yield (
      f"{state.num_classes - state.classes} of {state.num_classes} "
      "classes have no image in train"
    )
