"""Lays arrays out over devices: a mesh (data, model), and tables of rules.

Batches are split over `data`, the trained parameters are replicated. How the
frozen ones lie is a strategy: `dp` (replicated), `fsdp` (each array split over
`data`, gathered where it is used), `tp` (heads and hidden units of every block
split over `model`). Gradients are summed as `shard_gradients.py` says: with
`dp` a step sends the gradients of the trained parameters only, whatever the
backbone.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from vpt_jax.utils import lookup, trees

LARGEST = "largest"
# Ordered (regular expression over paths, axes). LARGEST stands for the array's
# largest axis that the devices divide, which is split over `data`.
Rules = tuple[tuple[str, P | str], ...]
_LAYER = r"backbone/.*"
STRATEGIES: dict[str, Rules] = {
  "dp": ((".*", P()),),
  "fsdp": ((_LAYER, LARGEST), (".*", P())),
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
  """Returns all devices of all processes as a mesh (`data`, `model`).

  Args:
    batch_size: of all devices together.
    model: how many devices share a copy of the backbone, for `tp`.

  Raises:
    ValueError: `model` does not divide the devices, or the devices along
      `data` do not divide the batch.
  """
  devices = jax.devices()
  count = len(devices)
  if model < 1 or count % model:
    raise ValueError(
      f"config.shard.model={model} does not divide {count} devices"
    )
  rows = count // model
  if batch_size % rows:
    below = batch_size // rows * rows
    nearest = [str(size) for size in (below, below + rows) if size]
    raise ValueError(
      f"batch_size={batch_size} is not divisible by {rows} "
      f"devices; nearest: {', '.join(nearest)}"
    )
  return Mesh(np.array(devices).reshape(rows, model), ("data", "model"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, P("data"))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device has all of."""
  return NamedSharding(mesh, P())


def replicate(values: Any, mesh: Mesh) -> Any:
  """Returns a tree of arrays, copied to every device."""
  sharding = replicated(mesh)
  return jax.tree.map(lambda leaf: _put(leaf, sharding), values)


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
  """Returns an array that every process has as one of all processes.

  `device_put` would send each process's to all others, to see that they are the
  same, and takes no memory maps.
  """
  if jax.process_count() == 1:
    return jax.device_put(array, sharding)
  host = np.asarray(array)
  return jax.make_array_from_callback(
    host.shape, sharding, lambda index: host[index]
  )


def distribute(flat: trees.Flat, mesh: Mesh, strategy: str) -> trees.Flat:
  """Returns the frozen parameters, laid out over the devices by a strategy.

  Args:
    flat: {path: array}.
    mesh: see `make_mesh`.
    strategy: a name in STRATEGIES.

  Raises:
    ValueError: an unknown strategy, one that splits nothing here, or devices
      that do not divide an axis.
  """
  lookup.choose(strategy, STRATEGIES, "shard.strategy")
  layout = {}
  for path, leaf in flat.items():
    axes = _axes(path, np.shape(leaf), _first_rule(path, strategy), mesh)
    layout[path] = NamedSharding(mesh, axes)
  may_split = strategy != "dp" and flat and mesh.size > 1
  if may_split and all(leaf.is_fully_replicated for leaf in layout.values()):
    advice = "use 'dp'"
    if strategy == "tp":
      advice += ", or set config.shard.model"
    raise ValueError(
      f"config.shard.strategy={strategy!r} splits no frozen parameter over "
      f"devices {dict(mesh.shape)}; {advice}"
    )
  return {path: _put(leaf, layout[path]) for path, leaf in flat.items()}


def _first_rule(path: str, strategy: str) -> P | str:
  # `trees.match` would refuse a rule that no parameter needs, but which
  # parameters are frozen depends on the run. The last rule matches all.
  return next(
    axes
    for pattern, axes in STRATEGIES[strategy]
    if re.fullmatch(pattern, path)
  )


def _axes(path: str, shape: tuple[int, ...], axes: P | str, mesh: Mesh) -> P:
  """Returns the axes of a rule for one array, checked."""
  if isinstance(axes, str):  # LARGEST
    return _split_largest(shape, mesh.shape["data"])
  # Axes behind those that a rule names are not split.
  for size, axis in zip(shape, axes, strict=False):
    if axis and size % mesh.shape[axis]:
      raise ValueError(
        f"{path} {shape}: {mesh.shape[axis]} devices do not "
        f"divide {size}; set config.shard.model to what does"
      )
  return axes


def _split_largest(shape: tuple[int, ...], devices: int) -> P:
  """Returns axes that split the largest axis that the devices divide."""
  largest = None
  for i, size in enumerate(shape):
    divisible = size >= devices and size % devices == 0
    if divisible and (largest is None or size > shape[largest]):
      largest = i
  if largest is None:
    return P()
  axes: list[str | None] = [None] * len(shape)
  axes[largest] = "data"
  return P(*axes)
