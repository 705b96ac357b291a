"""Random views against torchvision's operations (recorded) and probabilities.

See golden_data/record.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_data import record
from vpt_jax.data.examples import Strips
from vpt_jax.data.transforms import colour, resize, views

TORCH = np.load(record.HERE / "torchvision.npz")
IMAGE = jnp.asarray(record.colourful()[None], jnp.float32) / 255
BLENDS = dict(enumerate(("brightness", "contrast", "saturation")))


def jittered(order, factor=(1, 1, 1), turn=0.0):
  return np.asarray(
    jax.jit(colour.jitter)(
      IMAGE,
      jnp.array([order]),
      jnp.array([factor], jnp.float32),
      jnp.array([turn], jnp.float32),
    )[0]
  )


def check(ours, name, atol=2):
  """`atol` of 255 from the operation on PIL images, next to none in floats."""
  assert ours.min() >= 0 and ours.max() <= 1
  np.testing.assert_allclose(
    255 * ours, TORCH[f"{name}_pil"].astype(float), atol=atol
  )
  # torchvision's grey of tensors sums to 0.9999.
  np.testing.assert_allclose(ours, TORCH[f"{name}_float"], atol=4e-4)


@pytest.mark.parametrize("what", BLENDS)
@pytest.mark.parametrize("i", range(len(record.BLENDS)))
def test_blends(what, i):
  factor = [1.0, 1.0, 1.0]
  factor[what] = record.BLENDS[i]
  others = [x for x in range(3) if x != what]  # which then change nothing
  ours = jittered([what, *others, 3], factor)
  check(ours, f"{BLENDS[what]}_{i}")


@pytest.mark.parametrize("i", range(len(record.TURNS)))
def test_hue(i):
  """Pillow rounds hue, saturation and value to 8 bits in between, a step of
  which is up to 6 levels of a channel."""
  turn = jnp.full((1, 1, 1, 1), record.TURNS[i])
  ours = np.asarray(colour.turn_hue(IMAGE, turn)[0])
  np.testing.assert_allclose(ours, TORCH[f"hue_{i}_float"], atol=1e-5)
  away = np.abs(255 * ours - TORCH[f"hue_{i}_pil"])
  assert away.mean() < 3 and away.max() < 16
  np.testing.assert_allclose(
    jittered([3, 0, 1, 2], turn=record.TURNS[i]), ours, atol=1e-6
  )


def test_grey():
  ours = np.broadcast_to(colour.grey(IMAGE)[0], IMAGE.shape[1:])
  check(ours, "grey", atol=1)


def test_solarisation(monkeypatch):
  monkeypatch.setattr(colour, "SOLARIZE_PROBABILITY", 1)
  for name in ("JITTER_PROBABILITY", "GREY_PROBABILITY"):
    monkeypatch.setattr(colour, name, 0)
  steps = np.resize(np.arange(256, dtype=np.float32), IMAGE.size // 3)
  steps = steps.repeat(3).reshape(IMAGE.shape) / 255
  ours = np.asarray(
    jax.jit(colour.recolour)(jnp.concatenate([IMAGE, steps]), jax.random.key(0))
  )
  np.testing.assert_allclose(255 * ours[0], TORCH["solarize_pil"], atol=1e-3)
  np.testing.assert_allclose(
    255 * ours[1].reshape(-1, 3)[:256, 0],
    [*range(128), *range(127, -1, -1)],
    atol=1e-3,
  )


def test_jitter_in_its_order():
  ours = jittered([2, 3, 0, 1], (0.7, 1.2, 1.3), 0.3)
  check(ours, "jitter", atol=16)  # the hue's, see above
  other = jittered([1, 0, 3, 2], (0.7, 1.2, 1.3), 0.3)
  assert np.abs(ours - other).max() > 0.05


@pytest.mark.parametrize("i", range(len(record.RECTANGLES)))
def test_crop_and_resize(i):
  top, left, height, width = record.RECTANGLES[i]
  image = jnp.asarray(
    record.pattern(record.SQUARE, record.SQUARE)[None] / 255, jnp.float32
  )
  ours = jax.jit(views.crop_resize)(
    image,
    jnp.array([[top, left]], jnp.float32),
    jnp.array([[height, width]], jnp.float32),
  )
  np.testing.assert_allclose(255 * ours[0], TORCH[f"rectangle_{i}"], atol=2)
  if i == 0:
    np.testing.assert_allclose(ours, image, atol=1e-6)


# Draws.

MANY = 4000


def test_probabilities_of_colours(monkeypatch):
  """A jitter that only darkens, so that a white pixel tells what was done."""
  monkeypatch.setattr(colour, "jitter", lambda image, *_: 0.875 * image)
  image = np.zeros((MANY, 1, 2, 3), np.float32)
  image[:, 0] = (1, 1, 1), (0.25, 0.125, 0.375)
  out = np.asarray(jax.jit(colour.recolour)(image, jax.random.key(0)))
  white = out[:, 0, 0, 0]
  assert {*white.tolist()} == {1, 0.875, 0.125, 0}
  done = np.stack(
    [
      (white == 0.875) | (white == 0.125),
      np.ptp(out[:, 0, 1], axis=1) == 0,
      white < 0.5,
    ]
  )
  for i, p in enumerate((0.8, 0.2, 0.2)):
    assert abs(done[i].mean() - p) < 4 * np.sqrt(p * (1 - p) / MANY)
  # Of one another, and of the image before.
  assert np.abs(np.corrcoef(done) - np.eye(3)).max() < 4 / np.sqrt(MANY)
  assert np.abs(
    np.corrcoef(done[:, 1:], done[:, :-1])[:3, 3:]
  ).max() < 4 / np.sqrt(MANY)


def test_ranges_and_order_of_jitter(monkeypatch):
  seen = {}
  monkeypatch.setattr(
    colour,
    "jitter",
    lambda image, order, factor, turn: (
      seen.update(order=order, factor=factor, turn=turn),
      image,
    )[1],
  )
  colour.recolour(jnp.zeros((MANY, 1, 1, 3)), jax.random.key(1))
  order, factor, turn = (
    np.asarray(seen[x]) for x in ("order", "factor", "turn")
  )
  ways, count = np.unique(order, axis=0, return_counts=True)
  assert len(ways) == 24 and (np.sort(ways) == np.arange(4)).all()
  assert np.abs(count - MANY / 24).max() < 5 * np.sqrt(MANY / 24)
  for x, low, high in ((factor, 0.6, 1.4), (turn, -0.4, 0.4)):
    assert low <= x.min() < low + 0.01 and high - 0.01 < x.max() <= high
    assert abs(x.mean() - (low + high) / 2) < 0.01
  assert np.abs(np.corrcoef(np.c_[factor, turn].T) - np.eye(4)).max() < 0.08


def test_random_resized_crop():
  """Of a ramp in both directions: each draw tells its rectangle."""
  size = 32
  ramp = (np.arange(size) + 0.5) / size
  image = np.zeros((MANY, size, size, 2), np.float32)
  image[..., 0], image[..., 1] = ramp[:, None], ramp
  out = np.asarray(
    jax.jit(views.random_resized_crop, static_argnums=1)(
      jnp.asarray(image), 0.3, jax.random.key(0)
    )
  )
  # Edges are flattened by the filter; a quarter from them, slopes are straight.
  height, width = (2 * (out[:, 24, 24, c] - out[:, 8, 8, c]) for c in (0, 1))
  sides = np.stack([height, width]) * size
  assert np.abs(sides - sides.round()).max() < 0.05
  area, ratio = height * width, width / height
  assert 0.27 < area.min() < 0.33 and 0.95 < area.max() < 1.03
  assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4
  assert abs(np.log(ratio).mean()) < 0.02
  middle = out[:, 16, 16]
  assert (
    np.abs(middle.mean(0) - 0.5).max() < 0.02 and middle.std(0).min() > 0.08
  )
  assert len(np.unique(middle.round(3), axis=0)) > 100


def test_where_no_draw_fits_the_whole_image_is_taken():
  """9/10 of an image four times as wide as high, at ratios to 4/3."""
  image = jax.random.uniform(jax.random.key(0), (20, 4, 16, 3))
  ours = jax.jit(views.random_resized_crop, static_argnums=1)(
    image, 0.9, jax.random.key(1)
  )
  np.testing.assert_allclose(ours, image, atol=1e-6)


# Views.

PIXELS = np.stack([record.pattern(12, 16) ^ np.uint8(i) for i in range(64)])
view = jax.jit(views.train_view, static_argnums=(1, 2, 3, 5))


def test_no_augmentation_is_what_evaluation_sees():
  for size in ((12, 16), (8, 8)):
    for name in views.NORMALIZE:
      np.testing.assert_array_equal(
        views.train_view(PIXELS, size, name, "none", jax.random.key(0)),
        views.prepare(PIXELS, size, name),
      )


@pytest.mark.parametrize("kind", ["flip", "crop", "flip_crop"])
def test_moves_are_of_normalised_images(kind):
  """So that a crop's margin is the mean colour."""
  key = jax.random.key(0)
  np.testing.assert_array_equal(
    views.train_view(PIXELS, (12, 16), "imagenet", kind, key),
    views.augment(views.prepare(PIXELS, (12, 16), "imagenet"), kind, key),
  )


@pytest.mark.parametrize(
  "kind,flips",
  [("pgn", [(0, 0), (0, 1)]), ("pgn_crop", [(0, 0), (0, 1), (1, 0), (1, 1)])],
)
def test_pgn_recolours_before_and_flips(kind, flips, monkeypatch):
  """Each flip comes with every recolouring."""
  seen = []
  monkeypatch.setattr(
    colour, "recolour", lambda image, rng: (seen.append(image), image)[1]
  )
  out = views.train_view(PIXELS, (12, 16), "clip", kind, jax.random.key(3))
  np.testing.assert_allclose(seen[0], PIXELS / 255, atol=1e-6)
  plain = np.asarray(views.prepare(PIXELS, (12, 16), "clip"))
  found = [
    [
      (up, side)
      for up in (0, 1)
      for side in (0, 1)
      if np.allclose(x, y[:: 1 - 2 * up, :: 1 - 2 * side], atol=1e-5)
    ]
    for x, y in zip(np.asarray(out), plain)
  ]
  assert {len(x) for x in found} == {1}
  share = [sum(x == [flip] for x in found) / 64 for flip in flips]
  assert sum(share) == 1 and min(share) > 0.5 / len(flips)


def test_views_of_pgn_end_in_the_backbones_range():
  out = np.asarray(view(PIXELS, (12, 16), "half", "pgn", jax.random.key(0)))
  assert out.dtype == np.float32 and out.shape == (64, 12, 16, 3)
  assert out.min() >= -1 - 1e-6 and out.max() <= 1 + 1e-6


@pytest.mark.parametrize(
  "kind,min_scale",
  [*((kind, 1.0) for kind in views.AUGMENT), ("none", 0.5), ("pgn", 0.5)],
)
def test_the_key_decides_and_every_image_has_its_own_draw(kind, min_scale):
  image = PIXELS.copy()
  image[32:] = image[0]
  out = [
    np.asarray(
      view(image, (12, 16), "half", kind, jax.random.key(seed), min_scale)
    )
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(out[0], out[1])
  # How many different views of 32 equal images there may be.
  low, high = {
    "none": (1, 1),
    "flip": (2, 2),
    "crop": (8, 15),
    "flip_crop": (12, 30),
  }.get(kind, (28, 32))
  if min_scale < 1:
    low, high = 20, 32
  assert low <= len(np.unique(out[0][32:].reshape(32, -1), axis=0)) <= high
  assert (out[0] != out[2]).any() == (high > 1)


def test_every_family_has_its_views():
  assert views.OWN.keys() == resize.FAMILIES.keys()
  assert {*views.OWN.values()} <= views.AUGMENT.keys()


# Strips.


@pytest.fixture(scope="module")
def strips():
  """(images, rows, first, wide): tall, wide and square, shorter side 6."""
  shapes = [(6, 6), (11, 6), (6, 9), (6, 40), (25, 6), (6, 7)]
  images = [
    np.random.default_rng(i).integers(0, 256, (*shape, 3), np.uint8)
    for i, shape in enumerate(shapes)
  ]
  wide = np.array([w > h for h, w in shapes])
  turned = [
    image.swapaxes(0, 1) if turn else image for image, turn in zip(images, wide)
  ]
  first = np.cumsum([0] + [len(image) for image in turned])
  return images, np.concatenate(turned), first, wide


def test_crops_of_strips(strips):
  """All crops there are, each about as often, and nothing else."""
  images, rows, first, wide = strips
  index = np.arange(len(images)).repeat(600)
  crop = jax.jit(views.crop_strips, static_argnums=5)
  out = np.asarray(
    crop(*map(jnp.asarray, (rows, first, wide, index)), jax.random.key(0), 5)
  )
  assert out.shape == (len(index), 5, 5, 3) and out.dtype == np.uint8
  for i, image in enumerate(images):
    places = {
      image[y : y + 5, x : x + 5].tobytes(): 0
      for y in range(image.shape[0] - 4)
      for x in range(image.shape[1] - 4)
    }
    for view in out[index == i]:
      places[view.tobytes()] += 1
    count = np.array(list(places.values()))
    mean = 600 / len(count)
    assert np.abs(count - mean).max() < 5 * np.sqrt(mean)


def test_crops_of_strips_of_one_place_and_of_none(strips):
  images, rows, first, wide = strips
  out = views.crop_strips(
    rows, first, wide, np.array([0, 0]), jax.random.key(0), 6
  )
  np.testing.assert_array_equal(out, [images[0]] * 2)
  with pytest.raises(
    ValueError,
    match=("crops of side 7 from images of shorter side 6: prepare them"),
  ):
    views.crop_strips(rows, first, wide, np.array([0]), jax.random.key(0), 7)


def test_the_device_crops_as_the_host(strips):
  images, rows, first, wide = strips
  host = Strips(first, wide)
  rng = np.random.default_rng(0)
  index = rng.integers(0, len(images), 50)
  place = rng.random((50, 2), np.float32)
  place[:2] = 0, np.nextafter(np.float32(1), np.float32(0))
  out = views.crop_at(
    rows,
    *map(jnp.asarray, (first[index], host.lengths[index], wide[index], place)),
    4,
  )
  np.testing.assert_array_equal(
    out, [host.crop(rows, i, at, 4) for i, at in zip(index, place)]
  )
