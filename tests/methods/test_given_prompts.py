"""DINO, torchvision's ViT and CLIP with prompts: the reference's logits.

The prompts are those that the published generator made (`out/prompts`); the
backbone's weights go through the loader in their own layout.
"""

from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from tests.published import loaded
from tests.reference import below, read
from vpt_jax.backbones.vit import DinoHead, ViT
from vpt_jax.methods.method import Method
from vpt_jax.utils import trees

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


class Given(Method):
  """Carries given prompts [B, P, D]."""

  given: tuple = ()  # nested, since a module's fields must be hashable

  def prompts(self, image, tokens, *, train):
    return jnp.asarray(self.given)


def read_case(case):
  """(arrays, sizes, the backbone's weights) of a fixture."""
  path = GOLDEN / f"{case}.npz"
  if not path.exists():
    pytest.skip("needs the project's shared fixtures")
  arrays, meta = read(path)
  return (
    arrays,
    meta["sizes"],
    {
      key: array
      for key, array in below(arrays, "param/").items()
      if "pgn_module" not in key
    },
  )


def features(arrays, sizes, flat, mlp_dim, **options):
  """(features of the class token, what else the weights hold)."""
  images = arrays["input/images"]
  backbone = ViT(
    images.shape[1:3],
    sizes["patch"],
    sizes["hidden"],
    sizes["layers"],
    sizes["heads"],
    mlp_dim,
    **{"gelu": "exact", **options},
  )
  model, params, extras = loaded(backbone, flat, "file", "linear")
  given = tuple(
    tuple(map(tuple, image)) for image in arrays["out/prompts"].tolist()
  )
  model = model.clone(method=Given(backbone.spec, given=given))
  feature = model.apply(
    {"params": {"backbone": trees.unflatten(params)}},
    images,
    method=model.features,
  )
  return np.asarray(feature), extras


def test_torchvision():
  arrays, sizes, flat = read_case("pgn_vit_iip")
  feature, extras = features(arrays, sizes, flat, mlp_dim=96)
  logits = feature @ extras["head/kernel"] + extras["head/bias"]
  np.testing.assert_allclose(logits, arrays["out/logits"], atol=2e-5)


def test_dino_with_its_projection_head():
  """As a whole training checkpoint: student and teacher, weight norm."""
  arrays, sizes, flat = read_case("pgn_dino_softmax_eval")
  weight = flat.pop("dino_head.last_layer.weight")
  scale = np.linalg.norm(weight, axis=1, keepdims=True)
  flat |= {
    "dino_head.last_layer.weight_v": weight * 3,
    "dino_head.last_layer.weight_g": scale,
  }
  teacher = {
    key.replace("dino_vit.", "teacher/backbone.").replace(
      "dino_head.", "teacher/head."
    ): array
    for key, array in flat.items()
  }
  student = {
    key.replace("teacher/", "student/module."): array + 1
    for key, array in teacher.items()
  }
  logits, extras = features(
    arrays,
    sizes,
    student | teacher,
    mlp_dim=96,
    projection=DinoHead(hidden=32, bottleneck=24, prototypes=5),
  )
  assert not extras
  np.testing.assert_allclose(logits, arrays["out/logits"], atol=2e-5)


def test_clip():
  """Prompts go through the norm before the first block; logits by cosine."""
  arrays, sizes, flat = read_case("pgn_clip_iip")
  text = flat.pop("text_features")
  feature, extras = features(
    arrays,
    sizes,
    flat,
    mlp_dim=192,
    gelu="quick",
    eps=1e-5,
    patch_bias=False,
    pre_norm=True,
    projection=nn.Dense(text.shape[1], use_bias=False),
  )
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  logits = np.exp(extras["logit_scale"]) * unit(feature) @ unit(text).T
  np.testing.assert_allclose(logits, arrays["out/logits"], atol=2e-5)
