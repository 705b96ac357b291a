"""Every published model gives its own library's numbers, or is refused by name.

The files are tiny models of the published classes, each with what its library
computes (shared/golden/backbones). None may be run as another network: with
another activation, another eps, without its pooling or its rotary positions.
"""

import json
from pathlib import Path
import re

import numpy as np
import pytest

from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost
from vpt_jax.weights import convert, load
from vpt_jax.weights.agreement import Told
from vpt_jax.weights.timm_check import our_tokens

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "backbones"
FILES = GOLDEN / "checkpoints"
needs_files = pytest.mark.skipif(
  not FILES.is_dir(), reason="the shared fixtures are not there"
)
# Names of files -> what the error says they are.
REFUSED = {
  "beit": "BEiT",
  "deit3": "DeiT III",
  "dinov2": "DINOv2",
  "dinov3": "DINOv3",
  "eva02": "EVA-02",
  "pe_core": "PE-core",
  "siglip": "SigLIP",
}
TOLERANCE = 1e-5  # of the largest entry, as the fixtures' README says


def names():
  return sorted(path.name for path in FILES.glob("*"))


def refused_as(name):
  """What a file of this name is refused as; "" if it loads."""
  for start, family in REFUSED.items():
    if name.startswith(start):
      return family
  return ""


def file_of(name):
  path = FILES / name
  return path / "model.safetensors" if path.is_dir() else path


def case_of(name):
  """(images, tokens after the final norm, heads, GELU) of a file's model."""
  case = (
    name.partition(".")[0]
    .replace("_v5_state_dict", "_hf")
    .replace("_hf_hf", "_hf")
  )
  with np.load(GOLDEN / f"{case}.npz") as npz:
    images = npz["input/images"]
    wanted = npz["out/tokens_after_norm"]
    heads = json.loads(str(npz["meta"]))["builder"]
  return images, wanted, heads


def tokens_of(module, arrays, images):
  return np.concatenate(
    [our_tokens(module, arrays, image[None]) for image in images]
  )


def close(got, wanted):
  largest = max(1.0, np.abs(wanted).max())
  np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE * largest)


GELU = {"clip_laion": "exact", "clip_openai": "quick", "vit_hf": "exact"}
HEADS = {"clip_laion": 2, "clip_openai": 4, "vit_hf": 2}


def said(table, name):
  (value,) = [value for start, value in table.items() if name.startswith(start)]
  return value


def vit_of(name):
  """The backbone that a file is of, as its library builds it."""
  is_clip = name.startswith("clip")
  return ViT(
    (32, 32),
    patch_size=8,
    width=32,
    depth=2,
    num_heads=said(HEADS, name),
    mlp_dim=64,
    gelu=said(GELU, name),
    eps=1e-5 if is_clip else 1e-12,
    patch_bias=not is_clip,
    pre_norm=is_clip,
  )


@needs_files
@pytest.mark.parametrize("name", names())
def test_a_file_gives_its_librarys_numbers_or_is_refused_by_name(name):
  family = refused_as(name)
  if family:
    module = ViT((32, 32), 8, 32, 2, 2, 64)
    with pytest.raises(ValueError, match=f"can't be used: .*{family}") as error:
      load.load(file_of(name), cost.shapes(module), module.spec)
    assert "choose another" in str(error.value) or "config.pool" in str(
      error.value
    )
    return
  module = vit_of(name)
  template = cost.shapes(module)
  told = Told(gelu=not (FILES / name).is_dir())
  loaded = load.load(file_of(name), template, module.spec, told=told)
  images, wanted, _ = case_of(name)
  close(tokens_of(module, loaded.backbone, images), wanted)


@needs_files
@pytest.mark.parametrize("name", names())
def test_convert_does_the_same(name, tmp_path, capsys):
  """What is not in arrays is kept in the npz, and asked for again nowhere."""
  out = tmp_path / "out.npz"
  is_folder = (FILES / name).is_dir()
  options = ["--no-verify", "--to", str(out)]
  if not is_folder and not refused_as(name):
    options += ["--heads", str(said(HEADS, name))]
    options += ["--gelu", said(GELU, name)] if "clip" in name else []
  status = convert.main(["convert", str(file_of(name)), *options])
  family = refused_as(name)
  assert status == bool(family)
  assert re.search(
    f"cannot be converted: .*{family}", capsys.readouterr().err
  ) or (not family)
  assert out.exists() == (not family)
  if family:
    return
  module = vit_of(name)
  loaded = load.load(out, cost.shapes(module), module.spec)
  images, wanted, _ = case_of(name)
  close(tokens_of(module, loaded.backbone, images), wanted)
  other = "quick" if module.gelu == "exact" else "exact"
  for changed in (module.clone(gelu=other), module.clone(eps=1e-3)):
    with pytest.raises(ValueError, match="the file itself (says|has norms)"):
      load.load(out, cost.shapes(changed), changed.spec)
