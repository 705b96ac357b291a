"""Sources that are arrays: in memory, in an npz, scikit-learn's digits."""

from collections.abc import Callable
import os
from pathlib import Path
import zipfile
import zlib

import numpy as np

from vpt_jax.data.examples import Examples, Split
from vpt_jax.data.sources import parts as parting
from vpt_jax.data.sources.parts import NAMES, Parts


def from_arrays(
  images: np.ndarray, labels: np.ndarray, num_classes: int | None = None
) -> Split:
  """A split of arrays in memory.

  Args:
    images: uint8 [N, H, W, 3], or [N, H, W] for grey.
    labels: integers [N].
    num_classes: K; the largest label plus one if not given.

  Raises:
    ValueError: wrong type or shape, no image, or a label out of range.
  """
  images, labels = check_images(images), np.asarray(labels)
  if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
    raise ValueError(
      f"labels must be integers [{len(images)}], got "
      f"{labels.dtype} {list(labels.shape)}"
    )
  k = int(labels.max()) + 1 if num_classes is None else num_classes
  bad = np.flatnonzero((labels < 0) | (labels >= k))
  if len(bad):
    raise ValueError(
      f"label {labels[bad[0]]} of image {bad[0]} is out of range 0..{k - 1}"
    )
  return Split(images, labels.astype(np.int32), k)


def check_images(images: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, 3] from that, or from grey [N, H, W] or [N, H, W, 1].

  Raises:
    ValueError: another type or shape, or no image.
  """
  images = np.asarray(images)
  if images.ndim == 3:
    images = images[..., None]
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or images.shape[-1] not in (1, 3)
  ):
    raise ValueError(
      "images must be uint8 [N, H, W, 3] or [N, H, W], got "
      f"{images.dtype} {list(images.shape)}"
    )
  if not len(images):
    raise ValueError("no images")
  return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def digits(split: str) -> Examples:
  """scikit-learn's 8 x 8 digits, 800 / 200 / 797 by a fixed permutation."""
  from sklearn.datasets import load_digits  # slow to import, seldom needed

  data = load_digits()
  order = np.random.RandomState(0).permutation(len(data.target))
  part = {
    "train": order[:800],
    "val": order[800:1000],
    "trainval": order[:1000],
    "test": order[1000:],
  }[split]
  images = np.round(data.images[part] * (255 / 16)).astype(np.uint8)[..., None]
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
  """JPEG bytes in one npz: `jpeg_bytes`, `offsets`, `labels`, `split`.

  Raises:
    parts.NoImages: there are none for this split.
    ValueError: it is missing or damaged.
  """
  if not path.is_file():
    raise ValueError(f"{path} is missing; set config.data.dir to its folder")
  arrays = _read(path, ("jpeg_bytes", "offsets", "labels", "split"))
  data, offsets = arrays["jpeg_bytes"].tobytes(), arrays["offsets"]
  part = np.concatenate(
    [np.flatnonzero(arrays["split"] == name) for name in parting.of(split)]
  )
  if not len(part):
    raise parting.NoImages(f"{path} has no images of split {split!r}")
  return _examples(
    path,
    part,
    arrays["labels"][part],
    num_classes,
    lambda i: data[offsets[i] : offsets[i + 1]],
    class_names,
  )


def npz(path: Path, split: str, seed: int) -> Examples:
  """`npz:PATH`: arrays `images` and `labels`, maybe `split`.

  Images are uint8 [N, H, W, 3] or [N, H, W], labels integers or names [N], the
  parts names [N] such as train, val and test; without them the images are
  parted as those of `folders.folder`.

  Raises:
    ValueError: it is missing or damaged, or an array cannot be used.
  """
  if not path.is_file():
    raise ValueError(f"{path} is missing; expected npz:PATH")
  arrays = _read(path, ("images", "labels"), ("split",))
  images, labels = arrays["images"], arrays["labels"]
  try:
    check_images(images[:1])
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None
  images = images[..., None] if images.ndim == 3 else images
  if (
    labels.shape != (len(images),)
    or labels.dtype.kind not in "iuU"
    or (labels.dtype.kind == "i" and labels.min() < 0)
  ):
    raise ValueError(
      f"{path}: labels must be integers from 0 on, or names, "
      f"[{len(images)}], got {labels.dtype} "
      f"{list(labels.shape)}"
    )
  of_image = [""] * len(images)
  if "split" in arrays:
    of_image = [NAMES.get(part) for part in arrays["split"].ravel().tolist()]
    if len(of_image) != len(images) or None in of_image:
      raise ValueError(
        f"{path}: split must be names [{len(images)}] out of {', '.join(NAMES)}"
      )
  parts: Parts = {}
  for i, (label, part) in enumerate(zip(labels.tolist(), of_image)):
    parts.setdefault(part, []).append((str(i), label))
  rows, num_classes, names = parting.select(parts, split, str(path), seed)
  return _examples(
    path,
    np.array([int(i) for i, _ in rows]),
    np.array([label for _, label in rows]),
    num_classes,
    images.__getitem__,
    names,
  )


def _read(
  path: Path, names: tuple[str, ...], more: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      return {
        name: file[name]
        for name in (*names, *more)
        if name in names or name in file
      }
  except (
    OSError,
    KeyError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise ValueError(f"cannot read {path}: {error}") from None


def _examples(
  path: Path,
  part: np.ndarray,
  labels: np.ndarray,
  num_classes: int,
  read: Callable[[int], bytes | np.ndarray],
  class_names: tuple[str, ...],
) -> Examples:
  """Images number `part` of a file."""
  stat = os.stat(path)
  identity = parting.digest(
    f"{stat.st_size} {stat.st_mtime_ns} {class_names} {part.tolist()} "
    f"{labels.tolist()}"
  )
  return Examples(
    [f"image {i}" for i in part],
    labels.astype(np.int32),
    num_classes,
    lambda i: read(part[i]),
    str(path),
    identity,
    class_names,
  )
