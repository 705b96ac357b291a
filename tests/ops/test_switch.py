"""The one switch: which form of every operation a model gets."""

import functools

import jax
import numpy as np
import pytest

from tests.ops.forms import draw
from vpt_jax import model as model_lib
from vpt_jax.ops import (
  argmax,
  attention,
  batch_sum,
  bilinear,
  convolution,
  dense,
  depthwise,
  gelu,
  layer_norm,
  map_convolution,
  pooling,
)
from vpt_jax.ops.switch import Ops
from vpt_jax.utils import trees

OPERATIONS = {
  "argmax": argmax,
  "attention": attention,
  "bilinear": bilinear,
  "convolution": convolution,
  "depthwise": depthwise,
  "dot_general": dense,
  "gelu": gelu,
  "layer_norm": layer_norm,
  "map_convolution": map_convolution,
  "max_pool": pooling,
  "to_batch": batch_sum,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_forms(name):
  module = OPERATIONS[name]
  assert getattr(Ops(), name) is module.fast
  assert getattr(Ops("reference"), name) is module.reference
  on_gpu = {
    "argmax": argmax.reference,
    "dot_general": dense.reference,
    "map_convolution": convolution.fast,
  }.get(name, module.fast)
  assert getattr(Ops(platform="gpu"), name) is on_gpu


def test_attention():
  assert Ops(attention_form="ours") == Ops()  # the old name
  form = Ops(attention_form="xla").attention
  assert isinstance(form, functools.partial)
  assert (form.func, form.args) == (attention.library, ("xla",))
  assert Ops("reference", "cpu", "xla").attention is attention.reference


@pytest.mark.parametrize(
  "backbone,method",
  [
    ("vit_test", "vpt"),
    ("vit_test", "vapt"),
    ("vit_test", "pgn"),
    ("swin_test", "vpt"),
  ],
)
def test_a_model_of_plain_operations(config, backbone, method):
  """The whole way from the config: the same logits and gradients."""
  config.backbone.name = backbone
  config.method = method
  config.vapt.kernel_size = 1
  fast = model_lib.build(config, 10)
  with config.unlocked():
    config.compute.ops = "reference"
  plain = model_lib.build(config, 10)
  assert plain.backbone.ops == Ops("reference", "cpu")
  assert plain.method.spec.ops == plain.backbone.ops
  variables = model_lib._variables(fast, jax.random.PRNGKey(0))
  params = {"method": {}, **variables["params"]}
  rest = model_lib.collections(fast, jax.random.PRNGKey(0))
  images = draw(2, 8, 8, 3)

  def loss(method, model):
    logits = model.apply(
      {"params": {**params, "method": method}, **rest}, images
    )
    return (logits**2).sum(), logits

  results = []
  for model in (fast, plain):
    with_gradients = jax.jit(
      jax.value_and_grad(functools.partial(loss, model=model), has_aux=True)
    )
    results.append(with_gradients(params["method"]))
  ((_, logits), gradients), ((_, plain_logits), plain_gradients) = results
  np.testing.assert_allclose(logits, plain_logits, rtol=1e-5, atol=1e-5)
  gradients = trees.flatten(gradients)
  largest = max(np.abs(x).max() for x in gradients.values())
  for path, want in trees.flatten(plain_gradients).items():
    np.testing.assert_allclose(
      gradients[path], want, rtol=1e-4, atol=1e-5 * largest, err_msg=path
    )


def test_the_platform_is_an_argument(config):
  config.compute.dtype = "bfloat16"
  config.compute.attention = "cudnn"
  model = model_lib.build(config, 10, platform="gpu")
  assert model.backbone.ops == Ops("auto", "gpu", "cudnn")
  assert model.backbone.ops.dot_general is dense.reference
  with pytest.raises(ValueError, match="is for NVIDIA GPUs, JAX has 'cpu'"):
    model_lib.build(config, 10)


def test_an_unknown_form(config):
  with config.unlocked():
    config.compute.ops = "referense"
  with pytest.raises(
    ValueError, match=r"unknown compute.ops 'referense'; did you mean 'refer"
  ):
    model_lib.build(config, 10)
