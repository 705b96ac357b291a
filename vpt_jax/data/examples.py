"""Defines labelled images, before (`Examples`) and after decoding (`Split`).

Sources give the first, training takes the second. Images with masks are never
held decoded: `MaskedExamples` is what sources give, `MaskedSplit` what training
takes.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Protocol

import numpy as np

from vpt_jax.data import class_names
from vpt_jax.data.sources.masks import Colour, Meaning
from vpt_jax.data.transforms.decode import UnknownGreyRange
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.utils import texts


@dataclasses.dataclass(frozen=True)
class Examples:
  """Holds labelled images that are not decoded yet: what every source gives.

  Attributes:
    names: of the images, for errors and for files with predictions: the path
      below the source's folder, or such as `train[17]`.
    labels: int32 [N], in 0 .. num_classes - 1.
    num_classes: K.
    read: index -> the encoded image's bytes, or a decoded one, uint8
      [H, W, 1 or 3].
    origin: where they are from, for errors: a folder, list or data set.
    identity: changes whenever names, labels or (as sizes and times of files
      tell) pixels do.
    class_names: K, or () if not known.
  """

  names: Sequence[str]
  labels: np.ndarray
  num_classes: int
  read: Callable[[int], bytes | np.ndarray]
  origin: str
  identity: str
  class_names: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Split:
  """Holds one part of a data set, decoded.

  Attributes:
    images: uint8 [N, H, W, 3] (or float32 features [N, D], see
      `evaluation.cache_features`); may be a memory map. With `strips`: their
      rows [R, S, 3].
    labels: int32 [N], in 0 .. num_classes - 1; uint8 [N, K], zeros and ones,
      where images may have several classes.
    num_classes: K.
    skipped: images left out because `data.on_error` is "skip".
    names: see `Examples`; () if not known.
    strips: images whose shorter side is S, for random crops; None: `images`
      are of equal size.
    class_names: K, or () if not known.
    preprocess: how the images were decoded; None: arrays in memory.
  """

  images: np.ndarray
  labels: np.ndarray
  num_classes: int
  skipped: int = 0
  names: Sequence[str] = ()
  strips: "Strips | None" = None
  class_names: tuple[str, ...] = ()
  preprocess: Preprocess | None = None

  def __len__(self) -> int:
    return len(self.labels)

  def share(self, part: float, seed: int) -> "Split":
    """Returns a random part of each class, at least one image of it.

    Of images that may have several classes it is a part of all images. What a
    smaller part has, a larger one with the same seed has too.

    Args:
      part: of the images, above 0, at most 1.
      seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(self))
    if self.labels.ndim == 1:
      of_class = self.labels[order]
      groups = [order[of_class == k] for k in np.unique(of_class)]
    else:
      groups = [order]
    chosen = [group[: math.ceil(part * len(group))] for group in groups]
    return self.take(np.sort(np.concatenate(chosen)))

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes, K; their numbers where there are no names."""
    return self.class_names or tuple(map(str, range(self.num_classes)))

  def with_classes(self, names: Sequence[str], whose: str) -> "Split":
    """Returns the split with its classes numbered as others are.

    Args:
      names: of all classes there, in their order.
      whose: for the error.

    Raises:
      ValueError: a class of an image is not among them.
    """
    if self.classes == tuple(names):
      return self
    numbers = {name: number for number, name in enumerate(names)}
    occurs = class_names.counts(self.labels, self.num_classes) > 0
    missing = []
    for name, has_images in zip(self.classes, occurs.tolist(), strict=True):
      if has_images and name not in numbers:
        missing.append(name)
    if missing:
      raise ValueError(
        f"images of class {texts.shortened(missing)} are none of {whose}: "
        f"{texts.shortened(names)}; where labels are numbers of classes, give "
        "from_arrays the same num_classes for all parts"
      )
    order = np.array([numbers.get(name, -1) for name in self.classes], np.int32)
    if self.labels.ndim == 1:
      labels = order[self.labels]
    else:
      labels = np.zeros((len(self), len(names)), self.labels.dtype)
      labels[:, order[occurs]] = self.labels[:, occurs]
    return dataclasses.replace(
      self,
      labels=labels,
      num_classes=len(names),
      class_names=tuple(names),
    )

  def take(self, indices: np.ndarray) -> "Split":
    """Returns the images with these numbers, in that order."""
    images = self.images
    strips = self.strips
    if strips is None:
      images = images[indices]
    else:
      parts = [images[strips.first[i] : strips.first[i + 1]] for i in indices]
      images = np.concatenate(parts)
      first = np.concatenate([[0], np.cumsum(strips.lengths[indices])])
      strips = Strips(first, strips.wide[indices])
    names = [self.names[i] for i in indices] if len(self.names) else ()
    return dataclasses.replace(
      self,
      images=images,
      labels=self.labels[indices],
      strips=strips,
      names=names,
    )


@dataclasses.dataclass(frozen=True)
class Strips:
  """Says where images of unequal length lie in one array of rows [R, S, 3].

  Image i is rows first[i] : first[i + 1]: itself if it is tall, turned by
  swapping height and width if it is wide, so that the shorter side is S.

  Attributes:
    first: int64 [N + 1].
    wide: bool [N].
  """

  first: np.ndarray
  wide: np.ndarray

  @property
  def lengths(self) -> np.ndarray:
    """The longer sides of the images, [N]."""
    return np.diff(self.first)

  def crop(
    self, rows: np.ndarray, i: int, place: np.ndarray, size: int
  ) -> np.ndarray:
    """Crops a square of image i, uint8 [size, size, 3].

    Args:
      rows: uint8 [R, S, 3].
      i: index of the image.
      place: (along the longer side, along the shorter one), in [0, 1): one of
        the free + 1 places, each as likely as the others.
      size: pixels of a side of the square.
    """
    free = np.array([self.first[i + 1] - self.first[i], rows.shape[1]]) - size
    row, column = (place * (free + 1).astype(np.float32)).astype(int)
    row += self.first[i]
    part = rows[row : row + size, column : column + size]
    return part.swapaxes(0, 1) if self.wide[i] else part


class MaskedExamples(Protocol):
  """Images with masks that are not decoded yet, of any sizes."""

  @property
  def names(self) -> Sequence[str]:
    """Names of the images, for errors and for files with predictions."""

  @property
  def origin(self) -> str:
    """Where they are from, for errors."""

  @property
  def identity(self) -> str:
    """A text that changes whenever names, sizes or times of files do."""

  @property
  def meaning(self) -> Meaning:
    """What the masks' pixels mean."""

  def __len__(self) -> int: ...

  def mask(self, i: int) -> np.ndarray:
    """Returns the labels of image i, uint8 [H, W]."""

  def decoded(
    self, i: int, grey_range: int | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns image i and its labels: uint8 [H, W, 3] and uint8 [H, W]."""


@dataclasses.dataclass(frozen=True)
class MaskedSplit:
  """Holds one part of a data set of images with masks.

  Attributes:
    examples: the images; each is decoded when it is asked for. Their meaning
      knows the number of classes: other labels are refused.
    num_classes: K; labels are 0 .. K - 1, and 255 is ignored.
    class_names: K, or () if not known.
    palette: colours of the classes, K or more; () if there are none.
    grey_range: of 16-bit grey images, the same for the whole data set; None:
      the training images have none.
  """

  examples: MaskedExamples
  num_classes: int
  class_names: tuple[str, ...] = ()
  palette: tuple[Colour, ...] = ()
  grey_range: int | None = None

  def __len__(self) -> int:
    return len(self.examples)

  @property
  def names(self) -> Sequence[str]:
    """The names of the images."""
    return self.examples.names

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes, K; their numbers where there are no names."""
    return self.class_names or tuple(map(str, range(self.num_classes)))

  @property
  def skipped(self) -> int:
    """Images that are left out: none, as bad ones are errors here."""
    return 0

  def decoded(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns image i and its labels: uint8 [H, W, 3] and uint8 [H, W].

    Raises:
      ValueError: with the file's name: one of both is damaged, labels are out
        of range, their sizes differ, or the image is 16-bit grey and no
        training image is.
    """
    try:
      return self.examples.decoded(i, self.grey_range)
    except UnknownGreyRange:
      raise ValueError(
        f"{self.examples.origin}: image {self.names[i]} is grey of 16 bits, "
        "whose range the training images tell, and none of them that may be "
        "such (PNG, TIFF, PGM ...) is; save it with 8 bits"
      ) from None
