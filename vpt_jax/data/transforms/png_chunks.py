"""Reads what Pillow does not look at, or does not tell, of PNG files."""

from collections.abc import Iterator
import math
import struct
from typing import NamedTuple
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What pixels are made of: palette, transparency, compressed rows.
PIXEL_CHUNKS = (b"PLTE", b"tRNS", b"IDAT")
# Type of colours -> samples of a pixel.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row, and distances, of the pixels of the passes of Adam7.
PASSES = (
  (0, 0, 8, 8),
  (4, 0, 8, 8),
  (0, 4, 4, 8),
  (2, 0, 4, 4),
  (0, 2, 2, 4),
  (1, 0, 2, 2),
  (0, 1, 1, 2),
)
_PIECE = 2**16  # bytes that are unpacked at once


class Header(NamedTuple):
  """What a PNG says of its pixels.

  Attributes:
    width: pixels of a row.
    height: rows.
    bits: of a sample.
    colour_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    is_interlaced: rows come in seven passes.
  """

  width: int
  height: int
  bits: int
  colour_type: int
  is_interlaced: bool


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int | None]]:
  """Yields the name, the content and the CRC-32 of all chunks of a PNG.

  The CRC-32 is None where the file ends before it.
  """
  position = len(SIGNATURE)
  while position + 8 <= len(data):
    length, name = struct.unpack_from(">I4s", data, position)
    # Length, name and CRC-32 are 4 bytes each.
    start, end = position + 8, position + 8 + length
    position = end + 4
    stored = data[end:position]
    crc = int.from_bytes(stored, "big") if len(stored) == 4 else None
    yield name, data[start:end], crc
    if name == b"IEND":
      return


def check_sums(data: bytes) -> None:
  """Raises ValueError for a PNG whose pixels do not have their checksum.

  Pillow would show them all the same.
  """
  for name, content, crc in chunks(data):
    if name in PIXEL_CHUNKS and zlib.crc32(name + content) != crc:
      raise ValueError(f"a damaged PNG: its {name.decode()} has a wrong CRC")


def significant_bits(data: bytes) -> int | None:
  """Returns what the sBIT chunk of a grey PNG says; Pillow skips it."""
  for name, content, _ in chunks(data):
    if name == b"sBIT" and len(content) == 1:
      bits = content[0]
      return bits if 0 < bits <= 16 else None
    if name == b"IDAT":  # sBIT comes before the pixels
      return None
  return None


def header(data: bytes) -> Header:
  """Returns what a PNG says of its pixels.

  Raises:
    ValueError: it says nothing, or what no PNG may say.
  """
  for name, content, _ in chunks(data):
    if name == b"IHDR" and len(content) == 13:
      width, height, bits, kind, _, _, interlace = struct.unpack(
        ">IIBBBBB", content
      )
      if kind not in _SAMPLES or bits not in (1, 2, 4, 8, 16) or interlace > 1:
        break
      return Header(width, height, bits, kind, interlace == 1)
  raise ValueError("a damaged PNG: its header (IHDR) is missing or wrong")


def check_rows(data: bytes) -> None:
  """Raises ValueError for a PNG that holds less than its header says.

  Pillow fills what is missing with zeros.
  """
  expected = unpacked_bytes(header(data))
  unpacker = zlib.decompressobj()
  found = 0
  for name, content, _ in chunks(data):
    if name != b"IDAT":
      continue
    while content and found < expected:
      try:
        found += len(unpacker.decompress(content, _PIECE))
      except zlib.error as error:
        raise ValueError(f"a damaged PNG: {error}") from error
      content = unpacker.unconsumed_tail
  if found < expected:
    raise ValueError(
      f"a damaged PNG: its rows have {found:,} bytes, expected {expected:,}"
    )


def unpacked_bytes(of: Header) -> int:
  """Returns the bytes of all rows, each with the byte of its filter."""
  pixel_bits = of.bits * _SAMPLES[of.colour_type]
  total = 0
  passes = PASSES if of.is_interlaced else ((0, 0, 1, 1),)
  for left, top, across, down in passes:
    width = math.ceil((of.width - left) / across)
    height = math.ceil((of.height - top) / down)
    if width > 0 and height > 0:
      total += height * (1 + math.ceil(width * pixel_bits / 8))
  return total
