"""HEIC, as phones save photos: read with an extra, named without it."""

import io
import sys

import numpy as np
from PIL import Image
import pytest

from vpt_jax.data import datasets
from vpt_jax.data.transforms import decode, heic
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.serving import inputs

PREPROCESS = Preprocess((8, 8), "none", "vtab")
# What every such file begins with.
HEAD = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(90)


@pytest.fixture(name="photo")
def photo_():
  """A photo of 48 x 64 pixels, red above and blue below, and its bytes."""
  reader = pytest.importorskip("pillow_heif")
  reader.register_heif_opener()
  pixels = np.zeros((64, 48, 3), np.uint8)
  pixels[:32, :, 0] = 200
  pixels[32:, :, 2] = 200
  stream = io.BytesIO()
  try:
    Image.fromarray(pixels).save(stream, "HEIF", quality=95)
  except (OSError, RuntimeError, ValueError, KeyError) as error:
    pytest.skip(f"no encoder: {error}")
  return stream.getvalue()


def test_a_photo_is_read(photo):
  """By every way to a decoded image; lossy, so nearly the same."""
  image = decode.decode_image(photo)
  assert image.shape == (64, 48, 3)
  assert np.abs(image[8, 24].astype(int) - (200, 0, 0)).max() < 12
  assert np.abs(image[56, 24].astype(int) - (0, 0, 200)).max() < 12
  np.testing.assert_array_equal(image, inputs.decode_image(photo, PREPROCESS))


def test_it_is_turned_upright_once(photo):
  """The reader does so itself; EXIF's orientation is not followed again."""
  image = Image.open(io.BytesIO(photo))
  exif = Image.Exif()
  exif[274] = 6
  stream = io.BytesIO()
  image.save(stream, "HEIF", quality=95, exif=exif.tobytes())
  turned = decode.decode_image(stream.getvalue(), upright=True)
  assert turned.shape == decode.decode_image(stream.getvalue(), False).shape


def test_folders_of_such_photos(photo, tmp_path):
  for i in range(8):
    path = tmp_path / "D" / "ab"[i % 2] / f"IMG_{i}.HEIC"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(photo)
  source = f"folder:{tmp_path}/D"
  split = datasets.load("x", "train", PREPROCESS, source=source)
  assert len(split) == 4 and split.images.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize("cut", [60, 400, -3])
def test_a_damaged_photo_is_told(photo, cut):
  with pytest.raises(ValueError, match="looks like HEIC|truncated|[Ii]nvalid"):
    decode.decode_image(photo[:cut])


def test_without_the_reader_its_name_is_told(tmp_path, monkeypatch):
  """As the package to install, with the file, wherever it is read."""
  monkeypatch.setitem(sys.modules, "pillow_heif", None)
  others = [name for name in Image.ID if name != "HEIF"]
  monkeypatch.setattr(Image, "ID", others)
  heic.enable.cache_clear()
  message = r"needs the package pillow_heif: pip install 'vpt_jax\[heic\]'"
  for i in range(8):
    path = tmp_path / "D" / "ab"[i % 2] / f"{i}.heic"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(HEAD)
  with pytest.raises(ValueError, match=message):
    decode.decode_image(HEAD)
  with pytest.raises(ValueError, match=f"0.heic: .*{message}"):
    PREPROCESS.read(tmp_path / "D/a/0.heic")
  with pytest.raises(
    ValueError, match=rf"cannot decode ./\d.heic: .*{message}"
  ):
    datasets.load("x", "train", PREPROCESS, source=f"folder:{tmp_path}/D")
  heic.enable.cache_clear()
