"""Tests what is compared and timed."""

import jax
import numpy as np
import pytest

from tests.bench import cases
from vpt_jax.bench import measure, worker
from vpt_jax.utils import trees

VARIANTS = ("eager", "sdpa")


def jax_gradients(side):
  """Returns {path: gradient} of the mean loss, as a step takes it."""
  variables = side.variables
  trained, frozen = trees.split(variables["params"], r"(method|head)/.*")

  @jax.jit
  def gradients(trained, frozen, batch_stats):
    def loss(trained):
      outputs = side.model.apply(
        {"params": trees.merge(trained, frozen), **batch_stats},
        side.arrays["pixels"],
        train=True,
        mutable=list(batch_stats),
        rngs={"dropout": jax.random.key(0)},
      )[0]
      return side.problem.loss(outputs, side.arrays["label"]).mean()

    return jax.grad(loss)(trained)

  stats = {name: value for name, value in variables.items() if name != "params"}
  return gradients(trained, frozen, stats)


def torch_gradients(side):
  """Returns the same, under the names and in the layout of vpt_jax."""
  from vpt_jax.bench import pytorch_models

  side.model.train()
  side.loss(side.model(side.image)).backward()
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


# A method, and the head of segmentation, "" for classification.
COMPUTED = [
  *((method, "") for method in measure.METHODS),
  ("linear", "linear"),
  ("vpt_deep", "setr"),
  ("gated", "setr"),
]


@pytest.mark.parametrize("method, head", COMPUTED)
def test_both_sides_compute_the_same(method, head, tmp_path, torch_side):
  """Logits, gradients and the losses of steps, from the same weights."""
  jax_run = cases.exported(method, tmp_path, segmentation=head)
  logits = jax_run.logits(1)["logits"]
  want = jax_gradients(jax_run)
  steps = [jax_run.train(1)["loss"] for _ in range(4)]
  # They do train; labels of pixels are drawn, which is not learned as fast.
  assert steps[-1] < steps[0] - (0.05 if head else 0.1)
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
  found = measure.row(cases.case("fails", played), 3, measure.VARIANTS, played)
  assert found["case"]["method"] == "fails" and found["platform"] == "cpu"
  failed = found["sides"].pop("compile")
  assert list(failed) == ["unavailable"] and "no compiler" in str(failed)
  assert list(found["sides"]) == ["vpt_jax", "eager", "sdpa"]
  for name, of in found["sides"].items():
    assert of["device"] == name and of["difference"] == 0
    assert of["matmul"] == measure.PEAK_SIZE["cpu"]
    for command_ in ("forward", "train"):
      busy = of[command_].pop("busy")
      assert len(busy) == 3 and 0 <= min(busy) <= max(busy) < 0.1
      # 0.2 seconds of 0.1 each.
      assert of[command_] == {
        "first": 0.1,
        "samples": [0.1] * 3,
        "runs": 2,
        "memory": 5,
      }


def test_a_row_stops_where_sides_disagree(played):
  with pytest.raises(measure.Disagree, match=r"vpt_jax and sdpa"):
    measure.row(cases.case("sdpa", played), 1, measure.VARIANTS, played)


def test_start_up(played):
  jax_run, fails = measure.start_up(
    cases.case("fails", played), "cpu", ["compile"], played
  )
  assert (
    jax_run["side"] == "vpt_jax" and jax_run["cold"] > jax_run["warm"] + 0.2
  )
  assert fails["side"] == "compile" and "no compiler" in fails["unavailable"]
  assert "warm" not in fails


def test_a_wrong_backbone_is_said(tmp_path):
  with pytest.raises(worker.Failed, match="did you mean 'vit_mini4'"):
    measure.export(
      cases.case("linear", tmp_path, backbone="vit_mini"), tmp_path
    )
