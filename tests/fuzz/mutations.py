"""Changes files: their bytes, the values of a JSON text, the arrays of an npz.

Every function takes a generator of random numbers, so that a case can be made
again from its number.
"""

from collections.abc import Callable
import copy
import io
import json
import re
from typing import Any
import zipfile

import numpy as np

Rng = np.random.Generator

# Integers at which readers of binary formats go wrong.
_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1)
# Values that a reader of JSON does not expect.
_STRANGE: tuple[Any, ...] = (
  None,
  True,
  0,
  -1,
  0.5,
  10**6,
  2**70,
  1e308,
  float("nan"),
  "",
  "x",
  "../../x",
  "9" * 400,
  [],
  [[[]]],
  {},
  {"a": {"b": None}},
)


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
  """Returns the bytes with one to three random changes."""
  for _ in range(rng.integers(1, 4)):
    change = _BYTE_CHANGES[rng.integers(len(_BYTE_CHANGES))]
    data = change(data, rng)
  return data


def flip_bits(data: bytes, rng: Rng) -> bytes:
  """Returns the bytes with one flipped bit in each of one to four places."""
  changed = bytearray(data)
  if changed:
    for place in rng.integers(len(changed), size=rng.integers(1, 5)):
      changed[place] ^= 1 << rng.integers(8)
  return bytes(changed)


def _set_bytes(data: bytes, rng: Rng) -> bytes:
  start, end = _slice(data, rng, 16)
  return data[:start] + rng.bytes(end - start) + data[end:]


def _cut_end(data: bytes, rng: Rng) -> bytes:
  return data[: rng.integers(len(data) + 1)]


def _cut_middle(data: bytes, rng: Rng) -> bytes:
  start, end = _slice(data, rng, 4096)
  return data[:start] + data[end:]


def _insert(data: bytes, rng: Rng) -> bytes:
  start, _ = _slice(data, rng, 1)
  return data[:start] + rng.bytes(rng.integers(1, 64)) + data[start:]


def _repeat(data: bytes, rng: Rng) -> bytes:
  start, end = _slice(data, rng, 4096)
  return data[:end] + data[start:end] + data[end:]


def _zero(data: bytes, rng: Rng) -> bytes:
  start, end = _slice(data, rng, 4096)
  return data[:start] + bytes(end - start) + data[end:]


def _set_integer(data: bytes, rng: Rng) -> bytes:
  """Overwrites 1 to 8 bytes near the beginning or the end with an extreme."""
  width = int(rng.choice([1, 2, 4, 8]))
  order = str(rng.choice(["little", "big"]))
  value = _EXTREMES[rng.integers(len(_EXTREMES))] % 256**width
  reach = min(len(data), 512)
  place = int(rng.integers(reach + 1))
  if rng.random() < 0.5:
    place = len(data) - place
  number = value.to_bytes(width, order)  # type: ignore[arg-type]
  return data[:place] + number + data[place + width :]


def _set_digits(data: bytes, rng: Rng) -> bytes:
  """Replaces a number that is written as text by another one."""
  numbers = list(re.finditer(rb"\d+", data[:4096]))
  if not numbers:
    return flip_bits(data, rng)
  found = numbers[rng.integers(len(numbers))]
  other = rng.choice(["0", "1", "7", "-1", "65536", "99999999999"])
  return data[: found.start()] + other.encode() + data[found.end() :]


def _slice(data: bytes, rng: Rng, longest: int) -> tuple[int, int]:
  """Returns the start and the end of a random piece, which may be empty."""
  start = int(rng.integers(len(data) + 1))
  length = int(rng.integers(1, longest + 1))
  return start, min(start + length, len(data))


_BYTE_CHANGES: tuple[Callable[[bytes, Rng], bytes], ...] = (
  flip_bits,
  flip_bits,
  _set_bytes,
  _cut_end,
  _cut_middle,
  _insert,
  _repeat,
  _zero,
  _set_integer,
  _set_digits,
)


def mutate_json(text: str, rng: Rng) -> str:
  """Returns JSON with one or two values lost, renamed or of another type."""
  value = copy.deepcopy(json.loads(text))
  for _ in range(rng.integers(1, 3)):
    value = _changed(value, rng)
  return json.dumps(value)


def _changed(value: Any, rng: Rng) -> Any:
  """Returns the value with a change at a random depth."""
  strange = copy.deepcopy(_STRANGE[rng.integers(len(_STRANGE))])
  if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
    return strange
  keys = list(value) if isinstance(value, dict) else list(range(len(value)))
  key = keys[rng.integers(len(keys))]
  chance = rng.random()
  if chance < 0.2:
    del value[key]
  elif chance < 0.3 and isinstance(value, dict):
    value[f"{key}x"] = value.pop(key)
  else:
    value[key] = _changed(value[key], rng)
  return value


def mutate_npz(data: bytes, rng: Rng, texts: tuple[str, ...] = ()) -> bytes:
  """Returns a valid zip file in which one array is not what it was.

  Args:
    data: of an npz.
    rng: random numbers.
    texts: names of arrays that hold JSON, whose values are changed.
  """
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  name = str(rng.choice(list(parts)))
  stem = name.removesuffix(".npy")
  if texts and rng.random() < 0.6:
    stem = str(rng.choice(texts))
    name = f"{stem}.npy"
  if stem in texts and rng.random() < 0.9:
    text = str(np.load(io.BytesIO(parts[name])))
    parts[name] = _npy(np.array(mutate_json(text, rng)))
  else:
    _change_part(parts, name, rng)
  return zipped(parts, bool(rng.random() < 0.3))


def _change_part(parts: dict[str, bytes], name: str, rng: Rng) -> None:
  """Changes an entry of an npz, in place: its array, header or name."""
  array = np.load(io.BytesIO(parts[name]))
  match rng.integers(8):
    case 0:
      del parts[name]
    case 1:
      parts[f"../{name}"] = parts.pop(name)
    case 2:
      parts[name] = rng.bytes(rng.integers(200))
    case 3:
      # Declares far more than there is.
      parts[name] = _npy_header("<f4", (10**6, 10**5)) + parts[name][-64:]
    case 4:
      parts[name] = _npy_header("|O", array.shape) + b"\x80\x04N."
    case 5:
      parts[name] = _npy(np.array(array.ravel()[0] if array.size else 0))
    case 6:
      shape = array.shape
      flat = np.atleast_1d(array)
      other = (flat[:-1], array[None], array.ravel(), array.T)
      if array.ndim and shape[0]:
        array = other[rng.integers(len(other))]
      parts[name] = _npy(array)
    case _:
      parts[name] = _npy(_other_numbers(array, rng))


def _other_numbers(array: np.ndarray, rng: Rng) -> np.ndarray:
  """Returns an array of the same shape, of other numbers or another type."""
  if array.dtype.kind in "US":
    return np.full(array.shape, str(rng.choice(["", "x", "\ud7ff", "../x"])))
  other = (np.float64, np.int64, np.uint8, np.complex64, np.bool_, ">f4", "U3")
  chance = rng.random()
  if chance < 0.5:
    return array.astype(other[rng.integers(len(other))])
  if array.dtype.kind == "f":
    extreme = rng.choice([np.nan, np.inf, -np.inf, 1e38])
    return np.full_like(array, extreme)
  info = np.iinfo(array.dtype) if array.dtype.kind in "iu" else None
  value = info.max if info and chance < 0.75 else info.min if info else True
  return np.full_like(array, value)


def zipped(parts: dict[str, bytes], is_packed: bool = False) -> bytes:
  """Returns a zip file of {name: content}."""
  kind = zipfile.ZIP_DEFLATED if is_packed else zipfile.ZIP_STORED
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", kind) as archive:
    for name, content in parts.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def _npy(array: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def _npy_header(kind: str, shape: tuple[int, ...]) -> bytes:
  """Returns the beginning of a .npy file that says it holds such an array."""
  buffer = io.BytesIO()
  header = {"descr": kind, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(buffer, header)  # type: ignore[arg-type]
  return buffer.getvalue()
