"""Computes the labels of records of tensorflow-datasets.

The tasks of VTAB-1k that are no classification by themselves become one here,
as in google-research/task_adaptation. A record is a nested dict of numpy
values; a `Sequence` of dicts comes as one dict of arrays.
"""

from collections.abc import Callable, Mapping, Sequence
import io
from pathlib import Path
from typing import Any

import numpy as np

from vpt_jax.data.cache import prepared
from vpt_jax.data.sources import parts
from vpt_jax.utils import files, strange_files
from vpt_jax.utils.logs import log

Record = Mapping[str, Any]

CLEVR_DISTANCES = (0, 8, 8.5, 9, 9.5, 10, 100)
KITTI_DISTANCES = (-100, 8, 20, 999)
NO_VEHICLE = 1000.0
# Car, van and truck; pedestrians and the rest come after them.
KITTI_VEHICLES = 3

# From so many examples on labels are cached: they take seconds to minutes.
LEAST_CACHED = 10_000


def label(record: Record) -> int:
  """Returns the class itself."""
  return int(_value(record, "label"))


def clevr_count(record: Record) -> int:
  """Returns the number of objects, of which there are 3 to 10, minus 3."""
  sizes = np.atleast_1d(_value(record, "objects", "size"))
  return len(sizes) - 3


def clevr_distance(record: Record) -> int:
  """Returns the distance to the closest object, in 6 bins.

  Raises:
    ValueError: no object, or one that is not in front of the camera.
  """
  depth = _third(record, "pixel_coords")
  if not len(depth):
    raise ValueError("record['objects'] is empty; expected at least one object")
  return _bin(depth.min(), CLEVR_DISTANCES)


def kitti_distance(record: Record) -> int:
  """Returns the distance to the closest vehicle in 3 bins; 3: no vehicle."""
  kind = np.atleast_1d(_value(record, "objects", "type"))
  depth = _third(record, "location")[kind < KITTI_VEHICLES]
  return _bin(depth.min(initial=NO_VEHICLE), KITTI_DISTANCES)


def dsprites_x(record: Record) -> int:
  """Returns one of 32 positions from left to right, in 16 bins."""
  return int(_value(record, "label_x_position")) * 16 // 32


def dsprites_orientation(record: Record) -> int:
  """Returns one of 40 orientations, in 16 bins of 2 or 3."""
  return int(_value(record, "label_orientation")) * 16 // 40


def smallnorb_azimuth(record: Record) -> int:
  """Returns one of 18 azimuths."""
  return int(_value(record, "label_azimuth"))


def smallnorb_elevation(record: Record) -> int:
  """Returns one of 9 elevations."""
  return int(_value(record, "label_elevation"))


# Name -> (the only feature that it reads, the function).
LABELS: dict[str, tuple[str, Callable[[Record], int]]] = {
  "label": ("label", label),
  "clevr_count": ("objects", clevr_count),
  "clevr_distance": ("objects", clevr_distance),
  "kitti_distance": ("objects", kitti_distance),
  "dsprites_x": ("label_x_position", dsprites_x),
  "dsprites_orientation": ("label_orientation", dsprites_orientation),
  "smallnorb_azimuth": ("label_azimuth", smallnorb_azimuth),
  "smallnorb_elevation": ("label_elevation", smallnorb_elevation),
}


def _value(record: Record, *keys: str) -> Any:
  """Returns record[key][...].

  Raises:
    ValueError: it is missing, with what there is instead.
  """
  value: Any = record
  path = "record"
  for key in keys:
    # tfds fills in None for what an example does not have.
    if not isinstance(value, Mapping) or value.get(key) is None:
      there = sorted(value) if isinstance(value, Mapping) else "no dict"
      raise ValueError(f"{path}[{key!r}] is missing; {path} has {there}")
    value = value[key]
    path = f"{path}[{key!r}]"
  return value


def _third(record: Record, key: str) -> np.ndarray:
  """Returns the third coordinates [N] of all objects."""
  value = np.asarray(_value(record, "objects", key), np.float32)
  return value.reshape(-1, 3)[:, 2]  # of no object there is no second axis


def _bin(value: float, thresholds: Sequence[float]) -> int:
  """Returns the index of the last threshold below `value`.

  A threshold is not below itself.
  """
  below = np.flatnonzero(np.array(thresholds, np.float32) < value)
  if not len(below):
    raise ValueError(f"distance {value} is not above {thresholds[0]}")
  return int(below[-1])


def cached(
  identity: str, count: int, read_labels: Callable[[], np.ndarray]
) -> np.ndarray:
  """Returns the labels of a split; from a file, if a large one was read before.

  Args:
    identity: of the split, see `Examples`.
    count: of its examples.
    read_labels: reads their labels, int32 [count].
  """
  if count < LEAST_CACHED:
    return read_labels()
  path = prepared.default_folder() / f"labels-{parts.digest(identity)[:16]}.npz"
  labels = _read_cache(path, count)
  if labels is not None:
    return labels
  labels = read_labels()
  buffer = io.BytesIO()
  np.savez(buffer, labels=labels)  # which has their checksum
  try:
    files.write_atomic(path, buffer.getvalue())
  except OSError as error:  # a full or read-only disk is no reason to stop
    log.warning("labels are not cached: %s", error)
  return labels


def _read_cache(path: Path, count: int) -> np.ndarray | None:
  """Returns the labels of a cache file; None if it is missing or damaged."""
  try:
    labels = strange_files.read_npz(path, ("labels",))["labels"]
  except ValueError:
    return None
  if labels.shape != (count,) or labels.dtype != np.int32:
    return None
  return labels
