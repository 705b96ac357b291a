"""Every method and kind of backbone gives every pixel its logits."""

import jax
import jax.numpy as jnp
import pytest

from tests.conftest import small_config
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.methods import registry


def dense_config(method, backbone="vit_test"):
  config = small_config()
  config.problem = "segmentation"
  config.task = "ade20k"
  config.method = method
  config.backbone.name = backbone
  config.image_size = 16
  config.pad.width = 2
  config.optim.warmup_epochs = 0
  section = config.segmentation
  section.width = 8
  section.auxiliary = "aux_4"
  section.decoder = "linear" if backbone == "swin_test" else "pup_4"
  section.blocks = (1, 2, 4) if backbone == "swin_test" else (1, 2)
  return config


def outputs_of(config):
  """Shapes of what the head gives, and whether they are float32."""
  model = models.build(configs.resolve(config), 5)

  def outputs():
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    image = jnp.zeros((2, 16, 16, 3))
    return model.init_with_output(rngs, image)[0]

  return [
    (leaf.shape, leaf.dtype)
    for leaf in jax.tree.leaves(jax.eval_shape(outputs))
  ]


@pytest.mark.parametrize("method", sorted(registry.METHODS))
def test_every_method_has_dense_heads(method):
  """Prompts and class tokens never reach them; or a sentence says why not."""
  config = dense_config(method)
  if method == "pad":  # the image is smaller than what the patches see
    with pytest.raises(ValueError, match="where the labels are"):
      outputs_of(config)
    return
  assert outputs_of(config) == [((2, 16, 16, 5), jnp.float32)] * 2


@pytest.mark.parametrize("method", ["linear", "vpt", "gated"])
def test_stages_of_a_swin_come_to_the_grid_of_the_first(method):
  config = dense_config(method, "swin_test")
  assert outputs_of(config) == [((2, 16, 16, 5), jnp.float32)]


def test_logits_are_float32_where_the_rest_is_bfloat16():
  config = dense_config("vpt")
  config.compute.dtype = "bfloat16"
  assert outputs_of(config) == [((2, 16, 16, 5), jnp.float32)] * 2


def test_blocks_of_a_config_that_names_none():
  """Five and nine twelfths of the depth, and the last one; see FACTS."""
  config = dense_config("vpt")
  config.segmentation.blocks = ()
  config.segmentation.decoder = "pup"
  config.backbone.name = "mae_b16"
  model = models.build(configs.resolve(config), 5)
  assert model.reads.blocks == (4, 8, 11)
  assert not model.reads.final_norm
  config.segmentation.decoder = "linear"
  model = models.build(configs.resolve(config), 5)
  assert model.reads.blocks == (11,)
  assert model.reads.final_norm


def test_heads_for_larger_patches_are_refused():
  """Logits of many times the image's pixels are a slip, and much memory."""
  config = dense_config("vpt")
  config.segmentation.decoder = "pup"
  with pytest.raises(ValueError, match="decoder=pup_4"):
    outputs_of(config)
  config.segmentation.decoder = "pup_4"
  config.segmentation.auxiliary = "aux2x4"
  with pytest.raises(ValueError, match="'aux2x4' enlarges 16 times"):
    outputs_of(config)
