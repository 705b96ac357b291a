"""Files of strangers: regular, bounded, and nothing but data."""

import io
import json
import os
import socket
import zipfile

import numpy as np
import pytest

from vpt_jax.utils import strange_files


def npy(array, **options):
  stream = io.BytesIO()
  np.save(stream, array, **options)
  return stream.getvalue()


def packed(path, members):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  return path


def declared(shape, dtype="|u1"):
  """Returns a .npy file that has this shape in its header, and no numbers."""
  stream = io.BytesIO()
  header = {"descr": dtype, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(stream, header)
  return stream.getvalue()


# Regular files.


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path, kind):
  """A pipe would wait for ever, /dev/zero never ends: each is named at once."""
  path = tmp_path / "photo.png"
  match kind:
    case "pipe":
      os.mkfifo(path)
    case "socket":
      short = os.path.relpath(path)
      socket.socket(socket.AF_UNIX).bind(short)
    case "device":
      path.symlink_to("/dev/zero")
    case "folder":
      path.mkdir()
  with pytest.raises((ValueError, OSError), match="photo.png") as caught:
    strange_files.read_bytes(path, 100)
  if kind != "socket":  # which the system itself refuses to open
    assert f"is a {kind}; expected a regular file" in str(caught.value)


def test_a_link_to_a_regular_file_is_read(tmp_path):
  (tmp_path / "a").write_bytes(b"123")
  (tmp_path / "b").symlink_to(tmp_path / "a")
  assert strange_files.read_bytes(tmp_path / "b", 3) == b"123"
  with pytest.raises(FileNotFoundError):
    strange_files.read_bytes(tmp_path / "c", 3)


def test_larger_files_than_expected_are_refused_unread(tmp_path):
  path = tmp_path / "huge"
  with path.open("wb") as file:
    file.truncate(10**13)  # takes no room
  with pytest.raises(ValueError, match="huge has 10,000,000,000,000 bytes"):
    strange_files.read_bytes(path, 2**30)


# JSON.


def test_json(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps({"é": [1, 2]}))
  assert strange_files.read_json(path) == {"é": [1, 2]}
  assert strange_files.read_json(path, pairs=tuple) == (("é", [1, 2]),)


@pytest.mark.parametrize(
  "data, message",
  [
    (b"[" * 10**6, "nested too deep"),
    (b'{"a":' * 10**6, "nested too deep"),
    (b"[1, 2", "Expecting"),
    (b"", "Expecting value"),
    (b"\xff\xff\xff", "codec can't decode"),
    (b"1" * 10**5, "integer string conversion"),
    (b"[" + b"1," * 600, "has 1,201 bytes; expected at most 1,000"),
  ],
)
def test_json_that_is_none_too_deep_or_too_large(tmp_path, data, message):
  path = tmp_path / "a.json"
  path.write_bytes(data)
  most = 1000 if "at most" in message else 10**8
  with pytest.raises(ValueError, match=message):
    strange_files.read_json(path, most)


# Archives of arrays.


def test_an_npz_of_any_kind_of_array(tmp_path):
  arrays = {
    "a": np.arange(6).reshape(2, 3),
    "b": np.asfortranarray(np.ones((2, 3), ">f4")),
    "c": np.array(["é", "bc"]),
    "d": np.array(7),
  }
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "x.npz", **arrays)
    read = strange_files.read_npz(tmp_path / "x.npz", ("a", "b"), ("c", "d"))
    for name, array in arrays.items():
      np.testing.assert_array_equal(read[name], array)
  assert list(strange_files.read_npz(tmp_path / "x.npz", ("a",), ("z",))) == [
    "a"
  ]


def test_sizes_are_those_of_the_file(tmp_path):
  """A small file that becomes gigabytes, or declares them, is refused.

  Nothing is allocated for it.
  """
  bomb = packed(tmp_path / "bomb.npz", {"a.npy": bytes(2**28 + 2**20)})
  assert bomb.stat().st_size < 2**20
  with pytest.raises(ValueError, match="bomb.npz.*suspiciously large"):
    strange_files.read_npz(bomb, ("a",))
  shape = (90_000_000_000, 1, 3)
  huge = packed(tmp_path / "huge.npz", {"a.npy": declared(shape)})
  with pytest.raises(ValueError, match="holds 0 bytes, not the 270000000000"):
    strange_files.read_npz(huge, ("a",))


@pytest.mark.parametrize(
  "member, message",
  [
    (npy(np.array([{}]), allow_pickle=True), "pickled content is never loaded"),
    (declared((3, 3)), "holds 0 bytes, not the 9"),
    (declared((-3, 3)), "holds 0 bytes"),
    (declared((2**40, 0), "|V0"), "in the shape that it declares"),
    (npy(np.arange(3))[:-1], "holds 23 bytes, not the 24"),
    (npy(np.arange(3))[:50], "EOF|header"),
    (b"\x93NUMPY\x01\x00\xff\xff", "EOF"),
    (b"\x93NUMPY\x09\x00", "version"),
    (b"", "EOF"),
    (npy(np.array(["abc"])).replace(b"b\0\0\0", b"\xff" * 4), "text that"),
  ],
)
def test_arrays_that_are_not_what_they_say(tmp_path, member, message):
  path = packed(tmp_path / "x.npz", {"a.npy": member})
  with pytest.raises(ValueError, match=message) as caught:
    strange_files.read_npz(path, ("a",))
  assert str(path) in str(caught.value)


def test_files_that_are_no_npz(tmp_path):
  """A `.npy` that is named `.npz`, an empty file, a cut one, a pipe."""
  path = tmp_path / "x.npz"
  np.savez(path, a=np.arange(1000))
  whole = path.read_bytes()
  for data in (npy(np.arange(3)), b"", whole[:-30], whole[30:], b"PK\3\4"):
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cannot read .*x.npz"):
      strange_files.read_npz(path, ("a",))
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(ValueError, match="is a pipe"):
    strange_files.read_npz(path, ("a",))


def test_a_flipped_bit_of_an_npz_is_found(tmp_path):
  """Of its numbers: a zip archive has their checksums."""
  path = tmp_path / "x.npz"
  numbers = np.arange(1000, dtype=np.uint16)
  np.savez(path, a=numbers)
  whole = bytearray(path.read_bytes())
  start = bytes(whole).index(numbers.tobytes())
  for place in np.linspace(start, start + numbers.nbytes - 1, 20).astype(int):
    flipped = bytearray(whole)
    flipped[place] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="Bad CRC-32"):
      strange_files.read_npz(path, ("a",))
