"""What a record of tensorflow-datasets is labelled with.

The tasks of VTAB-1k that are no classification by themselves are made into one
here, as in google-research/task_adaptation. A record is a nested dict of numpy
values; a `Sequence` of dicts comes as one dict of arrays.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import logging
from typing import Any

import numpy as np

from vpt_jax.data.cache import prepared
from vpt_jax.data.sources import parts
from vpt_jax.utils import files

log = logging.getLogger("vpt_jax")

Record = Mapping[str, Any]

CLEVR_DISTANCES = (0, 8, 8.5, 9, 9.5, 10, 100)
KITTI_DISTANCES = (-100, 8, 20, 999)
NO_VEHICLE = 1000.0
# Car, van and truck; pedestrians and the rest come after them.
KITTI_VEHICLES = 3

# The labels of so many examples take seconds to minutes to read.
REMEMBERED = 10_000


def label(record: Record) -> int:
  """The class itself."""
  return int(_value(record, "label"))


def clevr_count(record: Record) -> int:
  """Number of objects, of which there are 3 to 10, minus 3."""
  return len(np.atleast_1d(_value(record, "objects", "size"))) - 3


def clevr_distance(record: Record) -> int:
  """Distance to the closest object, in 6 bins.

  Raises:
    ValueError: no object, or one that is not in front of the camera.
  """
  depth = _third(record, "pixel_coords")
  if not len(depth):
    raise ValueError("record['objects'] is empty; expected an object at least")
  return _bin(depth.min(), CLEVR_DISTANCES)


def kitti_distance(record: Record) -> int:
  """Distance to the closest vehicle, in 3 bins; 3 if there is none."""
  kind = np.atleast_1d(_value(record, "objects", "type"))
  depth = _third(record, "location")[kind < KITTI_VEHICLES]
  return _bin(depth.min(initial=NO_VEHICLE), KITTI_DISTANCES)


def dsprites_x(record: Record) -> int:
  """32 positions from left to right in 16 bins."""
  return int(_value(record, "label_x_position")) * 16 // 32


def dsprites_orientation(record: Record) -> int:
  """40 orientations in 16 bins, of 2 or 3."""
  return int(_value(record, "label_orientation")) * 16 // 40


def smallnorb_azimuth(record: Record) -> int:
  """18 azimuths."""
  return int(_value(record, "label_azimuth"))


def smallnorb_elevation(record: Record) -> int:
  """9 elevations."""
  return int(_value(record, "label_elevation"))


# Name -> (what of a record it reads, all else need not be parsed; itself).
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
  path = "record"
  for key in keys:
    # tfds fills in None for what an example does not have.
    if not isinstance(record, Mapping) or record.get(key) is None:
      there = sorted(record) if isinstance(record, Mapping) else "no dict"
      raise ValueError(f"{path}[{key!r}] is missing; {path} has {there}")
    record, path = record[key], f"{path}[{key!r}]"
  return record


def _third(record: Record, key: str) -> np.ndarray:
  """The third coordinates [N] of all objects."""
  value = np.asarray(_value(record, "objects", key), np.float32)
  return value.reshape(-1, 3)[:, 2]  # of no object there is no second axis


def _bin(value: float, thresholds: Sequence[float]) -> int:
  """Index of the last threshold below `value`; a threshold is not below
  itself."""
  below = np.flatnonzero(np.array(thresholds, np.float32) < value)
  if not len(below):
    raise ValueError(f"distance {value} is not above {thresholds[0]}")
  return int(below[-1])


def remembered(
  identity: str, count: int, numbers: Callable[[], np.ndarray]
) -> np.ndarray:
  """What `numbers` gives; from a file, if a large split was read before.

  Args:
    identity: of the split, see `Examples`.
    count: of its examples.
    numbers: reads their labels, int32 [count].
  """
  if count < REMEMBERED:
    return numbers()
  path = prepared.default_folder() / f"labels-{parts.digest(identity)[:16]}.npy"
  try:
    known = np.load(path, allow_pickle=False)
    if known.shape == (count,) and known.dtype == np.int32:
      return known
  except (OSError, ValueError, EOFError):
    pass  # not there, or damaged
  found = numbers()
  buffer = io.BytesIO()
  np.save(buffer, found, allow_pickle=False)
  try:
    files.write_atomic(path, buffer.getvalue())
  except OSError as error:  # a full or read-only disk is no reason to stop
    log.warning("labels are not remembered: %s", error)
  return found
