"""Reads images with masks that are arrays: in an npz, or in memory."""

from collections.abc import Sequence
import dataclasses
import os
from pathlib import Path
import zlib

import numpy as np

from vpt_jax.data.sources import arrays as arrays_lib
from vpt_jax.data.sources import masks as masks_lib
from vpt_jax.data.sources import name_parts, parts
from vpt_jax.data.sources.file_stems import refusal
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.data.transforms import decode
from vpt_jax.data.transforms.segmentation import IGNORED
from vpt_jax.utils import strange_files, texts

_PACKED = ("jpeg_bytes", "jpeg_offsets", "mask_png_bytes", "mask_offsets")
_PLAIN = ("images", "masks")
_BESIDE = ("split", "names", "classes")
EXPECTED = (
  "expected images of different sizes as jpeg_bytes and mask_png_bytes (uint8, "
  "all files one behind the other) with jpeg_offsets and mask_offsets [N + 1] "
  "in them, or of one size as images uint8 [N, H, W, 3] and masks [N, H, W]; "
  "and, if you like, split [N], names [N] and classes [K]"
)


@dataclasses.dataclass(frozen=True)
class Packed:
  """Files one behind the other, in one array.

  Attributes:
    data: uint8, all bytes.
    offsets: [N + 1]; file i is data[offsets[i] : offsets[i + 1]].
  """

  data: np.ndarray
  offsets: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, i: int) -> bytes:
    return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()


Items = Packed | Sequence[np.ndarray] | np.ndarray


@dataclasses.dataclass(frozen=True)
class MaskedArrays:
  """Holds images with masks in memory, see `examples.MaskedExamples`.

  Attributes:
    images: uint8 [H, W, 3] or [H, W] each, or files of images.
    masks: integers [H, W] each, or files of masks.
    numbers: of the images that are here, in their order.
    names: of these images.
    meaning: of the masks' pixels.
    origin: where they are from, for errors.
    identity: changes whenever one of them does.
    class_names: K, or () if not known.
  """

  images: Items
  masks: Items
  numbers: Sequence[int]
  names: Sequence[str]
  meaning: Meaning
  origin: str
  identity: str
  class_names: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.numbers)

  def mask(self, i: int) -> np.ndarray:
    """Returns the labels of image i, uint8 [H, W].

    Raises:
      ValueError: see `masks.decode_mask`.
    """
    where = f"of {self.names[i]} in {self.origin}"
    stored = self.masks[self.numbers[i]]
    if isinstance(stored, bytes):
      return masks_lib.decode_mask(stored, where, self.meaning)
    try:
      return masks_lib.meant(checked_labels(stored), self.meaning)
    except ValueError as error:
      raise ValueError(f"mask {where}: {error}") from error

  def decoded(
    self, i: int, grey_range: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns image i and its labels: uint8 [H, W, 3] and uint8 [H, W].

    Raises:
      UnknownGreyRange: the image is 16-bit grey, and there is no range.
      ValueError: with the image's name: one of both is damaged, labels are out
        of range, or their sizes differ.
    """
    where = f"{self.names[i]} in {self.origin}"
    stored = self.images[self.numbers[i]]
    try:
      if isinstance(stored, bytes):
        image = decode.decode_image(stored, True, grey_range, strict=True)
      else:
        (image,) = arrays_lib.check_images(stored[None])
    except ValueError as error:
      raise ValueError(f"image {where}: {error}") from error
    mask = self.mask(i)
    height, width, _ = image.shape
    masks_lib.check_size(mask, (height, width), f"of {where}", where)
    return image, mask


def checked_labels(labels: np.ndarray) -> np.ndarray:
  """Returns labels that `masks.meant` takes, uint16 [H, W].

  Raises:
    ValueError: they are no such integers.
  """
  if labels.ndim != 2 or labels.dtype.kind not in "biu" or not labels.size:
    raise ValueError(
      f"{labels.dtype} {list(labels.shape)}; expected integers [H, W], numbers "
      "of classes"
    )
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or high >= 2**16:
    raise ValueError(
      f"labels from {low} to {high}; expected 0..{IGNORED - 1} and, for "
      f"ignored pixels, {IGNORED}"
    )
  return labels.astype(np.uint16)


def has_masks(path: Path) -> bool:
  """Returns whether an npz has masks, and no labels of whole images.

  A damaged one has none.
  """
  try:
    with strange_files.open_zip(path) as archive:
      there = {name.removesuffix(".npy") for name in archive.namelist()}
  except Exception:  # told of by whoever reads it
    return False
  return bool(there & {"masks", *_PACKED[2:]}) and "labels" not in there


def read_npz(
  path: Path, splits: Sequence[str], seed: int, meaning: Meaning
) -> list[MaskedArrays]:
  """Reads splits of `npz:PATH`, with masks; see `EXPECTED`.

  Without `split` images are divided 80/10/10 % by their numbers and the seed.

  Args:
    path: of the file.
    splits: train, val, trainval or test, any number of them.
    seed: of the division.
    meaning: of the masks' pixels.

  Raises:
    NoImages: nothing is for one of these splits.
    ValueError: the file is missing or damaged, or an array cannot be used.
  """
  if not path.is_file():
    raise refusal(f"{path} is missing; expected npz:PATH")
  try:
    found = strange_files.read_npz(
      path, (), (*_PACKED, *_PLAIN, *_BESIDE, "labels")
    )
    images, masks = _items(found)
    count = len(images)
    part_of = arrays_lib.checked_parts(path, found.get("split"), count)
    names = _texts(found, "names", count)
    class_names = _texts(found, "classes", None)
  except ValueError as error:
    text = str(error)
    raise refusal(text if str(path) in text else f"{path}: {text}") from error
  by_part: dict[str, list[str]] = {}
  for i, part in enumerate(part_of):
    by_part.setdefault(part, []).append(str(i))
  origin = texts.printable(str(path))
  is_told = any(split in parts.TOLD for split in splits)
  by_part = name_parts.divide(by_part, origin, seed, is_told)
  stat = os.stat(path)
  opened = []
  for split in splits:
    numbers = [int(i) for i in name_parts.select(by_part, split, origin)]
    facts = f"{stat.st_size} {stat.st_mtime_ns} {origin} {numbers}"
    shown = [names[i] if names else f"image {i}" for i in numbers]
    opened.append(
      MaskedArrays(
        images,
        masks,
        numbers,
        shown,
        meaning,
        origin,
        parts.digest(facts),
        class_names,
      )
    )
  return opened


def _items(found: dict[str, np.ndarray]) -> tuple[Items, Items]:
  """Returns the images and the masks of an npz.

  Raises:
    ValueError: some are missing, or they do not fit together.
  """
  is_packed = any(name in found for name in _PACKED)
  wanted = _PACKED if is_packed else _PLAIN
  lacking = [name for name in wanted if name not in found]
  if lacking:
    there = ", ".join(found) or "none of what is read"
    hint = ""
    if "labels" in found:
      hint = "; labels are of classification: leave config.problem out for them"
    raise ValueError(
      f"has no array {', '.join(lacking)}; it has {there}{hint}; {EXPECTED}"
    )
  images: Items
  masks: Items
  if is_packed:
    images = _packed(found, "jpeg_bytes", "jpeg_offsets")
    masks = _packed(found, "mask_png_bytes", "mask_offsets")
  else:
    images, masks = found["images"], found["masks"]
    if images.ndim == 0 or masks.ndim != 3 or masks.dtype.kind not in "biu":
      raise ValueError(
        f"images are {images.dtype} {list(images.shape)} and masks "
        f"{masks.dtype} {list(masks.shape)}; {EXPECTED}"
      )
    arrays_lib.check_images(images[:1])
  if len(images) != len(masks):
    raise ValueError(
      f"has {len(images)} images, but {len(masks)} masks; expected one mask an "
      "image, in the same order"
    )
  return images, masks


def _packed(found: dict[str, np.ndarray], data: str, offsets: str) -> Packed:
  """Returns files in one array.

  Raises:
    ValueError: the offsets do not fit to it.
  """
  content, ends = found[data], found[offsets]
  is_whole = content.ndim == 1 and content.dtype == np.uint8
  is_whole &= ends.ndim == 1 and ends.dtype.kind in "iu" and len(ends) > 1
  if is_whole:
    is_whole = int(ends[0]) == 0 and int(ends[-1]) == len(content)
    is_whole &= bool((ends[:-1] <= ends[1:]).all())
  if not is_whole:
    raise ValueError(
      f"{data} is {content.dtype} {list(content.shape)} and {offsets} "
      f"{ends.dtype} {list(ends.shape)}; expected uint8 [M] and integers "
      "[N + 1] that rise from 0 to M"
    )
  return Packed(content, ends.astype(np.int64))


def _texts(
  found: dict[str, np.ndarray], name: str, count: int | None
) -> tuple[str, ...]:
  """Returns an array of names, printable; () if it is not there.

  Args:
    found: the arrays.
    name: of the array.
    count: how many there have to be; None: any number.

  Raises:
    ValueError: no names, or another number of them.
  """
  array = found.get(name)
  if array is None:
    return ()
  is_sound = array.ndim == 1 and array.dtype.kind == "U"
  if not is_sound or count not in (None, len(array)):
    raise ValueError(
      f"{name} is {array.dtype} {list(array.shape)}; expected texts "
      f"[{'K' if count is None else count}]"
    )
  return tuple(texts.printable(text) for text in array.tolist())


def of_arrays(
  images: Sequence[np.ndarray], label_maps: Sequence[np.ndarray], origin: str
) -> MaskedArrays:
  """Returns images and label maps that are in memory.

  Args:
    images: uint8 [H, W, 3] or [H, W] each, of any sizes.
    label_maps: integers [H, W] each.
    origin: what they are called in errors.

  Raises:
    ValueError: other arrays, with the number of the first bad one.
  """
  if len(images) != len(label_maps) or not len(images):
    raise ValueError(
      f"{len(images)} images and {len(label_maps)} label maps; expected one "
      "label map an image, and one image or more"
    )
  checksum = 0
  kept = []
  for i, (image, label) in enumerate(zip(images, label_maps, strict=True)):
    try:
      (image,) = arrays_lib.check_images(np.asarray(image)[None])
      label = checked_labels(np.asarray(label))
    except ValueError as error:
      raise ValueError(f"image {i} or its label map: {error}") from None
    masks_lib.check_size(label, image.shape[:2], f"of image {i}", f"image {i}")
    kept.append((image, label))
    for array in (image, label):
      checksum = zlib.crc32(array.tobytes(), checksum)
  return MaskedArrays(
    [image for image, _ in kept],
    [label for _, label in kept],
    range(len(kept)),
    [f"image {i}" for i in range(len(kept))],
    Meaning(thin=True),
    origin,
    f"arrays {len(kept)} {checksum}",
  )
