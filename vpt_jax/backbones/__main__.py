"""What can be adapted: `python -m vpt_jax.backbones [NAME]`."""

from collections.abc import Sequence
import sys

import flax.linen as nn

from vpt_jax.backbones import factory
from vpt_jax.backbones.model_zoo import Entry
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost
from vpt_jax.weights import download


def where(entry: Entry) -> str:
  """Whether the weights are here."""
  if not entry.url:
    return "your file"
  if entry.url.startswith("package:"):
    return "included"
  return "cached" if download.location(entry.url).exists() else "not fetched"


def table() -> list[list[str]]:
  """Rows of text, the first is the heading."""
  rows = [["name", "parameters", "GMACs", "px", "weights", "licence"]]
  known: dict[nn.Module, tuple[str, str]] = {}
  for name, entry in factory.BACKBONES.items():
    module = factory.make(name, entry, (entry.image_size,) * 2)
    # Several checkpoints have one architecture.
    shape = module.clone(
      gelu="exact",
      pool="",
      norm_order="",
      normalize="",
      **({"resize": ""} if entry.module is ViT else {}),
    )
    if shape not in known:
      known[shape] = (
        f"{cost.parameters(module):,}",
        f"{cost.multiply_adds(module) / 1e9:.2f}",
      )
    rows.append(
      [name, *known[shape], str(entry.image_size), where(entry), entry.licence]
    )
  return rows


def details(name: str) -> list[list[str]]:
  """Everything that is known of one backbone."""
  entry = factory.get(name)
  spec = factory.make(name, entry, (entry.image_size,) * 2).spec
  stages = [
    f"{len(stage)} x {spec.widths[stage.start]} on "
    f"{spec.grids[stage.start][0]} x {spec.grids[stage.start][1]}"
    for stage in spec.stages
  ]
  path = download.location(entry.url) if "://" in entry.url else ""
  return [
    ["blocks", ", ".join(stages)],
    *(
      [field, str(getattr(spec, field))]
      for field in (
        "image_size",
        "patch_size",
        "num_cls",
        "pool",
        "norm",
        "gelu",
        "eps",
        "normalize",
      )
    ),
    ["projection", "yes" if entry.projection else "no"],
    ["text tower", "yes" if entry.text else "no"],
    ["licence", entry.licence or "-"],
    ["address", entry.url or "-"],
    ["checksum", entry.checksum or "not published"],
    ["weights", where(entry)],
    ["cache", str(path) or "-"],
  ]


def main(argv: Sequence[str]) -> int:
  """Prints the table, or one entry; returns the exit status."""
  if len(argv) > 2 or {"-h", "--help"} & {*argv}:
    sys.stdout.write(__doc__ + "\n")
    return int(len(argv) > 2)
  try:
    rows = details(argv[1]) if len(argv) == 2 else table()
  except ValueError as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  widths = [max(map(len, column)) for column in zip(*rows)]
  for row in rows:
    cells = [
      cell.rjust(width) if 0 < i < 4 and len(argv) == 1 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths))
    ]
    sys.stdout.write("  ".join(cells).rstrip() + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
