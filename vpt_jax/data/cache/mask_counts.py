"""Counts the labels of a data set's training masks, once.

Its number of classes follows from them, so every split needs them, and so does
every run. Counts of many masks are kept in the caches' folder.
"""

from collections import OrderedDict
import concurrent.futures
import hashlib
import json
from pathlib import Path
import threading
from typing import Any

import numpy as np

from vpt_jax.data.cache import decoding, writer
from vpt_jax.data.examples import MaskedExamples
from vpt_jax.data.sources import masks
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.data.transforms.segmentation import IGNORED
from vpt_jax.utils import files, strange_files
from vpt_jax.utils.logs import log

# Changes when the same file may have other labels than before.
_VERSION = 1
# From so many masks on counts are kept in a file.
REMEMBERED = 200
# Data sets whose counts a process keeps.
_MOST_KEPT = 16
_kept: OrderedDict[str, np.ndarray] = OrderedDict()
_lock = threading.Lock()


def count(
  examples: MaskedExamples, cache_dir: Path, workers: int = 0
) -> np.ndarray:
  """Returns how many pixels of all masks have each label, int64 [256].

  Args:
    examples: whose masks are counted.
    cache_dir: folder of the prepared caches.
    workers: threads; 0: `decoding.default_workers`.

  Raises:
    ValueError: see `MaskedExamples.mask`.
  """
  key = _key(examples)
  with _lock:
    if key in _kept:
      _kept.move_to_end(key)
      return _kept[key].copy()
  counts = None
  is_large = len(examples) >= REMEMBERED
  path = cache_dir / f"mask-counts-{key}.json"
  if is_large:
    counts = _read(path)
  if counts is None:
    counts = _count(examples, workers)
    if is_large:
      _write(path, counts)
  with _lock:
    _kept[key] = counts
    if len(_kept) > _MOST_KEPT:
      _kept.popitem(last=False)
  return counts.copy()


def _key(examples: MaskedExamples) -> str:
  """Returns digits that change with the files and what they mean."""
  facts = (_VERSION, examples.identity, _facts(examples.meaning))
  return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _facts(meaning: Meaning) -> list[Any]:
  """Returns a meaning as values of JSON, in one order."""
  return [
    sorted(meaning.colours.items()),
    meaning.reduce_zero_label,
    sorted(meaning.label_map.items()),
    meaning.num_classes,
    meaning.thin,
  ]


def _count(examples: MaskedExamples, workers: int) -> np.ndarray:
  workers = workers or decoding.default_workers()
  counts = np.zeros(IGNORED + 1, np.int64)

  def of_one(i: int) -> np.ndarray:
    return masks.count_labels([examples.mask(i)])

  with (
    decoding.quiet(),
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
  ):
    todo = [pool.submit(of_one, i) for i in range(len(examples))]
    try:
      for done in todo:
        counts += done.result()
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      raise
  return counts


def _read(path: Path) -> np.ndarray | None:
  """Returns what was kept; None if it is not there, or damaged."""
  try:
    value = strange_files.read_json(path)
    is_whole = value.pop("crc32") == writer.checksum(value)
    counts = np.array(value["counts"], np.int64)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None
  except OverflowError:
    return None
  return counts if is_whole and counts.shape == (IGNORED + 1,) else None


def _write(path: Path, counts: np.ndarray) -> None:
  """Keeps counts, if there is room for them."""
  value: dict[str, Any] = {"counts": counts.tolist()}
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, value | {"crc32": writer.checksum(value)})
  except OSError as error:  # a full or read-only disk is no reason to stop
    log.warning("the counts of labels are not kept: %s", error)
