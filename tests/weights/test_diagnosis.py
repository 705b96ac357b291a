"""Weights that do not fit are refused whole, and the error says why.

A backbone with a part of its weights, or with those of another network, would
run all the same, only worse.
"""

import re

import jax
import numpy as np
import pytest

from tests.weights.test_load import LAYOUTS, stacked, VIT, write
from vpt_jax import model as models
from vpt_jax.backbones import factory
from vpt_jax.backbones.swin import Swin
from vpt_jax.nn import cost
from vpt_jax.weights import load

SWIN = Swin((64, 64), 16, (2, 2), (2, 4), window=4)
CLIP = VIT.clone(pre_norm=True, patch_bias=False)
NO_CLS = VIT.clone(num_cls=0, pool="img")


def weights(backbone, seed=0):
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=leaf.shape).astype(np.float32)
    for name, leaf in cost.shapes(backbone).items()
  }


FLAT, TEMPLATE = weights(VIT), cost.shapes(VIT)


# (A part of our names, timm's).
TIMM = (
  ("Transformer/encoderblock_", "blocks."),
  ("/LayerNorm_0/", ".norm1."),
  ("/LayerNorm_1/", ".norm2."),
  ("/MlpBlock_0/Dense_0/", ".mlp.fc1."),
  ("/MlpBlock_0/Dense_1/", ".mlp.fc2."),
  ("/out/", ".attn.proj."),
  ("/MultiHeadDotProductAttention_0", ""),
  ("encoder_norm/", "norm."),
  ("Transformer/", ""),
  ("embedding/", "patch_embed.proj."),
  ("kernel", "weight"),
  ("scale", "weight"),
  ("cls", "cls_token"),
)


def timm(flat):
  """A ViT under timm's names."""
  out = {}
  for name, array in flat.items():
    if "/out/kernel" in name:
      array = array.reshape(-1, array.shape[-1]).T
    elif name.endswith("kernel"):
      array = (
        array.transpose(3, 2, 0, 1)
        if array.ndim == 4
        else array.reshape(len(array), -1).T
      )
    elif re.search("/(query|key|value)/bias", name):
      array = array.reshape(-1)
    for ours, theirs in TIMM:
      name = name.replace(ours, theirs)
    out[name] = array
  for name in [name for name in out if "/query/" in name]:
    block, leaf = name.split("/query/")
    out[f"{block}.attn.qkv.{leaf}"] = np.concatenate(
      [out.pop(f"{block}/{part}/{leaf}") for part in ("query", "key", "value")]
    )
  table = out.pop("pos_embedding")
  first = np.full((1, 1, table.shape[2]), 0.5, np.float32)
  return out | {
    "cls_token": out["cls_token"] - first,
    "pos_embed": np.concatenate([first, table], axis=1),
  }


def fit(file, backbone=VIT):
  return load.fit(file, cost.shapes(backbone), "x.pth", backbone.spec)


def test_the_renamed_file_fits():
  """So that what is wrong below is what was made wrong."""
  got, extras = fit(timm(FLAT))
  assert not extras
  for name, array in got.items():
    np.testing.assert_allclose(array, FLAT[name], atol=1e-6, err_msg=name)


def without(flat, *parts):
  return {
    name: array
    for name, array in flat.items()
    if not any(part in name for part in parts)
  }


def renamed(flat, old, new):
  return {name.replace(old, new): array for name, array in flat.items()}


def positions(count):
  return timm(FLAT) | {"pos_embed": np.ones((1, count, 48), np.float32)}


DISTILLED = positions(2 + 16) | {
  "dist_token": FLAT["cls"],
  "head_dist.weight": np.zeros((5, 48)),
  "head_dist.bias": np.zeros(5),
  "head.weight": np.zeros((5, 48)),
  "head.bias": np.zeros(5),
}
RESNET = {
  "conv1.weight": np.zeros((64, 3, 7, 7)),
  "bn1.running_mean": np.zeros(64),
  "fc.weight": np.zeros((9, 512)),
}
SHAPE = "another model .ViT, patch_size 8, width 48, depth 3, mlp_dim 96. than"
HERE = "than this backbone .ViT, patch_size 8, width 48, depth 3, mlp_dim 96"
# What is wrong -> (file, backbone, what the error says).
WRONG = {
  "a ResNet": (
    RESNET,
    VIT,
    "x.pth can't be used: the names in it are of no known "
    "layout .it begins with bn1.running_mean, conv1.*a ResNet",
  ),
  "only an optimizer": (
    {"opt/0/mu/cls": FLAT["cls"]},
    VIT,
    "no known .* an optimizer's state",
  ),
  "an optimizer's moments": (
    {f"opt/0/mu/{name}": FLAT[name] for name in FLAT},
    VIT,
    "'opt/0/mu/', .* an optimizer",
  ),
  "only a momentum encoder": (
    {
      f"state_dict/module.momentum_encoder.{name}": array
      for name, array in timm(FLAT).items()
    },
    VIT,
    "'state_dict/module.momentum_encoder.', .* momentum",
  ),
  "patch size": (
    weights(VIT.clone(image_size=(64, 64), patch_size=16)),
    VIT,
    f"patch_size 16, width 48, .* {HERE}",
  ),
  "width": (timm(weights(VIT.clone(width=96))), VIT, f"width 96, .* {HERE}"),
  "depth": (weights(VIT.clone(depth=5)), VIT, f"depth 5, .* {HERE}"),
  "depth, stacked": (
    stacked(weights(VIT.clone(depth=5))),
    VIT,
    f"depth 5, .* {HERE}",
  ),
  "a block less": (
    without(timm(FLAT), "blocks.2."),
    VIT,
    f"depth 2, .* {HERE}",
  ),
  "MLP": (weights(VIT.clone(mlp_dim=48)), VIT, f"mlp_dim 48. {HERE}"),
  "no blocks": (
    without(FLAT, "encoderblock"),
    VIT,
    f"model .no transformer, patch_size 8, width 48. {HERE}",
  ),
  "heads": (weights(VIT.clone(num_heads=6)), VIT, "number of attention head"),
  "a Swin": (
    weights(SWIN),
    VIT,
    "another model .Swin, patch_size 4, width "
    f"16, depth 4, mlp_dim 64, window 4. {HERE}",
  ),
  "a ViT": (timm(FLAT), SWIN, f"{SHAPE} this backbone .Swin, patch_size 4"),
  "window": (
    weights(SWIN.clone(window=8)),
    SWIN,
    "Swin, .*, window 8. than this backbone .Swin, .*, window 4",
  ),
  "CLIP": (weights(CLIP), VIT, "file is CLIP's visual tower.* with clip_"),
  "no CLIP": (timm(FLAT), CLIP, "file is a plain ViT.* CLIP's visual tower"),
  "fine-tuned": (
    renamed(timm(FLAT), "norm.", "fc_norm.")
    | {name: timm(FLAT)[name] for name in timm(FLAT) if "blocks" in name},
    VIT,
    "fc_norm`.; set config.backbone.norm=after and config.pool=img",
  ),
  "distilled": (DISTILLED, VIT, "distilled DeiT, whose second class token"),
  "absolute positions": (
    weights(SWIN.clone(absolute_positions=True)),
    SWIN,
    "Swin with absolute positions .*absolute_positions=True",
  ),
  "no class token": (weights(NO_CLS), VIT, "file has no class token"),
  "class token": (FLAT, NO_CLS, "this backbone has none"),
  "projection": (
    timm(FLAT),
    VIT.clone(projection=factory.get("clip_b16").projection()),
    "without the projection head that config.backbone.projection asks for",
  ),
  "3 x 5": (positions(1 + 15), VIT, "x.pth can't be used: its 16 positions"),
  "3 x 5, of 2020": (
    LAYOUTS["of_2020"](FLAT)
    | {"Transformer/posembed_input/pos_embedding": np.ones((1, 16, 48))},
    VIT,
    "x.pth can't be used: its 16 positions",
  ),
  "3 x 6": (positions(1 + 18), VIT, "positions of a grid that is no square"),
  "integers": (
    {name: array.astype(np.int8) for name, array in FLAT.items()},
    VIT,
    "numbers of type int8, as in a quantised model",
  ),
  "layer scale": (
    timm(FLAT) | {"blocks.0.ls1.gamma": np.zeros(48)},
    VIT,
    "can't be used: it is a ViT with layer scale .*blocks.0.ls1.gamma in it",
  ),
  "a part more": (
    timm(FLAT) | {"blocks.0.gate.weight": np.zeros(48)},
    VIT,
    "parts that this backbone does not have",
  ),
  "no bias": (
    without(timm(FLAT), "qkv.bias"),
    VIT,
    "not whole, or of a variant",
  ),
  "cut": (
    without(timm(FLAT), "blocks.2.mlp"),
    VIT,
    "not whole, or of a variant",
  ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_error_names_the_cause(case):
  file, backbone, match = WRONG[case]
  template = cost.shapes(backbone)
  if case == "projection":
    template |= {"projection/kernel": jax.ShapeDtypeStruct((48, 8), "float32")}
  with pytest.raises(ValueError, match=match) as error:
    load.fit(file, template, "x.pth", backbone.spec)
  text = str(error.value)
  assert text.startswith("checkpoint x.pth ")
  assert text.count("Likely cause") == ("can't be used" not in text)


@pytest.mark.parametrize(
  "file,backbone,names",
  [
    ("vit_s16", "vit_b16", {"vit_s16", "deit_s16", "augreg_s16"}),
    ("vit_b32", "vit_b16", {"vit_b32", "vit_b32_in21k", "clip_b32"}),
    ("vit_b16", "vit_l16", {"vit_b16", "mae_b16", "dino_b16", "clip_b16"}),
    ("swin_t", "vit_b16", {"swin_t"}),
    ("swin_b_in21k_384", "swin_b", {"swin_b_in21k_384"}),
    ("vit_b16", "swin_t", {"vit_b16", "mae_b16"}),
  ],
)
def test_backbones_that_fit_are_named(file, backbone, names):

  def build(name):
    entry = factory.get(name)
    return factory.make(name, entry, (entry.image_size,) * 2)

  zeros = {
    name: np.broadcast_to(np.float32(0), leaf.shape)
    for name, leaf in cost.shapes(build(file)).items()
  }
  with pytest.raises(ValueError, match="of its shape are ") as error:
    fit(zeros, build(backbone))
  line = re.search("of its shape are (.*)", str(error.value))[1]
  named = set(line.split(", "))
  assert names <= named and backbone not in named
  shapes = {
    str(
      sorted(
        (key, value.shape)
        for key, value in cost.shapes(build(name)).items()
        if "encoderblock_1/" in key
      )
    )
    for name in names
  }
  assert len(shapes) == 1


def test_mismatch_is_listed_in_full():
  wrong = without(FLAT, "encoderblock_2/MlpBlock_0/Dense_1/bias", "cls") | {
    "extra/bias": np.zeros(3),
    "embedding/bias": np.zeros(7),
    "Transformer/encoder_norm/bias": np.zeros(48, np.int8),
  }
  with pytest.raises(ValueError) as error:
    fit(wrong)
  assert str(error.value).splitlines()[:-2] == [
    "checkpoint x.pth does not fit this backbone",
    "missing in the checkpoint:",
    "- Transformer/encoderblock_2/MlpBlock_0/Dense_1/bias (48,)",
    "- cls (1, 1, 48)",
    "unexpected in the checkpoint:",
    "+ extra/bias (3,)",
    "expected shapes:",
    "- Transformer/encoder_norm/bias (48,)",
    "- embedding/bias (48,)",
    "found shapes:",
    "+ Transformer/encoder_norm/bias (48,) of int8",
    "+ embedding/bias (7,)",
  ]
  assert str(error.value).splitlines()[-1] == (
    "Nothing was loaded; choose the config.backbone.name whose architecture "
    "fits, or another config.backbone.checkpoint"
  )


def test_only_lists_that_are_not_empty():
  with pytest.raises(ValueError) as error:
    fit(FLAT | {"b": np.zeros(3)})
  assert "+ b (3,)" in str(error.value)
  assert "missing" not in str(error.value)
  assert "shapes" not in str(error.value)


def test_long_lists_are_cut():
  with pytest.raises(ValueError) as error:
    fit(without(FLAT, "encoderblock_1"))
  assert str(error.value).count("\n- ") == 12
  assert "  ... and 4 more" in str(error.value)


def test_two_layouts_in_one_file():
  with pytest.raises(ValueError, match="'pos_embedding' twice"):
    fit(FLAT | {"Transformer/pos_embedding": FLAT["pos_embedding"]})


def test_of_two_networks_the_published_one():
  """Whatever comes first: MoCo's and DINO's files hold two, alike in all."""
  second = timm(weights(VIT, seed=1))
  for good, other in (
    ("module.base_encoder.", "module.momentum_encoder."),
    ("teacher/backbone.", "student/module.backbone."),
    ("model/", "model_ema/"),
  ):
    file = {other + name: array for name, array in second.items()} | {
      good + name: array for name, array in timm(FLAT).items()
    }
    for items in file.items(), reversed(file.items()):
      got, _ = fit(dict(items))
      np.testing.assert_allclose(got["embedding/bias"], FLAT["embedding/bias"])


def test_a_wrong_tree_never_loads():
  """One random change to a layout: every one of them is refused."""
  rng = np.random.default_rng(1)
  layouts = [*LAYOUTS.values(), timm]
  for _ in range(200):
    wrong = dict(layouts[rng.integers(len(layouts))](FLAT))
    names = [
      n
      for n in wrong
      if not re.search("opt/(state|0)|head|MAP|pre_", n, re.IGNORECASE)
    ]
    name = names[rng.integers(len(names))]
    array = wrong[name]
    change = rng.integers(5)
    if change == 0:
      del wrong[name]
    elif change == 1:
      wrong[name + "_"] = wrong.pop(name)
    elif change == 2:
      wrong[name + "/deeper"] = array
    elif change == 3:
      wrong[name] = array[..., None]
    else:
      wrong[name] = array[..., :-1]
    with pytest.raises(ValueError):
      load.fit(wrong, TEMPLATE, "x", VIT.spec)


def small(name):
  return cost.shapes(factory.make(name, factory.get(name), (8, 8)))


@pytest.mark.parametrize(
  "case,match",
  [
    ("cut short", "cannot read checkpoint .*truncated"),
    ("a parameter less", "x.npz does not fit .*\nmissing .*\n- cls"),
    ("a ResNet", "x.npz can't be used: .*a ResNet"),
  ],
)
def test_a_run_begins_with_all_weights_or_none(
  case, match, config, tmp_path, monkeypatch
):
  flat = {
    name: np.ones(leaf.shape, np.float32)
    for name, leaf in small("vit_test").items()
  }
  path = write(tmp_path / "x.npz", flat)
  config.backbone.checkpoint = str(path)
  model = models.build(config, 10)
  params, digest = models.pretrained(model, config, jax.random.key(0))
  assert digest == load.sha256(path)
  np.testing.assert_array_equal(params["backbone"]["cls"], 1)

  if case == "cut short":
    path.write_bytes(path.read_bytes()[:-200])
  else:
    write(path, RESNET if case == "a ResNet" else without(flat, "cls"))
  made = []
  monkeypatch.setattr(models.heads, "initial", lambda *a: made.append(a))
  monkeypatch.setattr(models.jax, "device_put", lambda *a: made.append(a))
  with pytest.raises(ValueError, match=match):
    models.pretrained(model, config, jax.random.key(0))
  assert not made
