"""Prepares splits: decodes them once, into folders of memory-mapped arrays.

`prepare` makes the folder NAME-KEY/ with these files:

  images.npy    uint8 [N, H, W, 3]; of strips (see `examples.Strips`) their rows
                [R, S, 3]
  labels.npy    [N], or [N, K] where images have several classes
  sums.npy      uint32 [N]: CRC-32 of what each image is in images.npy
  first.npy     of strips only: int64 [N + 1]
  wide.npy      of strips only: bool [N]
  names.json    the N names
  chunks.jsonl  a line {"kept_size": [h, w] or null}, the size that images keep
                (see `Preprocess`); then one for each 256 examples: their
                "count", "bytes" and "crc32" of what they add to images.npy,
                "lengths" and "wide" of the images, "failed": [[number, why],
                ...]
  meta.json     format, what the key is a hash of, origin, num_classes,
                class_names, bytes and SHA-256 of each other file (of images.npy
                null: sums.npy has its checksums), failed: [why, ...], and
                the CRC-32 of all of this as sorted JSON

KEY is a hash of all that changes the pixels, so that a cache is never stale.
Everything is written to a hidden folder next to it, which is renamed when it is
complete; until then chunks.jsonl tells which part of images.npy is done.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any

import numpy as np
import PIL
from tqdm import tqdm

from vpt_jax.data.cache import checked, decoding
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.cache.writer import Builder, checksum, HEADER, header
from vpt_jax.data.examples import Examples, Split, Strips
from vpt_jax.data.transforms.decode import UnknownGreyRange
from vpt_jax.utils import files, strange_files
from vpt_jax.utils.logs import log

# Goes up when the same files would be decoded to other pixels, or laid out in
# another way. (Format 1 kept the high byte of 16-bit grey, and no cache of it
# says whether it holds such images. Format 2 had no checksum of each image.)
FORMAT = 3


def default_folder() -> Path:
  """Returns $VPT_JAX_CACHE/data, or ~/.cache/vpt_jax/data."""
  root = os.environ.get("VPT_JAX_CACHE") or "~/.cache/vpt_jax"
  return Path(root).expanduser() / "data"


def ingredients(examples: Examples, layout: Layout) -> dict[str, Any]:
  """Returns all that the pixels depend on, as JSON values."""
  return {
    "format": FORMAT,
    "identity": examples.identity,
    "layout": layout.key,
    "pillow": PIL.__version__,
  }


def cache_path(
  examples: Examples,
  layout: Layout,
  folder: str | os.PathLike | None,
  name: str,
) -> Path:
  """Returns where the cache of a split is, or would be; see `prepare`."""
  text = json.dumps(ingredients(examples, layout), sort_keys=True)
  key = hashlib.sha256(text.encode()).hexdigest()[:16]
  name = re.sub(r"[^\w.-]+", "_", name).strip(".")[:64]
  folder = default_folder() if folder is None else Path(folder).expanduser()
  return folder / f"{name}-{key}"


def prepare(
  examples: Examples,
  layout: Layout,
  folder: str | os.PathLike | None = None,
  *,
  on_error: str = "raise",
  workers: int = 0,
  progress: bool = False,
  name: str = "split",
  force: bool = False,
) -> Path:
  """Decodes a split into a cache, or finds the one that is there.

  Of several processes one works, the others wait for it. Interrupted, killed
  or out of room, it leaves no cache but what is done, and resumes from there.

  Args:
    examples: what to decode.
    layout: how they are decoded and stored.
    folder: that holds the caches; None: `default_folder()`.
    on_error: `raise` at the first bad image, or `skip` to leave them out.
    workers: threads; 0: `decoding.default_workers`.
    progress: shows a bar.
    name: that the cache's folder begins with.
    force: decodes even if the cache is there, and replaces it.

  Returns:
    the cache's folder.

  Raises:
    UnknownGreyRange: there is 16-bit grey, and the layout has no range for it.
    ValueError: a bad image, too little room, or a damaged cache.
  """
  path = cache_path(examples, layout, folder, name)
  # A cache that is there may be on a disk that cannot be written.
  if force or not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with _exclusive(lock, name), decoding.quiet():
      files.sweep(path.parent)
      if force or not path.exists():  # another process may have made it
        _build(examples, layout, path, on_error, workers, progress, name, force)
  _delete_left(path)
  decoding.check_bad(read_meta(path)["failed"], len(examples), on_error)
  return path


def _build(
  examples: Examples,
  layout: Layout,
  path: Path,
  on_error: str,
  workers: int,
  progress: bool,
  name: str,
  force: bool,
) -> None:
  """Decodes a split into a hidden folder and renames it, see `prepare`."""
  build = path.with_name(f".{path.name}")
  if force:
    shutil.rmtree(build, ignore_errors=True)
  build.mkdir(exist_ok=True)
  bar = tqdm(total=len(examples), desc=name, unit="image", disable=not progress)
  with bar:
    try:
      builder = Builder(build, examples, layout, on_error, workers, bar)
      builder.run(ingredients(examples, layout))
    except UnknownGreyRange:
      # With the range it is another cache: nothing resumes from this part.
      shutil.rmtree(build, ignore_errors=True)
      raise
  _rename(build, path)


def open_cache(path: str | os.PathLike, deep: bool = False) -> Split:
  """Opens a split whose images are mapped from disk, read-only.

  Args:
    path: folder that `prepare` made.
    deep: reads and checks all pixels now, not as they are first read.

  Raises:
    ValueError: it is missing, damaged or of another version.
  """
  path = Path(path)
  meta = read_meta(path)
  for name, (_, sha256) in meta["files"].items():
    if sha256 is None:  # images.npy
      continue
    if hashlib.sha256((path / name).read_bytes()).hexdigest() != sha256:
      raise _damaged(path, f"{name} has another checksum")
  strips = None
  if "first.npy" in meta["files"]:
    strips = Strips(_load(path / "first.npy"), _load(path / "wide.npy"))
  try:
    images = checked.open_images(
      path / "images.npy",
      _load(path / "sums.npy"),
      None if strips is None else strips.first,
    )
  except (OSError, ValueError) as error:
    raise _damaged(path, f"images.npy: {error}") from None
  with (path / "images.npy").open("rb") as file:
    if file.read(HEADER) != header(images.shape):
      raise _damaged(path, "images.npy begins with another header")
  if deep:
    try:
      _ = images[:]
    except checked.Damaged as error:
      raise _damaged(path, str(error)) from None
  return Split(
    images=images,
    labels=_load(path / "labels.npy"),
    num_classes=meta["num_classes"],
    skipped=len(meta["failed"]),
    names=json.loads((path / "names.json").read_text()),
    strips=strips,
    class_names=tuple(meta["class_names"]),
  )


def _load(path: Path) -> np.ndarray:
  return np.load(path, allow_pickle=False)


def read_meta(path: Path) -> dict[str, Any]:
  """Returns what meta.json says, if all files have the size that it tells.

  Raises:
    ValueError: see `open_cache`.
  """
  if not path.is_dir():
    raise ValueError(
      f"{path}: there is no such cache; `python -m vpt_jax.data "
      "prepare` makes it"
    )
  try:
    meta = strange_files.read_json(path / "meta.json")
    is_whole = meta.pop("crc32") == checksum(meta)
    sizes = {name: size for name, (size, _) in meta["files"].items()}
    found = {name: strange_files.check(path / name) for name in sizes}
  except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
    raise _damaged(path, f"{type(error).__name__}: {error}") from None
  if not is_whole:
    raise _damaged(path, "meta.json has another checksum")
  for name, size in sizes.items():
    if found[name] != size:
      raise _damaged(path, f"{name} does not have {size} bytes")
  if meta["format"] != FORMAT:
    raise _damaged(path, f"its format is {meta['format']}, not {FORMAT}")
  return meta


def _damaged(path: Path, why: str) -> ValueError:
  return ValueError(
    f"the cache {path} is damaged ({why}); delete that folder, "
    "or run `python -m vpt_jax.data prepare TASK --force`"
  )


@contextlib.contextmanager
def _exclusive(path: Path, name: str) -> Iterator[None]:
  """Waits until no other process has the lock."""

  def tell() -> None:
    log.info("%s: waiting for another process that prepares it", name)

  with files.waiting_lock(path, on_wait=tell):
    yield


def _rename(build: Path, path: Path) -> None:
  """Puts a complete folder where readers look for it."""
  _sync(build)
  old = _replaced(path)
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    path.rename(old)
  build.rename(path)
  _sync(path.parent)
  shutil.rmtree(old, ignore_errors=True)


def _replaced(path: Path) -> Path:
  """Returns where a cache waits to be deleted that another one replaces."""
  return path.with_name(f".{path.name}.old")


def _delete_left(path: Path) -> None:
  """Deletes what a process left that was killed while it replaced a cache."""
  left = [path.with_name(f".{path.name}"), _replaced(path)]
  if not any(folder.exists() for folder in left):
    return
  lock = path.with_name(f".{path.name}.lock")
  with contextlib.suppress(OSError), files.lock_if_free(lock) as is_free:
    if is_free and path.exists():
      for folder in left:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
