"""Checkpoints of every known layout load to the same tree, others not at all.

Golden files hold a small ViT of the published PyTorch code: the weights in the
layout of 2020, and the reference's logits after loading them for other sizes.
"""

import functools
import hashlib
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpt_jax import tree
from vpt_jax.backbones import load, registry
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.base import Method
from vpt_jax.model import Model

GOLDEN = Path(__file__).parent / "golden"
GOOGLE = GOLDEN / "vit_plain_google_layout.npz"
REAL = (Path(__file__).parents[2] / "shared" / "models" /
        "vit_ti16_224_in1k_bigvision_f16.npz")
GRID = (4, 4)


def vit(image_size) -> ViT:
  return ViT(image_size=image_size, patch_size=8, width=48, depth=3,
             num_heads=3, mlp_dim=96, gelu="exact")


def template_of(backbone):
  model = Model(backbone, Method(layout=backbone.layout), num_classes=5)
  image = jnp.zeros((1, *backbone.layout.image_size, 3))
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  return tree.flatten(params["backbone"])


@pytest.fixture(scope="module")
def template():
  return template_of(vit((32, 32)))


@pytest.fixture(scope="module")
def flat(template):
  """Today's layout. Multiples of 1/16: exact in float16 and under sums."""
  rng = np.random.default_rng(0)
  return {name: (rng.integers(-99, 99, leaf.shape) / 16).astype(np.float32)
          for name, leaf in template.items()}


def write(path: Path, flat) -> Path:
  np.savez(path, **flat)
  return path


# The same weights in other layouts.


def prefixed(flat, prefix):
  return {prefix + name: array for name, array in flat.items()} | {
      "opt/state/step": np.array(3), "opt/0/mu/cls": flat["cls"]}


def class_position(flat, name="pos_embedding"):
  flat = dict(flat)
  first = np.full_like(flat["cls"], 0.5)
  flat["cls"] = flat["cls"] - first
  flat[name] = np.concatenate([first, flat.pop("pos_embedding")], axis=1)
  return flat


def of_2020(flat):
  old = {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3",
         "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1"}
  flat = {re.sub("|".join(old), lambda m: old[m[0]], name): array
          for name, array in flat.items()}
  return class_position(flat, "Transformer/posembed_input/pos_embedding")


def with_head(flat):
  return flat | {"head/kernel": np.zeros((48, 9)), "head/bias": np.zeros(9),
                 "pre_logits/kernel": np.zeros((48, 48)),
                 "MAPHead_0/probe": np.zeros((1, 1, 48))}


def stacked(flat):
  out, blocks = {}, {}
  for name, array in flat.items():
    block = re.fullmatch(r"Transformer/encoderblock_\d+/(.*)", name)
    if block:
      blocks.setdefault(block[1], []).append(array)
    else:
      out[name] = array
  return out | {f"Transformer/encoderblock/{rest}": np.stack(arrays)
                for rest, arrays in blocks.items()}


def in_encoder(flat):
  flat = dict(flat)
  flat["Transformer/pos_embedding"] = flat.pop("pos_embedding")
  return flat


LAYOUTS = {
    "today": dict,
    "params": functools.partial(prefixed, prefix="params/"),
    "opt/target": functools.partial(prefixed, prefix="opt/target/"),
    "of_2020": of_2020,
    "of_2020, wrapped": lambda f: prefixed(of_2020(f), "opt/target/"),
    "in_encoder": in_encoder,
    "in_encoder with class": functools.partial(
        class_position, name="Transformer/pos_embedding"),
    "stacked": stacked,
    "stacked, of_2020, wrapped, with head": lambda f: prefixed(
        stacked(of_2020(with_head(f))), "params/"),
    "class_position": class_position,
    "with_head": with_head,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tree(layout, flat, template, tmp_path):
  path = write(tmp_path / "x.npz", LAYOUTS[layout](flat))
  got, digest = load.load(path, template, GRID)
  assert list(got) == list(template)
  for name, array in got.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, flat[name], err_msg=name)
  assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_floats_of_any_width(dtype, flat, template, tmp_path):
  path = write(tmp_path / "x.npz",
               {name: array.astype(dtype) for name, array in flat.items()})
  for name, array in load.load(path, template, GRID)[0].items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, flat[name].astype(dtype))


@pytest.mark.parametrize("case", ["up", "down"])
def test_logits_of_published_code(case):
  with np.load(GOLDEN / f"vit_plain_resized_{case}.npz") as npz:
    image, positions = npz["input/images"], npz["out/pos_embed_resized"]
    logits, size = npz["out/logits"], json.loads(str(npz["meta"]))["img_new"]
  backbone = vit((size, size))
  flat, _ = load.load(GOOGLE, template_of(backbone), backbone.layout.grid)
  raw = load.read(GOOGLE)
  np.testing.assert_allclose(flat["pos_embedding"], positions[:, 1:],
                             rtol=0, atol=1e-6)
  np.testing.assert_allclose(flat["cls"], raw["cls"] + positions[:, :1],
                             rtol=0, atol=1e-6)
  model = Model(backbone, Method(layout=backbone.layout), num_classes=5)
  params = {"backbone": tree.unflatten(flat),
            "head": {"kernel": raw["head/kernel"], "bias": raw["head/bias"]}}
  got = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_allclose(got, logits, rtol=0, atol=2e-5)


@pytest.mark.skipif(not REAL.exists(), reason="needs a real checkpoint")
def test_real_checkpoint():
  backbone = ViT(image_size=(224, 224), **registry.get("vit_ti16").arch)
  template = template_of(backbone)
  flat, _ = load.load(REAL, template, backbone.layout.grid)
  with np.load(REAL) as npz:
    for name in template:
      np.testing.assert_array_equal(flat[name], npz[name].astype(np.float32))


def test_positions_on_other_grids(flat, tmp_path):
  """A plane stays a plane, corners stay corners, also when not square."""
  rows, columns = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 2, 4),
                              indexing="ij")
  plane = np.stack([rows, columns], axis=-1).reshape(1, 16, 2)
  got = load.resize_positions(plane, (4, 4), (3, 7)).reshape(3, 7, 2)
  assert got.dtype == np.float32
  rows, columns = np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 2, 7),
                              indexing="ij")
  np.testing.assert_allclose(got, np.stack([rows, columns], -1), atol=1e-6)

  template = template_of(vit((16, 64)))  # 2 x 8: as many as 4 x 4.
  got, _ = load.load(write(tmp_path / "x.npz", flat), template, (2, 8))
  np.testing.assert_array_equal(
      got["pos_embedding"],
      load.resize_positions(flat["pos_embedding"], (4, 4), (2, 8)))


def test_as_many_positions_as_a_class_token_would_make(flat, tmp_path):
  """2 x 5 = 1 + 3 x 3: taken for a class position only in the old layout."""
  template = template_of(vit((16, 40)))
  flat = flat | {"pos_embedding": np.ones((1, 10, 48), np.float32)}
  got, _ = load.load(write(tmp_path / "x.npz", flat), template, (2, 5))
  for name in got:
    np.testing.assert_array_equal(got[name], flat[name])
  got, _ = load.load(write(tmp_path / "x.npz", in_encoder(flat)), template,
                     (2, 5))
  np.testing.assert_array_equal(got["cls"], flat["cls"] + 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, jnp.bfloat16])
def test_save_and_load(dtype, flat, template, tmp_path):
  flat = {name: jnp.asarray(array) for name, array in flat.items()}
  load.save(tmp_path / "x.npz", flat, dtype)
  assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
  got, _ = load.load(tmp_path / "x.npz", template, GRID)
  for name in flat:
    np.testing.assert_array_equal(got[name], flat[name].astype(dtype))


def test_failed_save_leaves_the_old_file(tmp_path):
  load.save(tmp_path / "x.npz", {"a": np.ones(2)})
  with pytest.raises(ValueError, match="'a' holds numbers too large for float"):
    load.save(tmp_path / "x.npz", {"a": np.full(2, 1e5)})
  with pytest.raises(TypeError):
    load.save(tmp_path / "x.npz", {1: np.ones(2)})
  np.testing.assert_array_equal(load.read(tmp_path / "x.npz")["a"], 1)
  assert len(list(tmp_path.iterdir())) == 1


def test_mismatch_is_listed_in_full(flat, template, tmp_path):
  wrong = dict(flat)
  del wrong["Transformer/encoderblock_2/MlpBlock_0/Dense_1/bias"], wrong["cls"]
  wrong["extra/bias"] = np.zeros(3)
  wrong["embedding/bias"] = np.zeros(7)
  wrong["Transformer/encoder_norm/bias"] = np.zeros(48, np.int8)
  path = write(tmp_path / "x.npz", wrong)
  with pytest.raises(ValueError) as error:
    load.load(path, template, GRID)
  assert str(error.value).splitlines()[:-1] == [
      f"checkpoint {path} does not fit this backbone",
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
  assert "choose the config.backbone.name" in str(error.value)


def test_only_lists_that_are_not_empty(flat, template):
  with pytest.raises(ValueError) as error:
    load.restore(flat | {"b": np.zeros(3)}, template, "x")
  assert "+ b (3,)" in str(error.value)
  assert "missing" not in str(error.value)
  assert "shapes" not in str(error.value)


@pytest.mark.parametrize("count", [15, 18])
def test_positions_of_no_grid(count, flat, template):
  wrong = flat | {"pos_embedding": np.zeros((1, count, 48), np.float32)}
  with pytest.raises(ValueError, match=rf"\+ pos_embedding \(1, {count}, 48\)"):
    load.restore(load.to_big_vision(wrong, GRID), template, "x", GRID)


def test_two_layouts_in_one_file(flat):
  twice = flat | {"Transformer/pos_embedding": flat["pos_embedding"]}
  with pytest.raises(ValueError, match="'pos_embedding' twice"):
    load.to_big_vision(twice)


def test_a_wrong_tree_never_loads(flat, template):
  """One random change to a layout: every one of them is refused."""
  rng = np.random.default_rng(1)
  layouts = list(LAYOUTS.values())
  for _ in range(150):
    wrong = dict(layouts[rng.integers(len(layouts))](flat))
    names = [n for n in wrong if not re.search("opt/(state|0)|head|MAP|pre_", n,
                                               re.IGNORECASE)]
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
      load.restore(load.to_big_vision(wrong, GRID), template, "x", GRID)


def test_unreadable_files(tmp_path):
  path = tmp_path / "x.npz"

  def refused(content: bytes | None, match: str):
    if content is not None:
      path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as error:
      load.read(path)
    assert str(path) in str(error.value)
    assert "config.backbone.checkpoint" in str(error.value)

  refused(None, "No such file")
  refused(b"", "not an npz file")
  refused(b"\x80\x04N.", "not an npz file")  # A pickled None.
  write(path, {"a": np.arange(1000.0)})
  whole = path.read_bytes()
  refused(whole[:-100], "cut short")
  refused(whole[:500] + b"?" + whole[501:], "Bad CRC")
  np.savez(path, a=np.array([{}], dtype=object))
  refused(None, "pickled content is never loaded")
  with pytest.raises(ValueError, match="such file"):
    load.load(tmp_path / "none.npz", {}, None, checksum="md5:000000")


def test_addresses(flat, template, tmp_path, monkeypatch):
  (tmp_path / "assets").mkdir()
  path = write(tmp_path / "assets" / "mini.npz", flat)
  digest = load.sha256(path)
  monkeypatch.setattr(load.resources, "files", lambda _: tmp_path)
  good = load.load("package:mini.npz", template, GRID,
                   checksum=f"sha256:{digest}")
  assert good[1] == digest
  with pytest.raises(ValueError, match="did you mean 'mini.npz'"):
    load.load("package:mimi.npz", template, GRID)
  for address in ("package:mini.npz", path):
    with pytest.raises(ValueError, match=f"sha256:{digest}, expected"):
      load.load(address, template, GRID, checksum="sha256:012345")
  with pytest.raises(ValueError, match="unknown scheme .* 's3'"):
    load.load("s3://bucket/x.npz", template, GRID)

  asked = []
  monkeypatch.setattr(load.fetch, "fetch",
                      lambda *args: asked.append(args) or path)
  load.load("gs://bucket/x.npz", template, GRID, cache=tmp_path)
  assert asked == [("gs://bucket/x.npz", "", tmp_path)]
