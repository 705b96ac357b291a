"""CRC-32C: the RFC's values, and those of another library."""

import os

from hypothesis import given, strategies
import pytest
from tensorboardX import record_writer

from vpt_jax.data.sources import crc32c


@pytest.mark.parametrize(
  "data, value",
  [
    (b"", 0),
    (b"123456789", 0xE3069283),
    # RFC 3720, appendix B.4.
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
  ],
)
def test_known_values(data, value):
  assert crc32c.compute(data) == value


@given(strategies.binary(max_size=40))
def test_few_bytes(data):
  assert crc32c.masked(data) == record_writer.masked_crc32c(data)


@pytest.mark.parametrize("length", [1023, 1024, 1025, 2048, 9999])
def test_blocks(length):
  data = os.urandom(length)
  assert crc32c.masked(data) == record_writer.masked_crc32c(data)


def test_any_flipped_bit_changes_it():
  data = os.urandom(3000)
  values = {crc32c.compute(data)}
  for place in range(0, 3000, 37):
    flipped = bytearray(data)
    flipped[place] ^= 1 << place % 8
    values.add(crc32c.compute(bytes(flipped)))
  assert len(values) == 1 + len(range(0, 3000, 37))
