"""Lists the backbones to adapt: `python -m vpt_jax.backbones [NAME]`."""

from collections.abc import Sequence
import sys
from typing import Any

import flax.linen as nn

from vpt_jax.backbones import factory, model_zoo
from vpt_jax.backbones.model_zoo import Entry
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost
from vpt_jax.utils import command_line, text_tables
from vpt_jax.weights import download

HEADING = ["name", "parameters", "GMACs", "px", "weights", "licence"]
NUMBERS = (1, 2, 3)  # columns of the table that are numbers
# What `details` shows of a spec.
FIELDS = (
  "image_size",
  "patch_size",
  "num_cls",
  "pool",
  "norm",
  "gelu",
  "eps",
  "normalize",
)


def where(entry: Entry) -> str:
  """Returns where an entry's weights are."""
  if not entry.url:
    return "your file"
  if entry.url.startswith("package:"):
    return "included"
  is_cached = download.location(entry.url).exists()
  return "cached" if is_cached else "not fetched"


def _module(name: str, entry: Entry) -> nn.Module:
  """Returns the module of an entry, for images of its own size."""
  return factory.make(name, entry, (entry.image_size, entry.image_size))


def _architecture(module: nn.Module) -> nn.Module:
  """Returns the module without what changes neither parameters nor cost."""
  same: dict[str, Any] = {
    "gelu": "exact",
    "pool": "",
    "norm_order": "",
    "normalize": "",
  }
  if isinstance(module, ViT):
    same["resize"] = ""
  return module.clone(**same)


def table() -> list[list[str]]:
  """Returns rows of text on all backbones; the first is the heading."""
  rows = [HEADING]
  # Several checkpoints have one architecture, and to trace one takes a while.
  measured: dict[nn.Module, tuple[str, str]] = {}
  for name, entry in model_zoo.BACKBONES.items():
    module = _module(name, entry)
    architecture = _architecture(module)
    if architecture not in measured:
      parameters = cost.parameters(module)
      giga = cost.multiply_adds(module) / 1e9
      measured[architecture] = (f"{parameters:,}", f"{giga:.2f}")
    rows.append(
      [
        name,
        *measured[architecture],
        str(entry.image_size),
        where(entry),
        entry.licence,
      ]
    )
  return rows


def details(name: str) -> list[list[str]]:
  """Returns rows (what, text) with everything that is known of one backbone.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  entry = factory.get(name)
  spec = _module(name, entry).spec
  stages = []
  for stage in spec.stages:
    rows, columns = spec.grids[stage.start]
    width = spec.widths[stage.start]
    stages.append(f"{len(stage)} x {width} on {rows} x {columns}")
  cached = "-"
  if "://" in entry.url:
    cached = str(download.location(entry.url))
  return [
    ["blocks", ", ".join(stages)],
    *([field, str(getattr(spec, field))] for field in FIELDS),
    ["projection", "yes" if entry.projection else "no"],
    ["text tower", "yes" if entry.text else "no"],
    ["licence", entry.licence or "-"],
    ["address", entry.url or "-"],
    ["checksum", entry.checksum or "not published"],
    ["weights", where(entry)],
    ["cache", cached],
  ]


def main(argv: Sequence[str]) -> int:
  """Prints the table, or one entry; returns the exit status.

  Args:
    argv: name of the program, then at most one argument.
  """
  arguments = argv[1:]
  wants_help = "-h" in arguments or "--help" in arguments
  if wants_help or len(arguments) > 1:
    sys.stdout.write(f"{__doc__}\n")
    return 0 if wants_help else 1

  def work() -> int:
    """Prints what was asked for."""
    if arguments:
      text = text_tables.align(details(arguments[0]))
    else:
      text = text_tables.align(table(), NUMBERS)
    sys.stdout.write(f"{text}\n")
    return 0

  return command_line.exit_status(work)
