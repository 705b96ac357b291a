"""Reads sources that are arrays: in memory, in an npz, or digits."""

from collections.abc import Callable, Sequence
import dataclasses
import os
from pathlib import Path
import zlib

import numpy as np

from vpt_jax.data import class_names as class_names_lib
from vpt_jax.data.examples import Examples, Split
from vpt_jax.data.sources import parts as parts_lib
from vpt_jax.data.sources.parts import NAMES, Parts
from vpt_jax.utils import strange_files, texts


def from_arrays(
  images: np.ndarray,
  labels: np.ndarray,
  num_classes: int | None = None,
  class_names: Sequence[str] = (),
) -> Split:
  """Returns a split of arrays in memory.

  Labels are the numbers of classes, 0 .. K - 1. Where neither `num_classes` nor
  `class_names` says so, and they are other numbers (1 .. K, or 0, 5, 999), or
  texts, each that occurs is the name of a class; `Data` brings those of train
  and test together by these names.

  Args:
    images: uint8 [N, H, W, 3], or [N, H, W] for grey.
    labels: integers or names [N]; where images may have several classes, zeros
      and ones [N, K].
    num_classes: K; if not given, labels tell.
    class_names: K.

  Raises:
    ValueError: wrong type or shape, no image, or a label out of range.
  """
  images = check_images(images)
  labels = _without_objects(np.asarray(labels))
  names = tuple(map(texts.readable_name, class_names))
  num_classes = _checked_count(num_classes, names)
  if labels.ndim == 2:
    split = _with_several_classes(images, labels, num_classes)
    return dataclasses.replace(split, class_names=names)
  if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
    raise ValueError(
      f"labels must be integers [{len(images)}], or names, got "
      f"{labels.dtype} {list(labels.shape)}"
    )
  if labels.dtype.kind == "U" or num_classes is None:
    return _with_named_classes(images, labels, names)
  outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if len(outside):
    raise ValueError(
      f"label {labels[outside[0]]} of image {outside[0]} is out of "
      f"range 0..{num_classes - 1}"
    )
  return Split(images, labels.astype(np.int32), num_classes, class_names=names)


def _without_objects(labels: np.ndarray) -> np.ndarray:
  """Returns labels as numbers or texts, where all are that.

  Columns of pandas hold any Python objects.
  """
  if labels.dtype.kind != "O":
    return labels
  kinds = {type(label) for label in labels.ravel().tolist()}
  if kinds in ({str}, {int}):
    return np.array(labels.tolist())
  return labels


def _checked_count(
  num_classes: int | None, names: tuple[str, ...]
) -> int | None:
  """Returns K, as far as it is given."""
  if not names:
    return num_classes
  if num_classes not in (None, len(names)) or len(set(names)) < len(names):
    raise ValueError(
      f"class_names has {len(names)} names, {len(set(names))} different ones; "
      f"expected {num_classes or 'different ones'}"
    )
  return len(names)


def _with_named_classes(
  images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> Split:
  """Returns a split of classes that are called as the labels are.

  Args:
    images: uint8 [N, H, W, 3].
    labels: integers or names [N].
    names: of all classes; (): those that occur.
  """
  if labels.dtype.kind != "U" and labels.min() < 0:
    (first, *_) = np.flatnonzero(labels < 0)
    raise ValueError(
      f"label {labels[first]} of image {first} is negative; expected numbers "
      "of classes from 0 on, or names"
    )
  found = labels.tolist()
  if labels.dtype.kind == "U":
    found = [texts.readable_name(name) for name in found]
  classes = list(names) or class_names_lib.in_order(set(found))
  numbers = {name: number for number, name in enumerate(classes)}
  unknown = [name for name in found if name not in numbers]
  if unknown:
    raise ValueError(
      f"label {unknown[0]!r} is none of class_names, {', '.join(names)}"
    )
  are_numbers = classes == list(range(len(classes)))
  return Split(
    images,
    np.array([numbers[name] for name in found], np.int32),
    len(classes),
    class_names=() if are_numbers else tuple(map(str, classes)),
  )


def _with_several_classes(
  images: np.ndarray, labels: np.ndarray, num_classes: int | None
) -> Split:
  """Returns a split whose labels are zeros and ones [N, K]."""
  wanted = (len(images), num_classes or labels.shape[1])
  if labels.shape != wanted or labels.dtype.kind not in "biu":
    raise ValueError(
      "labels of several classes must be integers, zeros and ones "
      f"{list(wanted)}, got {labels.dtype} {list(labels.shape)}"
    )
  if not np.isin(labels, (0, 1)).all():
    raise ValueError(
      "labels of several classes must be zeros and ones, got values from "
      f"{labels.min()} to {labels.max()}"
    )
  return Split(images, labels.astype(np.uint8), labels.shape[1])


def check_images(images: np.ndarray) -> np.ndarray:
  """Returns uint8 [N, H, W, 3], from that or from grey [N, H, W(, 1)].

  Raises:
    ValueError: another type or shape, or no image.
  """
  images = np.asarray(images)
  if images.ndim == 3:
    images = images[..., None]
  is_image = images.ndim == 4 and images.shape[-1] in (1, 3)
  if images.dtype != np.uint8 or not is_image:
    raise ValueError(
      "images must be uint8 [N, H, W, 3] or [N, H, W], got "
      f"{images.dtype} {list(images.shape)}"
    )
  if not images.size:
    raise ValueError(f"no images, or images of no pixels: {list(images.shape)}")
  if images.shape[-1] == 1:
    return np.repeat(images, 3, axis=-1)
  return images


def digits(split: str) -> Examples:
  """Returns scikit-learn's 8 x 8 digits.

  800 / 200 / 797 images of train, val and test, by a fixed permutation.
  """
  from sklearn.datasets import load_digits  # slow to import, seldom needed

  data = load_digits()
  order = np.random.RandomState(0).permutation(len(data.target))
  part = {
    "train": order[:800],
    "val": order[800:1000],
    "trainval": order[:1000],
    "test": order[1000:],
  }[split]
  # Their 17 shades of grey become those of 8 bits.
  pixels = np.round(data.images[part] * (255 / 16)).astype(np.uint8)
  images = pixels[..., None]
  return Examples(
    [f"digits[{i}]" for i in part],
    data.target[part].astype(np.int32),
    10,
    images.__getitem__,
    "scikit-learn's digits",
    f"digits {split} {zlib.crc32(images.tobytes())}",
  )


def jpeg_npz(
  path: Path, split: str, num_classes: int, class_names: tuple[str, ...]
) -> Examples:
  """Reads JPEG bytes in one npz: `jpeg_bytes`, `offsets`, `labels`, `split`.

  Raises:
    parts.NoImages: there are none for this split.
    ValueError: the file is missing or damaged.
  """
  if not path.is_file():
    raise ValueError(f"{path} is missing; set config.data.dir to its folder")
  arrays = strange_files.read_npz(
    path, ("jpeg_bytes", "offsets", "labels", "split")
  )
  _check_jpegs(path, arrays)
  data = arrays["jpeg_bytes"].tobytes()
  offsets = arrays["offsets"]
  chosen = np.concatenate(
    [np.flatnonzero(arrays["split"] == part) for part in parts_lib.of(split)]
  )
  if not len(chosen):
    raise parts_lib.NoImages(f"{path} has no images of split {split!r}")

  def read(i: int) -> bytes:
    return data[offsets[i] : offsets[i + 1]]

  labels = arrays["labels"][chosen].astype(np.int32)
  return _examples(path, chosen, labels, num_classes, read, class_names)


def _check_jpegs(path: Path, arrays: dict[str, np.ndarray]) -> None:
  """Raises ValueError if the arrays of `jpeg_npz` do not fit together."""
  data, offsets = arrays["jpeg_bytes"], arrays["offsets"]
  is_whole = data.ndim == 1 and data.dtype == np.uint8
  for name in ("offsets", "labels"):
    array = arrays[name]
    is_whole &= array.ndim == 1 and array.dtype.kind in "iu" and array.size > 0
  if is_whole:
    is_whole = offsets[0] == 0 and offsets[-1] == len(data)
    is_whole &= bool((offsets[:-1] <= offsets[1:]).all())
  count = len(offsets) - 1 if is_whole else 0
  for name in ("labels", "split"):
    is_whole &= arrays[name].shape == (count,)
  if not is_whole:
    shapes = [f"{name} {list(array.shape)}" for name, array in arrays.items()]
    raise ValueError(
      f"{path} is damaged: {', '.join(shapes)}; expected jpeg_bytes (uint8) "
      "of N images, offsets [N + 1] in it, labels [N] and split [N]; get the "
      "file again"
    )


def npz(
  path: Path,
  split: str,
  seed: int,
  multi_label: bool = False,
  as_text: bool = False,
) -> Examples:
  """Reads `npz:PATH`: arrays `images` and `labels`, maybe `split`.

  Images are uint8 [N, H, W, 3] or [N, H, W]; labels integers or names [N] or,
  where images may have several classes, zeros and ones [N, K]; the parts are
  names [N] such as train, val and test. Without them images are divided as
  those of a folder.

  Args:
    path: of the npz.
    split: train, val, trainval or test.
    seed: of the division into parts.
    multi_label: labels are zeros and ones.
    as_text: of the classes' order, see `class_names.in_order`.

  Raises:
    ValueError: the file is missing or damaged, or an array cannot be used.
  """
  if not path.is_file():
    raise ValueError(f"{path} is missing; expected npz:PATH")
  arrays = strange_files.read_npz(path, ("images", "labels"), ("split",))
  images = arrays["images"]
  try:
    check_images(images[:1] if images.ndim else images)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  if images.ndim == 3:
    images = images[..., None]
  labels = _checked_labels(path, arrays["labels"], len(images))
  if multi_label != (labels.ndim == 2):
    wanted = "zeros and ones [N, K]" if multi_label else "one class an image"
    raise ValueError(
      f"{path}: labels are {list(labels.shape)}; config.problem wants {wanted}"
    )
  part_of_image = checked_parts(path, arrays.get("split"), len(images))
  parts: Parts = {}
  for i, (label, part) in enumerate(
    zip(labels.tolist(), part_of_image, strict=True)
  ):
    if labels.ndim == 2:
      label = tuple(np.flatnonzero(label).tolist())
    parts.setdefault(part, []).append((str(i), label))
  selected = parts_lib.select(parts, split, str(path), seed, as_text=as_text)
  return _examples(
    path,
    np.array([int(name) for name in selected.names]),
    selected.labels,
    selected.num_classes,
    images.__getitem__,
    selected.class_names,
  )


def _checked_labels(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
  """Returns integers from 0 on or names [N], or zeros and ones [N, K]."""
  is_vector = labels.shape == (count,) and labels.dtype.kind in "iuU"
  if is_vector and labels.dtype.kind == "i":
    is_vector = labels.min() >= 0
  is_matrix = (
    labels.ndim == 2
    and len(labels) == count
    and labels.dtype.kind in "biu"
    and np.isin(labels, (0, 1)).all()
  )
  if not is_vector and not is_matrix:
    found = f"{labels.dtype} {list(labels.shape)}"
    if labels.shape == (count, 1):
      found += "; labels[:, 0] are the integers [N] of such a column"
    elif labels.dtype.kind == "i" and labels.size and labels.min() < 0:
      found += f" with the value {labels.min()}"
    raise ValueError(
      f"{path}: labels must be integers from 0 on, or names, [{count}], or "
      f"zeros and ones [{count}, K], got {found}"
    )
  return labels


def checked_parts(
  path: Path, split: np.ndarray | None, count: int
) -> list[str]:
  """Returns the part of every image; "" for all if they are not divided."""
  if split is None:
    return [""] * count
  names = split.ravel().tolist() if split.dtype.kind == "U" else []
  names = [name.strip().lower() for name in names]
  if len(names) != count or not set(names) <= NAMES.keys():
    raise ValueError(
      f"{path}: split must be names [{count}] out of {', '.join(NAMES)}"
    )
  return [NAMES[name] for name in names]


def _examples(
  path: Path,
  chosen: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  read: Callable[[int], bytes | np.ndarray],
  class_names: tuple[str, ...],
) -> Examples:
  """Returns the images whose numbers in a file are `chosen`."""
  stat = os.stat(path)
  identity = parts_lib.digest(
    f"{stat.st_size} {stat.st_mtime_ns} {class_names} {chosen.tolist()} "
    f"{labels.tolist()}"
  )

  def read_chosen(i: int) -> bytes | np.ndarray:
    return read(chosen[i])

  return Examples(
    [f"image {i}" for i in chosen],
    labels,
    num_classes,
    read_chosen,
    str(path),
    identity,
    class_names,
  )
