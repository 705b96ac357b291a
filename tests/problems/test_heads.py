"""What a head starts from: the checkpoint's own classifier, or CLIP's texts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests import images as images_lib
import vpt_jax
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.backbones import clip, factory
from vpt_jax.problems import heads
from vpt_jax.utils import trees
from vpt_jax.weights import load

TEXT = dict(
  width=16, depth=1, num_heads=2, output_dim=8, context_length=6, vocab_size=20
)
factory.BACKBONES["clip_text_test"] = dataclasses.replace(
  factory.BACKBONES["clip_test"], text=TEXT
)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


def compiled(f):
  """Quickly, not for speed."""
  return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(config, path, **more):
  """A checkpoint of the config's backbone and more; its arrays."""
  shapes = jax.eval_shape(
    lambda: models.init(
      models.build(config, 2), jax.random.key(0), ["backbone"]
    )
  )["backbone"]
  flat = {
    name: random(*leaf.shape, seed=i)
    for i, (name, leaf) in enumerate(trees.flatten(shapes).items())
  } | more
  load.save(path, flat, np.float32)
  config.backbone.checkpoint = str(path)
  if "clip" in config.backbone.name:
    config.backbone.gelu = "quick"
  return flat


def started(config, num_classes, names=()):
  """(logits of IMAGES, parameters of the head)."""
  model = models.build(config, num_classes)
  params, _ = models.pretrained(model, config, jax.random.key(0), names)
  return np.asarray(compiled(model.apply)({"params": params}, IMAGES)), (
    params["head"]
  )


def refused(config, num_classes, match, names=()):
  with pytest.raises(ValueError, match=match):
    models.pretrained(
      models.build(config, num_classes), config, jax.random.key(0), names
    )


def head(classes):
  return {
    "head/kernel": random(32, classes, seed=98),
    "head/bias": random(classes, seed=99),
  }


@pytest.fixture(name="linear")
def linear_fixture(config, tmp_path):
  """A config whose blocks change nothing, and all logits by hand.

  The feature is the norm of the mean of the patches: a linear embedding.
  """
  config.method = "linear"
  config.pool, config.backbone.norm = "img", "after"
  flat = write(config, tmp_path / "x.npz")
  still = {
    name: np.zeros_like(array)
    for name, array in flat.items()
    if "/out/" in name or "/Dense_1/" in name
  }
  flat = write(config, tmp_path / "x.npz", **still, **head(6))
  config.head = "pretrained"
  patch = IMAGES.reshape(4, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(4, 4, 48)
  x = patch @ flat["embedding/kernel"].reshape(48, 32)
  x = (x + flat["embedding/bias"] + flat["pos_embedding"]).mean(1)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = (
    x * flat["Transformer/encoder_norm/scale"]
    + flat["Transformer/encoder_norm/bias"]
  )
  return config, x @ flat["head/kernel"] + flat["head/bias"]


def test_the_checkpoints_own_head(linear):
  config, want = linear
  got, params = started(config, 6)
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert {name: leaf.shape for name, leaf in params.items()} == {
    "kernel": (32, 6),
    "bias": (6,),
  }


def test_groups_add_probabilities(linear):
  """Of the classes that are named; the others are as if they were not there."""
  config, want = linear
  config.head_groups = ((4, 0), (1,), (2, 5, 0))
  got, _ = started(config, 3)
  np.testing.assert_allclose(
    got,
    np.stack(
      [
        scipy.special.logsumexp(want[:, list(group)], axis=1)
        for group in config.head_groups
      ],
      axis=1,
    ),
    atol=1e-4,
  )
  rows = [4, 0, 1, 2, 5, 0]
  each = scipy.special.softmax(want[:, rows], axis=1)
  np.testing.assert_allclose(
    scipy.special.softmax(got, axis=1),
    np.add.reduceat(each, [0, 2, 3], axis=1),
    atol=1e-5,
  )


def test_groups_of_one_are_a_choice_of_classes(linear):
  config, want = linear
  config.head_groups = ((5,), (2,))
  np.testing.assert_allclose(started(config, 2)[0], want[:, [5, 2]], atol=1e-4)


@pytest.mark.parametrize(
  "groups", [((0,), (1,)), ((0,), (1,), ()), ((0,), (1,), (-1,))]
)
def test_groups_that_make_no_sense(linear, groups):
  config, _ = linear
  config.head_groups = groups
  with pytest.raises(
    ValueError,
    match=(
      f"has {len(groups)} groups .* the task 3 classes; expected one group"
    ),
  ):
    models.build(config, 3)


def test_groups_are_for_the_checkpoints_head(linear):
  config, _ = linear
  config.head, config.head_groups = "linear", ((0,), (1,))
  with pytest.raises(ValueError, match="and config.head='pretrained'"):
    models.build(config, 2)


def test_a_head_that_does_not_fit(linear, tmp_path):
  """As after fine-tuning on another task."""
  config, _ = linear
  refused(
    config,
    10,
    "own head maps 32 features to 6 classes, here are 32 "
    "features and 10 classes; use config.head=linear .*head_groups",
  )
  config.head_groups = ((0,), (6,))
  refused(config, 2, "names class 6, the checkpoint's head has 6 classes")
  config.head_groups = ()
  write(config, tmp_path / "x.npz")
  refused(config, 6, "no classification head; use config.head=linear")
  write(config, tmp_path / "x.npz", **head(6) | {"head/kernel": random(8, 6)})
  refused(config, 6, "maps 8 features .* here are 32 features")
  config.backbone.checkpoint = "random"
  refused(config, 6, "head='pretrained' is in a checkpoint, .* is 'random'")
  config.head = "pretraind"
  with pytest.raises(ValueError, match="did you mean 'pretrained'"):
    models.build(config, 6)


def test_a_new_head_takes_nothing_from_the_file(linear):
  config, _ = linear
  config.head = "linear"
  got = started(config, 6)[1]
  np.testing.assert_allclose(got["bias"], -np.log(99), rtol=1e-5)
  assert np.abs(got["kernel"] - head(6)["head/kernel"]).min() > 0


def test_evaluation_without_training(linear, tmp_path):
  """No epoch: the score is the checkpoint's, on the task's own images."""
  config, _ = linear
  write(config, tmp_path / "x.npz", **head(10))
  config.epochs = config.optim.warmup_epochs = 0
  result = vpt_jax.run(config, tmp_path / "run")
  model = models.build(configs.resolve(config), 10)
  params, _ = models.pretrained(model, config, jax.random.key(1))
  test = images_lib.load("digits", "test", folder="", image_size=(8, 8))
  logits = compiled(model.apply)(
    {"params": params}, test.images.astype(np.float32) / 127.5 - 1
  )
  top1 = 100 * (np.asarray(logits).argmax(-1) == test.labels).mean()
  np.testing.assert_allclose(result["top1"], top1, atol=0.3)  # One image.


# Zero-shot heads.


class Tokenizer:
  """Ids by the letters; the end has the largest, as CLIP's."""

  def __init__(self, merges):
    assert merges is None

  def encode(self, texts):
    ids = np.zeros((len(texts), TEXT["context_length"]), np.int32)
    for row, text in zip(ids, texts):
      assert len(text) < len(row)
      row[: len(text) + 1] = [ord(letter) % 18 for letter in text] + [19]
    return ids


@pytest.fixture(name="zero_shot")
def zero_shot_fixture(config, tmp_path, monkeypatch):
  """(config, arrays of its checkpoint, its text tower)."""
  monkeypatch.setattr(heads.zero_shot, "Tokenizer", Tokenizer)
  config.method = "linear"
  config.backbone.name = "clip_text_test"
  config.backbone.projection = True
  config.clip.templates = ("a{}", "{}!")
  tower = clip.TextTower(**TEXT)
  shapes = jax.eval_shape(
    lambda: tower.init(jax.random.key(0), jnp.zeros((1, 6), jnp.int32))
  )["params"]
  text = {
    f"text/{name}": random(*leaf.shape, seed=i)
    for i, (name, leaf) in enumerate(trees.flatten(shapes).items())
  }
  flat = write(config, tmp_path / "x.npz", **text, logit_scale=np.float32(1.5))
  return config, flat, tower


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_zero_shot_is_cosine_similarity(zero_shot):
  """exp(logit_scale) times that of the image and the mean of the texts."""
  config, flat, tower = zero_shot
  names = ("cat", "dog", "eel")
  model = models.build(config, 3)
  params = {
    "params": {
      "backbone": trees.unflatten(
        {
          name: array
          for name, array in flat.items()
          if not name.startswith(("text/", "logit_"))
        }
      )
    }
  }
  image = unit(
    compiled(lambda params: model.apply(params, IMAGES, method=model.features))(
      params
    )
  )
  params = {
    "params": trees.unflatten(
      {
        name.removeprefix("text/"): array
        for name, array in flat.items()
        if name.startswith("text/")
      }
    )
  }
  encode = compiled(tower.apply)
  text = [
    unit(
      encode(
        params,
        Tokenizer(None).encode(
          [template.replace("{}", name) for name in names]
        ),
      )
    )
    for template in config.clip.templates
  ]
  want = np.exp(1.5) * image @ unit(np.mean(text, axis=0)).T
  assert np.ptp(want, axis=0).min() > 0.1  # Else this shows little.

  config.head = "zero_shot"
  got, params = started(config, 3, names)
  np.testing.assert_allclose(got, want, atol=1e-4)
  np.testing.assert_array_equal(params["bias"], 0)
  config.clip.class_names = names[::-1]  # In place of the task's.
  np.testing.assert_allclose(
    started(config, 3, names)[0], want[:, ::-1], atol=1e-4
  )


def test_zero_shot_needs_a_name_for_each_class(zero_shot):
  config, _, _ = zero_shot
  config.head = "zero_shot"
  match = "has {} class names for 3 classes; set config.clip.class_names"
  refused(config, 3, match.format(0))
  refused(config, 3, match.format(2), ("cat", "dog"))
  config.clip.class_names = ("cat", "dog", "eel", "fox")
  refused(config, 3, match.format(4), ("cat", "dog", "eel"))
  config.clip.class_names = ("cat", "dog", "cat")
  refused(config, 3, "2 classes have the name 'cat'")


def test_zero_shot_needs_the_text_tower(zero_shot, tmp_path):
  config, flat, _ = zero_shot
  config.head = "zero_shot"
  names = ("cat", "dog", "eel")

  def without(*parts):
    load.save(
      tmp_path / "y.npz",
      {
        name: array
        for name, array in flat.items()
        if not name.startswith(parts)
      },
      np.float32,
    )
    config.backbone.checkpoint = str(tmp_path / "y.npz")

  for parts in (("text/", "logit_"), ("text/",), ("logit_",)):
    without(*parts)
    refused(
      config, 3, "needs CLIP's text tower .* 'clip_text_test' has none", names
    )
  without("text/Transformer/encoder_norm/bias")
  refused(
    config, 3, "text tower does not fit .*\nmissing .*\n- .*norm/bias", names
  )
  config.backbone.checkpoint = str(tmp_path / "x.npz")
  config.backbone.name = "clip_test"  # Without text tower in the table.
  refused(config, 3, "text tower .* 'clip_test' has none", names)
  config.backbone.projection = False
  with pytest.raises(ValueError, match="set config.backbone.projection=True"):
    models.build(config, 3)
  config.backbone.projection, config.backbone.checkpoint = True, "random"
  refused(config, 3, "head='zero_shot' is in a checkpoint, .* is 'random'")
