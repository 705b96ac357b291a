"""No flipped bit of a cache changes a number: images, labels, meta, ranges."""

import jax
from jax.sharding import Mesh
import numpy as np
import pytest

from tests.data import test_cache
from vpt_jax.data import pipeline
from vpt_jax.data.cache import checked, grey_range, prepared
from vpt_jax.data.sources import tfds_labels

SIZES = [(20, 30), (30, 20), (16, 16), (40, 20)] * 5
ROWS = np.arange(len(SIZES))
LAYOUTS = {
  "images": test_cache.layout("vtab"),
  "strips": test_cache.layout("fgvc"),
}


@pytest.fixture(name="cache", params=LAYOUTS)
def cache_(request, tmp_path):
  return test_cache.prepare(
    test_cache.made(SIZES), tmp_path, LAYOUTS[request.param]
  )


def flip(path, place, bit=0):
  data = bytearray(path.read_bytes())
  data[place] ^= 1 << bit
  path.write_bytes(data)


def values(split):
  """Returns all that a run takes from a split."""
  strips = [] if split.strips is None else [split.strips.first.tolist()]
  strips += [] if split.strips is None else [split.strips.wide.tolist()]
  return [
    split.images[:].tobytes(),
    split.images.shape,
    split.labels.tolist(),
    list(split.names),
    split.class_names,
    split.num_classes,
    split.skipped,
    *strips,
  ]


def test_any_flipped_bit_is_found_or_changes_nothing(cache):
  """In each of its files, at many places: of pixels, labels, names, meta."""
  expected = values(prepared.open_cache(cache))
  rng = np.random.default_rng(0)
  found = 0
  for path in sorted(cache.iterdir()):
    whole = path.read_bytes()
    for place in rng.integers(0, len(whole), 25):
      flip(path, place, int(rng.integers(8)))
      try:
        assert values(prepared.open_cache(cache)) == expected
        assert path.name in ("meta.json", "chunks.jsonl")  # blanks in JSON
      except ValueError as error:
        found += 1
        assert str(cache) in str(error) and "delete th" in str(error)
      path.write_bytes(whole)
  assert found > 25 * (len(list(cache.iterdir())) - 2)


@pytest.fixture(name="flipped")
def flipped_(cache):
  """A cache whose image 7 has changed by one bit, opened without a word."""
  split = prepared.open_cache(cache)
  first = 7 if split.strips is None else int(split.strips.first[7])
  place = prepared.HEADER + first * split.images[0].nbytes + 100
  flip(cache / "images.npy", place)
  return prepared.open_cache(cache), first


READERS = {
  "one image": lambda images, i: images[i],
  "from the end": lambda images, i: images[i - len(images)],
  "a slice": lambda images, i: images[i : i + 1],
  "every third": lambda images, i: images[i % 3 :: 3],
  "some": lambda images, i: images[[1, i]],
  "a mask": lambda images, i: images[np.arange(len(images)) == i],
  "a corner": lambda images, i: images[i : i + 2, 2:3],
  "a pixel": lambda images, i: images[i, 0, 0],
  "all": lambda images, i: images[...],
  "in turn": lambda images, i: list(images),
  "new axis": lambda images, i: images[None],
}


@pytest.mark.parametrize("kind", READERS)
def test_a_changed_image_is_found_when_it_is_first_read(flipped, kind):
  """However it is read; and those beside it are read as before."""
  split, i = flipped
  split.images[:i]
  split.images[len(split.images) - 1 :]
  with pytest.raises(checked.Damaged, match="image 7 of .*images.npy"):
    READERS[kind](split.images, i)
  with pytest.raises(checked.Damaged):  # and again
    READERS[kind](split.images, i)


@pytest.mark.parametrize("resident", [True, False])
def test_training_does_not_take_a_changed_image(flipped, resident):
  """From the device, and read ahead in threads: what ends it names the file."""
  split, _ = flipped
  mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
  crop = 0 if split.strips is None else 16
  with pytest.raises(ValueError, match="image 7 of .*images.npy has another"):
    feed = pipeline.Feed(split, 4, mesh, 1e9 if resident else 0, crop)
    for batch in feed.batches(ROWS):
      np.asarray(batch["image"])


def test_parts_and_shares_of_a_changed_split(flipped):
  split, _ = flipped
  split.take(ROWS[:7])
  with pytest.raises(checked.Damaged):
    split.take(ROWS)
  with pytest.raises(checked.Damaged):
    split.share(1.0, 0)


def test_an_image_is_compared_once(cache, monkeypatch):
  """Reading it again costs nothing."""
  split = prepared.open_cache(cache)
  calls = []
  crc32 = checked.zlib.crc32
  monkeypatch.setattr(
    checked.zlib, "crc32", lambda data: calls.append(1) or crc32(data)
  )
  for _ in range(3):
    assert type(split.images[:]) is np.ndarray
    for i in range(len(split.images)):
      split.images[i]
  assert len(calls) == len(SIZES)


def test_files_of_two_caches_do_not_fit(cache):
  """Fewer or more checksums than images are damage, not a shorter split."""
  images = cache / "images.npy"
  split = prepared.open_cache(cache)
  first = None if split.strips is None else split.strips.first
  for count in (len(SIZES) - 1, len(SIZES) + 1):
    with pytest.raises(ValueError, match="rows, not"):
      checked.open_images(images, np.zeros(count, np.uint32), first)


def test_remembered_labels_and_ranges(tmp_path, monkeypatch):
  """Small files beside the caches: a damaged one is made anew."""
  monkeypatch.setenv("VPT_JAX_CACHE", str(tmp_path))
  monkeypatch.setattr(tfds_labels, "LEAST_CACHED", 3)
  monkeypatch.setattr(grey_range, "REMEMBERED", 3)
  monkeypatch.setattr(grey_range, "_measure", lambda *_: 4095)
  labels = np.arange(300, dtype=np.int32)
  folder = tmp_path / "data"
  examples = test_cache.made(SIZES)

  def both():
    return (
      tfds_labels.cached("x", 300, lambda: labels).tolist(),
      grey_range.find_grey_range(examples, folder),
    )

  expected = (labels.tolist(), 4095)
  assert both() == expected
  rng = np.random.default_rng(0)
  for path in list(folder.iterdir()):
    whole = path.read_bytes()
    for place in rng.integers(0, len(whole), 40):
      flip(path, place, int(rng.integers(8)))
      assert both() == expected
      path.write_bytes(whole)


@pytest.mark.parametrize(
  "text",
  ["", "{", "[]", "3", '{"crc32": 0}', '{"grey_range": 9}', "[" * 10**6],
)
def test_a_range_that_is_none_is_measured_again(tmp_path, monkeypatch, text):
  monkeypatch.setattr(grey_range, "REMEMBERED", 3)
  monkeypatch.setattr(grey_range, "_measure", lambda *_: 255)
  examples = test_cache.made(SIZES)
  grey_range.find_grey_range(examples, tmp_path)
  (path,) = tmp_path.glob("grey-*.json")
  path.write_text(text)
  assert grey_range.find_grey_range(examples, tmp_path) == 255
  assert '"crc32"' in path.read_text()
