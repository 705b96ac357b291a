"""Layers have Flax's parameters; attention may be a library's."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests.ops.forms import draw
from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax.nn import layers


def test_layer_norm_has_the_parameters_of_flax():
  x = draw(2, 32)
  found = layers.LayerNorm().init(jax.random.key(0), x)
  want = nn.LayerNorm().init(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, found, want)


def test_a_model_with_the_attention_of_the_library(config):
  """The whole way from the config; what can't be is said."""
  config.method, image = "vpt", draw(2, 8, 8, 3)
  own = model_lib.build(config, 10)
  params = model_lib.init(own, jax.random.PRNGKey(0))
  config.compute.attention = "xla"
  library = model_lib.build(config, 10)
  assert own.backbone != library.backbone
  np.testing.assert_allclose(
    own.apply({"params": params}, image),
    library.apply({"params": params}, image),
    atol=2e-6,
  )
  config.backbone.name = "swin_test"
  with pytest.raises(ValueError, match="not for windows"):
    model_lib.build(config, 10)
  config.compute.attention = "cudnn"
  with pytest.raises(ValueError, match="config.compute.dtype=bfloat16"):
    config_lib.resolve(config)
  config.backbone.name, config.compute.dtype = "vit_test", "bfloat16"
  with pytest.raises(ValueError, match="is for NVIDIA GPUs"):
    model_lib.build(config, 10)
