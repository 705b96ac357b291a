"""Compares views of images with label maps with mmsegmentation's pipeline.

The fixture's images are OpenCV's: blue, green, red.
"""

from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from tests.options import Unsupported
from tests.parity_report import Report
from tests.reference import Arrays, below
from vpt_jax.data.transforms import (
  opencv_resize,
  photometric,
  segmentation,
  views,
)

_OF_ORIGINAL = "tta_scale_factor"


def compare(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares sizes, resized images, crops, colours and normalised images.

  Args:
    arrays: of the fixture.
    meta: likewise.
    report: gets the rows, and a note of each output that is not compared.

  Raises:
    Unsupported: sizes of a test whose name does not say their scale.
  """
  _sizes(arrays, report)
  _resized(arrays, report)
  _crops(arrays, report)
  _colours(arrays, meta["photo_random_draws"], report)
  _normalized(arrays, report)
  compared = (
    "resized_hw/",
    "multiscale_hw_",
    "random_resize_",
    "image_resized/",
    "label_resized/",
    "crop_",
    "photo_bgr/",
    "preprocessed_",
  )
  for name in below(arrays, "out/"):
    if not name.startswith(compared):
      report.notes.append(f"not compared: out/{name}")


def _rgb(image: np.ndarray) -> np.ndarray:
  """Returns an image of blue, green, red as red, green, blue, or back."""
  return image[..., ::-1]


def _scale_of(name: str) -> tuple[int, int]:
  """Returns the scale that the name of an output ends with."""
  found = re.search(r"_(\d+)(?:x(\d+))?$", name)
  if not found:
    raise Unsupported(f"sizes {name!r}, whose name has no scale")
  first, second = found.groups()
  return int(first), int(second or first)


def _sizes(arrays: Arrays, report: Report) -> None:
  """Compares the sizes of a test, of several scales, and random ones."""
  sizes = [tuple(row) for row in arrays["input/sizes_hw"].tolist()]
  for name, theirs in below(arrays, "out/resized_hw/").items():
    scale = _scale_of(name)
    fitted = [segmentation.fitted_size(size, scale) for size in sizes]
    report.add("counts", f"resized_hw/{name}", fitted, theirs)
  for name, theirs in below(arrays, "out/multiscale_hw_").items():
    several_scale = None if name == _OF_ORIGINAL else _scale_of(name)
    of_images = []
    for size in sizes:
      of_images.append(segmentation.evaluation_sizes(size, scale=several_scale))
    of_factors = np.swapaxes(of_images, 0, 1)
    report.add("counts", f"multiscale_hw_{name}", of_factors, theirs)

  low, high = segmentation.FACTORS
  scales = []
  resized = []
  before_and_after = arrays["out/random_resize_hw_in_out"].tolist()
  for i, factor in enumerate(arrays["out/random_resize_ratio"]):
    scale = segmentation.random_scale((factor - low) / (high - low))
    height, width = before_and_after[i][:2]
    scales.append(scale)
    resized.append(segmentation.fitted_size((height, width), scale))
  theirs = arrays["out/random_resize_scale_wh"]
  report.add("counts", "random_resize_scale_wh", scales, theirs)
  theirs = arrays["out/random_resize_hw_in_out"][:, 2:]
  report.add("counts", "random_resize_hw", resized, theirs)


def _resized(arrays: Arrays, report: Report) -> None:
  """Compares resized images and labels."""
  image = arrays["input/image_bgr"]
  for name, theirs in below(arrays, "out/image_resized/").items():
    ours = opencv_resize.bilinear(image, theirs.shape[:2])
    label = f"image_resized/{name}"
    report.add("pixels", label, ours.astype(int), theirs.astype(int))
    # Nearly all are equal, so that no rule is off by half a pixel.
    unequal = np.mean(ours != theirs)
    report.add("share of unequal pixels", label, unequal, 0.0)
  for name, theirs in below(arrays, "out/label_resized/").items():
    ours = opencv_resize.nearest(arrays["input/label"], theirs.shape)
    label = f"label_resized/{name}"
    report.add("counts", label, ours.astype(int), theirs.astype(int))


def _crops(arrays: Arrays, report: Report) -> None:
  """Compares which boxes are accepted, and which one is chosen."""
  label = arrays["input/crop_label"]
  candidates = arrays["out/crop_candidates"]
  accepted = []
  for box in candidates[:, 1:5].tolist():
    part = segmentation.cut(label, tuple(box))
    accepted.append(int(segmentation.is_varied(part)))
  report.add("counts", "crop_candidates", accepted, candidates[:, 8])
  theirs = arrays["out/crop_box_y1y2x1x2"]
  chosen = []
  for trial in range(len(theirs)):
    rows = candidates[candidates[:, 0] == trial]
    boxes = [tuple(box) for box in rows[:, 1:5].tolist()]
    chosen.append(segmentation.choose_box(label, boxes))
  report.add("counts", "crop_box_y1y2x1x2", chosen, theirs)


def _distortion(draws: Sequence[Any]) -> photometric.Distortion:
  """Returns the distortion of the numbers that the published code drew.

  Raises:
    ValueError: more numbers than its steps take.
  """
  numbers = iter([value for _, _, value in draws])

  def maybe():
    """Returns the next number after a 1, None after a 0."""
    return next(numbers) if next(numbers) else None

  brightness = maybe()
  is_first = bool(next(numbers))
  contrast = maybe() if is_first else None
  saturation = maybe()
  hue = maybe()
  if not is_first:
    contrast = maybe()
  left = list(numbers)
  if left:
    raise ValueError(f"photo_random_draws: {left} are left over")
  return photometric.Distortion(brightness, contrast, is_first, saturation, hue)


def _colours(
  arrays: Arrays, draws_of_all: Sequence[Any], report: Report
) -> None:
  """Compares distorted colours."""
  image = _rgb(arrays["input/photo_bgr"])
  for i, draws in enumerate(draws_of_all):
    ours = _rgb(_distortion(draws)(image)).astype(int)
    theirs = arrays[f"out/photo_bgr/{i}"].astype(int)
    report.add("counts", f"photo_bgr/{i}", ours, theirs)


def _normalized(arrays: Arrays, report: Report) -> None:
  """Compares a normalised and padded image, and its labels."""
  image = _rgb(arrays["input/image_bgr"])
  label = arrays["input/label"]
  theirs = arrays["out/preprocessed_nchw"]
  size = theirs.shape[2:]
  padded = segmentation.pad(image, size, 0)[None]
  ours = views.normalize_padded(padded, np.array([label.shape]), "imagenet")
  nchw = np.asarray(ours).transpose(0, 3, 1, 2)
  report.add("normalized images", "preprocessed_nchw", nchw, theirs)
  labels = segmentation.pad(label, size, segmentation.IGNORED).astype(int)
  theirs = arrays["out/preprocessed_label"]
  report.add("counts", "preprocessed_label", labels, theirs)
