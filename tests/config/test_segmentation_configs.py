"""Config files of segmentation: they resolve, and have what was published."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs import gated_ade20k, linear_ade20k, segmentation, vpt_ade20k
from vpt_jax import config as config_lib
from vpt_jax import main
from vpt_jax import model as model_lib
from vpt_jax.data.sources import mask_layouts
from vpt_jax.sweeps import protocol
from vpt_jax.training import optim
from vpt_jax.utils import trees

ARGS = (
  [(gated_ade20k, arg) for arg in ("", "mae", "mocov3", "digit_scenes")]
  + [(gated_ade20k, f"mocov3,{task}") for task in segmentation.RECIPES]
  + [(vpt_ade20k, f"{form},mae") for form in vpt_ade20k.FORMS]
  + [(vpt_ade20k, f"digit_scenes,{form}") for form in vpt_ade20k.FORMS]
  + [(vpt_ade20k, arg) for arg in ("", "deep", "shallow,base", "cityscapes")]
  + [(linear_ade20k, word) for word in ("", *linear_ade20k.BACKBONES)]
  + [(linear_ade20k, arg) for arg in ("last4", "last4,digit_scenes")]
)


def titled(value):
  """A module's name, or the argument; None: pytest's own title."""
  if isinstance(value, str):
    return value or "embedded"
  name = getattr(value, "__name__", None)
  return name and name.rpartition(".")[2]


@pytest.mark.parametrize("module,arg", ARGS, ids=titled)
def test_a_config_resolves(module, arg):
  """A contract: every word gives a config that a run takes."""
  config = config_lib.resolve(module.get_config(arg))
  assert config.problem == "segmentation"
  is_embedded = not arg or "digit_scenes" in arg
  named = [word for word in arg.split(",") if word in segmentation.RECIPES]
  task = "digit_scenes" if is_embedded else (*named, "ade20k")[0]
  assert config.task == task
  assert config.backbone.name.startswith("vit_mini4") == is_embedded
  assert config.data.train_split == "train"  # published scores are of val


def test_every_published_data_set_has_a_recipe():
  assert segmentation.RECIPES.keys() == mask_layouts.LAYOUTS.keys()


def parameters(config, num_classes=150):
  """{path: leaf of shapes} of a config's model."""
  model = model_lib.build(config, num_classes)
  image = jnp.zeros((1, *model.method.input_size, 3))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image))
  return shapes["params"]


@pytest.mark.parametrize(
  "module,arg,prompts",
  [
    (gated_ade20k, "mae", 100 * 768 + 11 + 12),
    (gated_ade20k, "", None),
    (vpt_ade20k, "shallow,mocov3", 100 * 768),
    (vpt_ade20k, "deep,mae", 12 * 10 * 768),
    (linear_ade20k, "last4", 0),
  ],
  ids=titled,
)
def test_all_of_a_config_is_used(module, arg, prompts):
  """The trained parameters are the published ones; every policy has some."""
  config = config_lib.resolve(module.get_config(arg))
  params = parameters(config)
  trainable, frozen = trees.split(params, config.trainable)
  optim.from_config(
    config.optim, lambda step: 0.1, 0.1, trainable, [*trainable, *frozen]
  )
  if prompts is not None:
    head = [leaf for path, leaf in trainable.items() if path[:5] == "head/"]
    of_method = sum(leaf.size for leaf in trainable.values())
    of_method -= sum(leaf.size for leaf in head)
    assert of_method == prompts


def test_vpt_trains_as_many_parameters_as_its_authors_count():
  """Against issue 13 of KMnP/vpt: 13.18 M of heads, 13.43 M with prompts."""
  config = config_lib.resolve(vpt_ade20k.get_config("deep"))
  trainable, _ = trees.split(parameters(config), config.trainable)
  prompts = sum(
    leaf.size for path, leaf in trainable.items() if path[:7] == "method/"
  )
  everything = sum(leaf.size for leaf in trainable.values())
  assert prompts == 24 * 10 * 1024
  assert round(prompts / 1e6, 2) == round(13.43 - 13.18, 2)
  assert (everything - prompts) / 1e6 == pytest.approx(13.18, rel=0.003)


SETR = {
  "image_size": 512,
  "batch_size": 16,
  "optim.name": "sgd",
  "optim.momentum": 0.9,
  "optim.lr": 0.001,
  "optim.scale_lr": False,
  "optim.weight_decay": 0.0,
  "optim.schedule": "poly",
  "optim.poly_power": 0.9,
  "optim.poly_min": 1e-4,
  "optim.poly_warmup": 0,
  "optim.policies": (("head/.*", {"lr": 10.0}), (".*", {})),
  "data.normalize": "imagenet",
  "segmentation.decoder": "pup",
  "segmentation.auxiliary_weight": 0.4,
  "segmentation.average": "all",
  "segmentation.width": 256,
  "segmentation.scale": (2048, 512),
  "segmentation.factors": (0.5, 2.0),
  "segmentation.most_of_one_class": 0.75,
  "segmentation.flip": 0.5,
  "segmentation.distort": True,
  "segmentation.test": "slide",
  "segmentation.test_scale": (2048, 512),
  "segmentation.test_factors": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
  "segmentation.test_flip": True,
}
GATED = {
  "method": "gated",
  "gated.num_tokens": 100,
  "gated.gate_init": 10.0,
  "segmentation.blocks": (5, 9, 12),
}


@pytest.mark.parametrize(
  "module,arg,iterations,fields",
  [
    (gated_ade20k, "mae", 160_000, {**SETR, **GATED}),
    (gated_ade20k, "mocov3", 160_000, {**SETR, **GATED}),
    (
      vpt_ade20k,
      "deep",
      160_000,
      {
        **SETR,
        "vpt.num_tokens": 10,
        "vpt.deep": True,
        "segmentation.blocks": (10, 15, 20, 24),
      },
    ),
    (
      vpt_ade20k,
      "shallow,mae",
      160_000,
      {**SETR, "vpt.num_tokens": 100, "vpt.deep": False},
    ),
    (vpt_ade20k, "prompt_bias", 160_000, {"vpt.num_tokens": 100}),
    (vpt_ade20k, "shallow24,mae", 160_000, {"vpt.num_tokens": 24}),
    (vpt_ade20k, "deep24,mae", 160_000, {"vpt.num_tokens": 24 // 12}),
    (
      gated_ade20k,
      "cityscapes",
      80_000,
      {"image_size": 768, "batch_size": 8, "optim.lr": 0.01},
    ),
    (
      gated_ade20k,
      "pascal_context59",
      80_000,
      {"image_size": 480, "batch_size": 16, "segmentation.scale": (520, 520)},
    ),
    (
      linear_ade20k,
      "dino",
      40_000,
      {
        "batch_size": 16,
        "image_size": 512,
        "optim.name": "adamw",
        "optim.lr": 1e-3,
        "optim.weight_decay": 1e-3,
        "segmentation.decoder": "linear",
        "segmentation.dropout": 0.1,
        "segmentation.blocks": (12,),
      },
    ),
    (linear_ade20k, "last4", 40_000, {"segmentation.blocks": (9, 10, 11, 12)}),
  ],
  ids=titled,
)
def test_published_numbers(module, arg, iterations, fields):
  """Against the facts of the papers and of SETR's and DINOv3's configs."""
  config = config_lib.resolve(module.get_config(arg))
  assert config.epochs * config.steps_per_epoch == iterations
  values = config_lib.plain(config)
  for field, want in fields.items():
    found = config
    for part in field.split("."):
      found = found[part]
    assert found == want, field
  assert values["task"] == config.task


@pytest.mark.parametrize(
  "module,arg,message",
  [
    (gated_ade20k, "dino", "unknown word 'dino' of gated_ade20k.py; known: "),
    (gated_ade20k, "mae,mocov3", "one backbone, got 'mae' and 'mocov3'"),
    (vpt_ade20k, "deep,shallow", "one form, got 'deep' and 'shallow'"),
    (linear_ade20k, "dino,digit_scenes", "has a backbone of its own, not"),
  ],
)
def test_words_that_do_not_fit_are_a_sentence(module, arg, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    module.get_config(arg)


@pytest.mark.parametrize("source", ["", "segfolder:scenes"])
def test_a_command_without_a_task_says_what_it_takes(source, caplog):
  """What a user is told: where an example came from, and how to name a task."""
  config = gated_ade20k.get_config()
  config.data.source = source
  path = "configs/gated_ade20k.py"
  command = config_lib.Command(config, path, "", (0, 1), "")
  with caplog.at_level("INFO"):
    named = main.name_nothing(command)
  assert named.task == ("scenes" if source else "digit_scenes")
  text = caplog.text
  assert (source or "embedded scenes of scikit-learn's digits") in text
  assert "the embedded backbone vit_mini4_cifar10" in text
  assert f"--config={path}:ade20k" in text


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("condense.shares", (0.5,), "condensation ranks prompts by what the class"),
    ("pool", "cls", "config.pool='cls' is for whole images"),
    ("segmentation.blocks", (4, 9), "1 to 4, in ascending order"),
  ],
)
def test_what_segmentation_does_not_have_is_a_sentence(field, value, message):
  """A refusal, before data are read, of what would be ignored."""
  config = vpt_ade20k.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=re.escape(message)):
    config_lib.resolve(config)


def test_a_sweep_of_segmentation_is_a_sentence():
  """A refusal that says how the runs can be made all the same."""
  config = vpt_ade20k.get_config()
  config.mode = "sweep"
  with pytest.raises(ValueError, match="start its runs one by one"):
    protocol.run_configs(config, config.task, "final", [{}])
