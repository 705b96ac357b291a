"""Mutated masks: label maps as PNG files of every kind."""

from pathlib import Path
import struct
import zlib

import numpy as np
from PIL import Image

from tests.fuzz import mutations
from tests.fuzz.outcomes import judge, Outcome
from vpt_jax.data.sources import masks

NAME = "masks/a.png"
CLASSES = 4
COLOURS = {(0, 0, 0): 0, (255, 0, 0): 1, (0, 255, 0): 2, (9, 8, 7): 3}
MEANINGS = {
  "rgb": masks.Meaning(COLOURS, num_classes=CLASSES),
  "numbers": masks.Meaning(num_classes=CLASSES),
}


class Masks:
  """Masks; PNG has checksums, and nothing may be read as other labels."""

  def __init__(self):
    self._files: dict[str, bytes] = {}
    self._want: dict[str, np.ndarray] = {}

  def make(self, folder: Path) -> None:
    coarse = np.random.default_rng(0).integers(CLASSES, size=(6, 8))
    label = np.kron(coarse, np.ones((5, 5))).astype(np.uint8)
    palette = Image.fromarray(label, "P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 90, 90, 90])
    palette.save(folder / "palette.png")
    palette.save(folder / "packed.png", bits=2)
    Image.fromarray(label).save(folder / "grey.png")
    Image.fromarray(label.astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(label > 1).save(folder / "bit.png")
    table = np.array(list(COLOURS), np.uint8)
    Image.fromarray(table[label]).save(folder / "rgb.png")

  def open(self, folder: Path, scratch: Path) -> None:
    del scratch  # masks are decoded from memory
    for path in sorted(folder.iterdir()):
      self._files[path.stem] = path.read_bytes()
      self._want[path.stem] = self._decode(path.stem, path.read_bytes())

  def run(self, rng: np.random.Generator) -> Outcome:
    kind = str(rng.choice(list(self._files)))
    data = self._files[kind]
    is_sealed = rng.random() < 0.5
    if is_sealed:
      data = mutations.mutate_bytes(data, rng)
    else:
      data = _mutate_chunk(data, rng)

    def read() -> bool:
      return np.array_equal(self._decode(kind, data), self._want[kind])

    return judge(read, NAME, is_sealed)

  def _decode(self, kind: str, data: bytes) -> np.ndarray:
    meaning = MEANINGS.get(kind, MEANINGS["numbers"])
    return masks.decode_mask(data, NAME, meaning)


def _mutate_chunk(data: bytes, rng: np.random.Generator) -> bytes:
  """Returns a PNG with changes in one chunk, whose checksum is right again."""
  chunks = []
  position = 8
  while position < len(data):
    length, name = struct.unpack_from(">I4s", data, position)
    chunks.append((name, data[position + 8 : position + 8 + length]))
    position += length + 12
  changed = int(rng.integers(len(chunks)))
  name, content = chunks[changed]
  if name == b"IDAT" and rng.random() < 0.7:
    pixels = zlib.decompress(content)
    content = zlib.compress(mutations.mutate_bytes(pixels, rng))
  else:
    content = mutations.mutate_bytes(content, rng)
  chunks[changed] = (name, content)
  out = data[:8]
  for name, content in chunks:
    crc = zlib.crc32(name + content)
    out += struct.pack(">I4s", len(content), name) + content
    out += crc.to_bytes(4, "big")
  return out
