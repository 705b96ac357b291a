"""Computes what a training step needs on machines that are not here.

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
from pathlib import Path
import sys
import tempfile
from typing import Any

from vpt_jax.bench import bench_tables, dense_cases, jax_side
from vpt_jax.bench.model_needs import case, Needs, needs
from vpt_jax.utils import command_line, lookup

SHARE = 0.45  # of the peak that a step reaches: assumed
# XLA's buffers by what is kept, on CPU (`--check`, ViT-Ti, S and B): 1.42 to
# 1.53 for 8 and 16 images, 1.03 to 1.06 for 32 to 128. The larger is to fit.
BUFFERS = 1.55
SPARE = 0.9  # of a device's memory that a program may take
TENSOR = 4  # devices that share a copy of the backbone under `tp`
SLOTS = 3  # a trained parameter, its gradient and its momentum, float32
STRATEGIES = ("dp", "fsdp", "tp")  # of `config.shard.strategy`


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
class Step:
  """What a step takes of one device.

  Attributes:
    memory: bytes.
    seconds: of the whole step.
    sent: bytes that the device sends.
    sending: seconds of these.
  """

  memory: float
  seconds: float
  sent: float
  sending: float


def _ring(devices: int) -> float:
  """Returns the share of an array that a device sends so that all have it."""
  return (devices - 1) / devices


def step(
  need: Needs, machine: Machine, batch: int, strategy: str = "dp"
) -> Step:
  """Returns a step on `batch` images over all devices.

  Sending is taken as not hidden behind computing.

  Args:
    need: of the model.
    machine: the devices.
    batch: images of all devices together.
    strategy: of `distributed/sharding.py`; `tp` is over TENSOR devices.
  """
  devices = machine.devices
  parts = TENSOR if strategy == "tp" else 1  # of the frozen parameters
  images = batch / devices * parts
  frozen = need.frozen / parts
  sent = 2 * _ring(devices) * need.trained  # gradients, summed
  if strategy == "fsdp":
    frozen = frozen / devices
    sent += 2 * _ring(devices) * need.frozen  # gathered twice
  elif strategy == "tp":
    # Two sums of a block's tokens, in each direction.
    sent += 8 * _ring(parts) * need.depth * images * need.carried
  sending = sent / (machine.link * 1e9)
  computing = batch / devices * need.flops / (SHARE * machine.tflops * 1e12)
  kept = BUFFERS * images * need.image / parts
  return Step(
    memory=frozen + SLOTS * need.trained + kept,
    seconds=computing + sending,
    sent=sent,
    sending=sending,
  )


def most_cells(need: Needs, machine: Machine, batch: int) -> int:
  """Returns how many runs of `batch` images can train together.

  Each is on all devices; the frozen parameters are shared.
  """
  free = SPARE * machine.memory * 1e9 - need.frozen
  one_run = step(need, machine, batch).memory - need.frozen
  return max(0, int(free // one_run))


def most_prompts(
  backbone: str, machine: Machine, batch: int, head: str = ""
) -> int:
  """Returns how many prompts in every block fit, under `dp`; see `case`."""
  one = step(needs(backbone, 1, head=head), machine, batch).memory
  two = step(needs(backbone, 2, head=head), machine, batch).memory
  free = SPARE * machine.memory * 1e9 - one
  return max(0, int(free // (two - one)) + 1)


HEADING = [
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


def rows(
  backbones: Sequence[str], prompts: int, batch: int, head: str = ""
) -> Iterator[list[str]]:
  """Returns the lines of the table, the heading first; see `case`."""
  yield HEADING
  for name, machine in MACHINES.items():
    images = max(batch, machine.devices)
    for backbone in backbones:
      need = needs(backbone, prompts, head=head)
      steps = [step(need, machine, images, plan) for plan in STRATEGIES]
      data_parallel = steps[0]
      # A sweep takes one process.
      cells = most_cells(need, machine, images) if machine.hosts == 1 else "-"
      yield [
        name,
        backbone,
        f"{images / machine.devices:g}",
        f"{data_parallel.memory / 1e9:.1f}",
        f"{1e3 * data_parallel.seconds:.1f}",
        f"{images / data_parallel.seconds:,.0f}",
        *(_sent(each, machine) for each in steps),
        f"{cells}",
        f"{most_prompts(backbone, machine, images, head):,}",
      ]


def _sent(step: Step, machine: Machine) -> str:
  if machine.devices == 1:
    return "-"
  return f"{step.sent / 1e6:,.1f} ({1e3 * step.sending:.1f})"


CHECK_HEADING = [
  "backbone",
  "prompts",
  "MB per image: model",
  "compiled",
  "ratio",
  "GFLOPs: model",
  "compiled",
  "ratio",
]


def checked(
  backbones: Sequence[str],
  prompts: Sequence[int],
  batch: int,
  head: str = "",
) -> Iterator[list[str]]:
  """Returns the model beside what XLA compiles here, the heading first."""
  yield CHECK_HEADING
  for backbone in backbones:
    for count in prompts:
      options = case(backbone, count, "float32", head)
      need = needs(backbone, count, "float32", head)
      total_memory, total_flops = _compiled(
        {**options, "batch": batch, "seed": 0}
      )
      memory = total_memory / batch
      flops = total_flops / batch
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
  """Returns bytes of buffers and FLOPs of the step as XLA compiles it here."""
  with tempfile.TemporaryDirectory() as folder:
    side = jax_side.JaxSide({**options, "file": str(Path(folder) / "case.npz")})
    side.export(1)
    program = side.step.program
  memory = program.memory_analysis().temp_size_in_bytes
  return memory, program.cost_analysis()["flops"]


def _names(text: str) -> tuple[str, ...]:
  return tuple(text.split(","))


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  out = argparse.ArgumentParser(
    prog="python -m vpt_jax.bench.plan",
    description=__doc__.splitlines()[0],
  )
  out.add_argument(
    "--backbones",
    type=_names,
    default=BACKBONES,
    metavar="A,B",
    help=f"default {','.join(BACKBONES)}",
  )
  out.add_argument(
    "--prompts",
    type=int,
    default=50,
    help="in every block (default %(default)s)",
  )
  out.add_argument(
    "--batch",
    type=int,
    default=64,
    help="images of all devices (default %(default)s)",
  )
  out.add_argument(
    "--segmentation",
    default="",
    metavar="A",
    help="150 classes at 512 px by one of these heads: "
    f"{','.join(dense_cases.HEADS)} (default: 100 classes at 224 px)",
  )
  out.add_argument(
    "--check",
    action="store_true",
    help="compile steps here and compare, instead",
  )
  return out


def run(args: argparse.Namespace) -> int:
  """Prints the plan; returns the exit status."""
  head = args.segmentation
  if head:
    lookup.choose(head, dense_cases.HEADS, "head of segmentation")
  if args.check:
    table = checked(args.backbones, (args.prompts,), args.batch, head)
  else:
    table = rows(args.backbones, args.prompts, args.batch, head)
  sys.stdout.write("\n".join(bench_tables.grid(table)) + "\n")
  return 0


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit status."""
  args = parser().parse_args(argv)
  return command_line.exit_status(lambda: run(args))


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv[1:]))
