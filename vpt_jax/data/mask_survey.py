"""Surveys images with masks: counts, shares of classes, and what is wrong."""

from collections.abc import Iterator, Mapping
import concurrent.futures
import dataclasses
from pathlib import Path
from typing import NamedTuple, TYPE_CHECKING

import numpy as np

from vpt_jax.data import masked_datasets, own_sources, shared_files
from vpt_jax.data.cache import decoding
from vpt_jax.data.examples import Examples
from vpt_jax.data.masked_datasets import AnyExamples
from vpt_jax.data.sources import mask_layouts, masks
from vpt_jax.data.sources.image_files import Files
from vpt_jax.data.sources.masked_images import MaskedImages
from vpt_jax.data.survey import BROKEN, listed, MANUAL, open_each, SAMPLE, State
from vpt_jax.data.transforms.decode import GREY_RANGES
from vpt_jax.data.transforms.segmentation import IGNORED
from vpt_jax.utils import texts

if TYPE_CHECKING:
  from ml_collections import ConfigDict

PARTS = ("train", "val", "test")


class _Counted(NamedTuple):
  """Is what the masks of a part tell.

  Attributes:
    pixels: of each label, int64 [256].
    images: that have each label, int64 [256].
    faults: why others cannot be used, each with its file.
    looked_at: how many images there are faults and counts of.
  """

  pixels: np.ndarray
  images: np.ndarray
  faults: list[str]
  looked_at: int


def survey(
  task: str,
  data: "ConfigDict",
  section: "ConfigDict",
  deep: bool = False,
  workers: int = 0,
) -> State:
  """Returns what is there of a task with masks.

  Args:
    task: see `masked_datasets.load`.
    data: config.data.
    section: config.segmentation.
    deep: decodes every image with its mask. Otherwise all masks of one's own
      are decoded, and a few images; of a published set a few of both.
    workers: threads; 0: a few more than there are processors.
  """
  is_own = own_sources.is_own(own_sources.canonical(data.source))
  layout = None if is_own else mask_layouts.LAYOUTS.get(task)
  folder = Path(data.dir).expanduser()
  if layout and not mask_layouts.is_there(task, folder):
    return State(MANUAL, f"{task}: get {layout.get}")
  state = State()
  wanted = list(PARTS)
  if layout and not data.source:
    wanted.remove("test")  # it is val

  def open_part(part: str) -> masked_datasets.Listed:
    return masked_datasets.listed(task, part, data, section)

  opened = open_each(wanted, open_part, state)
  if not opened:
    return state
  first = next(iter(opened.values()))
  known = first.num_classes
  for part, split in opened.items():
    examples = split.examples
    if known:
      meaning = dataclasses.replace(examples.meaning, num_classes=known)
      examples = dataclasses.replace(examples, meaning=meaning)
    counted = _counted(examples, deep, layout is None, workers)
    state.images[part] = len(split.examples)
    if counted.faults:
      state.state = BROKEN
      state.notes.append(
        f"{part}: {len(counted.faults)} of {counted.looked_at} images or masks "
        f"that were decoded are bad: {listed(counted.faults)}"
      )
    if not known and part == "train":
      try:
        known = masks.number_of_classes(counted.pixels, examples.origin)
      except ValueError as error:
        # Masks that are bad may have what is missing: they are told of above.
        state.state = BROKEN
        state.notes.append(f"{part}: {error}")
    _tell(part, counted, known, first.class_names, state)
  state.notes += _shared(opened, deep)
  return state


def _counted(
  examples: AnyExamples, deep: bool, all_masks: bool, workers: int
) -> _Counted:
  """Returns what masks tell, and what is wrong with them and their images."""
  numbers = range(len(examples))
  sample = set(np.linspace(0, len(examples) - 1, SAMPLE).astype(int).tolist())
  chosen = [i for i in numbers if deep or all_masks or i in sample]

  def of_one(i: int) -> np.ndarray | str:
    try:
      if deep or i in sample:
        # Whatever the range of grey of 16 bits, images are whole or they are
        # not.
        _, labels = examples.decoded(i, GREY_RANGES[-1])
      else:
        labels = examples.mask(i)
    except (OSError, ValueError) as error:
      decoding.raise_if_of_the_system(error)
      return texts.printable(str(error))
    return masks.count_labels([labels])

  pixels = np.zeros(IGNORED + 1, np.int64)
  images = np.zeros(IGNORED + 1, np.int64)
  faults = []
  workers = workers or decoding.default_workers()
  with (
    decoding.quiet(),
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
  ):
    for found in pool.map(of_one, chosen):
      if isinstance(found, str):
        faults.append(found)
      else:
        pixels += found
        images += found > 0
  return _Counted(pixels, images, faults, len(chosen))


def _tell(
  part: str,
  counted: _Counted,
  num_classes: int,
  names: tuple[str, ...],
  state: State,
) -> None:
  """Writes what the masks of a part tell into the state."""
  labels = np.flatnonzero(counted.pixels[:IGNORED])
  if not num_classes:
    num_classes = 1 + int(labels.max(initial=0))
  shown = names or tuple(map(str, range(num_classes)))
  summary = masked_datasets.summary(counted.pixels, num_classes, shown)
  good = counted.looked_at - len(counted.faults)
  state.summaries[part] = f"{good} masks: {summary}"
  if part != "train" or not good:
    return
  images = counted.images[:num_classes]
  there = images[images > 0]
  state.num_classes = num_classes
  state.classes = len(there)
  if len(there):
    state.smallest = int(there.min())
    state.largest = int(there.max())
  absent = [shown[k] for k in np.flatnonzero(images == 0).tolist()]
  if absent:
    state.notes.append(
      f"train: {len(absent)} of {num_classes} classes have no pixel in the "
      f"masks that were decoded: {texts.shortened(absent)}"
    )


def _shared(
  opened: Mapping[str, masked_datasets.Listed], deep: bool
) -> Iterator[str]:
  """Yields sentences on images that are in two parts."""
  as_files = {}
  for part, split in opened.items():
    examples = split.examples
    if not isinstance(examples, MaskedImages):
      return
    as_files[part] = Examples(
      examples.names,
      np.zeros(len(examples), np.int32),
      1,
      Files(examples.root, [pair.image for pair in examples.pairs]),
      examples.origin,
      "",
    )
  # Published sets are as they are.
  if deep or all(_is_own(split) for split in opened.values()):
    yield from shared_files.notes(as_files, deep)


def _is_own(split: masked_datasets.Listed) -> bool:
  examples = split.examples
  return isinstance(examples, MaskedImages) and examples.upright
