"""Reads what users give a predict function: files, arrays, images of Pillow."""

from collections.abc import Iterator, Sequence
import contextlib
import os
from typing import Any

import numpy as np
from PIL import Image

from vpt_jax.data.transforms import decode
from vpt_jax.data.transforms.preprocess import Preprocess

# A path, a file's content, an image of Pillow, or an array of one image.
OneImage = str | os.PathLike | bytes | Image.Image | np.ndarray

EXPECTED = (
  "images must be uint8: one image (a path, a PIL image, an array [H, W, 3], "
  "[H, W, 1] or grey [H, W]), a list of such images, or a stack [N, H, W, 3] "
  "or [N, H, W, 1]; of a stack of grey images [N, H, W] say grey=True"
)


def split_images(
  images: Any, grey: bool = False
) -> tuple[list[OneImage], bool]:
  """Takes apart what a user gives.

  Args:
    images: one image, a list of images, or a stack of arrays.
    grey: an array [N, H, W] is a stack of grey images.

  Returns:
    (the images, whether it was one alone).

  Raises:
    ValueError: an array that may mean several things, of another type or
      shape, or no image.
  """
  if isinstance(images, str | os.PathLike | bytes | Image.Image):
    return [images], True
  if isinstance(images, list | tuple):
    if not len(images):
      raise ValueError("no images")
    return [_one_image(image, i) for i, image in enumerate(images)], False
  array = np.asarray(images)
  if array.dtype != np.uint8:
    raise _refusal(array)
  if array.ndim == 2 or (array.ndim == 3 and _is_image(array) and not grey):
    return [_with_channel(array)], True
  if array.ndim == 3 and grey:
    array = array[..., None]
  if array.ndim != 4 or array.shape[-1] not in (1, 3):
    raise _refusal(array)
  if not len(array):
    raise ValueError("no images")
  return list(array), False


def decode_image(image: OneImage, preprocess: Preprocess) -> np.ndarray:
  """Decodes an image as evaluation does; arrays are taken as they are.

  Returns:
    uint8 [H, W, 3] or [H, W, 1].

  Raises:
    OSError: a file that cannot be read.
    ValueError: no image, or a damaged one.
  """
  if isinstance(image, str | os.PathLike):
    image = decode.read_file(image)
  if isinstance(image, bytes):
    return preprocess.decode(image)
  if isinstance(image, Image.Image):
    return decode.convert_to_rgb(
      image, preprocess.upright, preprocess.grey_range
    )
  decode.check_sides(image.shape[1], image.shape[0])
  return image


@contextlib.contextmanager
def reading(image: OneImage) -> Iterator[None]:
  """Makes a ValueError that names the image of what stops its reading."""
  try:
    yield
  except (OSError, ValueError) as error:
    name = f" {image}" if isinstance(image, str | os.PathLike) else ""
    raise ValueError(f"cannot read image{name}: {error}") from None


def equal_shapes(
  images: Sequence[np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields images of one shape together: (their numbers, a stack of them)."""
  shapes = [image.shape for image in images]
  for shape in dict.fromkeys(shapes):
    numbers = np.array([i for i, other in enumerate(shapes) if other == shape])
    yield numbers, np.stack([images[i] for i in numbers])


def _one_image(image: Any, number: int) -> OneImage:
  """Returns an entry of a list, checked."""
  if isinstance(image, str | os.PathLike | bytes | Image.Image):
    return image
  array = np.asarray(image)
  is_one = array.ndim == 2 or _is_image(array)
  if array.dtype != np.uint8 or not is_one:
    raise ValueError(
      f"image {number} of the list is {array.dtype} {list(array.shape)}; "
      f"{EXPECTED}"
    )
  return _with_channel(array)


def _is_image(array: np.ndarray) -> bool:
  return array.ndim == 3 and array.shape[-1] in (1, 3)


def _with_channel(array: np.ndarray) -> np.ndarray:
  """Returns grey [H, W] as [H, W, 1], other images as they are."""
  return array[..., None] if array.ndim == 2 else array


def _refusal(array: np.ndarray) -> ValueError:
  return ValueError(f"images are {array.dtype} {list(array.shape)}; {EXPECTED}")
