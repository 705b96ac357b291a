"""Writes the files of a prepared cache, see `cache.py`, in resumable steps."""

from collections.abc import Iterator
import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
from pathlib import Path
import shutil
import struct
from typing import Any, BinaryIO, TextIO
import zlib

import numpy as np
from tqdm import tqdm

from vpt_jax.data.cache import decoding
from vpt_jax.data.cache.decoding import Geometry
from vpt_jax.data.examples import Examples

CHUNK = 256  # examples
# Bytes before the pixels in images.npy: enough for any shape, as it is known
# at the end only.
HEADER = 128


class Builder:
  """Fills a folder with the files of a cache, from where it was left."""

  def __init__(
    self,
    build: Path,
    examples: Examples,
    geometry: Geometry,
    on_error: str,
    workers: int,
    bar: tqdm,
  ):
    self.build = build
    self.examples = examples
    self.geometry = geometry
    self.on_error = on_error
    self.workers = workers
    self.bar = bar
    self.first = decoding.first_good(examples, geometry)
    self.need = 0  # bytes, if all images are like the first

  def run(self, ingredients: dict[str, Any]) -> None:
    """Leaves a complete cache.

    Args:
      ingredients: what meta.json begins with.

    Raises:
      ValueError: a bad image, or too little room.
    """
    own = None if self.first is None else self.geometry.own(self.first)
    try:
      try:
        done = self._pixels(own)
      except decoding.Unequal:
        done = self._pixels(None)
      self._finish(done, ingredients)
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise ValueError(self._full()) from None

  def _full(self) -> str:
    free = shutil.disk_usage(self.build).free
    return (
      f"{self.build.parent} has {free:,} bytes free, this needs "
      f"{self.need:,} more; make room and give the same command, which "
      "goes on from what is done, or name another folder by --cache or "
      "in the environment variable VPT_JAX_CACHE"
    )

  def _pixels(self, own: tuple[int, int] | None) -> list[dict[str, Any]]:
    """Writes images.npy but for its header; returns chunks.jsonl."""
    done = read_chunks(self.build)
    if self.on_error == "raise":  # an image left out may be mended by now
      done = [*itertools.takewhile(lambda line: not line.get("failed"), done)]
    # That sizes differ may be known already: `own` is None then.
    if not done or done[0]["own"] not in (None, own and list(own)):
      done = [{"own": own and list(own)}]
    own = done[0]["own"] and tuple(done[0]["own"])
    start = sum(line["count"] for line in done[1:])
    end = HEADER + sum(line["bytes"] for line in done[1:])
    if self.first is not None:
      size = self.geometry.fit(self.first, own).size
      self.need = size * (len(self.examples) - start)
      if self.need > shutil.disk_usage(self.build).free:
        raise ValueError(self._full())
    self.bar.update(start - self.bar.n)
    results = decoding.fitted(
      self.examples, self.geometry, own, start, self.workers
    )
    pixels = os.open(self.build / "images.npy", os.O_RDWR | os.O_CREAT, 0o666)
    with (
      contextlib.closing(results),
      os.fdopen(pixels, "r+b") as file,
      (self.build / "chunks.jsonl").open("w", encoding="utf-8") as lines,
    ):
      file.truncate(end)
      file.seek(end)
      for line in done:
        _add_line(lines, line)
      while start < len(self.examples):
        done.append(self._chunk(file, results, start))
        _flush(file)
        _add_line(lines, done[-1])
        start += done[-1]["count"]
    return done

  def _chunk(
    self, file: BinaryIO, results: Iterator[np.ndarray | str], start: int
  ) -> dict[str, Any]:
    """Appends the next images; returns their line of chunks.jsonl."""
    stop = min(start + CHUNK, len(self.examples))
    line = {"count": stop - start, "bytes": 0, "crc32": 0, "failed": []}
    if self.geometry.strips:
      line |= {"lengths": [], "wide": []}
    for i, image in zip(range(start, stop), results):
      self.bar.update()
      if isinstance(image, str):
        if self.on_error == "raise":
          raise ValueError(
            f"{image}; data.on_error='skip' leaves bad images out"
          )
        line["failed"].append([i, image])
        continue
      if self.geometry.strips:
        image, wide = decoding.as_rows(image)
        line["lengths"].append(len(image))
        line["wide"].append(wide)
      data = image.tobytes()
      _write(file, data)
      line["bytes"] += len(data)
      line["crc32"] = zlib.crc32(data, line["crc32"])
    return line

  def _finish(
    self, done: list[dict[str, Any]], ingredients: dict[str, Any]
  ) -> None:
    examples, chunks = self.examples, done[1:]
    failed = [bad for line in chunks for bad in line["failed"]]
    if len(failed) == len(examples):
      decoding.check_bad([why for _, why in failed], len(examples), "skip")
    good = np.ones(len(examples), bool)
    good[[i for i, _ in failed]] = False
    arrays = {"labels": examples.labels[good].astype(np.int32)}
    image = self.geometry.fit(
      self.first, done[0]["own"] and tuple(done[0]["own"])
    )
    if self.geometry.strips:
      lengths = [n for line in chunks for n in line["lengths"]]
      arrays["first"] = np.cumsum([0, *lengths], dtype=np.int64)
      arrays["wide"] = np.array([x for line in chunks for x in line["wide"]])
      shape = (sum(lengths), *decoding.as_rows(image)[0].shape[1:])
    else:
      shape = (int(good.sum()), *image.shape)
    with (self.build / "images.npy").open("r+b") as file:
      _write(file, header(shape))
      _flush(file)
    contents = {
      "names.json": json.dumps(
        [name for name, x in zip(examples.names, good) if x]
      ).encode()
    }
    for name, array in arrays.items():
      buffer = io.BytesIO()
      np.save(buffer, array, allow_pickle=False)
      contents[f"{name}.npy"] = buffer.getvalue()
    for name, data in contents.items():
      self._put(name, data)
    contents["chunks.jsonl"] = (self.build / "chunks.jsonl").read_bytes()
    sizes = {
      name: [len(data), hashlib.sha256(data).hexdigest()]
      for name, data in contents.items()
    }
    sizes["images.npy"] = [(self.build / "images.npy").stat().st_size, None]
    meta = ingredients | {
      "origin": examples.origin,
      "num_classes": examples.num_classes,
      "class_names": list(examples.class_names),
      "failed": [why for _, why in failed],
      "files": sizes,
    }
    meta["crc32"] = checksum(meta)
    self._put("meta.json", json.dumps(meta, indent=2).encode())

  def _put(self, name: str, data: bytes) -> None:
    with (self.build / name).open("wb") as file:
      _write(file, data)
      _flush(file)


def read_chunks(folder: Path) -> list[dict[str, Any]]:
  """The lines of chunks.jsonl up to the last that images.npy bears out."""
  done: list[dict[str, Any]] = []
  try:
    with (
      (folder / "chunks.jsonl").open(encoding="utf-8") as lines,
      (folder / "images.npy").open("rb") as pixels,
    ):
      pixels.seek(HEADER)
      for text in lines:
        line = json.loads(text)
        if done:
          data = pixels.read(line["bytes"])
          if (len(data), zlib.crc32(data)) != (line["bytes"], line["crc32"]):
            break
        done.append(line)
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    pass  # the last line was not written to its end
  return done


def header(shape: tuple[int, ...]) -> bytes:
  """What a .npy file of uint8 begins with: HEADER bytes for any shape."""
  about = {"descr": "|u1", "fortran_order": False, "shape": shape}
  text = str(about).ljust(HEADER - 11) + "\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def checksum(meta: dict[str, Any]) -> int:
  """CRC-32 of JSON values."""
  return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _add_line(file: TextIO, line: dict[str, Any]) -> None:
  file.write(json.dumps(line) + "\n")
  _flush(file)


def _write(file: BinaryIO, data: bytes) -> None:
  file.write(data)


def _flush(file: BinaryIO | TextIO) -> None:
  file.flush()
  os.fsync(file.fileno())
