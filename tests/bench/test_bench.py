"""Tests that both sides compute the same, and what reports say."""

import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import peers as installed
from vpt_jax.backbones import factory
from vpt_jax.bench import __main__ as command
from vpt_jax.bench import bench_tables, jax_side, measure, worker
from vpt_jax.utils import trees

factory.BACKBONES["vit_bench_test"] = factory.Entry(
  {"patch_size": 16, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}
)
VARIANTS = ("eager", "sdpa")


@pytest.fixture(scope="module")
def torch_side():
  """Returns `pytorch_side`, or the test is skipped."""
  installed.timm()
  from vpt_jax.bench import pytorch_side

  with pytest.MonkeyPatch.context() as patch:
    # PyTorch's threads wait for each other: slow beside other tests.
    patch.setattr(worker, "cores", lambda: 1)
    yield pytorch_side


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


def jax_gradients(side):
  """Returns {path: gradient} of the mean loss, as a step takes it."""
  variables = side.variables
  trained, frozen = trees.split(variables["params"], r"(method|head)/.*")

  @jax.jit
  def gradients(trained, frozen, batch_stats):
    def loss(trained):
      logits = side.model.apply(
        {"params": trees.merge(trained, frozen), **batch_stats},
        side.arrays["pixels"],
        train=True,
        mutable=list(batch_stats),
        rngs={"dropout": jax.random.key(0)},
      )[0]
      return optax.softmax_cross_entropy_with_integer_labels(
        logits, side.arrays["label"]
      ).mean()

    return jax.grad(loss)(trained)

  stats = {name: value for name, value in variables.items() if name != "params"}
  return gradients(trained, frozen, stats)


def torch_gradients(side):
  """Returns the same, under the names and in the layout of vpt_jax."""
  import torch.nn.functional as F

  from vpt_jax.bench import pytorch_models

  side.model.train()
  F.cross_entropy(side.model(side.image), side.label).backward()
  out = {}
  for name, parameter in side.model.named_parameters():
    if parameter.requires_grad:
      gradient = parameter.grad.numpy()
      if name.endswith("weight"):
        gradient = (
          gradient.transpose(2, 3, 1, 0) if gradient.ndim == 4 else gradient.T
        )
      out[pytorch_models.path_of(name, parameter.ndim)] = gradient
    else:
      assert parameter.grad is None, name
  return out


@pytest.mark.parametrize("method", measure.METHODS)
def test_both_sides_compute_the_same(method, tmp_path, torch_side):
  jax_run = exported(method, tmp_path)
  logits = jax_run.logits(1)["logits"]
  want = jax_gradients(jax_run)
  steps = [jax_run.train(1)["loss"] for _ in range(4)]
  assert steps[-1] < steps[0] - 0.1  # they do train
  for variant in VARIANTS:
    torch_run = torch_side.PytorchSide(jax_run.case | {"variant": variant})
    difference = measure.compare(
      logits, torch_run.logits(1)["logits"], "float32", variant
    )
    assert difference < 1e-5
    # Of five steps, so that the optimizer has a part in it.
    np.testing.assert_allclose(
      [torch_run.train(1)["loss"] for _ in range(4)], steps, rtol=1e-4
    )

  torch_run = torch_side.PytorchSide(jax_run.case | {"variant": "eager"})
  got = torch_gradients(torch_run)
  assert got.keys() == want.keys()
  assert any(path.startswith("method/") for path in got) == (method != "linear")
  for path, gradient in want.items():
    most = np.abs(gradient).max()
    assert most > 1e-6, path  # so a side that leaves it out is seen
    np.testing.assert_allclose(
      got[path], gradient, rtol=1e-3, atol=1e-4 * most, err_msg=path
    )


@pytest.mark.parametrize("method", ["vpt_deep", "vapt"])
def test_dropout_is_drawn_in_steps_alone(method, tmp_path, torch_side):
  jax_run = exported(method, tmp_path, dropout=0.5)
  torch_run = torch_side.PytorchSide(jax_run.case | {"variant": "sdpa"})
  logits = [side.logits(1)["logits"] for side in (jax_run, torch_run)]
  measure.compare(*logits, "float32", "sdpa")
  without = optax.softmax_cross_entropy_with_integer_labels(
    jnp.array(logits[0]), jax_run.arrays["label"]
  ).mean()
  for side in (jax_run, torch_run):
    assert abs(side.train(1)["loss"] - without) > 1e-3


@pytest.mark.parametrize("method", ["vapt", "gated"])
def test_bfloat16_is_used_and_close(method, tmp_path, torch_side):
  exact = np.array(exported(method, tmp_path).logits(1)["logits"])
  jax_run = jax_side.JaxSide(case(method, tmp_path, dtype="bfloat16"))
  torch_run = torch_side.PytorchSide(jax_run.case | {"variant": "sdpa"})
  assert torch_run.model.vit.cls_token.dtype == torch_run.dtype
  assert jax_run.arrays["backbone/cls"].dtype == jnp.bfloat16
  logits = [np.array(side.logits(1)["logits"]) for side in (jax_run, torch_run)]
  measure.compare(*logits, "bfloat16", "sdpa")
  for of in logits:
    assert 1e-4 < np.abs(of - exact).max() < 0.05 * np.abs(exact).max()


def test_flops(tmp_path, torch_side):
  """Tests both counts, and that deep prompts cost vpt_jax less."""
  counts = {}
  for method, prompts in (("linear", 0), ("vpt_deep", 50)):
    jax_run = exported(method, tmp_path, prompts=prompts)
    for name in ("forward", "train"):
      getattr(jax_run, name)(1)
    torch_run = torch_side.PytorchSide(jax_run.case | {"variant": "eager"})
    counts[method] = jax_run.facts(1)["gflops"], torch_run.facts(1)["gflops"]
  # 4 patches and a class token: embedding, two blocks, head; in products.
  rows, width = 5, 32
  blocks = 2 * (rows * width * (4 * width + 2 * 64) + 2 * rows**2 * width)
  products = 2 * (4 * 16 * 16 * 3 * width + blocks + width * 5) / 1e9
  assert counts["linear"][1]["forward"] == pytest.approx(products)
  # The last block gives one row, and XLA counts more than products.
  assert 0.7 < counts["linear"][0]["forward"] / products < 1.3
  jax_run, torch_run = counts["vpt_deep"]
  assert jax_run["forward"] < 0.7 * torch_run["forward"]
  assert torch_run["train"] > 1.5 * torch_run["forward"]


def test_a_backbone_that_is_no_plain_vit(tmp_path, torch_side):
  jax_run = exported("linear", tmp_path, backbone="clip_test", image_size=8)
  with pytest.raises(ValueError, match=r"has no .*embedding/bias"):
    torch_side.PytorchSide(jax_run.case | {"variant": "sdpa"})


def test_scoring(tmp_path):
  jax_run = exported("vpt_deep", tmp_path)
  found = jax_run.score(5)  # in batches of 4
  assert found["images"] == 8 and found["scores"].keys() == set(jax_side.SCORES)
  for times in found["scores"].values():
    # Compilation is of the first batch.
    assert 0 < times["seconds"] < times["first_batch"]


def test_disagreement_stops():
  logits = [[1.0, -3.0], [0.5, 2.0]]
  near = [[1.0001, -3.0], [0.5, 2.0]]
  far = [[1.0, -3.0], [0.5, 2.001]]
  assert measure.compare(logits, near, "float32", "sdpa") == pytest.approx(1e-4)
  with pytest.raises(
    measure.Disagree,
    match=r"vpt_jax and sdpa differ by 1\.00e-03"
    r" in float32; expected at most 2\.00e-04",
  ):
    measure.compare(logits, far, "float32", "sdpa")
  assert measure.compare(logits, far, "bfloat16", "sdpa") < 0.05 * 3
  with pytest.raises(measure.Disagree):
    measure.compare(logits, [[1.0, float("nan")], [0.5, 2]], "bfloat16", "sdpa")
  with pytest.raises(measure.Disagree, match="inf"):
    measure.compare(logits, logits[:1], "float32", "sdpa")


ECHO = """
import os, sys, threading, time
from vpt_jax.bench import worker

def spin(count):
  end = time.time() + 60
  def run():
    while time.time() < end:
      pass
  threading.Thread(target=run, daemon=True).start()
  return {}

def noise(count):
  print("noise")
  os.system("echo more noise")
  return {"count": count}

def grow(count):
  kept = bytearray(count)
  kept[::4096] = b"x" * len(kept[::4096])
  return {"bytes": worker.peak_memory()}

class Echo:
  def __init__(self, case):
    if "wrong" in case:
      raise ValueError(f"no such {case['wrong']}")
    self.commands = {
        "noise": noise, "spin": spin, "grow": grow,
        "memory": lambda count: {"bytes": worker.peak_memory()},
        "die": lambda count: (sys.stderr.write("so it ends\\n"),
                              sys.stderr.flush(), os._exit(3))}

worker.serve(Echo)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
  """Starts a worker of the module above."""
  (tmp_path / "echo_side.py").write_text(ECHO)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  return lambda case={}: worker.Worker("echo", "echo_side", case, {})


def test_a_worker_answers(start):
  kept = np.ones(50_000_000)  # 400 MB that are not the worker's
  with start() as echo:
    assert echo.ask("noise", 7) == {"count": 7}
    before = echo.ask("memory")["bytes"]
    after = echo.ask("grow", 200_000_000)["bytes"]
    assert 190e6 < after - before < 210e6
    assert before < 100e6 < kept.nbytes
    with pytest.raises(worker.Failed, match="echo, 'nothing': KeyError"):
      echo.ask("nothing")
    assert echo.ask("noise", 8) == {"count": 8}
    with pytest.raises(worker.Failed, match=r"status 3 at 'die'.*so it ends"):
      echo.ask("die")
  with (
    start({"wrong": "backbone"}) as echo,
    pytest.raises(worker.Failed, match="ValueError: no such backbone"),
  ):
    echo.ask("noise")


def test_a_busy_worker_is_seen(start):
  import time

  with start() as echo:
    echo.ask("noise")
    time.sleep(1.5)  # threads of NumPy's products spin for 0.05 s at first
    echo.ask("noise")
    assert echo.idle < 0.05
    echo.ask("spin")
    time.sleep(1)
    echo.ask("noise")
    assert echo.idle > 0.08  # of one core, on a machine that has other work


SIDES = """
import os, time
from vpt_jax.bench import worker

class Side:
  def __init__(self, case):
    name = case.get("variant", "vpt_jax")
    logits = [[1.0, 2.1 if case["method"] == name else 2.0]]
    fails = case["method"] == "fails" and name == "compile"
    def export(count):
      open(case["file"], "w").close()
      return {}
    def work(count):
      assert os.path.exists(case["file"])
      cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
      time.sleep(0.1)
      if cache and not os.path.exists(cache):
        os.mkdir(cache)
        time.sleep(0.5)
      return {"seconds": 0.1}
    def train(count):
      if fails:
        raise RuntimeError("no compiler")
      return work(count)
    self.commands = {
        "export": export, "forward": work, "train": train,
        "logits": lambda count: {"logits": logits, **work(1)},
        "memory": lambda count: {"bytes": 5},
        "matmul": lambda count: {"gflops": count},
        "facts": lambda count: {"platform": "cpu", "device": name,
                                "gflops": {}, "versions": {}}}

worker.serve(Side)
"""


@pytest.fixture
def played(tmp_path, monkeypatch):
  """Sides that only play: a method of a variant's name has it disagree."""
  (tmp_path / "played_side.py").write_text(SIDES)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  monkeypatch.setattr(measure, "JAX_MODULE", "played_side")
  monkeypatch.setattr(measure, "PYTORCH_MODULE", "played_side")
  return tmp_path


def test_a_row(played):
  found = measure.row(case("fails", played), 3, measure.VARIANTS, played)
  assert found["case"]["method"] == "fails" and found["platform"] == "cpu"
  failed = found["sides"].pop("compile")
  assert list(failed) == ["unavailable"] and "no compiler" in str(failed)
  assert list(found["sides"]) == ["vpt_jax", "eager", "sdpa"]
  for name, of in found["sides"].items():
    assert of["device"] == name and of["difference"] == 0
    assert of["matmul"] == measure.PEAK_SIZE["cpu"]
    for command_ in ("forward", "train"):
      # 0.2 seconds of 0.1 each.
      assert of[command_] == {
        "first": 0.1,
        "samples": [0.1] * 3,
        "runs": 2,
        "memory": 5,
      }


def test_a_row_stops_where_sides_disagree(played):
  with pytest.raises(measure.Disagree, match=r"vpt_jax and sdpa"):
    measure.row(case("sdpa", played), 1, measure.VARIANTS, played)


def test_start_up(played):
  jax_run, fails = measure.start_up(
    case("fails", played), "cpu", ["compile"], played
  )
  assert (
    jax_run["side"] == "vpt_jax" and jax_run["cold"] > jax_run["warm"] + 0.2
  )
  assert fails["side"] == "compile" and "no compiler" in fails["unavailable"]
  assert "warm" not in fails


def side(forward, train, first=(0.0, 0.0), matmul=100.0, gflops=None, **more):
  return {
    "forward": {"first": first[0], "samples": forward, "memory": 2**20},
    "train": {"first": first[1], "samples": train, "memory": 3 * 2**20},
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


def test_the_tables():
  text = bench_tables.text(
    report(
      {
        # Medians 0.02 and 0.06; 4 images of 0.5 and 1.5 GFLOPs: 100 GFLOP/s.
        "vpt_jax": side(
          [0.02, 0.01, 0.9],
          [0.06, 0.06, 0.05],
          first=(1.02, 2.06),
          gflops={"forward": 0.5, "train": 1.5},
        ),
        "eager": side(
          [0.03, 0.03, 0.03],
          [0.1, 0.1, 0.1],
          matmul=200.0,
          gflops={"forward": 1.0, "train": 3.0},
          idle=0.5,
        ),
        "sdpa": side([0.04, 0.04, 0.04], [0.08, 0.09, 0.07], first=(0.0, 0.58)),
        "compile": {"unavailable": "compile, 'logits': no compiler"},
      }
    )
  )
  times, work, variants = cells(text)
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
    report(
      {"vpt_jax": side([0.02], [0.06]), "sdpa": {"unavailable": "no CUDA"}},
      start_up=[
        {
          "case": case("vpt_deep", Path(".")),
          "side": "vpt_jax",
          "cold": 9.04,
          "warm": 4.0,
        }
      ],
      scoring=[
        {
          "case": case("vpt_deep", Path(".")),
          "images": 64,
          "scores": {"removal": {"first_batch": 3.0, "seconds": 32.0}},
        }
      ],
    )
  )
  times, work, _, start_up, scoring = cells(text)
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


def parsed(*argv):
  return command.parser().parse_args(argv)


def test_cases():
  found = command.cases(
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
    len(command.cases(parsed("--batch", "1,8", "--dtype", "float32,bfloat16")))
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
      command.cases(parsed(*argv))


def test_the_methods_of_both_sides(torch_side):
  from vpt_jax.bench import pytorch_methods

  assert (
    list(measure.METHODS)
    == list(jax_side.METHODS)
    == list(pytorch_methods.METHODS)
  )
  assert (jax_side.RATE, jax_side.MOMENTUM, jax_side.DECAY) == (
    torch_side.RATE,
    torch_side.MOMENTUM,
    torch_side.DECAY,
  )


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
  assert cells(text)[0][3].endswith(" sdpa")
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
      "sides": {"vpt_jax": side([0.02], [0.06])},
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
  assert text in out and [line[1] for line in cells(text)][:2] == ["20"] * 2
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


def test_a_wrong_backbone_is_said(tmp_path):
  with pytest.raises(worker.Failed, match="did you mean 'vit_mini4'"):
    measure.export(case("linear", tmp_path, backbone="vit_mini"), tmp_path)
