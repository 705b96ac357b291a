"""What a training step needs on machines that are not here, from a model.

`python -m vpt_jax.bench.plan` prints the table; nothing is run. Per device:

  memory = frozen + 3 x trained + images x activations x BUFFERS
  time   = FLOPs / (peak x SHARE) + bytes moved / link

Activations are what reverse-mode differentiation keeps of an image and FLOPs
those of its products, both traced from the model; `--check` compares them with
what XLA compiles here, where BUFFERS is from. SHARE and the machines' data
sheets are assumptions.
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math
from pathlib import Path
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as models
from vpt_jax.bench import bench_tables, jax_side
from vpt_jax.nn import cost
from vpt_jax.problems import Classification
from vpt_jax.utils import trees

SHARE = 0.45  # of the peak that a step reaches: assumed
# XLA's buffers by what is kept, on CPU (`--check`, ViT-Ti, S and B): 1.42 to
# 1.53 for 8 and 16 images, 1.03 to 1.06 for 32 to 128. The larger is to fit.
BUFFERS = 1.55
SPARE = 0.9  # of a device's memory that a program may take
TENSOR = 4  # devices that share a copy of the backbone under `tp`
SLOTS = 3  # a trained parameter, its gradient and its momentum, float32


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices of a kind, by their makers' data sheets.

  Attributes:
    devices: how many.
    tflops: bfloat16 peak of one.
    memory: GB of one.
    link: GB/s that one sends to the others.
    hosts: processes that a run takes at least.
  """

  devices: int
  tflops: float
  memory: float
  link: float
  hosts: int = 1


# cloud.google.com/tpu/docs/v5e and v5p: v5p-64 are 64 cores, two to a chip.
# nvidia.com: H100 SXM and H200, bfloat16 without sparsity, NVLink 4.
MACHINES = {
  "v5e-8": Machine(8, 197, 16, 200),
  "v5p-64": Machine(32, 459, 95, 600, hosts=8),
  "H100": Machine(1, 989, 80, 450),
  "8 x H100": Machine(8, 989, 80, 450),
  "H200": Machine(1, 989, 141, 450),
  "8 x H200": Machine(8, 989, 141, 450),
}
BACKBONES = ("vit_b16", "vit_l16", "vit_h14", "vit_g14")


@dataclasses.dataclass(frozen=True)
class Needs:
  """Of a training step.

  Attributes:
    frozen, trained: bytes of parameters.
    image: bytes kept of an image for the backward pass.
    carried: bytes of a block's tokens, of an image.
    depth: blocks.
    flops: of an image, forward and backward.
  """

  frozen: float
  trained: float
  image: float
  carried: float
  depth: int
  flops: float


def case(
  backbone: str, prompts: int, dtype: str = "bfloat16"
) -> dict[str, Any]:
  """VPT-deep at 224 px, as in `measure.Case`."""
  return dict(
    backbone=backbone,
    image_size=224,
    method="vpt_deep",
    prompts=prompts,
    dtype=dtype,
    dropout=0.1,
    classes=100,
  )


def _bytes(values: Any) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(values)
  )


@functools.lru_cache(maxsize=None)
def _traced(depth: int, **options: Any) -> np.ndarray:
  """Needs of a model of that depth: frozen, trained, image, flops."""
  model = models.build(jax_side.config_of(options), options["classes"])
  backbone = model.backbone.clone(depth=depth)
  model = model.clone(
    backbone=backbone, method=model.method.clone(spec=backbone.spec)
  )
  shapes = trees.flatten(
    jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
  )
  frozen = {
    path: jax.ShapeDtypeStruct(leaf.shape, options["dtype"])
    for path, leaf in shapes.items()
    if path.startswith("backbone/")
  }
  trained = {path: leaf for path, leaf in shapes.items() if path not in frozen}

  def loss(trained, frozen, image, label):
    logits = model.apply(
      {"params": trees.merge(trained, frozen)},
      image,
      train=True,
      rngs={"dropout": jax.random.key(0)},
    )
    return Classification(options["classes"]).loss(logits, label).mean()

  def of(count: int) -> np.ndarray:
    args = (
      trained,
      frozen,
      jax.ShapeDtypeStruct((count, *model.method.input_size, 3), jnp.float32),
      jax.ShapeDtypeStruct((count,), jnp.int32),
    )
    # The pullback is a tree, whose leaves are what it needs.
    kept = jax.eval_shape(
      lambda trained, *rest: jax.vjp(
        lambda trained: loss(trained, *rest), trained
      )[1],
      *args,
    )
    return np.array([_bytes(kept), 2 * cost.counted(jax.grad(loss), *args)])

  # Two images less one: weights are among what is kept.
  return np.array([_bytes(frozen), _bytes(trained), *(of(2) - of(1))])


def needs(backbone: str, prompts: int, dtype: str = "bfloat16") -> Needs:
  """What VPT-deep with so many prompts in every block needs.

  All of it is linear in the number of prompts, and in that of blocks from two
  on (the first and the last do less): four small models are traced.
  """
  spec = models.build(
    jax_side.config_of(case(backbone, 1, dtype)), 2
  ).backbone.spec

  def deep(prompts: int) -> np.ndarray:
    two, three = (_traced(n, **case(backbone, prompts, dtype)) for n in (2, 3))
    return two + (spec.depth - 2) * (three - two)

  one, more = deep(1), deep(2)
  frozen, trained, image, flops = one + (prompts - 1) * (more - one)
  tokens = spec.num_cls + math.prod(spec.grids[0])
  return Needs(
    frozen,
    trained,
    image,
    tokens * spec.widths[0] * jnp.dtype(dtype).itemsize,
    spec.depth,
    flops,
  )


@dataclasses.dataclass(frozen=True)
class Step:
  """Of one device: bytes in memory, seconds, bytes sent, seconds of these."""

  memory: float
  seconds: float
  sent: float
  sending: float


def step(
  need: Needs, machine: Machine, batch: int, strategy: str = "dp"
) -> Step:
  """A step on `batch` images over all devices, by a strategy of `shard.py`.

  Sending is taken as not hidden behind computing. `tp` is over TENSOR devices.
  """
  n, parts = machine.devices, TENSOR if strategy == "tp" else 1
  ring = lambda n: (n - 1) / n  # what a device sends of an array all gather
  images, frozen = batch / n * parts, need.frozen / parts
  sent = 2 * ring(n) * need.trained
  if strategy == "fsdp":
    frozen, sent = frozen / n, sent + 2 * ring(n) * need.frozen
  elif strategy == "tp":  # two sums of a block's tokens, in each direction
    sent += 8 * ring(parts) * need.depth * images * need.carried
  sending = sent / (machine.link * 1e9)
  kept = BUFFERS * images * need.image / parts
  return Step(
    frozen + SLOTS * need.trained + kept,
    batch / n * need.flops / (SHARE * machine.tflops * 1e12) + sending,
    sent,
    sending,
  )


def most_cells(need: Needs, machine: Machine, batch: int) -> int:
  """Runs of so many images each that train together, each on all devices."""
  free = SPARE * machine.memory * 1e9 - need.frozen
  one = step(need, machine, batch).memory - need.frozen
  return max(0, int(free // one))


def most_prompts(backbone: str, machine: Machine, batch: int) -> int:
  """Prompts in every block that fit, under `dp`."""
  one, two = (step(needs(backbone, n), machine, batch).memory for n in (1, 2))
  return max(0, int((SPARE * machine.memory * 1e9 - one) // (two - one)) + 1)


def rows(
  backbones: Sequence[str], prompts: int, batch: int
) -> Iterator[list[str]]:
  """The table's, header first."""
  yield [
    "machine",
    "backbone",
    "images per device",
    "GB",
    "ms",
    "images/s",
    "sent MB (ms): dp",
    "fsdp",
    f"tp, {TENSOR}",
    "cells",
    "prompts",
  ]
  for name, machine in MACHINES.items():
    images = max(batch, machine.devices)
    for backbone in backbones:
      need = needs(backbone, prompts)
      of = {
        strategy: step(need, machine, images, strategy)
        for strategy in ("dp", "fsdp", "tp")
      }
      sent = [
        f"{x.sent / 1e6:,.1f} ({1e3 * x.sending:.1f})"
        if machine.devices > 1
        else "-"
        for x in of.values()
      ]
      here = of["dp"]
      yield [
        name,
        backbone,
        f"{images / machine.devices:g}",
        f"{here.memory / 1e9:.1f}",
        f"{1e3 * here.seconds:.1f}",
        f"{images / here.seconds:,.0f}",
        *sent,
        # A sweep takes one process.
        f"{most_cells(need, machine, images)}" if machine.hosts == 1 else "-",
        f"{most_prompts(backbone, machine, images):,}",
      ]


def checked(
  backbones: Sequence[str], prompts: Sequence[int], batch: int
) -> Iterator[list[str]]:
  """The model beside what XLA compiles on this machine, header first."""
  yield [
    "backbone",
    "prompts",
    "MB per image: model",
    "compiled",
    "ratio",
    "GFLOPs: model",
    "compiled",
    "ratio",
  ]
  for backbone in backbones:
    for count in prompts:
      need = needs(backbone, count, "float32")
      memory, flops = (
        x / batch
        for x in _compiled(
          {**case(backbone, count, "float32"), "batch": batch, "seed": 0}
        )
      )
      yield [
        backbone,
        f"{count}",
        f"{need.image / 1e6:.1f}",
        f"{memory / 1e6:.1f}",
        f"{memory / need.image:.2f}",
        f"{need.flops / 1e9:.1f}",
        f"{flops / 1e9:.1f}",
        f"{flops / need.flops:.2f}",
      ]


def _compiled(options: dict[str, Any]) -> tuple[int, float]:
  """(bytes of buffers, FLOPs) of the step as XLA compiles it here."""
  with tempfile.TemporaryDirectory() as folder:
    side = jax_side.Ours({**options, "file": str(Path(folder) / "case.npz")})
    side.export(1)
    program, *_ = side.step
  return (
    program.memory_analysis().temp_size_in_bytes,
    program.cost_analysis()["flops"],
  )


def main(argv: Sequence[str]) -> int:
  """Prints the plan; returns the exit status."""
  parse = argparse.ArgumentParser(
    prog="python -m vpt_jax.bench.plan", description=__doc__.splitlines()[0]
  )
  names = lambda text: tuple(text.split(","))
  parse.add_argument(
    "--backbones",
    type=names,
    default=BACKBONES,
    metavar="A,B",
    help="default " + ",".join(BACKBONES),
  )
  parse.add_argument(
    "--prompts",
    type=int,
    default=50,
    help="in every block (default %(default)s)",
  )
  parse.add_argument(
    "--batch",
    type=int,
    default=64,
    help="images of all devices (default %(default)s)",
  )
  parse.add_argument(
    "--check",
    action="store_true",
    help="compile steps here and compare, instead",
  )
  args = parse.parse_args(argv)
  try:
    found = (
      checked(args.backbones, (args.prompts,), args.batch)
      if args.check
      else rows(args.backbones, args.prompts, args.batch)
    )
    header, *lines = found
    sys.stdout.write("\n".join(bench_tables.grid(header, lines)) + "\n")
  except ValueError as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
