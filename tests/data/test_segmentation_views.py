"""Views of images with label maps equal those of mmsegmentation's pipeline.

`golden/seg_pipeline.npz` was recorded from mmsegmentation 1.2.2 with
OpenCV; its images are blue, green, red.
"""

from pathlib import Path

import numpy as np
import pytest

from tests import parity
from vpt_jax.data.transforms import opencv_resize, photometric, segmentation

RECORDED = Path(__file__).parents[1] / "golden" / "seg_pipeline.npz"


@pytest.fixture(scope="module")
def golden():
  with np.load(RECORDED) as arrays:
    return dict(arrays)


def test_views_are_the_published():
  """Sizes, resized images, crops and colours: see `pipeline_parity`."""
  report = parity.compare(RECORDED)
  assert not report.failed, "\n".join(report.lines(verbose=False))
  assert not report.notes
  assert len(report.rows) > 25


def test_setr_raises_the_shorter_side_to_the_crop():
  sizes = segmentation.evaluation_sizes((375, 500), shortest=512)
  assert [min(size) for size in sizes] == [512, 512, 512, 640, 768, 896]
  assert sizes[0] == (512, 683)
  with pytest.raises(ValueError, match="without a scale"):
    segmentation.evaluation_sizes((375, 500), scale=None, shortest=512)


@pytest.mark.parametrize("size", [(97, 31), (10, 12), (21, 27), (300, 200)])
def test_a_part_of_a_resized_image_is_that_part(golden, size):
  image = golden["input/image_bgr"]
  whole = opencv_resize.bilinear(image, size)
  for box in ((3, 9, 2, 12), (0, 400, 5, 400)):
    part = opencv_resize.bilinear(image, size, box)
    np.testing.assert_array_equal(part, segmentation.cut(whole, box))


def test_the_eleventh_crop_is_taken_as_it_is():
  label = np.zeros((40, 40), np.uint8)
  label[:, 20:] = segmentation.IGNORED
  boxes = [(0, 8, column, column + 8) for column in range(20)]
  assert segmentation.choose_box(label, boxes) == boxes[10]
  assert segmentation.choose_box(label, boxes, most=1) == boxes[0]


def test_the_parts_of_a_distortion_come_half_of_the_time():
  rng = np.random.default_rng(0)
  drawn = [photometric.draw(rng) for _ in range(2000)]
  for name in ("brightness", "contrast", "saturation", "hue"):
    values = [getattr(one, name) for one in drawn]
    there = np.array([value for value in values if value is not None])
    assert 0.46 < len(there) / len(drawn) < 0.54
    low, high = {"brightness": (-32, 32), "hue": (-18, 17)}.get(
      name, (0.5, 1.5)
    )
    assert there.min() >= low
    assert there.max() <= high
    assert np.ptp(there) > 0.95 * (high - low)
  assert 0.46 < np.mean([one.contrast_first for one in drawn]) < 0.54


@pytest.fixture(scope="module")
def example():
  rng = np.random.default_rng(1)
  label = np.kron(rng.integers(5, size=(6, 8)), np.ones((10, 10)))
  label = label.astype(np.uint8)
  return np.stack([label * 40, label * 20, 255 - label * 9], -1), label


def test_a_view_is_a_function_of_seed_step_and_row(example):
  view = segmentation.TrainView((32, 32), scale=(128, 48))

  def make(*place):
    image, label, size = view(*example, segmentation.random_numbers(*place))
    assert image.shape == (32, 32, 3)
    assert (label.shape, image.dtype) == ((32, 32), np.uint8)
    assert (label[size[0] :] == segmentation.IGNORED).all()
    assert (image[:, size[1] :] == 0).all()
    return image.tobytes() + label.tobytes()

  first = make(0, 5, 2)
  assert first == make(0, 5, 2)
  others = {make(1, 5, 2), make(0, 6, 2), make(0, 5, 3)}
  assert len(others | {first}) == 4


@pytest.mark.parametrize("row", range(8))
def test_labels_stay_on_their_pixels(example, row):
  """Colours of a view without distortion tell its labels."""
  view = segmentation.TrainView((40, 40), scale=(128, 48), distort=False)
  rng = segmentation.random_numbers(3, 0, row)
  image, label, size = view(*example, rng)
  image, label = image[: size[0], : size[1]], label[: size[0], : size[1]]
  told = np.rint(image[..., 0] / 40)
  # Between two classes colours are mixed.
  around = np.lib.stride_tricks.sliding_window_view(label, (3, 3))
  is_inner = np.ptp(around, axis=(2, 3)) == 0
  assert is_inner.mean() > 0.3
  is_told = (told == label)[1:-1, 1:-1]
  assert is_told[is_inner].all()


def test_pairs_that_do_not_fit_are_refused(example):
  image, label = example
  view = segmentation.TrainView()
  rng = segmentation.random_numbers(0, 0, 0)
  with pytest.raises(ValueError, match=r"labels of an image of \[60, 80\]"):
    view(image, label[:-1], rng)
  with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
    view(image[..., 0], label, rng)
