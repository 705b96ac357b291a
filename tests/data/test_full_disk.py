"""What the machine refuses while images are prepared: a sentence, and resumed.

A full disk, a quota, a disk that cannot be written, too many open files.
"""

import errno
import os
import subprocess

from PIL import Image
import pytest

from tests.data import test_cache
from vpt_jax.data import __main__ as command
from vpt_jax.data.cache import decoding, grey_range, prepared, writer
from vpt_jax.data.sources import image_files

COUNT = 60
# Pages of a disk: of the pixels of 54 images, and of their chunks' lines.
PAGE = 4096
PIXELS = 41 * PAGE


@pytest.fixture(name="photos")
def photos_(tmp_path):
  for i in range(COUNT):
    path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (i, 0, 0)).save(path)
  return tmp_path / "photos"


@pytest.fixture(name="disk")
def disk_(tmp_path):
  """A disk of a megabyte, where this user may mount one."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip("no disk can be mounted here")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def fill(disk, free):
  """Leaves so many bytes on a disk."""
  usage = os.statvfs(disk)
  (disk / "other").write_bytes(
    bytes(max(0, usage.f_bavail * usage.f_bsize - free))
  )


def prepare(photos, cache):
  return command.main(
    [
      "data",
      "prepare",
      f"--source=folder:{photos}",
      f"--cache={cache}",
      "--image_size=32",
      "--splits=trainval",
    ]
  )


@pytest.mark.parametrize("free", [0, 2 * PAGE, 20 * PAGE, PIXELS + PAGE])
def test_a_full_disk(photos, disk, capfd, monkeypatch, free):
  """`python -m vpt_jax.data prepare`: one line, and the same command resumes.

  Also where the free bytes seemed enough, and others took them meanwhile.
  """
  monkeypatch.setattr(writer, "CHUNK", 10)
  if free:  # else it is seen before anything is written
    usage = writer.shutil.disk_usage(disk)
    monkeypatch.setattr(
      writer.shutil, "disk_usage", lambda _: usage._replace(free=2**30)
    )
  fill(disk, free)
  assert prepare(photos, disk / "cache") == 1
  text = capfd.readouterr().err
  assert "Traceback" not in text
  errors = [line for line in text.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1
  assert str(disk) in errors[0] and "resumes" in errors[0]
  monkeypatch.undo()
  (disk / "other").unlink()
  assert prepare(photos, disk / "cache") == 0
  (path,) = (disk / "cache").glob("photos-*")
  assert len(prepared.open_cache(path, deep=True)) == 54


def test_a_full_disk_for_a_contact_sheet(photos, disk, capfd):
  """Nothing but the error is left, and it has the file's name."""
  fill(disk, 0)
  sheet = disk / "sheet.png"
  words = ["data", "show", f"--source=folder:{photos}", f"--out={sheet}"]
  assert command.main(words) == 1
  text = capfd.readouterr().err
  assert f"error: {sheet}: No space left on device; make room" in text
  assert sorted(path.name for path in disk.iterdir()) == ["other"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_as_a_full_disk(
  photos, tmp_path, capfd, monkeypatch, number
):
  def refuse(file, data):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(writer, "_write", refuse)
  assert prepare(photos, tmp_path / "cache") == 1
  text = capfd.readouterr().err
  assert f"error: {tmp_path / 'cache'} has" in text and "Traceback" not in text


@pytest.mark.parametrize(
  "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE]
)
def test_an_image_is_not_bad_because_the_machine_is(
  photos, tmp_path, monkeypatch, number
):
  """`on_error=skip` leaves out no image that could not be opened just now."""
  examples = image_files.Files(photos, [f"a/{i}.png" for i in range(0, 20, 2)])
  whole = test_cache.made([(32, 32)] * 10)
  layout = test_cache.layout(size=(32, 32))
  calls = []

  def read(i):
    calls.append(i)
    if i == 7:
      raise OSError(number, os.strerror(number), examples.names[i])
    return examples(i)

  failing = test_cache.dataclasses.replace(whole, read=read)
  with pytest.raises(OSError, match="a/14.png"):
    decoding.decode_all(failing, layout, "skip")
  with pytest.raises(OSError, match="a/14.png"):
    prepared.prepare(failing, layout, tmp_path / "cache", on_error="skip")
  with pytest.raises(OSError, match="a/14.png"):
    grey_range.find_grey_range(failing, tmp_path / "cache")
  good = test_cache.dataclasses.replace(whole, read=examples)
  path = prepared.prepare(good, layout, tmp_path / "cache", on_error="skip")
  assert prepared.open_cache(path).skipped == 0
