"""Defines the one object that says what happens to an image before the model.

Training, evaluation, predictions, analysis and inversion all use it, and every
adapter file holds it, so that an image is the same to all of them:

  file  --decode-->  uint8 RGB  --fit-->  uint8, of the stored size  (host)
        --prepare or train_view-->  float32, resized and normalised  (device)

This module imports JAX only when a method of the device is called: decoding
does without.
"""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any, TYPE_CHECKING

import numpy as np

from vpt_jax.data import own_sources
from vpt_jax.data.transforms import decode, resize
from vpt_jax.utils import json_files, lookup

if TYPE_CHECKING:
  import jax
  from ml_collections import ConfigDict

  from vpt_jax.data.examples import Split


def _is_size(value: Any) -> bool:
  """Returns whether a value of JSON is [height, width]."""
  if not isinstance(value, list) or len(value) != 2:
    return False
  return all(json_files.POSITIVE.accepts(side) for side in value)


_SIZE = json_files.Kind("[height, width]", _is_size)
# What `Preprocess.to_json` gives.
FIELDS = {
  "image_size": _SIZE,
  "normalize": json_files.TEXT,
  "family": json_files.one_of(tuple(resize.FAMILIES)),
  "upright": json_files.of_type("true or false", bool),
  "grey_range": json_files.or_null(json_files.POSITIVE),
  "kept_size": json_files.or_null(_SIZE),
}


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """What happens to an image before the model sees it.

  Attributes:
    image_size: (height, width) that the model takes.
    normalize: mean and standard deviation, a name in `views.NORMALIZE`.
    family: geometry on the host, a name in `resize.FAMILIES`.
    upright: images are turned as their EXIF orientation says. True for a
      user's own photos; the benchmarks' code takes them as they are stored.
    grey_range: largest value of 16-bit grey, which becomes white; None: the
      data set has no such images, and another one is judged by itself.
    kept_size: (height, width) of images that keep their size on the host and
      are resized on the device, where nothing is rounded; None: no image does.
      Training and evaluation choose it when they decode, see `cache.decoding`.
  """

  image_size: resize.Size
  normalize: str
  family: str = "vtab"
  upright: bool = True
  grey_range: int | None = None
  kept_size: resize.Size | None = None

  def __post_init__(self) -> None:
    lookup.choose(self.family, resize.FAMILIES, "data.preprocess")

  @classmethod
  def from_config(
    cls, config: "ConfigDict", image_size: resize.Size
  ) -> "Preprocess":
    """Returns the preprocessing that a config asks for.

    Args:
      config: resolved.
      image_size: (height, width), `model.method.input_size`.
    """
    data = config.data
    height, width = image_size
    return cls(
      image_size=(height, width),
      normalize=data.normalize,
      family=data.preprocess,
      # A source with a path, such as folder:PATH, is the user's own.
      upright=own_sources.is_own(data.source),
    )

  def of_split(self, split: "Split") -> "Preprocess":
    """Returns this as the images of a split were decoded.

    What the split does not know, as it was decoded for another run, is kept:
    image size and normalisation.
    """
    decoded = split.preprocess
    if decoded is None:  # arrays in memory, which the device resizes
      height, width = split.images.shape[1:3]
      return dataclasses.replace(self, upright=True, kept_size=(height, width))
    return dataclasses.replace(
      self,
      family=decoded.family,
      upright=decoded.upright,
      grey_range=decoded.grey_range,
      kept_size=decoded.kept_size,
    )

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> "Preprocess":
    """Returns what `to_json` was called on.

    Raises:
      ValueError: a field is missing, not known, or no such thing.
    """
    wrong = json_files.fault(value, FIELDS)
    unknown = sorted(value.keys() - FIELDS.keys())
    if unknown:
      wrong = f"unknown field {unknown[0]!r}"
    if wrong:
      raise ValueError(f"preprocess: {wrong}")
    from vpt_jax.data.transforms import views  # imports JAX

    lookup.choose(value["normalize"], views.NORMALIZE, "data.normalize")
    fields = dict(value)
    fields["image_size"] = tuple(fields["image_size"])
    if fields["kept_size"] is not None:
      fields["kept_size"] = tuple(fields["kept_size"])
    return cls(**fields)

  def to_json(self) -> dict[str, Any]:
    """Returns all of it as JSON values, for an adapter's meta."""
    value = dataclasses.asdict(self)
    value["image_size"] = list(self.image_size)
    if self.kept_size is not None:
      value["kept_size"] = list(self.kept_size)
    return value

  def decode(self, data: bytes, strict: bool = False) -> np.ndarray:
    """Decodes an image file's content, on the host.

    Args:
      data: the file's content.
      strict: refuses 16-bit grey while its range is not known.

    Returns:
      uint8 [H, W, 3].

    Raises:
      decode.UnknownGreyRange: see `strict`.
      ValueError: see `decode.decode_image`.
    """
    return decode.decode_image(data, self.upright, self.grey_range, strict)

  def fit(self, image: np.ndarray, train: bool = False) -> np.ndarray:
    """Brings a decoded image to the size in which it is stored, on the host.

    Args:
      image: uint8 [H, W, 3], or [H, W, 1] for grey.
      train: for training, else for evaluation.

    Returns:
      uint8 [*image_size, 3], or of `kept_size`. For training in families with
      `strips`, the shorter side is that of the family.

    Raises:
      ValueError: another type or shape, no pixels, or too long an image.
    """
    image = resize.as_rgb(image)
    if image.shape[:2] == self.kept_size:
      return image
    return resize.fit(self.family, image, self.image_size, train)

  def size_if_small(self, image: np.ndarray) -> resize.Size | None:
    """Returns the size that all images may keep if they share this one's.

    Small ones of VTAB-1k take less room as they are, and are resized on the
    device, where the result is not rounded. None: images are fitted.
    """
    height, width = self.image_size
    is_small = image.shape[0] <= height and image.shape[1] <= width
    if is_small and self.family == "vtab":
      return image.shape[:2]
    return None

  def read(self, path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as evaluation does, on the host.

    Returns:
      uint8 [*image_size, 3], or of `kept_size`.

    Raises:
      ValueError: naming the file, which is missing, damaged or no image.
    """
    try:
      return self.fit(self.decode(decode.read_file(path)))
    except (OSError, ValueError) as error:
      raise ValueError(f"cannot read image {path}: {error}") from None

  def prepare(self, images: "jax.Array | np.ndarray") -> "jax.Array":
    """Resizes and normalises images as evaluation does, on the device.

    Args:
      images: uint8 [B, H, W, 3].

    Returns:
      float32 [B, height, width, 3].
    """
    from vpt_jax.data.transforms import views  # imports JAX

    return views.prepare(images, self.image_size, self.normalize)

  def normalize_padded(
    self, images: "jax.Array | np.ndarray", size: "jax.Array | np.ndarray"
  ) -> "jax.Array":
    """Normalises views of the model's size, whose ends may be padding.

    Args:
      images: uint8 [B, height, width, 3].
      size: integers [B, 2], (height, width) of what is no padding.

    Returns:
      float32 [B, height, width, 3], 0 where there is padding.
    """
    from vpt_jax.data.transforms import views  # imports JAX

    return views.normalize_padded(images, size, self.normalize)

  def train_view(
    self,
    images: "jax.Array | np.ndarray",
    kind: str,
    rng: "jax.Array",
    min_scale: float = 1.0,
  ) -> "jax.Array":
    """Resizes and normalises images and moves them at random, on the device.

    Args:
      images: uint8 [B, H, W, 3].
      kind: of the random views, a name in `views.AUGMENT`.
      rng: key of this batch.
      min_scale: smallest share of the area of random crops; 1: no crops.

    Returns:
      float32 [B, height, width, 3].
    """
    from vpt_jax.data.transforms import views  # imports JAX

    return views.train_view(
      images, self.image_size, self.normalize, kind, rng, min_scale
    )

  def denormalize(self, images: np.ndarray) -> np.ndarray:
    """Returns normalised images [..., 3] with pixels in [0, 1] again."""
    from vpt_jax.data.transforms import views  # imports JAX

    mean, std = views.NORMALIZE[self.normalize]
    return images * np.array(std) + np.array(mean)
