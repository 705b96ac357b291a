"""Every family of backbones goes through a whole run and is loaded again."""

import jax
import numpy as np
import pytest

from tests import images as images_lib
from tests.conftest import trained
import vpt_jax
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.utils import trees
from vpt_jax.weights import load


@pytest.mark.parametrize(
  "backbone,method",
  [
    ("swin_test", "vpt"),
    ("swin_test", "vapt"),
    ("mae_test", "vpt"),
    ("clip_test", "linear"),
    ("clip_test", "vapt"),
  ],
)
def test_a_run(config, tmp_path, backbone, method):
  """Trained parameters are few, scores those of the saved adapter."""
  config.backbone.name = backbone
  config.method = method
  config.data.normalize = "backbone"
  config.backbone.projection = backbone == "clip_test"
  if backbone == "clip_test":  # Its file does not say which activation it has.
    config.backbone.gelu = "quick"
  config.vapt.kernel_size = 1
  config.optim.lr = 0.05
  model = models.build(configs.resolve(config), 10)
  params = models.init(model, jax.random.key(7))
  file = tmp_path / "backbone.npz"
  load.save(file, trees.flatten(params["backbone"]), np.float32)
  config.backbone.checkpoint = str(file)

  result = vpt_jax.run(config, tmp_path / "run")
  assert result["trainable_params"] == trees.count(
    trees.flatten({"method": params["method"], "head": params["head"]})
  )
  losses = [line["loss"] for line in trained(tmp_path / "run")[1]]
  assert losses[-1] < losses[0]  # the first epoch's rate is 0
  predict = vpt_jax.load_adapter(tmp_path / "run" / "adapter.npz")
  test = images_lib.load("digits", "test", folder="", image_size=(8, 8))
  top1 = 100 * (predict(test.images).argmax(-1) == test.labels).mean()
  np.testing.assert_allclose(top1, result["top1"], atol=0.13)  # one image


def test_the_fresh_norm_of_mae(config, tmp_path):
  """`fresh` replaces the file's final norm, `after` keeps it."""
  config.backbone.name = "mae_test"
  model = models.build(configs.resolve(config), 10)
  flat = trees.flatten(models.init(model, jax.random.key(7))["backbone"])
  flat = {name: np.asarray(leaf) + 3 for name, leaf in flat.items()}
  load.save(tmp_path / "mae.npz", flat, np.float32)
  config.backbone.checkpoint = str(tmp_path / "mae.npz")
  norm = lambda config: models.pretrained(
    models.build(config, 10), config, jax.random.key(0)
  )[0]["backbone"]["Transformer"]["encoder_norm"]
  fresh = norm(config)
  np.testing.assert_array_equal(fresh["scale"], np.ones(32))
  np.testing.assert_array_equal(fresh["bias"], np.zeros(32))
  config.backbone.norm = "after"
  np.testing.assert_array_equal(
    norm(config)["scale"], flat["Transformer/encoder_norm/scale"]
  )
