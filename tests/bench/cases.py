"""Makes cases and reports for tests of the benchmark."""

from pathlib import Path

from vpt_jax.backbones import factory
from vpt_jax.bench import jax_side

factory.BACKBONES["vit_bench_test"] = factory.Entry(
  {"patch_size": 16, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}
)


def case(method, folder, **more):
  return {
    "backbone": "vit_bench_test",
    "image_size": 32,
    "method": method,
    "prompts": 0 if method == "linear" else 3,
    "dtype": "float32",
    "batch": 4,
    "dropout": 0.0,
    "classes": 5,
    "seed": 0,
    "file": str(folder / "case.npz"),
    "device": "cpu",
    **more,
  }


def exported(method, folder, **more):
  """Returns the side of vpt_jax, its arrays written for the other one."""
  side = jax_side.JaxSide(case(method, folder, **more))
  side.export(1)
  return side


def side(forward, train, first=(0.0, 0.0), matmul=100.0, gflops=None, **more):
  return {
    "forward": {
      "first": first[0],
      "samples": forward,
      "busy": [2 * seconds for seconds in forward],
      "memory": 2**20,
    },
    "train": {
      "first": first[1],
      "samples": train,
      "busy": [2 * seconds for seconds in train],
      "memory": 3 * 2**20,
    },
    "difference": 1e-6,
    "idle": 0.0,
    "matmul": matmul,
    "gflops": gflops or {},
    "device": "cpu",
    **more,
  }


def report(sides, **more):
  row = {
    "case": case("vpt_deep", Path("."), prompts=10),
    "platform": "cpu",
    "sides": sides,
  }
  return {
    "host": {"cores": 2, "cpu": "X", "load": 0.0},
    "device": "cpu",
    "date": "2026-01-01",
    "versions": {"jax": "1"},
    "rows": [row],
    "arguments": {"repeats": 3, "dropout": 0.1},
    "failed": [],
    "start_up": [],
    "scoring": [],
    **more,
  }


def cells(text, method="vpt_deep"):
  """Of all lines of tables that a method has: their cells."""
  return [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in text.splitlines()
    if f"| {method} " in line
  ]
