"""Tests what the report says."""

from pathlib import Path

from tests.bench import cases
from vpt_jax.bench import bench_tables


def test_the_tables():
  text = bench_tables.text(
    cases.report(
      {
        # Medians 0.02 and 0.06; 4 images of 0.5 and 1.5 GFLOPs: 100 GFLOP/s.
        "vpt_jax": cases.side(
          [0.02, 0.01, 0.9],
          [0.06, 0.06, 0.05],
          first=(1.02, 2.06),
          gflops={"forward": 0.5, "train": 1.5},
        ),
        "eager": cases.side(
          [0.03, 0.03, 0.03],
          [0.1, 0.1, 0.1],
          matmul=200.0,
          gflops={"forward": 1.0, "train": 3.0},
          idle=0.5,
        ),
        "sdpa": cases.side(
          [0.04, 0.04, 0.04], [0.08, 0.09, 0.07], first=(0.0, 0.58)
        ),
        "compile": {"unavailable": "compile, 'logits': no compiler"},
      }
    )
  )
  times, busy, work, variants = cases.cells(text)
  assert times == [
    "vpt_deep",
    "10",
    "20.0",
    "30.0 eager",
    "0.67",
    "60.0",
    "80.0 sdpa",
    "0.75",
  ]
  # Two processors were busy.
  assert busy[2:] == [
    "40.0",
    "60.0 eager",
    "0.67",
    "120.0",
    "160.0 sdpa",
    "0.75",
  ]
  # The peak is the larger one of both libraries: 200 GFLOP/s.
  assert work == [
    "vpt_deep",
    "10",
    "0.50",
    "1.00",
    "50",
    "67",
    "1",
    "1",
    "1.50",
    "3.00",
    "50",
    "75",
    "3",
    "3",
    "3.0",
    "0.5",
  ]
  assert variants[1:] == [
    "vpt_deep",
    "10",
    "30.0",
    "40.0",
    "not available",
    "100.0",
    "80.0",
    "not available",
  ]
  assert "not available: compile, 'logits': no compiler" in text
  assert "eager used 50% of a core" in text
  assert "forward of vpt_jax took 10.0 to 900.0 ms" in text
  assert "train of vpt_jax took" not in text
  assert "float32: 200 GFLOP/s" in text


def test_the_tables_without_torch():
  text = bench_tables.text(
    cases.report(
      {
        "vpt_jax": cases.side([0.02], [0.06]),
        "sdpa": {"unavailable": "no CUDA"},
      },
      start_up=[
        {
          "case": cases.case("vpt_deep", Path(".")),
          "side": "vpt_jax",
          "cold": 9.04,
          "warm": 4.0,
        }
      ],
      scoring=[
        {
          "case": cases.case("vpt_deep", Path(".")),
          "images": 64,
          "scores": {"removal": {"first_batch": 3.0, "seconds": 32.0}},
        }
      ],
    )
  )
  times, _, work, _, start_up, scoring = cases.cells(text)
  assert times[2:] == [
    "20.0",
    "not available",
    "-",
    "60.0",
    "not available",
    "-",
  ]
  assert work[2:8] == ["-", "-", "-", "-", "1", "-"]
  assert start_up[-3:] == ["vpt_jax", "9.0", "4.0"]
  assert scoring[-5:] == ["removal", "64", "3.0", "32.0", "2.0"]
