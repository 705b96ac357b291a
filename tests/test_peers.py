"""Features of timm's models, run by PyTorch, from the same weight files.

The weights are random: what is compared is the whole way from a file's names to
features, at published sizes.
"""

import types

import jax
import numpy as np
import pytest

from tests import peers
from tests.published import tokens
from vpt_jax import model as models
from vpt_jax import tree
from vpt_jax.backbones import load, registry
from vpt_jax.methods.base import Method

# timm's name -> (entry, options).
MODELS = {
    "vit_tiny_patch16_224": ("vit_ti16", {"gelu": "exact"}),
    "vit_small_patch16_224": ("vit_s16", {"gelu": "exact"}),
    "vit_base_patch16_224": ("vit_b16", {"gelu": "exact"}),
    "deit_small_patch16_224": ("deit_s16", {}),
    "swin_tiny_patch4_window7_224": ("swin_t", {}),
    "vit_base_patch32_clip_quickgelu_224.openai": ("clip_b32", {}),
}
TOLERANCE = 1e-4  # Of the largest value.


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
      weight.data = noise * weight[0].numel()**-0.5


@pytest.fixture(scope="module", params=MODELS)
def peer(request, tmp_path_factory):
  """A model of timm's, its file and its outputs for one image."""
  timm = peers.timm()
  import safetensors.torch
  import torch
  name, options = MODELS[request.param]
  model = timm.create_model(request.param, pretrained=False).eval()
  randomise(model)
  file = tmp_path_factory.mktemp("peer") / "model.safetensors"
  safetensors.torch.save_file(model.state_dict(), file)
  image = np.random.default_rng(0).standard_normal(
      (1, 224, 224, 3)).astype(np.float32)
  with torch.no_grad():
    encoded = model.forward_features(
        torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    pooled = model.forward_head(encoded, pre_logits=True)
    logits = model.forward_head(encoded)
  yield types.SimpleNamespace(
      name=name, options=options, file=file, image=image,
      state=model.state_dict(), encoded=encoded.numpy(),
      pooled=pooled.numpy(), logits=logits.numpy())
  file.unlink()


def loaded(name, options, file):
  """(linear probe, what its backbone loads from a file)."""
  backbone = registry.make(name, registry.get(name), (224, 224), **options)
  model = models.Model(backbone, Method(backbone.spec), 1)
  template = tree.flatten(jax.eval_shape(lambda: models.init(
      model, jax.random.key(0), ["backbone"]))["backbone"])
  return model, load.load(file, template, backbone.spec)


def close(ours, theirs):
  ours = np.asarray(ours)
  difference = np.abs(ours - theirs.reshape(ours.shape)).max()
  assert difference <= TOLERANCE * np.abs(theirs).max(), difference


def test_features(peer):
  model, got = loaded(peer.name, peer.options, peer.file)
  close(tokens(model.backbone, got.backbone, peer.image)[1], peer.encoded)
  params = {"params": {"backbone": tree.unflatten(got.backbone)}}
  pooled = model.apply(params, peer.image, method=model.features)
  close(pooled, peer.pooled)
  close(pooled @ got.extras["head/kernel"] + got.extras["head/bias"],
        peer.logits)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch(peer, zipped, tmp_path):
  if peer.name != "deit_s16":
    pytest.skip("one model is enough")
  import torch
  file = tmp_path / "x.pth"
  torch.save({"model": peer.state, "epoch": 3}, file,
             _use_new_zipfile_serialization=zipped)
  _, want = loaded(peer.name, {}, peer.file)
  _, got = loaded(peer.name, {}, file)
  for part in ("backbone", "extras"):
    want_part, got_part = getattr(want, part), getattr(got, part)
    assert got_part.keys() == want_part.keys()
    for name, array in got_part.items():
      np.testing.assert_array_equal(array, want_part[name], err_msg=name)
