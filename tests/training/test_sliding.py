"""Sliding windows and several scales label pixels as mmsegmentation does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax.data.transforms import segmentation
from vpt_jax.training import sliding
from vpt_jax.training.sliding import Canvas, SlidingWindows

CLASSES = 4
RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(3, CLASSES)).astype(np.float32)


@jax.jit
def logits_of(images):
  """Depends on the pixel, on its place in the window and on its window."""
  rows = jnp.arange(images.shape[1])[:, None, None] / 10
  middle = images.mean((1, 2), keepdims=True)
  return (images + middle) @ MIX + rows * jnp.arange(CLASSES)


def random_image(height, width):
  return RNG.normal(size=(height, width, 3)).astype(np.float32)


def test_windows_and_counts_are_the_published():
  """Of `seg_slide_tta`: an image of 45 x 58, windows of 32, stride 21."""
  want = [(0, 0), (0, 21), (0, 26), (13, 0), (13, 21), (13, 26)]
  got = sliding.windows((45, 58), (32, 32), (21, 21))
  assert got == [(top, left, top + 32, left + 32) for top, left in want]
  counts = sliding.counts((45, 58), (32, 32), (21, 21))
  assert counts[0, 0] == 1
  assert counts[20, 30] == 6
  assert counts.sum() == 6 * 32 * 32
  assert counts.min() == 1


@pytest.mark.parametrize(
  ("size", "count"),
  [((512, 683), 2), ((512, 512), 1), ((512, 2048), 6), ((300, 100), 1)],
)
def test_windows_reach_every_border(size, count):
  found = sliding.windows(size, (512, 512), (341, 341))
  assert len(found) == count
  assert found[-1][2:] == size
  assert min(row[0] for row in found) == 0


@pytest.mark.parametrize("stride", [(0, 1), (9, 8), (8, 9)])
def test_strides_that_leave_out_pixels_are_refused(stride):
  with pytest.raises(ValueError, match="at most the window's side"):
    sliding.windows((20, 20), (8, 8), stride)


def plain(image, crop, stride):
  """Returns the mean logits of all windows, one after the other."""
  total = np.zeros((*image.shape[:2], CLASSES))
  times = np.zeros((*image.shape[:2], 1))
  for top, left, bottom, right in sliding.windows(
    image.shape[:2], crop, stride
  ):
    part = image[None, top:bottom, left:right]
    total[top:bottom, left:right] += np.asarray(logits_of(part))[0]
    times[top:bottom, left:right] += 1
  return total / times


SIZES = [(45, 58), (32, 32), (33, 90), (20, 40), (64, 31), (45, 58)]


@pytest.mark.parametrize("at_once", [1, 4, 7])
def test_logits_are_those_of_windows_one_by_one(at_once):
  """Whatever is computed together, and with sides below the window's."""
  images = [random_image(*size) for size in SIZES]
  slide = SlidingWindows(logits_of, (32, 32), (21, 21), at_once, grain=16)
  canvases = list(slide(images))
  assert [canvas.size for canvas in canvases] == SIZES
  for image, canvas in zip(images, canvases, strict=True):
    want = plain(image, (32, 32), (21, 21))
    np.testing.assert_allclose(canvas.cut(), want, rtol=1e-5, atol=1e-5)
  assert slide.shapes == {(32, 32), (20, 32), (32, 31)}


def test_whole_images():
  image = random_image(23, 37)
  (canvas,) = SlidingWindows(logits_of)([image])
  want = np.asarray(logits_of(image[None]))[0]
  np.testing.assert_allclose(canvas.cut(), want, rtol=1e-5, atol=1e-5)


def test_few_programs_are_compiled_for_many_sizes():
  """Windows of one shape, canvases of few: sizes of images do not matter."""
  calls = []

  @jax.jit
  def counted(images):
    calls.append(images.shape)  # when it is traced
    return images @ MIX

  slide = SlidingWindows(counted, (16, 16), (11, 11), at_once=4, grain=64)
  before = sliding._add._cache_size(), sliding._apply._cache_size()
  for canvas in slide(random_image(20 + i, 60 - i) for i in range(20)):
    sliding.label_map([canvas], (30 + canvas.size[0] // 2, 41), grain=64)
  assert calls == [(4, 16, 16, 3)]
  assert sliding._add._cache_size() - before[0] == 1
  assert sliding._apply._cache_size() - before[1] == 1


def test_logits_of_another_size_are_refused():
  slide = SlidingWindows(lambda images: images[:, ::2, ::2])
  with pytest.raises(ValueError, match="resize them to the windows"):
    list(slide([random_image(8, 8)]))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(40, 52), (11, 9), (17, 23), (1, 60)])
def test_logits_are_resized_as_by_pytorch(size, align_corners):
  torch = pytest.importorskip("torch")
  logits = RNG.normal(size=(17, 23, CLASSES)).astype(np.float32)
  larger = np.full((32, 32, CLASSES), 1e3, np.float32)
  larger[:17, :23] = logits
  canvas = Canvas(jnp.asarray(larger), (17, 23))
  for is_flipped in (False, True):
    got = sliding.resize_logits(canvas, size, is_flipped, align_corners, 16)
    seen = logits[:, ::-1] if is_flipped else logits
    tensor = torch.tensor(seen.transpose(2, 0, 1).copy())[None]
    want = torch.nn.functional.interpolate(
      tensor, size, mode="bilinear", align_corners=align_corners
    )
    want = want[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_views_are_merged_as_published():
  """Flipped back, resized, softmax, mean, largest."""
  size = (40, 52)
  image = RNG.integers(256, size=(*size, 3), dtype=np.uint8)
  sizes = segmentation.evaluation_sizes(size, (0.75, 1.25), scale=None)
  seen = sliding.views_of(image, sizes, flip=True, normalize="imagenet")
  assert [view.shape[:2] for view in seen] == [
    sizes[0],
    sizes[0],
    sizes[1],
    sizes[1],
  ]
  slide = SlidingWindows(logits_of, (32, 32), (21, 21), grain=16)
  canvases = list(slide(seen))
  got = sliding.label_map(canvases, size, flip=True, grain=16)
  mean = np.zeros((*size, CLASSES))
  for number, canvas in enumerate(canvases):
    is_flipped = number % 2 == 1
    logits = sliding.resize_logits(canvas, size, is_flipped)
    mean += np.asarray(jax.nn.softmax(logits)) / len(canvases)
  np.testing.assert_array_equal(got, mean.argmax(-1))
  # One view: its logits decide.
  got = sliding.label_map(canvases[:1], size)
  logits = sliding.resize_logits(canvases[0], size)
  np.testing.assert_array_equal(got, logits.argmax(-1))
  with pytest.raises(ValueError, match="no view"):
    sliding.label_map([], size)


def test_a_view_at_its_own_size_is_the_normalised_image():
  image = RNG.integers(256, size=(9, 7, 3), dtype=np.uint8)
  view, flipped = sliding.views_of(image, [(9, 7)], True, "imagenet")
  mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
  np.testing.assert_allclose(view, (image - mean) / std, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(view, flipped[:, ::-1])
