"""Reads data sets that tensorflow-datasets prepared, without TensorFlow."""

from collections.abc import Mapping
import functools
import io
import json
import os
from pathlib import Path
import re
import shlex
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import parts, tfds_guard, tfds_labels, tfrecord
from vpt_jax.data.tasks import Slice, Task
from vpt_jax.utils import extras
from vpt_jax.utils.logs import log

# Split of a task -> its parts, in order.
SPLITS = {
  "train": ("train",),
  "val": ("val",),
  "trainval": ("train", "val"),
  "test": ("test",),
}


class Span(NamedTuple):
  """Examples first, ..., stop - 1 of a split, in the order they are stored."""

  split: str
  first: int
  stop: int


def span(part: Slice, count: int, limit: int | None = None) -> Span:
  """Returns the examples that a slice of a split of `count` examples is.

  Args:
    part: of which split, and how much.
    count: number of examples in that split.
    limit: how many of them count, the first ones; None: all.
  """
  first = _cut(part, part.start, count)
  stop = _cut(part, part.stop, count)
  if limit is not None:
    stop = min(stop, first + limit)
  return Span(part.split, first, stop)


def _cut(part: Slice, percent: int, count: int) -> int:
  """Returns how many of `count` examples are below a percentage."""
  if part.closest:
    # tfds rounds a half to the even number, as Python does.
    return round(percent * count / 100)
  return count * percent // 100


def spans(task: Task, split: str, counts: Mapping[str, int]) -> list[Span]:
  """Returns which stored examples a split of a task is.

  Args:
    task: see `tasks.py`.
    split: train, val, trainval (both in that order) or test.
    counts: number of examples of each split that is stored.

  Raises:
    ValueError: unknown split, or one that is not stored.
  """
  if split not in SPLITS:
    raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
  train_limit, val_limit = task.limits
  limits = {"train": train_limit, "val": val_limit}
  found = []
  for name in SPLITS[split]:
    part = getattr(task.parts, name)
    if part.split not in counts:
      raise ValueError(
        f"split {part.split!r} of {task.tfds} is missing; there are "
        f"{', '.join(counts)}; prepare it again"
      )
    found.append(span(part, counts[part.split], limits.get(name)))
  return found


def examples(task: Task, split: str, folder: str | os.PathLike) -> Examples:
  """Reads a split of a task from array_record or tfrecord files.

  All labels are read here, in one pass over the files, and those of a large
  split are cached; images are read as they are asked for, from any thread.

  Args:
    task: see `tasks.py`.
    split: train, val, trainval (both in that order) or test.
    folder: that tfds calls data_dir.

  Raises:
    ValueError: the data set is not in tfds, not there, damaged or of another
      major version; a label is out of range.
  """
  if not task.tfds:
    raise ValueError(
      "this task is not in tensorflow-datasets; "
      f"{task.manual or 'name another config.data.source'}"
    )
  stored = Stored(find(task, folder))
  chosen = spans(task, split, stored.counts)
  splits = {s.split for s in chosen}
  stored.check_shards(splits)
  rows: list[tuple[str, int]] = []  # (stored split, number in it)
  for name, first, stop in chosen:
    rows += [(name, i) for i in range(first, stop)]
  if not rows:
    raise ValueError(
      f"{stored.path} has no image for {split}; it stores {stored.counts}"
    )

  def read_labels() -> np.ndarray:
    log.info("reading %d labels of %s from %s", len(rows), split, stored.path)
    labels = [_label(stored, name, i, task) for name, i in rows]
    return np.array(labels, np.int32)

  def read(i: int) -> bytes | np.ndarray:
    image = stored.value(*rows[i], "image")
    if not isinstance(image, bytes | np.ndarray):
      name, number = rows[i]
      raise ValueError(
        f"{stored.path}: the image of {name}[{number}] is {image!r:.40}; "
        "expected an encoded image: prepare it again"
      )
    return image if task.scale == 1 else _scaled(image, task.scale)

  which = " + ".join(f"{s.split}[{s.first}:{s.stop}]" for s in chosen)
  identity = (
    f"tfds {stored.name} {which} {task.label} x{task.scale} "
    f"{stored.fingerprint(splits)}"
  )
  feature, _ = tfds_labels.LABELS[task.label]
  return Examples(
    [f"{name}[{i}]" for name, i in rows],
    tfds_labels.cached(identity, len(rows), read_labels),
    task.num_classes,
    read,
    str(stored.path),
    identity,
    task.class_names or stored.class_names(feature),
  )


def _label(stored: "Stored", split: str, i: int, task: Task) -> int:
  """Returns the checked label of one stored example."""
  feature, label_of = tfds_labels.LABELS[task.label]
  record = {feature: stored.value(split, i, feature)}
  try:
    label = label_of(record)
  # What is stored may be of any type and shape.
  except (ValueError, TypeError, LookupError, OverflowError) as error:
    raise ValueError(f"{stored.path}: {split}[{i}]: {error}") from None
  if not 0 <= label < task.num_classes:
    raise ValueError(
      f"{stored.path}: label {label} of {split}[{i}] is out of "
      f"range 0..{task.num_classes - 1}"
    )
  return label


def _scaled(image: bytes | np.ndarray, scale: int) -> np.ndarray:
  """Returns an image [H, W, C] of pixels up to 255 // scale, times scale."""
  if isinstance(image, bytes):
    with Image.open(io.BytesIO(image)) as file:
      image = np.asarray(file)
  image = image.reshape(*image.shape[:2], -1)
  if image.max() > 255 // scale:
    raise ValueError(f"a pixel is {image.max()}; expected up to {255 // scale}")
  return image.astype(np.uint8) * np.uint8(scale)


def find(task: Task, folder: str | os.PathLike) -> Path:
  """Returns the folder of a prepared data set.

  It is in the version that the papers used if that is there, else in the one
  that tfds prepares today, or one of the same major version.

  Raises:
    ValueError: it is not there, with the command that prepares it.
  """
  name, _, prepared_today = task.tfds.partition(":")
  root = Path(folder).expanduser() / name
  there = _versions_below(root)
  wanted = [v for v in (task.published, prepared_today) if v]
  for version in wanted:
    if root / version in there:
      log.info("%s: version %s", root, version)
      return root / version
  majors = {_version(Path(version))[0] for version in wanted}
  close = [path for path in there if _version(path)[0] in majors]
  if close:
    log.warning(
      "%s: version %s is used, %s is not there",
      root,
      close[-1].name,
      " or ".join(wanted),
    )
    return close[-1]
  found = sorted(path.name for path in root.glob("*") if path.is_dir())
  others = " or ".join(f"{major}.x" for major in sorted(majors))
  raise ValueError(
    f"{root} has no version {' or '.join(wanted)} (nor another {others}); "
    f"there is {', '.join(found) or 'nothing'}. {how_to_get(task, folder)}"
  )


def _versions_below(root: Path) -> list[Path]:
  """Returns the folders of all prepared versions, oldest first."""
  folders = []
  for info in root.glob("*/dataset_info.json"):
    if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name):
      folders.append(info.parent)
  return sorted(folders, key=_version)


def _version(path: Path) -> tuple[int, ...]:
  return tuple(map(int, path.name.split(".")))


def how_to_get(task: Task, folder: str | os.PathLike) -> str:
  """Returns what to do to have a data set of tfds below `folder`."""
  # Steps for lists in JSON are not for tfds.
  by_hand = "" if task.source == "json" else task.manual
  first = f"First {by_hand}. " if by_hand else ""
  return (
    f"{first}To download and prepare it (about {task.gigabytes:g} GB, "
    "with the extra `data`): " + prepare_command(task, folder)
  )


def prepare_command(task: Task, folder: str | os.PathLike) -> str:
  """Returns the shell command that downloads and prepares a data set."""
  where = json.dumps(str(Path(folder).expanduser().absolute()))
  return "python -c " + shlex.quote(
    f'import tensorflow_datasets as tfds; tfds.builder("{task.tfds}", '
    f'data_dir={where}, file_format="array_record").download_and_prepare()'
  )


class Stored:
  """A data set that tfds prepared in a folder.

  Attributes:
    path: of its files.
    name: with config and version, such as `eurosat/rgb/2.0.0`.
    counts: examples by split.
  """

  def __init__(self, path: Path):
    try:  # slow to import, seldom needed
      import tensorflow_datasets as tfds
    except ImportError as error:
      purpose = f"reading {path}, which tensorflow-datasets prepared,"
      raise extras.MissingExtra(error, purpose, "tfds") from error

    self.path = path
    try:
      tfds_guard.check_folder(path)
      self._info = tfds.builder_from_directory(path).info
      self._types = self._info.features.get_serialized_info()
    # Bytes from anywhere go through two libraries, with errors of their own.
    except Exception as error:
      raise ValueError(
        f"{path} is damaged, prepare it again: {error}"
      ) from None
    file_format = self._info.file_format.value
    if file_format not in ("array_record", "tfrecord"):
      raise ValueError(
        f"{path} has {file_format} files; expected "
        "array_record or tfrecord: prepare it again, with "
        'file_format="array_record"'
      )
    self.name = self._info.full_name
    self.counts = {
      name: split.num_examples for name, split in self._info.splits.items()
    }
    self._parser = functools.cache(self._new_parser)
    self._records = functools.cache(self._open_records)

  def _open_records(self, split: str) -> Any:
    """Returns the serialized examples of a split, as a sequence."""
    info = self._info.splits[split]
    if self._info.file_format.value == "array_record":
      from array_record.python import array_record_data_source

      return array_record_data_source.ArrayRecordDataSource(
        info.file_instructions
      )
    return tfrecord.Records(info.filepaths, info.shard_lengths)

  def _new_parser(self, key: str) -> Any:
    """Returns a parser of one feature."""
    from tensorflow_datasets.core import example_parser

    if key not in self._types:
      raise ValueError(
        f"{self.path}: feature {key!r} is missing; there are "
        f"{', '.join(sorted(self._types))}"
      )
    return example_parser.ExampleParserNp({key: self._types[key]})

  def value(self, split: str, i: int, key: str) -> Any:
    """Returns one feature of an example; an image as its encoded bytes.

    Raises:
      ValueError: no such feature, or a damaged file.
    """
    parser = self._parser(key)
    try:
      # Riegeli, below array_record, has RuntimeError for most that goes wrong,
      # but gives nothing where a file ends too early.
      record = self._records(split)[i]
      if not record:
        raise RuntimeError("it is empty, the file is damaged")
      value = parser.parse_example(record)[key]
      if value is None:
        raise RuntimeError("the example does not have it")
    # Bytes from anywhere go through three libraries, with their own errors.
    except Exception as error:
      raise ValueError(
        f"cannot read {key!r} of {split}[{i}] of {self.path}: {error}"
      ) from None
    return value

  def check_shards(self, splits: set[str]) -> None:
    """Raises ValueError if the files of these splits are not as stated."""
    for split in sorted(splits):
      info = self._info.splits[split]
      try:
        tfds_guard.check_shards(
          self.path, split, info.filepaths, info.num_examples
        )
      # Of the library, too, which makes the files' names of a template.
      except Exception as error:
        raise ValueError(
          f"{self.path} is damaged, prepare it again: {error}"
        ) from None

  def fingerprint(self, splits: set[str]) -> str:
    """Returns digits that change when the files of these splits do."""
    lines = [str(self._info.features.to_json())]
    for split in sorted(splits):
      for path in self._info.splits[split].filepaths:
        try:
          stat = os.stat(path)
        except OSError as error:
          raise ValueError(
            f"{self.path} is damaged, prepare it again: {error}"
          ) from None
        lines.append(f"{path.name} {stat.st_size} {stat.st_mtime_ns}")
    return parts.digest("\n".join(lines))[:16]

  def class_names(self, key: str) -> tuple[str, ...]:
    """Returns the classes of feature `key`; () if they are mere numbers."""
    names = getattr(self._info.features[key], "names", None) or ()
    if all(name.isdecimal() for name in names):
      return ()
    return tuple(map(_readable, names))


def _readable(name: str) -> str:
  """Returns a name for people.

  maple_tree becomes maple tree, and SUN397's /p/pub/indoor indoor pub.
  """
  if name.startswith("/"):
    name = " ".join(reversed(name.split("/")[2:]))
  return name.replace("_", " ")
