"""Prepared caches: what is in them, and that nothing leaves a broken one."""

import dataclasses
import errno
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from tests import images as images_lib
from vpt_jax.data import datasets
from vpt_jax.data.cache import decoding, prepared, writer
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import class_folders
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.utils import files, signals

ROOT = Path(__file__).resolve().parents[2]


def made(sizes, bad=(), identity="x"):
  """Random images of these (height, width); some cannot be read."""
  images = [
    np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
    for i, size in enumerate(sizes)
  ]

  def read(i):
    if i in bad:
      raise ValueError("it is bad")
    return images[i]

  return Examples(
    [f"{i}.png" for i in range(len(images))],
    np.arange(len(images), dtype=np.int32) % 3,
    3,
    read,
    "here",
    identity,
    ("a", "b", "c"),
  )


UNEQUAL = [(20, 30), (30, 20), (9, 9), (16, 16), (40, 10)] * 5


def layout(family="vtab", size=(16, 16), train=True, **options):
  return Layout(Preprocess(size, "none", family, **options), train)


VTAB = layout()


def prepare(examples, folder=None, layout=VTAB, **options):
  return prepared.prepare(examples, layout, folder, **options)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(writer, "CHUNK", 4)


def content(path):
  return {file.name: file.read_bytes() for file in path.iterdir()}


def same(ours, other):
  np.testing.assert_array_equal(ours.images, other.images)
  np.testing.assert_array_equal(ours.labels, other.labels)
  assert (ours.images.dtype, ours.labels.dtype) == (np.uint8, np.int32)
  assert list(ours.names) == list(other.names)
  for field in ("num_classes", "skipped", "class_names"):
    assert getattr(ours, field) == getattr(other, field)
  assert (ours.strips is None) == (other.strips is None)
  if ours.strips is not None:
    np.testing.assert_array_equal(ours.strips.first, other.strips.first)
    np.testing.assert_array_equal(ours.strips.wide, other.strips.wide)
    assert ours.strips.first.dtype == np.int64
    assert ours.strips.wide.dtype == bool


# What is in a cache.


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("family", ["vtab", "fgvc", "pgn"])
@pytest.mark.parametrize("sizes", [UNEQUAL, [(9, 7)] * 9, [(20, 20)] * 5])
@pytest.mark.parametrize("bad", [(), (0, 3)])
def test_a_cache_holds_what_is_decoded(tmp_path, family, train, sizes, bad):
  chosen = layout(family, train=train)
  want = decoding.decode_all(made(sizes, bad), chosen, "skip")
  path = prepare(
    made(sizes, bad),
    tmp_path,
    chosen,
    on_error="skip",
    name="x/y z",
  )
  assert path.parent == tmp_path and path.name.startswith("x_y_z-")
  got = prepared.open_cache(path, deep=True)
  same(got, want)
  assert isinstance(got.images, np.memmap) and not got.images.flags.writeable
  assert len(got) == len(sizes) - len(bad) and got.skipped == len(bad)
  if family == "fgvc" and train:
    assert got.images.shape[1:] == (18, 3)  # 16 * 8 / 7
    longest = max(got.strips.lengths)
    assert sizes != UNEQUAL or longest == 18 * 40 // 10
  elif family == "vtab" and sizes == [(9, 7)] * 9:
    assert got.images.shape[1:] == (9, 7, 3)  # small ones are kept
  else:
    assert got.images.shape[1:] == (16, 16, 3)


def test_strips_are_the_images(tmp_path):
  path = prepare(
    made([(18, 27), (36, 18), (18, 18)]), tmp_path, layout=layout("fgvc")
  )
  got = prepared.open_cache(path)
  assert got.strips.first.tolist() == [0, 27, 63, 81]
  assert got.strips.wide.tolist() == [True, False, False]
  source = made([(18, 27), (36, 18), (18, 18)])
  np.testing.assert_array_equal(got.images[:27], source.read(0).swapaxes(0, 1))
  np.testing.assert_array_equal(got.images[27:63], source.read(1))


def test_an_image_of_another_size_may_come_late(tmp_path):
  """All are kept as they are until one differs, in the last chunk."""
  sizes = [(8, 8)] * 18 + [(9, 8)]
  got = prepared.open_cache(prepare(made(sizes), tmp_path), True)
  assert got.images.shape == (19, 16, 16, 3)
  same(got, decoding.decode_all(made(sizes), VTAB))


def test_a_cache_that_is_there_is_used(tmp_path):
  path = prepare(made(UNEQUAL), tmp_path)
  nothing = dataclasses.replace(made(UNEQUAL), read=None)
  assert prepare(nothing, tmp_path) == path
  os.chmod(tmp_path, 0o555)
  try:
    assert prepare(nothing, tmp_path) == path
  finally:
    os.chmod(tmp_path, 0o755)


def test_the_folder_of_all_caches(tmp_path, monkeypatch):
  monkeypatch.setenv("VPT_JAX_CACHE", str(tmp_path))
  assert prepare(made(UNEQUAL)).parent == tmp_path / "data"
  monkeypatch.delenv("VPT_JAX_CACHE")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert prepared.default_folder() == tmp_path / "home/.cache/vpt_jax/data"


def test_the_key_changes_with_all_that_changes_pixels(tmp_path, monkeypatch):
  def place(identity="x", **options):
    examples = made([(4, 4)], identity=identity)
    return prepared.cache_path(examples, layout(**options), tmp_path, "name")

  different = [
    place(),
    place("y"),
    place(family="pgn"),
    place(size=(16, 17)),
    place(size=(17, 16)),
    place(family="fgvc"),
    place(family="fgvc", train=False),
    place(family="pgn", train=False),
    place(upright=False),
    place(grey_range=4095),
    place(grey_range=255),
  ]
  assert place(train=False) == place()  # the same pixels
  assert (
    place("x")
    == place()
    == prepared.cache_path(made([(5, 5)]), VTAB, tmp_path, "name")
  )
  monkeypatch.setattr(prepared, "FORMAT", prepared.FORMAT + 1)
  different.append(place())
  monkeypatch.undo()
  monkeypatch.setattr(prepared.PIL, "__version__", "0")
  different.append(place())
  assert len({*different}) == len(different)


# Bad images.


def test_bad_images(tmp_path):
  bad = made(UNEQUAL, bad=(6,))
  with pytest.raises(
    ValueError,
    match=("^here: cannot decode 6.png: it is bad; data.on_error='skip'"),
  ):
    prepare(bad, tmp_path)
  assert [x for x in tmp_path.iterdir() if not x.name.startswith(".")] == []
  path = prepare(bad, tmp_path, on_error="skip")
  meta = prepared.read_meta(path)
  assert meta["failed"] == ["here: cannot decode 6.png: it is bad"]
  assert prepared.open_cache(path).skipped == 1
  with pytest.raises(ValueError, match="6.png.*1 of 25 images fail"):
    prepare(bad, tmp_path)
  with pytest.raises(ValueError, match="25 of 25 images fail"):
    prepare(made(UNEQUAL, range(25), "y"), tmp_path, on_error="skip")


def test_an_image_left_out_is_tried_again(tmp_path, monkeypatch):
  """By the run that must not leave any out, after an interrupted one."""
  stop_after(monkeypatch, 12, KeyboardInterrupt)
  with pytest.raises(KeyboardInterrupt):
    prepare(made(UNEQUAL, bad=(2,)), tmp_path, on_error="skip")
  monkeypatch.undo()
  path = prepare(made(UNEQUAL), tmp_path)
  assert prepared.open_cache(path, deep=True).skipped == 0


def test_a_deleted_file(tmp_path):
  for i in range(12):
    file = tmp_path / f"photos/{'ab'[i % 2]}/{i}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(made([(8, 8)] * 12).read(i)).save(file)
  examples = class_folders.folder(tmp_path / "photos", "train", 0)
  old = prepare(examples, tmp_path / "cache")
  before = content(old)
  gone = tmp_path / "photos" / examples.names[3]
  gone.unlink()
  with pytest.raises(ValueError, match=f"{examples.names[3]} is missing"):
    prepare(examples, tmp_path / "cache", force=True)
  assert content(old) == before
  assert prepare(examples, tmp_path / "cache") == old
  path = prepare(examples, tmp_path / "cache", force=True, on_error="skip")
  assert path == old and prepared.open_cache(path).skipped == 1


# Interruptions.


def stop_after(monkeypatch, writes, error):
  """Writing raises after so many times."""
  write, count = writer._write, [0]

  def failing(file, data):
    count[0] += 1
    if count[0] > writes:
      file.write(data[: len(data) // 2])
      raise error
    write(file, data)

  monkeypatch.setattr(writer, "_write", failing)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("writes", [0, 5, 25, 28])
@pytest.mark.parametrize(
  "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()]
)
def test_a_full_disk_and_ctrl_c(tmp_path, monkeypatch, writes, error, force):
  want = content(prepare(made(UNEQUAL), tmp_path / "want"))
  there = tmp_path / "cache"
  if force:  # an old cache is there, and stays
    prepare(made(UNEQUAL), there)
  stop_after(monkeypatch, writes, error)
  with pytest.raises((ValueError, KeyboardInterrupt)) as caught:
    prepare(made(UNEQUAL), there, force=force)
  if isinstance(error, OSError):
    assert f"{there} has" in str(caught.value)
    assert "bytes free, this needs 19,200 more" in str(caught.value)
    assert "--cache" in str(caught.value)
  visible = [x for x in there.iterdir() if not x.name.startswith(".")]
  assert [content(x) for x in visible] == [want] * force
  monkeypatch.undo()
  monkeypatch.setattr(writer, "CHUNK", 4)
  reads = []
  examples = made(UNEQUAL)
  counting = dataclasses.replace(
    examples, read=lambda i: (reads.append(i), examples.read(i))[1]
  )
  path = prepare(counting, there)
  assert content(path) == want
  if not force:  # what was done is not done again
    assert reads.count(24) == (writes < 25)
    assert reads.count(3) == (writes < 4)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), signals.Preempted()])
def test_a_signal_while_a_cache_is_replaced(
  tmp_path, monkeypatch, count, after, error
):
  """The next call has the whole cache, and nothing else is left."""
  path = prepare(made(UNEQUAL), tmp_path)
  want = content(path)
  rename, renamed = type(path).rename, []

  def interrupted(self, target):
    renamed.append(self)
    if len(renamed) < count or after:
      rename(self, target)
    if len(renamed) == count:
      raise error

  with monkeypatch.context() as patch:
    patch.setattr(type(path), "rename", interrupted)
    with pytest.raises(type(error)):
      prepare(made(UNEQUAL), tmp_path, force=True)
  assert prepare(made(UNEQUAL), tmp_path) == path
  assert content(path) == want
  left = {x.name for x in tmp_path.iterdir()} - {f".{path.name}.lock"}
  assert left == {path.name}


def test_what_another_process_is_replacing_is_left_to_it(tmp_path):
  """And nobody waits for it, as the cache is there."""
  path = prepare(made(UNEQUAL), tmp_path)
  build = tmp_path / f".{path.name}"
  build.mkdir()
  with files.waiting_lock(tmp_path / f".{path.name}.lock"):
    assert prepare(made(UNEQUAL), tmp_path) == path
    assert build.exists()
  prepare(made(UNEQUAL), tmp_path)
  assert not build.exists()


def test_nothing_is_left_of_a_chunk_that_was_not_done(tmp_path, monkeypatch):
  """Its last image, written before, has gone bad since."""
  bad = made(UNEQUAL, bad=(24,))
  want = prepare(bad, tmp_path / "want", on_error="skip")
  stop_after(monkeypatch, 24, KeyboardInterrupt)
  with pytest.raises(KeyboardInterrupt):
    prepare(made(UNEQUAL), tmp_path)
  monkeypatch.undo()
  monkeypatch.setattr(writer, "CHUNK", 4)
  path = prepare(bad, tmp_path, on_error="skip")
  assert content(path) == content(want)


def test_too_little_room_is_said_before_it_begins(tmp_path, monkeypatch):
  usage = writer.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    writer.shutil, "disk_usage", lambda path: usage._replace(free=19199)
  )
  reads = []
  examples = made(UNEQUAL)
  counting = dataclasses.replace(
    examples, read=lambda i: (reads.append(i), examples.read(i))[1]
  )
  with pytest.raises(ValueError, match="19,199 bytes free, this needs 19,200"):
    prepare(counting, tmp_path)
  assert reads == [0]


SCRIPT = """
import os, signal, sys, time
import numpy as np
from vpt_jax.data.cache import prepared, writer
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples
from vpt_jax.data.transforms.preprocess import Preprocess
folder, kill, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
writer.CHUNK = 4
reads = 0
def read(i):
  global reads
  reads += 1
  time.sleep(wait)
  return np.random.default_rng(i).integers(0, 256, (9 + i % 2, 9, 3), np.uint8)
flush, count = writer._flush, 0
def dying(file):
  global count
  count += 1
  if count == kill:
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
  flush(file)
writer._flush = dying
examples = Examples([str(i) for i in range(40)], np.arange(40) % 2, 2, read,
                    "here", "x")
layout = Layout(Preprocess((16, 16), "none", "pgn"), True)
prepared.prepare(examples, layout, folder, workers=2)
sys.stdout.write(f"{reads} {count}")
"""


def start(folder, kill=0, wait=0.0):
  return subprocess.Popen(
    [sys.executable, "-c", SCRIPT, str(folder), str(kill), str(wait)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )


def test_kill_minus_nine_and_go_on(tmp_path):
  process = start(tmp_path / "want")
  reads, flushes = map(int, process.communicate()[0].split())
  assert process.returncode == 0 and reads == 41  # and the first one's size
  for kill in np.random.default_rng(0).integers(1, flushes, 5):
    # Each goes on from the one before, if that left something to do.
    process = start(tmp_path / "cache", kill)
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0)
    assert process.returncode == 0 or not [
      x for x in (tmp_path / "cache").iterdir() if x.name[0] != "."
    ]
  process = start(tmp_path / "cache")
  process.communicate()
  (want,) = (tmp_path / "want").glob("split-*")
  (ours,) = (tmp_path / "cache").glob("split-*")
  assert content(ours) == content(want) and "meta.json" in content(ours)
  prepared.open_cache(ours, deep=True)
  assert {x.name for x in (tmp_path / "cache").iterdir()} == {
    ours.name,
    f".{ours.name}.lock",
  }


def test_of_two_processes_one_works(tmp_path):
  processes = [start(tmp_path, wait=0.02) for _ in range(2)]
  reads = sorted(int(x.communicate()[0].split()[0]) for x in processes)
  assert reads == [0, 41]
  (path,) = tmp_path.glob("split-*")
  assert len(prepared.open_cache(path, deep=True)) == 40


# Damage.


DAMAGE = {
  "cut": ("images.npy", lambda data: data[:-1]),
  "longer": ("images.npy", lambda data: data + b"x"),
  "labels": ("labels.npy", lambda data: data[:-1] + b"\7"),
  "names": ("names.json", lambda data: data.replace(b"0.png", b"1.png")),
  "meta": ("meta.json", lambda data: data.replace(b"here", b"hare")),
  "json": ("meta.json", lambda data: data[:50]),
  "list": ("meta.json", lambda data: b"[1, 2]"),
  "empty": ("meta.json", lambda data: b""),
  "binary": ("meta.json", lambda data: b"\xff\xfe"),
  "deep": ("meta.json", lambda data: b"[" * 10**6),
}


@pytest.mark.parametrize("kind", [*DAMAGE, "no meta", "no images"])
def test_a_damaged_cache_is_told(tmp_path, kind):
  path = prepare(made(UNEQUAL), tmp_path)
  want = content(path)
  if kind.startswith("no "):
    next(path.glob(f"{kind[3:]}.*")).unlink()
  else:
    name, change = DAMAGE[kind]
    (path / name).write_bytes(change((path / name).read_bytes()))
  with pytest.raises(ValueError) as error:
    prepared.open_cache(path)
  for text in (str(path), "is damaged", "delete that folder", "--force"):
    assert text in str(error.value)
  if kind not in ("labels", "names"):  # only looked at when it is opened
    with pytest.raises(ValueError, match="is damaged"):
      prepare(made(UNEQUAL), tmp_path)
  path = prepare(made(UNEQUAL), tmp_path, force=True)
  assert content(path) == want
  assert {x.name for x in tmp_path.iterdir()} == {
    path.name,
    f".{path.name}.lock",
  }


def test_damaged_pixels_are_found_by_a_deep_look(tmp_path):
  path = prepare(made(UNEQUAL), tmp_path)
  data = bytearray((path / "images.npy").read_bytes())
  data[5000] ^= 1
  (path / "images.npy").write_bytes(data)
  prepared.open_cache(path)
  with pytest.raises(ValueError, match="images.npy has another checksum"):
    prepared.open_cache(path, deep=True)


def test_another_format_and_no_cache(tmp_path):
  with pytest.raises(ValueError, match="no such cache; `python -m"):
    prepared.open_cache(tmp_path / "x")
  path = prepare(made(UNEQUAL), tmp_path)
  meta = json.loads((path / "meta.json").read_text())
  meta["format"] = 99
  meta["crc32"] = writer.checksum(
    {k: v for k, v in meta.items() if k != "crc32"}
  )
  (path / "meta.json").write_text(json.dumps(meta))
  with pytest.raises(ValueError, match="its format is 99, not 3"):
    prepared.open_cache(path)


# How a split is loaded.


def test_load_takes_the_cache_or_decodes(tmp_path, monkeypatch):
  load = lambda: images_lib.load(
    "digits", "val", image_size=(16, 16), cache_dir=tmp_path
  )
  decoded = load()
  assert not isinstance(decoded.images, np.memmap) and not [*tmp_path.iterdir()]
  monkeypatch.setattr(datasets, "IN_MEMORY", decoded.images.nbytes - 1)
  mapped = load()
  assert isinstance(mapped.images, np.memmap)
  same(mapped, decoded)
  monkeypatch.undo()
  assert isinstance(load().images, np.memmap)  # as it is there


def test_an_image_too_long_for_its_family_is_bad(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
  got = prepared.open_cache(
    prepare(
      made([(1, 400), (20, 30)]),
      tmp_path,
      on_error="skip",
      layout=layout("fgvc"),
    )
  )
  assert got.skipped == 1 and list(got.names) == ["1.png"]
