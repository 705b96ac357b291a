"""Reads how much memory is free, on devices and on the host."""

from collections.abc import Iterator
import os
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
import numpy as np

_MEBIBYTE = 2**20


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
  """Returns whether a device had no memory left."""
  return "RESOURCE_EXHAUSTED" in str(error)


def free_bytes(mesh: Mesh) -> int:
  """Returns how many bytes are free on every device of a mesh.

  It is the least of all devices of all processes, so that all processes decide
  alike. Devices that do not say (CPU) have the free memory of the host.
  """
  stats = [device.memory_stats() for device in mesh.local_devices]
  if all(stats):
    free = min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
  else:
    free = free_host_bytes()
  if jax.process_count() > 1:
    # In mebibytes, as JAX has 32-bit integers.
    mebibytes = np.int64(free) // _MEBIBYTE
    least = multihost_utils.process_allgather(mebibytes).min()
    free = int(least) * _MEBIBYTE
  return free


def free_host_bytes(root: Path = Path("/")) -> int:
  """Returns how many bytes of memory this process can still take.

  The least of what the machine has and what the control groups (version 1 or
  2) leave: containers and batch systems limit memory by them. On systems other
  than Linux it is half of the machine's memory.

  Args:
    root: the folder that /proc and /sys are in.
  """
  try:
    free = 1024 * _read_table(root / "proc/meminfo")["MemAvailable:"]
    groups = (root / "proc/self/cgroup").read_text().splitlines()
  except (OSError, KeyError):
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
  for line in groups:
    for left in _left_by_groups(root, line):
      free = min(free, left)
  return max(0, free)


def _left_by_groups(root: Path, line: str) -> Iterator[int]:
  """Yields the bytes that a control group and those above it leave.

  Args:
    root: see `free_host_bytes`.
    line: of /proc/self/cgroup, `number:controllers:path`.
  """
  _, controllers, path = line.split(":", 2)
  if controllers == "memory":  # version 1
    limit_file = "memory.limit_in_bytes"
    used_field = "total_rss"
  elif not controllers:  # version 2
    limit_file = "memory.max"
    used_field = "anon"
  else:
    return
  own = root / "sys/fs/cgroup" / controllers / path.lstrip("/")
  # Limits of the groups above hold too; of a container only the topmost may be
  # seen from inside. Folders above all groups have no such files.
  for group in (own, *own.parents):
    try:
      limit = int((group / limit_file).read_text())
      used = _read_table(group / "memory.stat")[used_field]
    except (OSError, ValueError, KeyError):  # This group has no limit.
      continue
    yield limit - used


def _read_table(path: Path) -> dict[str, int]:
  """Reads the first two columns of a file, as {name: number}."""
  table = {}
  for line in path.read_text().splitlines():
    columns = line.split()
    if len(columns) > 1:
      table[columns[0]] = int(columns[1])
  return table
