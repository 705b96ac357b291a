"""A backbone that sees other means than it was trained with is told of.

Not where a published protocol has it so. Images of the user's own are
normalised as the backbone's were; no known task is normalised in another way
than before.
"""

import json
import logging

import jax
import numpy as np
import pytest

from configs import common, vapt_vtab
import vpt_jax
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.config import normalization
from vpt_jax.utils import trees
from vpt_jax.weights import facts, load

TI16 = "vit_ti16"  # of big_vision: pixels from -1 to 1


def of_task(task="eurosat", **data):
  config = common.get_config()
  config.task = task
  config.backbone.name = TI16
  config.backbone.checkpoint = "/somewhere/vit.npz"
  config.data.update(data)
  return config


def test_a_published_protocol_keeps_its_choice():
  """ImageNet's for every backbone: nothing is warned of."""
  config = configs.resolve(of_task())
  assert config.data.normalize == "imagenet"
  assert normalization.warning(config, True) == ""
  vtab = configs.resolve(vapt_vtab.get_config("eurosat"))
  assert vtab.data.normalize == "imagenet"
  assert normalization.warning(vtab, True) == ""


def test_images_of_ones_own_are_normalised_as_the_backbones():
  config = of_task("", source="folder:photos")
  assert configs.resolve(config).data.normalize == "half"
  assert configs.resolve(of_task(), named_task=False).data.normalize == "half"
  copy = of_task(source="folder:photos", own_copy=True)
  assert configs.resolve(copy).data.normalize == "imagenet"


@pytest.mark.parametrize("normalize", ["imagenet", "clip", "none"])
def test_another_choice_for_ones_own_images_is_told(normalize):
  config = of_task("", source="folder:photos", normalize=normalize)
  config = configs.resolve(config)
  assert config.data.normalize == normalize
  text = normalization.warning(config, True)
  assert f"by {normalize!r}, but 'vit_ti16' was trained with 'half'" in text
  assert "config.data.normalize=backbone" in text
  config.backbone.checkpoint = "random"
  assert normalization.warning(config, True) == ""


@pytest.mark.parametrize("normalize", ["clip", "none"])
def test_another_choice_than_the_protocols_is_told(normalize):
  config = configs.resolve(of_task(normalize=normalize))
  assert "trained with 'half'" in normalization.warning(config, True)
  config = configs.resolve(of_task(normalize="backbone"))
  assert config.data.normalize == "half"
  assert normalization.warning(config, True) == ""


LAION_L14 = {"architecture": "vit_large_patch14_clip_224"}


@pytest.mark.parametrize(
  "beside,name",
  [
    ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "half"),
    ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, "imagenet"),
    (
      {"mean": [0.4815, 0.4578, 0.4082], "std": [0.2686, 0.2613, 0.2758]},
      "clip",
    ),
    ({}, "half"),
  ],
)
def test_the_config_beside_a_checkpoint_says_what_it_was_trained_with(
  beside, name, tmp_path
):
  config = of_task("", source="folder:photos")
  config.backbone.checkpoint = str(tmp_path / "model.safetensors")
  text = json.dumps(LAION_L14 | {"pretrained_cfg": beside})
  (tmp_path / "config.json").write_text(text)
  assert configs.resolve(config).data.normalize == name


def test_hugging_faces_second_config(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "vit"}')
  for content, name in (
    ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "half"),
    ({"do_normalize": False}, "none"),
    ({"size": 224}, "half"),  # Says nothing: the model zoo's.
  ):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    config = of_task("", source="folder:photos")
    config.backbone.checkpoint = str(tmp_path)
    assert configs.resolve(config).data.normalize == name


def test_means_without_a_name_are_asked_for(tmp_path):
  beside = LAION_L14 | {"pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}}
  (tmp_path / "config.json").write_text(json.dumps(beside))
  config = of_task("", source="folder:photos")
  config.backbone.checkpoint = str(tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="no name here; choose one of imagenet"):
    configs.resolve(config)
  config.data.normalize = "half"
  assert "no name" in normalization.warning(configs.resolve(config), True)


def test_the_warning_is_in_the_log_before_training(config, tmp_path, caplog):
  model = models.build(configs.resolve(config), 10)
  params = models.init(model, jax.random.key(7), ["backbone"])
  known = facts.Facts(
    gelu="exact", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
  )
  path = tmp_path / "vit.npz"
  load.save(path, trees.flatten(params["backbone"]), np.float32, known)
  config.backbone.checkpoint = str(path)
  config.data.normalize = "half"
  config.method = "linear"
  config.epochs = 0
  config.optim.warmup_epochs = 0
  with caplog.at_level(logging.INFO):
    vpt_jax.run(config, tmp_path / "run")
  messages = [record.getMessage() for record in caplog.records]
  (place,) = [i for i, text in enumerate(messages) if "trained with" in text]
  assert place < 3, messages


def test_the_names_of_sweeps_are_those_of_before():
  """Their config is not resolved: empty is written as imagenet was."""
  config = common.get_config()
  older = common.get_config()
  older.data.normalize = "imagenet"
  assert config.data.normalize == ""
  assert configs.digest(config) == configs.digest(older)
  assert not configs.difference(configs.plain(older), configs.plain(config))
  older.data.normalize = "half"
  assert configs.digest(config) != configs.digest(older)
