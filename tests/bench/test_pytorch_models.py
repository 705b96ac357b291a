"""Compares features with timm's models, from the same weight files.

The weights are random: what is compared is the whole way from a file's names to
features, at published sizes.
"""

import jax
import numpy as np
import pytest

from tests import peers
from tests.published import tokens
from vpt_jax import model as model_lib
from vpt_jax.backbones import factory
from vpt_jax.methods.method import Method
from vpt_jax.utils import trees
from vpt_jax.weights import load
from vpt_jax.weights.agreement import Told

# timm's name -> (entry, options).
MODELS = {
  "vit_tiny_patch16_224": ("vit_ti16", {"gelu": "exact"}),
  "vit_small_patch16_224": ("vit_s16", {"gelu": "exact"}),
  "vit_base_patch16_224": ("vit_b16", {"gelu": "exact"}),
  "deit_small_patch16_224": ("deit_s16", {}),
  "swin_tiny_patch4_window7_224": ("swin_t", {}),
  "vit_base_patch32_clip_quickgelu_224.openai": ("clip_b32", {}),
}
TOLERANCE = 1e-5  # Of the largest value.


def randomise(model):
  """Every weight carries signal: nothing is 0, 1 or tiny."""
  import torch

  generator = torch.Generator().manual_seed(0)
  for name, weight in model.named_parameters():
    noise = torch.randn(weight.shape, generator=generator)
    if weight.ndim == 1:
      weight.data += noise / 10
    elif name.endswith(("token", "embed", "table")):
      weight.data = noise / 2
    else:
      weight.data = noise * weight[0].numel() ** -0.5


def built(name):
  """timm's model with random weights."""
  timm = peers.timm()
  model = timm.create_model(name, pretrained=False, weight_init="skip").eval()
  randomise(model)
  return model


def loaded(name, options, file):
  """(linear probe, what its backbone loads from a file)."""
  backbone = factory.make(name, factory.get(name), (224, 224), **options)
  model = model_lib.Model(backbone, Method(backbone.spec), 1)
  template = trees.flatten(
    jax.eval_shape(
      lambda: model_lib.init(model, jax.random.key(0), ["backbone"])
    )["backbone"]
  )
  # timm's names say of which model the file is.
  return model, load.load(file, template, backbone.spec, told=Told(all=True))


def close(got, want):
  got = np.asarray(got)
  difference = np.abs(got - want.reshape(got.shape)).max()
  assert difference <= TOLERANCE * np.abs(want).max(), difference


@pytest.mark.parametrize("name", MODELS)
def test_features(name, tmp_path):
  peer = built(name)
  import safetensors.torch
  import torch

  file = tmp_path / "model.safetensors"
  safetensors.torch.save_file(peer.state_dict(), file)
  image = (
    np.random.default_rng(0)
    .standard_normal((1, 224, 224, 3))
    .astype(np.float32)
  )
  with torch.no_grad():
    encoded = peer.forward_features(
      torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    )
    pooled = peer.forward_head(encoded, pre_logits=True)
    logits = peer.forward_head(encoded)

  model, got = loaded(*MODELS[name], file)
  file.unlink()  # Hundreds of megabytes.
  assert model.backbone.eps == peer.norm.eps  # Too small to see in features.

  @jax.jit
  def run(params):
    variables = {"params": {"backbone": trees.unflatten(params)}}
    return (
      tokens(model.backbone, params, image)[1],
      model.apply(variables, image, method=model.features),
    )

  encoding, feature = run(got.backbone)
  close(encoding, encoded.numpy())
  close(feature, pooled.numpy())
  close(
    feature @ got.extras["head/kernel"] + got.extras["head/bias"],
    logits.numpy(),
  )


def test_files_of_torch(tmp_path):
  peer = built("deit_tiny_patch16_224")
  import safetensors.torch
  import torch

  safetensors.torch.save_file(peer.state_dict(), tmp_path / "x.safetensors")
  _, want = loaded("deit_ti16", {}, tmp_path / "x.safetensors")
  for zipped in (True, False):
    torch.save(
      {"model": peer.state_dict(), "epoch": 3},
      tmp_path / "x.pth",
      _use_new_zipfile_serialization=zipped,
    )
    _, got = loaded("deit_ti16", {}, tmp_path / "x.pth")
    for part, want_part in (
      (got.backbone, want.backbone),
      (got.extras, want.extras),
    ):
      assert part.keys() == want_part.keys()
      for name, array in part.items():
        np.testing.assert_array_equal(array, want_part[name], err_msg=name)
