"""Finds the images with masks of a task, and what their pixels mean."""

from collections.abc import Iterable, Sequence
import dataclasses
from pathlib import Path
from typing import cast, NamedTuple, TYPE_CHECKING

import numpy as np

from vpt_jax.data import mask_classes, own_sources
from vpt_jax.data.cache import grey_range, mask_counts, prepared
from vpt_jax.data.examples import Examples, MaskedSplit
from vpt_jax.data.sources import (
  digit_scenes,
  mask_folders,
  mask_layouts,
  masked_arrays,
  masks,
  parts,
)
from vpt_jax.data.sources.image_files import PACK_LISTS
from vpt_jax.data.sources.masked_arrays import MaskedArrays
from vpt_jax.data.sources.masked_images import MaskedImages
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.data.transforms.segmentation import IGNORED
from vpt_jax.utils import lookup, texts
from vpt_jax.utils.logs import log

if TYPE_CHECKING:
  from ml_collections import ConfigDict

AnyExamples = MaskedImages | MaskedArrays

_SECTION = "config.segmentation"
# What a user may bring.
SOURCES = ("segfolder:PATH", "npz:PATH")
# Tasks with masks, by name.
TASKS = (digit_scenes.NAME, *mask_layouts.LAYOUTS)
# Kinds of image files without grey of 16 bits.
_SHALLOW = frozenset({".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp"})


def load(
  task: str, split: str, data: "ConfigDict", masks: "ConfigDict"
) -> MaskedSplit:
  """Lists the images with masks of a split; they are decoded when asked for.

  Args:
    task: one of `TASKS`; not read where `data.source` has a
      path.
    split: `train`, `val`, `trainval` or `test`.
    data: config.data.
    masks: config.segmentation: what the pixels of own masks mean.

  Returns:
    The split. The classes of own data are those of the training masks, for
    every split.

  Raises:
    ValueError: unknown names, another source, missing or damaged files, or
      masks that may mean several things.
    OSError: a folder cannot be read.
  """
  if split not in PACK_LISTS:
    raise ValueError(f"unknown split {split!r}; known: {', '.join(PACK_LISTS)}")
  if data.on_error != "raise":
    raise ValueError(
      f"config.data.on_error={data.on_error!r}: with masks a bad image or mask "
      "is always an error, as scores are of all pixels; say "
      "config.data.on_error=raise, and mend or remove what `python -m "
      "vpt_jax.data check --deep` names"
    )
  source = own_sources.canonical(data.source)
  if own_sources.is_own(source):
    return _own(source, split, data, meaning_of(masks))
  if source:
    raise ValueError(
      f"config.data.source={source!r} has no masks; expected "
      f"{' or '.join(SOURCES)}, or a task with masks, "
      f"{', '.join(TASKS)}, without a source"
    )
  return _published(task, split, data, masks)


def check_name(task: str) -> None:
  """Raises ValueError unless a task is of images with masks."""
  if task not in TASKS:
    lookup.choose(task, TASKS, "task with masks (config.task)")


def meaning_of(masks: "ConfigDict") -> Meaning:
  """Returns what config.segmentation says of the pixels of own masks.

  Raises:
    ValueError: with the field that cannot be used.
  """
  return Meaning(
    colours=_colours(masks.colours),
    reduce_zero_label=masks.reduce_zero_label,
    label_map=_label_map(masks.label_map),
    num_classes=checked_count(
      masks.num_classes, f"{_SECTION}.num_classes", or_unknown=True
    ),
    thin=masks.thin,
  )


def checked_count(num_classes: int, what: str, or_unknown: bool = False) -> int:
  """Returns a number of classes that labels of 8 bits can have.

  Raises:
    ValueError: below two, or more than labels beside the ignored 255.
  """
  if (or_unknown and num_classes == 0) or 2 <= num_classes <= IGNORED:
    return num_classes
  unknown = ", or 0: as the training masks say" if or_unknown else ""
  raise ValueError(
    f"{what}={num_classes}; expected 2..{IGNORED}{unknown} (labels have 8 "
    f"bits, and {IGNORED} means ignored)"
  )


def _colours(text: str) -> dict[masks.Colour, int]:
  try:
    return masks.parse_colours(text) if text else {}
  except ValueError as error:
    raise ValueError(f"{_SECTION}.colours: {error}") from None


def _label_map(pairs: Iterable[Sequence[int]]) -> dict[int, int]:
  """Returns pairs (stored label, label that is meant) as a map."""
  found: dict[int, int] = {}
  for pair in pairs:
    numbers = tuple(pair) if not isinstance(pair, (str, int)) else ()
    is_pair = len(numbers) == 2 and all(type(n) is int for n in numbers)
    if not is_pair or not 0 <= numbers[0] < 2**16 or not 0 <= numbers[1] < 256:
      raise ValueError(
        f"{_SECTION}.label_map: found {pair!r}; expected pairs of a stored "
        "label and the label that it means, 0..254 or, for ignored pixels, "
        "255, such as ((0,0),(255,1))"
      )
    if numbers[0] in found:
      raise ValueError(
        f"{_SECTION}.label_map has the stored label {numbers[0]} twice; keep "
        "one of both"
      )
    found[numbers[0]] = numbers[1]
  return found


def _published(
  task: str, split: str, data: "ConfigDict", masks: "ConfigDict"
) -> MaskedSplit:
  """Lists a split of a published data set."""
  check_name(task)
  own = meaning_of(masks)
  if task == digit_scenes.NAME:
    _check_agrees(task, digit_scenes.MEANING, own)
    scenes = digit_scenes.read(split)
    return _with_classes(scenes, scenes.meaning, scenes.class_names)
  meaning = mask_layouts.LAYOUTS[task].meaning
  _check_agrees(task, meaning, own)
  examples = mask_layouts.read(task, Path(data.dir).expanduser(), split)
  classes = mask_classes.published(task)
  return MaskedSplit(
    examples, meaning.num_classes, classes.names, classes.palette
  )


def _with_classes(
  examples: AnyExamples,
  meaning: Meaning,
  names: tuple[str, ...],
  grey_range: int | None = None,
) -> MaskedSplit:
  """Returns images whose classes have default colours."""
  return MaskedSplit(
    dataclasses.replace(examples, meaning=meaning),
    meaning.num_classes,
    names,
    mask_classes.default_palette(meaning.num_classes, names),
    grey_range,
  )


def from_arrays(
  images: Sequence[np.ndarray],
  label_maps: Sequence[np.ndarray],
  num_classes: int,
  class_names: Sequence[str] = (),
) -> MaskedSplit:
  """Returns images and label maps in memory, for `main.run(..., data=...)`.

  Args:
    images: uint8 [H, W, 3] or [H, W] each, of any sizes: a list, or an array
      [N, H, W, 3].
    label_maps: integers [H, W] each: 0 .. num_classes - 1, or 255, which is
      ignored.
    num_classes: K, the same for all parts.
    class_names: K, or ().

  Raises:
    ValueError: other arrays, with the number of the first bad one.
  """
  checked_count(num_classes, "num_classes")
  names = tuple(class_names)
  if names:
    names = mask_classes.checked_names(names, "class_names")
    if len(names) != num_classes:
      raise ValueError(
        f"class_names has {len(names)} names; expected {num_classes}"
      )
  examples = masked_arrays.of_arrays(images, label_maps, "label maps in memory")
  meaning = dataclasses.replace(examples.meaning, num_classes=num_classes)
  split = _with_classes(examples, meaning, names)
  for i in range(len(split)):
    split.examples.mask(i)  # out of range: known before anything is trained
  return split


def _check_agrees(task: str, published: Meaning, own: Meaning) -> None:
  """Raises ValueError if settings contradict those of a data set."""
  wrong = []
  if own.colours:
    wrong.append("colours")
  if own.label_map:
    wrong.append("label_map")
  if own.reduce_zero_label and not published.reduce_zero_label:
    wrong.append("reduce_zero_label")
  if own.num_classes not in (0, published.num_classes):
    wrong.append("num_classes")
  if wrong:
    fields = ", ".join(f"{_SECTION}.{field}" for field in wrong)
    raise ValueError(
      f"{fields}: the masks of {task} have a meaning of their own "
      f"({published.num_classes} classes"
      f"{', 0 is ignored' if published.reduce_zero_label else ''}), with which "
      "scores compare; leave these fields out, or read the images as your own "
      f"by config.data.source={SOURCES[0]}"
    )


class Listed(NamedTuple):
  """Images with masks of which nothing is decoded.

  Attributes:
    examples: the images.
    num_classes: K; 0: as the training masks say.
    class_names: K, or () if not known.
  """

  examples: AnyExamples
  num_classes: int
  class_names: tuple[str, ...]


def listed(
  task: str, split: str, data: "ConfigDict", masks: "ConfigDict"
) -> Listed:
  """Lists a split as `load` does, without a look into masks; for surveys."""
  source = own_sources.canonical(data.source)
  if own_sources.is_own(source):
    (found,) = _listed_own(source, (split,), data, meaning_of(masks))
    return found
  loaded = load(task, split, data, masks)
  examples = cast(AnyExamples, loaded.examples)
  return Listed(examples, loaded.num_classes, loaded.class_names)


def _own(
  source: str, split: str, data: "ConfigDict", meaning: Meaning
) -> MaskedSplit:
  """Lists a split of the user's own images."""
  wanted, training = _listed_own(source, (split, "train"), data, meaning)
  examples = training.examples
  cache_dir = prepared.default_folder()
  if data.cache:
    cache_dir = Path(data.cache).expanduser()
  num_classes = training.num_classes
  names = training.class_names
  if not num_classes:
    counts = mask_counts.count(examples, cache_dir)
    num_classes = masks.number_of_classes(counts, examples.origin)
    if split in parts.TOLD:
      log.info("%s: %s", examples.origin, summary(counts, num_classes))
  meaning = dataclasses.replace(meaning, num_classes=num_classes)
  grey = _grey_range(examples, cache_dir)
  return _with_classes(wanted.examples, meaning, names, grey)


def _listed_own(
  source: str, splits: Sequence[str], data: "ConfigDict", meaning: Meaning
) -> list[Listed]:
  """Lists splits of the user's own images."""
  kind, _, place = source.partition(":")
  path = Path(place).expanduser()
  if kind not in own_sources.MASKED:
    raise ValueError(
      f"config.data.source={source!r} has one class an image, and "
      "config.problem=segmentation needs one a pixel; expected "
      f"{' or '.join(SOURCES)} with images and masks"
    )
  found: list[AnyExamples] = []
  if kind == "npz":
    arrays = masked_arrays.read_npz(path, splits, data.seed, meaning)
    names = arrays[0].class_names
    if names:
      names = mask_classes.checked_names(names, f"{path}, classes")
    found += arrays
  else:
    opened = {}
    for split in dict.fromkeys(splits):
      opened[split] = mask_folders.read(path, split, data.seed, meaning)
    found += [opened[split] for split in splits]
    names = mask_classes.read_names(path)
  num_classes = _agreed(meaning.num_classes, names, found[0].origin)
  return [Listed(examples, num_classes, names) for examples in found]


def _agreed(num_classes: int, names: Sequence[str], origin: str) -> int:
  """Returns the number of classes that is given, or that of names; or 0."""
  if names and num_classes not in (0, len(names)):
    raise ValueError(
      f"{_SECTION}.num_classes={num_classes}, but {origin} has names of "
      f"{len(names)} classes ({texts.shortened(names)}); leave the field out, "
      "or mend the names"
    )
  return len(names) or num_classes


def summary(
  counts: np.ndarray, num_classes: int, names: Sequence[str] = ()
) -> str:
  """Returns which share of the pixels with a class each class has, as text.

  Args:
    counts: pixels of each label, [256].
    num_classes: K.
    names: of the classes; (): their numbers.
  """
  names = names or [str(number) for number in range(num_classes)]
  total = max(1, int(counts[:num_classes].sum()))
  shares = []
  for name, pixels in zip(names, counts[:num_classes].tolist(), strict=True):
    if pixels:
      shares.append(f"{name} {100 * pixels / total:.3g} %")
  everything = max(1, int(counts.sum()))
  ignored = 100 * int(counts[IGNORED]) / everything
  return (
    f"{len(shares)} of {num_classes} classes with shares of the labelled "
    f"pixels: {', '.join(shares)}; {ignored:.3g} % of all pixels are ignored"
  )


def _grey_range(
  training: MaskedImages | MaskedArrays, cache_dir: Path
) -> int | None:
  """Returns the range of the 16-bit grey images, None if there are none.

  It is found as for classification, but before the first such image comes up:
  images are decoded in other processes, too.
  """
  if isinstance(training, MaskedArrays):
    return None
  pairs = []
  for pair in training.pairs:
    if Path(pair.image).suffix.lower() not in _SHALLOW:
      pairs.append(pair)
  if not pairs:
    return None
  deep = dataclasses.replace(training, pairs=pairs)
  images = Examples(
    deep.names,
    np.zeros(len(deep), np.int32),
    1,
    deep.read_image,
    deep.origin,
    f"{deep.identity} images with masks",
  )
  return grey_range.find_grey_range(images, cache_dir)
