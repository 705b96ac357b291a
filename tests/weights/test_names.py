"""Every array of a file is loaded, known to change nothing, or refuses it.

A head that does not belong to the backbone is left out, with a line in the log.
What may be ignored is on a list, with its reason: nothing else ever is.
"""

import logging
import re

import numpy as np
import pytest

from tests.weights import test_convert as layouts
from vpt_jax import config as configs
from vpt_jax.nn import cost
from vpt_jax.weights import families, load, name_maps
from vpt_jax.weights.agreement import Told
from vpt_jax.weights.translate import translate

VIT = layouts.VIT
FLAT = layouts.numbers(cost.shapes(VIT))
TIMM = layouts.timm(FLAT)
TOLD = Told(gelu=True)


def fit(file, module=VIT, told=TOLD):
  return load.fit(file, cost.shapes(module), "x.pth", module.spec, told=told)


def dense(name, classes=7, width=24):
  return {
    f"{name}.weight": np.arange(classes * width, dtype=np.float32).reshape(
      classes, width
    ),
    f"{name}.bias": np.ones(classes, np.float32),
  }


CONV = np.zeros((2, 24, 3, 3), np.float32)
NORM = {"head.1.weight": np.ones(9), "head.1.bias": np.ones(9)}
MLP = dense("head.0", 9) | NORM | dense("head.3", 7, 9)
# What stands beside a backbone -> whether a classifier can be made of it.
HEADS = {
  "heads": (dense("heads"), True),
  "heads.0": (dense("heads.0"), True),
  "heads.head.0": (dense("heads.head.0"), True),
  "heads.head.1": (dense("heads.head.1"), True),
  "fc": (dense("fc"), True),
  "classifier": (dense("classifier"), True),
  "head, aux_head": (dense("head") | dense("aux_head"), True),
  "fc, aux_classifier": (dense("fc") | dense("aux_classifier"), True),
  "head_dist alone": (dense("head_dist"), False),
  "an MLP": (MLP, False),
  "two heads": (dense("heads.0") | dense("heads.1"), False),
  "no bias": ({"head.0.weight": np.zeros((7, 24), np.float32)}, False),
  "mmsegmentation": (
    {"decode_head.conv_seg.weight": CONV, "auxiliary_head.conv.weight": CONV},
    False,
  ),
  "a neck": ({"neck.fpn1.0.weight": CONV}, False),
}
WRAPPED = {
  "timm": (VIT, TIMM),
  "timm in model/": (VIT, layouts.renamed(TIMM, ("^", "model/"))),
  "torchvision": (VIT, layouts.torchvision(FLAT)),
  "Hugging Face": (
    layouts.HF_VIT,
    layouts.huggingface(layouts.apart(FLAT), "vit."),
  ),
  "timm in backbone.": (VIT, layouts.renamed(TIMM, ("^", "backbone."))),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("layout", WRAPPED)
def test_a_head_beside_a_backbone_does_not_refuse_it(layout, case, caplog):
  module, file = WRAPPED[layout]
  head, is_classifier = HEADS[case]
  prefix = "model/" if "model/" in layout else ""
  with caplog.at_level(logging.INFO):
    got, extras = fit(
      file | {prefix + name: array for name, array in head.items()}, module
    )
  layouts.same(got, FLAT)
  assert (extras.keys() == {"head/kernel", "head/bias"}) == is_classifier
  left_out = re.findall("heads in the checkpoint, left out: (.*)", caplog.text)
  if is_classifier:
    assert extras["head/kernel"].shape == (24, 7)
    assert extras["head/kernel"][1, 0] == 1
  is_told = bool(left_out)
  assert is_told == (not is_classifier or len(head) > 2)


@pytest.mark.parametrize(
  "names,family",
  [
    ({"blocks.0.attn.qkv.lora_A.default.weight": (4, 24)}, "LoRA"),
    (
      {"base_model.model.blocks.0.attn.qkv.base_layer.weight": (72, 24)},
      "LoRA",
    ),
    ({"blocks.0.attn.qkv.lora_B.weight": (4, 24)}, "LoRA .* merge_and_unload"),
    ({"blocks.1.ls2.gamma": (24,)}, "layer scale"),
    ({"reg_token": (1, 4, 24)}, "DINOv2"),
    ({"dist_token": (1, 1, 24)}, "distilled DeiT"),
    ({"attn_pool.latent": (1, 1, 24)}, "SigLIP .* config.pool=img"),
  ],
)
def test_what_would_be_run_as_another_network_is_named(names, family):
  file = TIMM | layouts.numbers(names)
  (name,) = names
  with pytest.raises(ValueError, match=f"can't be used: it is .*{family}") as e:
    fit(file)
  assert name in str(e.value)


@pytest.mark.parametrize("channels,advice", [(1, "a third of"), (4, "on RGB")])
def test_images_of_other_channels(channels, advice):
  kernel = np.ones((24, channels, 4, 4), np.float32)
  match = f"Likely cause: .* of {channels} channels, .* for 3 .RGB.*{advice}"
  with pytest.raises(ValueError, match=match):
    fit(TIMM | {"patch_embed.proj.weight": kernel})


@pytest.mark.parametrize("layout", ["timm SigLIP", "Hugging Face SigLIP"])
def test_the_mean_in_place_of_attention_pooling_is_the_users_choice(layout):
  module = VIT.clone(num_cls=0, pool="img", gelu="tanh")
  flat = layouts.numbers(cost.shapes(module))
  make = layouts.timm_siglip if "timm" in layout else layouts.hf_siglip
  with pytest.raises(ValueError, match="pools by attention"):
    fit(make(flat), module)
  got, _ = fit(make(flat), module, Told(pool=True, gelu=True))
  layouts.same(got, flat)


def test_siglip_of_the_model_zoo_keeps_its_tanh_gelu(config):
  """No paper's code runs it with the exact one, which `torch` means else."""
  config.backbone.name = "siglip_so400m14"
  config.backbone.checkpoint = ""
  config.backbone.gelu = "torch"
  config.pool = "img"
  config.image_size = 28
  assert configs.resolve(config).backbone.gelu == "tanh"
  config.backbone.name = "vit_so400m14"
  assert configs.resolve(config).backbone.gelu == "torch"


# The list of what may be ignored.

# A word in the name of an array that would change what a network computes.
CHANGES = (
  "adapter",
  "gate",
  "scale",
  "blocks.0.adapter.down",
  "blocks.0.attn.q_norm",
  "blocks.0.ssf_scale",
  "norm2",
  "pos_embed_2",
  "prompt_embeddings",
  "visual_prompt",
  "encoder.adapter",
  "schema_adapter",
  "temapter",
  "side.blocks.0.mlp",
  "bottleneck",
  "head.attention.in_proj",
  "attn_pool.probe",
)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_an_unknown_array_refuses_a_file(layout):
  """Wherever it stands: in the network, beside it, or beside its wrapper."""
  module, extras, make = layouts.LAYOUTS[layout]
  shapes = cost.shapes(module) | (extras or {})
  flat = layouts.clip_numbers() if extras is None else layouts.numbers(shapes)
  file = make(flat)
  fit(file, module)
  found = translate(file)
  marker = found.origin["embedding/kernel"]
  prefixes = [""]
  for i, letter in enumerate(marker):
    if letter in "./":
      prefixes.append(marker[: i + 1])
  # Every name at some place, and every place: a layout takes a second so.
  for i, name in enumerate(CHANGES):
    prefix = prefixes[i % len(prefixes)]
    wrong = file | {f"{prefix}{name}.weight": np.ones(24, np.float32)}
    with pytest.raises(ValueError, match=re.escape(name)):
      fit(wrong, module)


def test_every_array_that_is_ignored_is_on_the_list_with_a_reason():
  reasons = {}
  for _, _, rules in name_maps.LAYOUTS:
    for pattern, reason, kind in rules:
      if kind == "ignore":
        assert len(reason) > 10, pattern
        reasons[pattern] = reason
  assert reasons
  for layout, (module, extras, make) in layouts.LAYOUTS.items():
    shapes = cost.shapes(module) | (extras or {})
    flat = layouts.clip_numbers() if extras is None else layouts.numbers(shapes)
    found = translate(make(flat))
    for name in found.ignored:
      parts = re.split("[./]", name)
      is_beside = any(re.fullmatch(name_maps.BESIDE, part) for part in parts)
      is_listed = any(re.search(f"(?:{p})$", name) for p in reasons)
      assert is_beside or is_listed, (layout, name)


def test_pooling_is_ignored_only_by_choice():
  """What `families` refuses is what the rules for it would ignore."""
  for name in (
    "attn_pool.latent",
    "vision_model.head.probe",
    "MAPHead_0/probe",
  ):
    with pytest.raises(ValueError, match="pools by attention"):
      families.refuse([name], may_pool=False)
    families.refuse([name], may_pool=True)
