"""Computes CRC-32C, the checksum of TFRecord files (RFC 3720, appendix B.4).

It is linear: what a byte adds depends on its value and its distance from the
end alone. So NumPy looks all bytes of a block up at once.
"""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # its bits in reverse order
_ONES = 0xFFFFFFFF
_BLOCK = 1024  # bytes that are looked up at once
_MASK = 0xA282EAD8  # what TFRecord adds


def masked(data: bytes) -> int:
  """Returns the checksum of some bytes as TFRecord stores it."""
  crc = compute(data)
  rotated = crc >> 15 | crc << 17
  return (rotated + _MASK) & _ONES


def compute(data: bytes) -> int:
  """Returns the CRC-32C of some bytes."""
  tables = _tables()
  if len(data) < 4:
    state = _ONES
    for byte in data:
      state = state >> 8 ^ int(tables[-1, (state ^ byte) & 0xFF])
    return state ^ _ONES
  # It begins with ones, which is the same as inverting the first four bytes;
  # zeros before those add nothing.
  padding = -len(data) % _BLOCK
  padded = np.zeros(padding + len(data), np.uint8)
  padded[padding:] = np.frombuffer(data, np.uint8)
  padded[padding : padding + 4] ^= 0xFF
  row_of_place = np.arange(_BLOCK) * 256
  entries = row_of_place + padded.reshape(-1, _BLOCK)
  of_bytes = tables.reshape(-1).take(entries)
  of_blocks = np.bitwise_xor.reduce(of_bytes, axis=1)
  state = 0
  for block in of_blocks.tolist():
    # The state so far is what four bytes add that many places further on.
    for place in range(4):
      byte = state >> 8 * place & 0xFF
      block ^= _after_a_block(place)[byte]
    state = block
  return state ^ _ONES


@functools.cache
def _tables() -> np.ndarray:
  """Returns what a byte adds: uint32 [place in a block, value]."""
  last = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    is_odd = (last & 1).astype(bool)
    last >>= 1
    last[is_odd] ^= _POLYNOMIAL
  tables = np.empty((_BLOCK, 256), np.uint32)
  tables[-1] = last
  for place in range(_BLOCK - 2, -1, -1):
    later = tables[place + 1]
    tables[place] = later >> 8 ^ last[later & 0xFF]
  return tables


@functools.cache
def _after_a_block(place: int) -> list[int]:
  """Returns what a byte of the state adds when a block has followed.

  Args:
    place: 0 for the lowest byte of the state.
  """
  # A state is as if its bytes were the first four of the block.
  return _tables()[place].tolist()
