"""Tests the side of PyTorch beside that of vpt_jax."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.bench import cases
from vpt_jax.bench import jax_models, jax_side, measure


def test_the_methods_of_both_sides(torch_side):
  from vpt_jax.bench import pytorch_methods

  assert (
    list(measure.METHODS)
    == list(jax_models.METHODS)
    == list(pytorch_methods.METHODS)
  )
  assert (jax_side.RATE, jax_models.MOMENTUM, jax_side.DECAY) == (
    torch_side.RATE,
    torch_side.MOMENTUM,
    torch_side.DECAY,
  )


@pytest.mark.parametrize("method", ["vpt_deep", "vapt"])
def test_dropout_is_drawn_in_steps_alone(method, tmp_path, torch_side):
  jax_run = cases.exported(method, tmp_path, dropout=0.5)
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
  exact = np.array(cases.exported(method, tmp_path).logits(1)["logits"])
  jax_run = jax_side.JaxSide(cases.case(method, tmp_path, dtype="bfloat16"))
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
    jax_run = cases.exported(method, tmp_path, prompts=prompts)
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
  jax_run = cases.exported(
    "linear", tmp_path, backbone="clip_test", image_size=8
  )
  with pytest.raises(ValueError, match=r"has no .*embedding/bias"):
    torch_side.PytorchSide(jax_run.case | {"variant": "sdpa"})
