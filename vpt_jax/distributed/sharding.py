"""What lies on which device: a mesh (data, model), and tables of rules.

Batches are split over `data`, the trained parameters are on every device. How
the frozen ones lie is a strategy: `dp` (all on every device), `fsdp` (each
array in parts over `data`, gathered where it is used), `tp` (heads and hidden
units of every block over `model`). Gradients are summed as `spmd.py` says: with
`dp` a step moves the trainable tree only, whatever the backbone.
"""

import os
from pathlib import Path
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from vpt_jax.utils import lookup, trees

# Ordered (regex over paths, axes); "largest": the array's largest axis that the
# devices divide, over `data`.
Rules = tuple[tuple[str, P | str], ...]
_LAYER = r"backbone/.*"
STRATEGIES: dict[str, Rules] = {
  "dp": ((".*", P()),),
  "fsdp": ((_LAYER, "largest"), (".*", P())),
  "tp": (
    (_LAYER + "/(query|key|value)/kernel", P(None, "model", None)),
    (_LAYER + "/(query|key|value)/bias", P("model", None)),
    (_LAYER + "/out/kernel", P("model", None, None)),
    (_LAYER + "/MlpBlock_0/Dense_0/kernel", P(None, "model")),
    (_LAYER + "/MlpBlock_0/Dense_0/bias", P("model")),
    (_LAYER + "/MlpBlock_0/Dense_1/kernel", P("model", None)),
    (".*", P()),
  ),
}


def make_mesh(batch_size: int, model: int = 1) -> Mesh:
  """All devices of all processes, as (`data`, `model`).

  Args:
    batch_size: of all devices together.
    model: devices that share a copy of the backbone, for `tp`.

  Raises:
    ValueError: the devices do not divide the batch, or `model` not them.
  """
  devices = jax.devices()
  n = len(devices)
  if model < 1 or n % model:
    raise ValueError(f"config.shard.model={model} does not divide {n} devices")
  rows = n // model
  if batch_size % rows:
    low, high = batch_size // rows * rows, -(-batch_size // rows) * rows
    nearest = ", ".join(str(size) for size in (low, high) if size)
    raise ValueError(
      f"batch_size={batch_size} is not divisible by {rows} "
      f"devices; nearest: {nearest}"
    )
  return Mesh(np.array(devices).reshape(rows, model), ("data", "model"))


def whole(mesh: Mesh) -> NamedSharding:
  """All of an array on every device."""
  return NamedSharding(mesh, P())


def replicate(values: Any, mesh: Mesh) -> Any:
  """Copies a tree of arrays to every device."""
  return jax.tree.map(lambda x: _put(x, whole(mesh)), values)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
  """An array that all processes have, as one of all of them.

  `device_put` would send each process's to all others, to see that they are the
  same, and takes no memory maps.
  """
  if jax.process_count() == 1:
    return jax.device_put(x, sharding)
  host = np.asarray(x)
  return jax.make_array_from_callback(
    host.shape, sharding, lambda index: host[index]
  )


def place(flat: trees.Flat, mesh: Mesh, strategy: str) -> trees.Flat:
  """Frozen parameters laid out by a strategy.

  Raises:
    ValueError: unknown strategy, one that splits nothing here, or devices that
      do not divide an axis.
  """
  lookup.choose(strategy, STRATEGIES, "shard.strategy")
  # Not `tree.match`: which parameters are frozen depends on the run.
  first = lambda path: next(
    axes
    for pattern, axes in STRATEGIES[strategy]
    if re.fullmatch(pattern, path)
  )
  layout = {
    path: NamedSharding(mesh, _axes(path, np.shape(leaf), first(path), mesh))
    for path, leaf in flat.items()
  }
  if (
    strategy != "dp"
    and flat
    and mesh.size > 1
    and all(sharding.is_fully_replicated for sharding in layout.values())
  ):
    raise ValueError(
      f"config.shard.strategy={strategy!r} splits no frozen parameter over "
      f"devices {dict(mesh.shape)}; use 'dp'"
      + ", or set config.shard.model"
      * (strategy == "tp")
    )
  return {path: _put(leaf, layout[path]) for path, leaf in flat.items()}


def _axes(path: str, shape: tuple[int, ...], axes: P | str, mesh: Mesh) -> P:
  if axes == "largest":
    n = mesh.shape["data"]
    fit = [i for i, size in enumerate(shape) if size % n == 0 and size >= n]
    if not fit:
      return P()
    largest = max(fit, key=lambda i: shape[i])
    return P(*("data" if i == largest else None for i in range(len(shape))))
  for size, axis in zip(shape, axes):
    if axis and size % mesh.shape[axis]:
      raise ValueError(
        f"{path} {shape}: {mesh.shape[axis]} devices do not "
        f"divide {size}; set config.shard.model to what does"
      )
  return axes


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, P("data"))


def free_bytes(mesh: Mesh) -> int:
  """Bytes that are free on every device, as they tell.

  Where they can't tell (CPU): in the machine's memory.
  """
  stats = [device.memory_stats() for device in mesh.local_devices]
  free = (
    min(s["bytes_limit"] - s["bytes_in_use"] for s in stats)
    if all(stats)
    else free_memory()
  )
  if jax.process_count() > 1:  # all decide alike
    free = (
      int(multihost_utils.process_allgather(np.int64(free) // 2**20).min())
      * 2**20
    )
  return free


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
      limit, used = (
        ("memory.limit_in_bytes", "total_rss")
        if controllers
        else ("memory.max", "anon")
      )
      own = top / path.lstrip("/")
      # Limits of the groups above hold too; of a container only the topmost
      # may be seen from inside. Above `top` there are no such files.
      for group in (own, *own.parents):
        try:
          free = min(
            free,
            int((group / limit).read_text())
            - _numbers(group / "memory.stat")[used],
          )
        except (OSError, ValueError, KeyError):  # no limit
          pass
  return max(0, free)


def _numbers(path: Path) -> dict[str, int]:
  """The first two columns of a file, as a table."""
  return {
    line.split()[0]: int(line.split()[1])
    for line in path.read_text().splitlines()
    if len(line.split()) > 1
  }
