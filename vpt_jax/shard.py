"""Data parallelism over all devices: batches split, everything else copied."""

import os
from pathlib import Path
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


def free_bytes(mesh: Mesh) -> int:
  """Bytes that are free on each device of this process, as they tell.

  Where they can't tell (CPU): in the machine's memory.
  """
  stats = [device.memory_stats() for device in mesh.local_devices]
  if all(stats):
    return min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
  return free_memory()


def free_memory(root: Path = Path("/")) -> int:
  """Bytes of memory that this process can still take.

  The least of what the machine has and what the control groups (version 1 or
  2) leave: containers and batch systems limit memory by them.

  Args:
    root: that /proc and /sys are below.
  """
  try:
    values = _numbers(root / "proc/meminfo")
    free = 1024 * values["MemAvailable:"]
    groups = (root / "proc/self/cgroup").read_text().splitlines()
  except (OSError, KeyError):  # no Linux
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
  for line in groups:
    _, controllers, path = line.split(":", 2)
    if controllers in ("memory", ""):
      top = root / "sys/fs/cgroup" / controllers
      limit, used = (("memory.limit_in_bytes", "total_rss") if controllers else
                     ("memory.max", "anon"))
      own = top / path.lstrip("/")
      # Limits of the groups above hold too; of a container only the topmost
      # may be seen from inside. Above `top` there are no such files.
      for group in (own, *own.parents):
        try:
          free = min(free, int((group / limit).read_text())
                     - _numbers(group / "memory.stat")[used])
        except (OSError, ValueError, KeyError):  # no limit
          pass
  return max(0, free)


def _numbers(path: Path) -> dict[str, int]:
  """The first two columns of a file, as a table."""
  return {line.split()[0]: int(line.split()[1])
          for line in path.read_text().splitlines() if len(line.split()) > 1}
