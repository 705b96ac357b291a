"""Tests that the plan for other machines follows from the model."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tests import conftest
from vpt_jax.backbones import factory
from vpt_jax.bench import jax_models, model_needs, plan
from vpt_jax.nn import cost

ONE = plan.Machine(devices=1, tflops=100, memory=1, link=100)
EIGHT = dataclasses.replace(ONE, devices=8)
NEED = plan.Needs(
  frozen=4e8, trained=1e6, image=1e7, carried=1e5, depth=12, flops=9e9
)


def test_four_small_models_tell_of_the_large_one():
  """Depth and prompts are extrapolated, exactly."""
  need = plan.needs("vit_ti16", 4)
  whole = model_needs.traced(12, **model_needs.case("vit_ti16", 4))
  np.testing.assert_allclose(
    [need.frozen, need.trained, need.image, need.flops], whole, rtol=1e-12
  )
  config = jax_models.config_of(model_needs.case("vit_ti16", 4))
  backbone = factory.build(config.backbone, 224, "float32")
  assert need.frozen == 2 * cost.parameters(backbone)  # bfloat16
  assert need.trained == 4 * (12 * 4 * 192 + 192 * 100 + 100)
  # Forward and backward: a little less than twice the forward pass.
  assert 3.5 < need.flops / cost.multiply_adds(backbone) < 4.2


def test_a_dense_model_is_told_by_small_ones_too():
  """Its head and auxiliary heads read other blocks and cost the same."""
  need = plan.needs("vit_ti16", 4, head="setr")
  whole = model_needs.traced(12, **model_needs.case("vit_ti16", 4, head="setr"))
  frozen, trained, image, flops = whole
  assert (need.frozen, need.trained, need.flops) == (frozen, trained, flops)
  np.testing.assert_allclose(need.image, image, rtol=1e-3)
  classification = plan.needs("vit_ti16", 4)
  assert need.flops > 20 * classification.flops


def test_a_step_on_one_device():
  step = plan.step(NEED, ONE, 10)
  assert step.sent == step.sending == 0
  assert step.memory == 4e8 + 3e6 + plan.BUFFERS * 1e8
  assert step.seconds == pytest.approx(9e10 / (plan.SHARE * 1e14))


def test_what_is_sent():
  dp, fsdp, tp = (
    plan.step(NEED, EIGHT, 80, strategy) for strategy in ("dp", "fsdp", "tp")
  )
  assert dp.sent == 2 * 7 / 8 * 1e6
  assert fsdp.sent == dp.sent + 2 * 7 / 8 * 4e8
  assert tp.sent == dp.sent + 4 * (2 * 3 / 4) * 12 * 40 * 1e5
  assert dp.memory == 4e8 + 3e6 + plan.BUFFERS * 1e8
  assert fsdp.memory == 5e7 + 3e6 + plan.BUFFERS * 1e8
  assert tp.memory == 1e8 + 3e6 + plan.BUFFERS * 1e8
  busy = 9e10 / (plan.SHARE * 1e14)
  for step in (dp, fsdp, tp):
    assert step.seconds == pytest.approx(busy + step.sent / 1e11)


def test_what_fits():
  for machine in (ONE, EIGHT):
    cells = plan.most_cells(NEED, machine, 8)
    one_run = plan.step(NEED, machine, 8).memory - NEED.frozen
    free = 9e8 - NEED.frozen
    assert cells * one_run <= free < (cells + 1) * one_run
  # Eight devices hold an eighth of the images of every run.
  assert cells > 5 * plan.most_cells(NEED, ONE, 8)
  assert plan.most_cells(dataclasses.replace(NEED, frozen=1e9), ONE, 8) == 0
  small = dataclasses.replace(ONE, memory=0.5)
  most = plan.most_prompts("vit_ti16", small, 8)
  memory = [
    plan.step(plan.needs("vit_ti16", n), small, 8).memory
    for n in (most, most + 1)
  ]
  assert memory[0] <= 4.5e8 < memory[1]


def test_the_table(capsys):
  assert plan.main(["--backbones", "vit_ti16", "--prompts", "2"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2 + len(plan.MACHINES)
  assert len({len(line) for line in lines}) == 1
  assert plan.main(["--segmentation", "set"]) == 1
  assert "did you mean 'setr'" in capsys.readouterr().err
  assert plan.main(["--backbones", "vit_x"]) == 1
  assert "vit_x" in capsys.readouterr().err


def test_the_compiler_needs_no_more():
  """Memory and FLOPs of the step as XLA compiles it for this machine."""
  out = subprocess.run(
    [
      sys.executable,
      "-m",
      "vpt_jax.bench.plan",
      "--check",
      "--backbones",
      "vit_ti16",
      "--prompts",
      "10",
      "--batch",
      "32",
    ],
    text=True,
    check=True,
    env=conftest.as_users_compile(),
    capture_output=True,
  ).stdout
  header, _, row = (
    [cell.strip() for cell in line.split("|")] for line in out.splitlines()
  )
  memory, flops = (
    float(ratio)
    for name, ratio in zip(header, row, strict=True)
    if name == "ratio"
  )
  assert 1 <= memory <= plan.BUFFERS
  assert flops == pytest.approx(1, abs=0.03)
