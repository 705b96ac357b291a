"""Writes the files of a prepared cache in steps that can be resumed.

See `prepared` for the files.
"""

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
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples
from vpt_jax.data.transforms.resize import Size

CHUNK = 256  # examples
# Bytes before the pixels in images.npy: enough for any shape, as it is known
# at the end only.
HEADER = 128


class Builder:
  """Fills a folder with the files of a cache, from where it was left.

  Attributes:
    build: the folder.
    examples: what to decode.
    layout: how they are decoded and stored.
    on_error: `raise` or `skip`, see `prepared.prepare`.
    workers: threads, see `decoding.fitted`.
    bar: shows how many examples are done.
    first: the first good image, decoded; None: there is none.
    needed: bytes that are still to be written, if all images are like it.
  """

  def __init__(
    self,
    build: Path,
    examples: Examples,
    layout: Layout,
    on_error: str,
    workers: int,
    bar: tqdm,
  ):
    self.build = build
    self.examples = examples
    self.layout = layout
    self.on_error = on_error
    self.workers = workers
    self.bar = bar
    self.first = decoding.first_good(examples, layout)
    self.needed = 0

  def run(self, ingredients: dict[str, Any]) -> None:
    """Leaves a complete cache.

    Args:
      ingredients: what meta.json begins with.

    Raises:
      UnknownGreyRange: there is 16-bit grey without a range.
      ValueError: a bad image, or too little room.
    """
    kept_size = None
    if self.first is not None:
      kept_size = self.layout.preprocess.size_if_small(self.first)
    try:
      try:
        chunks = self._write_pixels(kept_size)
      except decoding.UnequalSizes:
        chunks = self._write_pixels(None)
      self._finish(chunks, ingredients)
    except OSError as error:
      if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise
      raise ValueError(self._no_room()) from None

  def _no_room(self) -> str:
    free = shutil.disk_usage(self.build).free
    return (
      f"{self.build.parent} has {free:,} bytes free, this needs "
      f"{self.needed:,} more; make room and give the same command, which "
      "resumes from what is done, or name another folder by --cache or "
      "in the environment variable VPT_JAX_CACHE"
    )

  def _write_pixels(self, kept_size: Size | None) -> list[dict[str, Any]]:
    """Writes images.npy but for its header; returns chunks.jsonl."""
    done = self._done_before(kept_size)
    kept_size = _size(done[0])
    start = sum(chunk["count"] for chunk in done[1:])
    end = HEADER + sum(chunk["bytes"] for chunk in done[1:])
    if self.first is not None:
      size = self.layout.fit(self.first, kept_size).size
      self.needed = size * (len(self.examples) - start)
      if self.needed > shutil.disk_usage(self.build).free:
        raise ValueError(self._no_room())
    self.bar.update(start - self.bar.n)
    results = decoding.fitted(
      self.examples, self.layout, kept_size, start, self.workers
    )
    pixels = os.open(self.build / "images.npy", os.O_RDWR | os.O_CREAT, 0o666)
    with (
      contextlib.closing(results),
      os.fdopen(pixels, "r+b") as file,
      (self.build / "chunks.jsonl").open("w", encoding="utf-8") as lines,
    ):
      file.truncate(end)
      file.seek(end)
      for chunk in done:
        _add_line(lines, chunk)
      while start < len(self.examples):
        chunk = self._write_chunk(file, results, start)
        _flush(file)
        _add_line(lines, chunk)
        done.append(chunk)
        start += chunk["count"]
    return done

  def _done_before(self, kept_size: Size | None) -> list[dict[str, Any]]:
    """Returns the chunks that an earlier call has left, to resume from.

    The first entry says which size images keep.
    """
    done = read_chunks(self.build)
    if self.on_error == "raise":  # an image left out may be mended by now
      done = list(itertools.takewhile(_nothing_failed, done))
    # That sizes differ may be known already: images then keep no size.
    if not done or _size(done[0]) not in (None, kept_size):
      return [{"kept_size": kept_size and list(kept_size)}]
    return done

  def _write_chunk(
    self, file: BinaryIO, results: Iterator[np.ndarray | str], start: int
  ) -> dict[str, Any]:
    """Appends the next images; returns their line of chunks.jsonl."""
    stop = min(start + CHUNK, len(self.examples))
    chunk: dict[str, Any] = {
      "count": stop - start,
      "bytes": 0,
      "crc32": 0,
      "sums": [],
      "failed": [],
    }
    if self.layout.strips:
      chunk |= {"lengths": [], "wide": []}
    # The range comes first: zip would draw a result too many and drop it.
    for i, image in zip(range(start, stop), results, strict=False):
      self.bar.update()
      if isinstance(image, str):
        if self.on_error == "raise":
          raise ValueError(
            f"{image}; data.on_error='skip' leaves bad images out"
          )
        chunk["failed"].append([i, image])
        continue
      if self.layout.strips:
        image, wide = decoding.as_rows(image)
        chunk["lengths"].append(len(image))
        chunk["wide"].append(wide)
      data = image.tobytes()
      _write(file, data)
      chunk["bytes"] += len(data)
      chunk["crc32"] = zlib.crc32(data, chunk["crc32"])
      chunk["sums"].append(zlib.crc32(data))
    return chunk

  def _finish(
    self, done: list[dict[str, Any]], ingredients: dict[str, Any]
  ) -> None:
    """Writes the header of images.npy and all other files."""
    kept_size = _size(done[0])
    chunks = done[1:]
    failed = [bad for chunk in chunks for bad in chunk["failed"]]
    reasons = [why for _, why in failed]
    if len(failed) == len(self.examples):
      decoding.check_bad(reasons, len(self.examples), "skip")
    good = np.ones(len(self.examples), bool)
    good[[i for i, _ in failed]] = False
    sums = [crc for chunk in chunks for crc in chunk["sums"]]
    arrays = {
      "labels": self.examples.labels[good],
      "sums": np.array(sums, np.uint32),
    }
    if self.layout.strips:
      arrays |= _strip_arrays(chunks)
    with (self.build / "images.npy").open("r+b") as file:
      _write(file, header(self._shape(kept_size, int(good.sum()), chunks)))
      _flush(file)
    contents = {"names.json": self._good_names(good)}
    for name, array in arrays.items():
      buffer = io.BytesIO()
      np.save(buffer, array, allow_pickle=False)
      contents[f"{name}.npy"] = buffer.getvalue()
    for name, data in contents.items():
      self._put(name, data)
    contents["chunks.jsonl"] = (self.build / "chunks.jsonl").read_bytes()
    self._put_meta(ingredients, contents, reasons)

  def _shape(
    self, kept_size: Size | None, count: int, chunks: list[dict[str, Any]]
  ) -> tuple[int, ...]:
    """Returns the shape of images.npy."""
    if self.first is None:
      raise ValueError(f"{self.examples.origin}: there is no good image")
    image = self.layout.fit(self.first, kept_size)
    if not self.layout.strips:
      return (count, *image.shape)
    rows, _ = decoding.as_rows(image)
    return (sum(sum(chunk["lengths"]) for chunk in chunks), *rows.shape[1:])

  def _good_names(self, good: np.ndarray) -> bytes:
    names = [self.examples.names[i] for i in np.flatnonzero(good).tolist()]
    return json.dumps(names).encode()

  def _put_meta(
    self,
    ingredients: dict[str, Any],
    contents: dict[str, bytes],
    reasons: list[str],
  ) -> None:
    """Writes meta.json: what is in the cache, with sizes and checksums."""
    sizes: dict[str, list[Any]] = {}
    for name, data in contents.items():
      sizes[name] = [len(data), hashlib.sha256(data).hexdigest()]
    sizes["images.npy"] = [(self.build / "images.npy").stat().st_size, None]
    meta = ingredients | {
      "origin": self.examples.origin,
      "num_classes": self.examples.num_classes,
      "class_names": list(self.examples.class_names),
      "failed": reasons,
      "files": sizes,
    }
    meta["crc32"] = checksum(meta)
    self._put("meta.json", json.dumps(meta, indent=2).encode())

  def _put(self, name: str, data: bytes) -> None:
    with (self.build / name).open("wb") as file:
      _write(file, data)
      _flush(file)


def _size(line: dict[str, Any]) -> Size | None:
  """Returns the size that images keep, from the first line of chunks.jsonl."""
  return None if line["kept_size"] is None else tuple(line["kept_size"])


def _nothing_failed(chunk: dict[str, Any]) -> bool:
  return not chunk.get("failed")


def _strip_arrays(chunks: list[dict[str, Any]]) -> dict[str, np.ndarray]:
  """Returns what `Strips` holds, of all chunks."""
  lengths: list[int] = []
  wide: list[bool] = []
  for chunk in chunks:
    lengths += chunk["lengths"]
    wide += chunk["wide"]
  first = np.cumsum([0, *lengths], dtype=np.int64)
  return {"first": first, "wide": np.array(wide)}


def read_chunks(folder: Path) -> list[dict[str, Any]]:
  """Reads the lines of chunks.jsonl that images.npy bears out."""
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
  """Returns what a .npy file of uint8 begins with: HEADER bytes."""
  about = {"descr": "|u1", "fortran_order": False, "shape": shape}
  text = str(about).ljust(HEADER - 11) + "\n"
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def checksum(meta: dict[str, Any]) -> int:
  """Returns the CRC-32 of JSON values."""
  return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _add_line(file: TextIO, line: dict[str, Any]) -> None:
  file.write(json.dumps(line) + "\n")
  _flush(file)


def _write(file: BinaryIO, data: bytes) -> None:
  file.write(data)


def _flush(file: BinaryIO | TextIO) -> None:
  file.flush()
  os.fsync(file.fileno())
