"""Tests the command."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.bench import cases
from vpt_jax.bench import __main__ as command
from vpt_jax.bench import bench_cases, bench_tables, measure, worker


def parsed(*argv):
  return bench_cases.parser().parse_args(argv)


def test_cases():
  found = bench_cases.cases(
    parsed(
      "--backbones",
      "a,b",
      "--methods",
      "linear,vpt_deep",
      "--prompts",
      "0,10,50",
    )
  )
  assert [(c["backbone"], c["method"], c["prompts"]) for c in found] == [
    (name, *rest)
    for name in "ab"
    for rest in (("linear", 0), ("vpt_deep", 10), ("vpt_deep", 50))
  ]
  assert (
    len(
      bench_cases.cases(parsed("--batch", "1,8", "--dtype", "float32,bfloat16"))
    )
    == 2 * 2 * 2 * 21
  )
  for argv, message in (
    (
      ("--methods", "vpt_dep"),
      "unknown method 'vpt_dep'; did you mean 'vpt_deep'",
    ),
    (("--dtype", "float16"), "did you mean 'bfloat16'"),
    (("--methods", "pgn", "--prompts", "0"), "nothing to measure"),
    (("--prompts", "-1"), "--prompts -1; expected at least 0"),
  ):
    with pytest.raises(ValueError, match=message):
      bench_cases.cases(parsed(*argv))


def test_cases_of_segmentation():
  """Their own defaults, which the command line changes."""
  found = bench_cases.cases(parsed("--segmentation", "setr,linear"))
  assert [(case["segmentation"], case["method"]) for case in found] == [
    (head, method)
    for head in ("setr", "linear")
    for method in ("vpt_deep", "gated")
  ]
  for case in found:
    assert (case["backbone"], case["batch"]) == ("vit_ti16", 2)
    assert (case["image_size"], case["classes"]) == (512, 150)
    assert case["prompts"] == 24
  [chosen] = bench_cases.cases(
    parsed(
      "--segmentation",
      "setr",
      "--methods",
      "gated",
      "--batch",
      "4",
      "--backbones",
      "vit_s16",
      "--image_size",
      "256",
      "--prompts",
      "100",
    )
  )
  assert (chosen["backbone"], chosen["batch"]) == ("vit_s16", 4)
  assert (chosen["image_size"], chosen["prompts"]) == (256, 100)
  assert bench_tables.group(chosen).endswith("segmentation by setr")
  [other, *_] = bench_cases.cases(parsed())
  assert (other["segmentation"], other["image_size"]) == ("", 224)
  with pytest.raises(ValueError, match="did you mean 'setr'"):
    bench_cases.cases(parsed("--segmentation", "set"))
  with pytest.raises(ValueError, match="--scoring is of classification"):
    bench_cases.cases(parsed("--segmentation", "setr", "--scoring"))


def test_the_command(tmp_path, torch_side):
  pytest.importorskip("matplotlib")
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "vpt_jax.bench",
      "--backbones",
      "vit_mini4",
      "--image_size",
      "32",
      "--methods",
      "vpt_deep",
      "--prompts",
      "2",
      "--batch",
      "2",
      "--variants",
      "sdpa",
      "--repeats",
      "2",
      "--threads",
      "1",
      "--out",
      tmp_path / "out",
    ],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "PYTHONPATH": str(worker.ROOT)},
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "out/bench.json").read_text())
  [row] = found["rows"]
  assert row["sides"].keys() == {"vpt_jax", "sdpa"}
  for of in row["sides"].values():
    for name in ("forward", "train"):
      assert len(of[name]["samples"]) == 2 and min(of[name]["samples"]) > 0
      assert of[name]["first"] > 0 and of[name]["memory"] > 50e6
    assert of["difference"] <= 2e-4 and of["matmul"] > 0
  assert {"jax", "torch", "timm"} <= found["versions"].keys()
  assert found["host"]["cores"] == 1
  text = (tmp_path / "out/bench.md").read_text()
  assert text in done.stdout and "not available" not in text
  assert cases.cells(text)[0][3].endswith(" sdpa")
  assert (tmp_path / "out/bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
  pytest.importorskip("matplotlib")
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: name in ("torch", "timm") or find(name, *rest),
  )

  def row(case, *_):
    if case["prompts"] in fails:
      raise worker.Failed("vpt_jax ended with status -9")
    return {
      "case": dict(case),
      "platform": "cpu",
      "sides": {"vpt_jax": cases.side([0.02], [0.06])},
    }

  monkeypatch.setattr(measure, "row", row)
  args = [
    "--backbones",
    "vit_mini4",
    "--methods",
    "vpt_deep",
    "--prompts",
    "10,20",
    "--out",
    str(tmp_path),
  ]
  fails = [10]
  assert command.main(args) == 1
  out, err = capsys.readouterr()
  assert "1/2 vit_mini4" in err and "status -9" in err
  text = (tmp_path / "bench.md").read_text()
  assert (
    text in out and [line[1] for line in cases.cells(text)][:2] == ["20"] * 2
  )
  assert (
    "vpt_deep with 10 prompts: vpt_jax ended with status -9"
    in text.split("## Not measured")[1]
  )
  assert (tmp_path / "bench.png").exists()
  found = json.loads((tmp_path / "bench.json").read_text())
  assert [line["case"]["prompts"] for line in found["failed"]] == [10]
  fails = [10, 20]
  assert command.main(args) == 1
  assert "nothing could be measured: vpt_jax ended" in capsys.readouterr().err
  fails = []
  assert command.main(args) == 0
  assert "Not measured" not in capsys.readouterr().out
