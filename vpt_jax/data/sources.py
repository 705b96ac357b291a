"""Readers: every one gives a `Split` of decoded uint8 images and labels."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import dataclasses
import io
import logging
import math
import os
from pathlib import Path
import re
import warnings
import zipfile
import zlib

import numpy as np
from PIL import Image

from vpt_jax.data import tasks

log = logging.getLogger("vpt_jax")

# The protocol's names of the splits -> lists of a vtab-1k pack.
PACK_LISTS = {"train": "train800.txt", "val": "val200.txt",
              "trainval": "train800val200.txt", "test": "test.txt"}


@dataclasses.dataclass(frozen=True)
class Split:
  """One part of a data set.

  Attributes:
    images: uint8 [N, H, W, 3] (or float32 features [N, D], see `train.py`).
    labels: int32 [N], in 0 .. num_classes - 1.
    num_classes: K.
    skipped: files left out because `data.on_error` is "skip".
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int
  skipped: int = 0

  def __len__(self) -> int:
    return len(self.labels)


def from_arrays(images: np.ndarray, labels: np.ndarray,
                num_classes: int | None = None) -> Split:
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
    raise ValueError(f"labels must be integers [{len(images)}], got "
                     f"{labels.dtype} {list(labels.shape)}")
  k = int(labels.max()) + 1 if num_classes is None else num_classes
  bad = np.flatnonzero((labels < 0) | (labels >= k))
  if len(bad):
    raise ValueError(f"label {labels[bad[0]]} of image {bad[0]} is out of "
                     f"range 0..{k - 1}")
  return Split(images, labels.astype(np.int32), k)


def check_images(images: np.ndarray) -> np.ndarray:
  """uint8 [N, H, W, 3] from that, or from grey [N, H, W] or [N, H, W, 1].

  Raises:
    ValueError: another type or shape, or no image.
  """
  images = np.asarray(images)
  if images.ndim == 3:
    images = images[..., None]
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (
      1, 3):
    raise ValueError("images must be uint8 [N, H, W, 3] or [N, H, W], got "
                     f"{images.dtype} {list(images.shape)}")
  if not len(images):
    raise ValueError("no images")
  return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def load(name: str, split: str, *, folder: str | os.PathLike,
         image_size: tuple[int, int], on_error: str = "raise") -> Split:
  """Split `train`, `val`, `trainval` or `test` of a task.

  Args:
    name: of the task, see `tasks.py`.
    split: which part.
    folder: `data.dir`.
    image_size: what images of unequal sizes are resized to.
    on_error: `raise`, or `skip` to leave bad images out and count them.

  Raises:
    ValueError: unknown names, missing or damaged files, labels out of range.
  """
  task = tasks.get(name)
  if on_error not in ("raise", "skip"):
    raise ValueError(f"data.on_error={on_error!r}; expected 'raise' or 'skip'")
  if split not in PACK_LISTS:
    raise ValueError(f"unknown split {split!r}; known: {', '.join(PACK_LISTS)}")
  if task.source == "digits":
    return _digits(split)
  if task.source == "npz":
    return _npz(Path(folder) / task.folder, split, task.num_classes,
                image_size, on_error)
  return read_pack(Path(folder) / task.folder, split, task.num_classes,
                   image_size, on_error)


def _digits(split: str) -> Split:
  """scikit-learn's 8 x 8 digits, 800 / 200 / 797 by a fixed permutation."""
  from sklearn.datasets import load_digits  # slow to import, seldom needed
  data = load_digits()
  order = np.random.RandomState(0).permutation(len(data.target))
  part = {"train": order[:800], "val": order[800:1000],
          "trainval": order[:1000], "test": order[1000:]}[split]
  images = np.round(data.images[part] * (255 / 16)).astype(np.uint8)
  return from_arrays(images, data.target[part], 10)


def _npz(path: Path, split: str, num_classes: int,
         image_size: tuple[int, int], on_error: str) -> Split:
  """JPEG bytes in one npz: `jpeg_bytes`, `offsets`, `labels`, `split`."""
  if not path.is_file():
    raise ValueError(f"{path} is missing; set config.data.dir to its folder")
  try:
    with np.load(path, allow_pickle=False) as file:
      offsets, labels = file["offsets"], file["labels"]
      data = file["jpeg_bytes"].tobytes()
      part = np.flatnonzero(file["split"] == split)
  except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile,
          zlib.error) as error:
    raise ValueError(f"cannot read {path}: {error}") from None
  if not len(part):
    raise ValueError(f"{path} has no images of split {split!r}")
  return _decode_all(
      [(str(path), f"image {i}",
        lambda i=i: data[offsets[i]:offsets[i + 1]]) for i in part],
      labels[part], num_classes, image_size, on_error)


def read_pack(folder: Path, split: str, num_classes: int,
              image_size: tuple[int, int], on_error: str) -> Split:
  """A folder in the layout of the vtab-1k packs.

  Raises:
    ValueError: what is missing or damaged, with the file and the line.
  """
  path = folder / PACK_LISTS[split]
  if not path.is_file():
    raise ValueError(
        f"{path} is missing; expected the vtab-1k layout: {folder}/"
        f"{{{','.join(PACK_LISTS.values())}}} with lines 'PATH LABEL', paths "
        "relative to that folder; config.data.dir names the folder above "
        "'vtab-1k'")
  rows = list(read_list(path, num_classes))
  if not rows:
    raise ValueError(f"{path} lists no image")
  return _decode_all(
      [(f"{path}:{number}", str(file), file.read_bytes)
       for number, file, _ in rows],
      np.array([label for _, _, label in rows]), num_classes, image_size,
      on_error)


def read_list(path: Path, num_classes: int) -> Iterator[tuple[int, Path, int]]:
  """Lines `PATH LABEL` of a pack's list as (line number, file, label).

  Raises:
    ValueError: naming the list and the line.
  """
  text = path.read_text(encoding="utf-8", errors="surrogateescape")
  for number, line in enumerate(text.splitlines(), start=1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    name, _, label = line.strip().rpartition(" ")
    if not name or "\0" in name or not re.fullmatch("[0-9]+", label):
      raise ValueError(f"{where}: expected 'PATH LABEL', got {line!r}")
    if int(label) >= num_classes:
      raise ValueError(f"{where}: label {label} is out of range "
                       f"0..{num_classes - 1}")
    # By name alone: a link inside the folder may point to another disk.
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] == "..":
      raise ValueError(f"{where}: {name!r} is outside the pack's folder")
    yield number, path.parent / inside, int(label)


def _decode_all(items: Sequence[tuple[str, str, Callable[[], bytes]]],
                labels: np.ndarray, num_classes: int,
                image_size: tuple[int, int], on_error: str) -> Split:
  """Decodes every (list, name, its bytes) into a split.

  Images of equal size are kept as they are; else each is resized to
  `image_size` here, as `preprocess.prepare` would, and rounded to uint8.
  """

  def decode(item: tuple[str, str, Callable[[], bytes]]) -> np.ndarray | str:
    where, name, read = item
    try:
      return decode_image(read())
    except FileNotFoundError:
      return f"{where}: {name} is missing"
    except (OSError, SyntaxError, ValueError,
            Image.DecompressionBombError) as error:
      return f"{where}: cannot decode {name}: {error}"

  with warnings.catch_warnings():
    # `decode_image` refuses what Pillow would warn of.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with concurrent.futures.ThreadPoolExecutor() as pool:
      decoded = list(pool.map(decode, items))
  good = np.array([not isinstance(image, str) for image in decoded])
  failures = [image for image in decoded if isinstance(image, str)]
  if failures and (on_error == "raise" or not good.any()):
    raise ValueError(f"{failures[0]} ({len(failures)} of {len(decoded)} images "
                     "fail); data.on_error='skip' leaves bad images out")
  for failure in failures:
    log.warning("skipped: %s", failure)
  images = [image for image in decoded if not isinstance(image, str)]
  if len({image.shape for image in images}) > 1:
    images = [resize(image, image_size) for image in images]
  return dataclasses.replace(
      from_arrays(np.stack(images), labels[good], num_classes),
      skipped=len(failures))


def decode_image(data: bytes) -> np.ndarray:
  """Encoded image -> uint8 [H, W, 3]."""
  with Image.open(io.BytesIO(data)) as image:
    limit = Image.MAX_IMAGE_PIXELS or math.inf
    if image.width * image.height > limit:  # a small file, gigabytes of pixels
      raise ValueError(f"{image.width} x {image.height} pixels, above Pillow's "
                       f"limit of {limit}")
    return np.asarray(image.convert("RGB"))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """uint8 [H, W, 3] -> [*size, 3], bilinear without antialiasing, rounded."""
  height, width = image.shape[:2]
  channels = [
      np.asarray(Image.fromarray(image[..., c].astype(np.float32)).transform(
          size[::-1], Image.Transform.EXTENT, (0, 0, width, height),
          Image.Resampling.BILINEAR)) for c in range(3)]
  return np.round(np.stack(channels, axis=-1)).astype(np.uint8)
