"""Data parallelism over all devices: batches split, everything else copied."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(batch_size: int) -> Mesh:
  """All devices along one axis, `data`.

  Raises:
    ValueError: the devices do not divide the batch.
  """
  devices = jax.devices()
  n = len(devices)
  if batch_size % n:
    low, high = batch_size // n * n, -(-batch_size // n) * n
    nearest = ", ".join(str(size) for size in (low, high) if size)
    raise ValueError(f"batch_size={batch_size} is not divisible by {n} "
                     f"devices; nearest: {nearest}")
  return Mesh(np.array(devices), ("data",))


def replicate(values: Any, mesh: Mesh) -> Any:
  """Copies a tree of arrays to every device."""
  return jax.device_put(values, NamedSharding(mesh, PartitionSpec()))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec("data"))
