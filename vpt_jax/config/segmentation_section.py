"""Lists the fields of the section `segmentation`, see `sections.py`."""

import dataclasses
from typing import Any

from vpt_jax.config.options import (
  at_least,
  between,
  each,
  is_number,
  one_of,
  option,
  rate,
  refusal,
  share,
  whole_number,
)
from vpt_jax.data.transforms import segmentation as views
from vpt_jax.nn import dense_heads
from vpt_jax.problems import segmentation_heads
from vpt_jax.problems.semantic_segmentation import AVERAGES

TESTS = ("slide", "whole")
MULTI_SCALE = ("scale", "setr", "own")
MOST_CLASSES = 255


def _sides(name: str, value: Any) -> None:
  """Checks () or two sides in pixels, as in (2048, 512)."""
  is_size = len(value) == 2 and all(
    is_number(side) and side >= 1 for side in value
  )
  if value and not is_size:
    raise refusal(name, value, "() or two sides in pixels, as in (2048, 512)")


def _factor(name: str, value: Any) -> None:
  """Checks that an item of a tuple is a number above 0."""
  if not is_number(value) or value <= 0:
    raise refusal(name, value, "numbers above 0")


def _range(name: str, value: Any) -> None:
  """Checks two factors, the smaller one first."""
  if len(value) != 2:
    raise refusal(name, value, "two factors, the smaller one first")
  for factor in value:
    _factor(name, factor)
  if value[0] > value[1]:
    raise refusal(name, value, "two factors, the smaller one first")


def _label_pairs(name: str, value: Any) -> None:
  """Checks pairs of labels, as in ((7, 0), (8, 255))."""
  for pair in value:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
      raise refusal(name, value, "pairs (label, label), as in ((7, 0),)")
    for label in pair:
      whole_number(name, label)


@dataclasses.dataclass(frozen=True)
class SegmentationSection:
  """Segmentation: head, loss, views, test and masks; only of that problem."""

  decoder: str = option(
    "pup",
    one_of(segmentation_heads.DECODERS),
    help="The head: pup (SETR's as in mmsegmentation) | setr_pup (as in its "
    "authors' code) | pup_4 (a shorter one, for patches of 4 pixels) | linear "
    "(BatchNorm and a 1 x 1 convolution, as DINOv2 is probed).",
  )
  auxiliary: str = option(
    "aux2x4",
    one_of(dense_heads.DESIGNS, or_empty=True),
    help="Design of SETR's auxiliary heads, a name of `DESIGNS` in "
    "vpt_jax/nn/dense_heads.py; empty: there are none.",
  )
  blocks: tuple = option(
    (),
    each(whole_number),
    help="The blocks that are read, counted from 1: those of auxiliary heads, "
    "then the main head's, as in (5, 9, 12); of the linear head all that "
    "stand side by side. Empty: for SETR five and nine twelfths of the depth "
    "and the last one, for the linear head the last one.",
  )
  width: int = option(
    256, at_least(1), help="Channels of the convolutions of SETR's heads."
  )
  dropout: float = option(
    0.0, rate, help="Dropout before the linear head's convolution."
  )
  align_corners: bool = option(
    False, help="How maps are resized, see vpt_jax/ops/bilinear.py."
  )
  average: str = option(
    "all",
    one_of(AVERAGES),
    help="The loss is the mean over: all pixels, those without a class add 0 "
    "(as the published code) | labelled ones.",
  )
  auxiliary_weight: float = option(
    0.4, at_least(0), help="Weight of the loss of every auxiliary head."
  )
  scale: tuple = option(
    (),
    _sides,
    help="Training images are resized to fit into this times a random "
    "factor; the view is a random crop of image_size. Empty: four times "
    "image_size by image_size, published is (2048, 512).",
  )
  factors: tuple = option(
    views.FACTORS, _range, help="Least and largest of these factors."
  )
  most_of_one_class: float = option(
    views.MOST_OF_ONE_CLASS,
    share,
    help="Crops in which one class has this share of the pixels are drawn "
    "again, up to ten times; 1: the first is taken.",
  )
  flip: float = option(
    0.5, between(0, 1), help="How often a view is flipped, left to right."
  )
  distort: bool = option(True, help="Whether colours are distorted at random.")
  test: str = option(
    "slide",
    one_of(TESTS),
    help="Test images are seen: in windows of image_size (slide) | whole, "
    "which compiles a program for each size there is.",
  )
  stride: int = option(
    0,
    at_least(0),
    help="Pixels from one window to the next; 0: two thirds of image_size.",
  )
  test_scale: tuple = option(
    (),
    _sides,
    help="Test images are resized to fit into this; empty: as `scale`. Labels "
    "never are: logits come to their size.",
  )
  test_stored: bool = option(
    False, help="Whether test images are seen as they are stored instead."
  )
  multi_scale: str = option(
    "",
    one_of(MULTI_SCALE, or_empty=True),
    help="A second test, the mean over several scales: scale (factors of "
    "test_scale, as mmsegmentation 0.x) | setr (the same, the shorter side at "
    "least image_size) | own (factors of each image's own size, as "
    "mmsegmentation 1.x). Empty: none.",
  )
  test_factors: tuple = option(
    views.TEST_FACTORS, each(_factor), help="Factors of these scales."
  )
  test_flip: bool = option(
    True, help="Whether each of these scales is seen flipped, too."
  )
  save_maps: bool = option(
    True, help="Whether the predictions of test images are kept as PNG files."
  )
  num_classes: int = option(
    0,
    between(0, MOST_CLASSES),
    help="Classes of images of your own; 0: what the training masks have.",
  )
  colours: str = option(
    "",
    help="Map of colours to labels, for masks of colours: "
    "000000=0,ff0000=1. Empty: masks are numbers.",
  )
  reduce_zero_label: bool = option(
    False, help="Whether 0 means no class, and k class k - 1."
  )
  label_map: tuple = option(
    (),
    _label_pairs,
    help="Pairs (label in the masks, label that is meant), as in ((7, 0), (8, "
    "255)); 255 is ignored.",
  )
  thin: bool = option(
    False,
    help="Whether masks with many labels that lie on edges only are meant so; "
    "else they are taken for soft edges, and refused.",
  )
  workers: int = option(
    0,
    between(0, 256),
    help="Processes that decode and augment ahead of the step; 0: threads.",
  )
