"""Host geometry against values recorded from TensorFlow and torchvision.

See golden_data/record.py, which made them.
"""

import ast
from pathlib import Path
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests.golden_data import record
from vpt_jax.data.transforms import resize, views

TF = np.load(record.HERE / "tensorflow.npz")
TORCH = np.load(record.HERE / "torchvision.npz")


@pytest.mark.parametrize("i", range(len(record.TF_SHAPES)))
def test_vtab_is_tensorflows_resize(i):
  shape, size = record.TF_SHAPES[i]
  image = record.pattern(*shape)
  before = image.copy()
  ours = resize.vtab(image, size)
  assert ours.shape == (*size, 3) and ours.dtype == np.uint8
  np.testing.assert_array_equal(ours, np.round(TF[f"resize_{i}"]))
  np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("i", range(len(record.TF_SHAPES)))
def test_so_is_the_devices(i):
  shape, size = record.TF_SHAPES[i]
  ours = views.prepare(record.pattern(*shape)[None], size, "none")[0]
  np.testing.assert_allclose(255 * ours, TF[f"resize_{i}"], atol=0.1)


def test_twenty_different_cases():
  assert len(set(record.TF_SHAPES)) == 20
  ours = [TF[f"resize_{i}"] for i in range(20)]
  assert sum(len(np.unique(x)) > 10 for x in ours) > 15  # there is much to miss


@pytest.mark.parametrize("i", range(len(record.RESIZE_CROP)))
def test_short_side_and_center_crop_are_torchvisions(i):
  shape, side, size = record.RESIZE_CROP[i]
  ours = resize.center_crop(
    resize.short_side(record.pattern(*shape), side), size
  )
  np.testing.assert_array_equal(ours, TORCH[f"resize_crop_{i}"])


@pytest.mark.parametrize("i", range(len(record.RESIZE_CROP_LARGE)))
def test_short_side_and_center_crop_at_the_papers_sizes(i):
  shape, side, size = record.RESIZE_CROP_LARGE[i]
  ours = resize.center_crop(
    resize.short_side(record.pattern(*shape), side), size
  )
  assert record.digest(ours) == TORCH["resize_crop_large"][i]


@pytest.mark.parametrize(
  "shape,side,want",
  [
    ((375, 500), 256, (256, 341)),
    ((500, 375), 256, (341, 256)),
    ((300, 300), 256, (256, 256)),
    ((3, 20000), 4, (4, 26666)),
    ((200, 256), 200, (200, 256)),
  ],
)
def test_the_long_side_is_rounded_down(shape, side, want):
  image = record.pattern(*shape)
  ours = resize.short_side(image, side)
  assert ours.shape == (*want, 3)
  if shape == want:
    np.testing.assert_array_equal(ours, image)


def test_too_long_an_image_is_refused():
  with pytest.raises(
    ValueError,
    match=(
      "20000 x 1 pixels is too long: with a shorter side of 256 it has "
      "1310720000 pixels"
    ),
  ):
    resize.short_side(record.pattern(1, 20000), 256)


def test_center_crop_pads_as_torchvision():
  """As the documentation of torchvision says; 5 to 8: one and two more."""
  image = record.pattern(5, 9)
  ours = resize.center_crop(image, (8, 6))
  np.testing.assert_array_equal(ours[1:6], image[:, 2:8])
  assert not ours[:1].any() and not ours[6:].any()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("i", range(len(record.SQUASH)))
def test_squash_is_torchvisions_fallback(i, mode):
  shape, size = record.SQUASH[i]
  ours = resize.squash(
    record.pattern(*shape), size, Image.Resampling[mode.upper()]
  )
  np.testing.assert_array_equal(ours, TORCH[f"squash_{mode}_{i}"])


# Families.

IMAGE = record.pattern(60, 100)


def test_vtab_family():
  for train in (True, False):
    np.testing.assert_array_equal(
      resize.fit("vtab", IMAGE, (32, 24), train), resize.vtab(IMAGE, (32, 24))
    )


@pytest.mark.parametrize("size,side", [(224, 256), (384, 438), (448, 512)])
def test_fgvc_family(size, side):
  """The shorter sides are VPT's."""
  train = resize.fit("fgvc", IMAGE, (size, size), True)
  assert train.shape == (side, side * 100 // 60, 3)
  test = resize.fit("fgvc", IMAGE, (size, size), False)
  np.testing.assert_array_equal(test, resize.center_crop(train, (size, size)))
  assert resize.FAMILIES["fgvc"].strips


def test_pgn_families():
  size = (28, 28)
  np.testing.assert_array_equal(
    resize.fit("pgn", IMAGE, size, True),
    resize.squash(IMAGE, size, Image.Resampling.BICUBIC),
  )
  cropped = resize.fit("pgn_crop", IMAGE, size, True)
  np.testing.assert_array_equal(cropped, resize.short_side(IMAGE, 28))
  for family in ("pgn", "pgn_crop"):
    np.testing.assert_array_equal(
      resize.fit(family, IMAGE, size, False), resize.center_crop(cropped, size)
    )
  assert [
    name for name, family in resize.FAMILIES.items() if family.strips
  ] == ["fgvc", "pgn_crop"]


@pytest.mark.parametrize("family", resize.FAMILIES)
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (40, 40), (1, 90), (90, 2)])
def test_every_family_gives_its_size(family, train, shape):
  for size in ((24, 24), (24, 16), (16, 24)):
    image = record.pattern(*shape)
    ours = resize.fit(family, image, size, train)
    assert ours.dtype == np.uint8 and ours.shape[2] == 3
    if train and resize.FAMILIES[family].strips:
      assert min(ours.shape[:2]) >= 24
    else:
      assert ours.shape == (*size, 3)
    grey = resize.fit(family, image[..., :1], size, train)
    np.testing.assert_array_equal(
      grey, resize.fit(family, image[..., :1].repeat(3, 2), size, train)
    )


@pytest.mark.parametrize(
  "image,message",
  [
    (IMAGE.astype(np.float32), "got float32 \\[60, 100, 3\\]"),
    (IMAGE[..., 0], "got uint8 \\[60, 100\\]"),
    (IMAGE[..., :2], "got uint8 \\[60, 100, 2\\]"),
    (IMAGE[:0], "got uint8 \\[0, 100, 3\\]"),
  ],
)
def test_what_is_no_image(image, message):
  with pytest.raises(ValueError, match=message):
    resize.fit("vtab", image, (8, 8), True)


def test_an_unknown_family():
  with pytest.raises(
    ValueError, match=("unknown data.preprocess 'fvgc'; did you mean 'fgvc'\\?")
  ):
    resize.fit("fvgc", IMAGE, (8, 8), True)


@pytest.mark.parametrize("module", ["decode", "resize", "preprocess"])
def test_the_host_needs_no_jax(module):
  name = f"vpt_jax.data.transforms.{module}"
  code = f"import sys; import {name}; sys.exit('jax' in sys.modules)"
  root = Path(__file__).parents[2]
  done = subprocess.run([sys.executable, "-c", code], check=False, cwd=root)
  assert done.returncode == 0


@pytest.mark.parametrize("module", ["decode", "resize"])
def test_the_source_names_no_jax(module):
  source = Path(resize.__file__).with_name(f"{module}.py").read_text("utf-8")
  assert "jax" not in {
    alias.name
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.Import)
    for alias in node.names
  }
