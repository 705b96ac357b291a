"""Checkpoints of every known layout load to the same tree, others not at all.

Golden files hold a small ViT of the published PyTorch code: the weights in the
layout of 2020, and the reference's logits after loading them for other sizes.
What is in files of other kinds: test_formats.py; weights that do not fit:
test_wrong_weights.py.
"""

import functools
import hashlib
import json
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from vpt_jax.backbones import factory
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.method import Method
from vpt_jax.model import Model
from vpt_jax.nn import cost, positions
from vpt_jax.utils import trees
from vpt_jax.weights import file_formats, load

GOLDEN = Path(__file__).parents[1] / "golden"
GOOGLE = GOLDEN / "vit_plain_google_layout.npz"
RESIZED = sorted(GOLDEN.glob("vit_plain_resized_*.npz"))
REAL = (
  Path(__file__).parents[3]
  / "shared"
  / "models"
  / "vit_ti16_224_in1k_bigvision_f16.npz"
)
VIT = ViT(
  (32, 32),
  patch_size=8,
  width=48,
  depth=3,
  num_heads=3,
  mlp_dim=96,
  gelu="exact",
)


@pytest.fixture(name="template", scope="module")
def template_fixture():
  return cost.shapes(VIT)


@pytest.fixture(name="flat", scope="module")
def flat_fixture(template):
  """Today's layout. Multiples of 1/16: exact in float16 and under sums."""
  rng = np.random.default_rng(0)
  return {
    name: (rng.integers(-99, 99, leaf.shape) / 16).astype(np.float32)
    for name, leaf in template.items()
  }


def write(path: Path, flat) -> Path:
  np.savez(path, **flat)
  return path


def same(got, want):
  assert list(got) == sorted(want)
  for name, array in got.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, want[name], err_msg=name)


# The same weights in other layouts.


def prefixed(flat, prefix):
  return {prefix + name: array for name, array in flat.items()} | {
    "opt/state/step": np.array(3),
    "opt/0/mu/cls": flat["cls"],
  }


def class_position(flat, name="pos_embedding"):
  flat = dict(flat)
  first = np.full_like(flat["cls"], 0.5)
  flat["cls"] = flat["cls"] - first
  flat[name] = np.concatenate([first, flat.pop("pos_embedding")], axis=1)
  return flat


def of_2020(flat):
  old = {
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
  }
  flat = {
    re.sub("|".join(old), lambda m: old[m[0]], name): array
    for name, array in flat.items()
  }
  return class_position(flat, "Transformer/posembed_input/pos_embedding")


HEAD = {"head/kernel": np.ones((48, 9)), "head/bias": np.zeros(9)}


def with_head(flat):
  return (
    flat
    | HEAD
    | {
      "pre_logits/kernel": np.zeros((48, 48)),
    }
  )


def stacked(flat):
  out, blocks = {}, {}
  for name, array in flat.items():
    block = re.fullmatch(r"Transformer/encoderblock_\d+/(.*)", name)
    if block:
      blocks.setdefault(block[1], []).append(array)
    else:
      out[name] = array
  return out | {
    f"Transformer/encoderblock/{rest}": np.stack(arrays)
    for rest, arrays in blocks.items()
  }


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
    class_position, name="Transformer/pos_embedding"
  ),
  "stacked": stacked,
  "stacked, of_2020, wrapped, with head": lambda f: prefixed(
    stacked(of_2020(with_head(f))), "params/"
  ),
  "class_position": class_position,
  "with_head": with_head,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_tree(layout, flat, template, tmp_path):
  path = write(tmp_path / "x.npz", LAYOUTS[layout](flat))
  got = load.load(path, template, VIT.spec)
  same(got.backbone, flat)
  assert got.extras.keys() == (HEAD.keys() if "head" in layout else set())
  assert got.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder(flat, template, tmp_path):
  """Orbax writes one; its hash is of all names and contents in it."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "a", trees.unflatten(with_head(flat)))
  got = load.load(tmp_path / "a", template, VIT.spec)
  same(got.backbone, flat)
  np.testing.assert_array_equal(got.extras["head/kernel"], 1)
  (tmp_path / "a" / "more").write_text("")
  assert load.sha256(tmp_path / "a") != got.sha256


@pytest.mark.parametrize("file", RESIZED, ids=lambda path: path.stem)
def test_logits_of_published_code(file):
  with np.load(file) as npz:
    image, table = npz["input/images"], npz["out/pos_embed_resized"]
    logits, size = npz["out/logits"], json.loads(str(npz["meta"]))["img_new"]
  backbone = VIT.clone(image_size=(size, size))
  got = load.load(GOOGLE, cost.shapes(backbone), backbone.spec)
  raw = file_formats.read(GOOGLE)
  np.testing.assert_allclose(
    got.backbone["pos_embedding"], table[:, 1:], rtol=0, atol=1e-6
  )
  np.testing.assert_allclose(
    got.backbone["cls"], raw["cls"] + table[:, :1], rtol=0, atol=1e-6
  )
  model = Model(backbone, Method(backbone.spec), num_classes=5)
  params = {
    "backbone": got.backbone,
    "head": {
      name.removeprefix("head/"): array for name, array in got.extras.items()
    },
  }
  params = trees.unflatten(trees.flatten(params))
  np.testing.assert_allclose(
    jax.jit(model.apply)({"params": params}, image), logits, rtol=0, atol=2e-5
  )


@pytest.mark.skipif(not REAL.exists(), reason="needs a real checkpoint")
def test_real_checkpoint():
  backbone = ViT((224, 224), **factory.get("vit_ti16").arch)
  got = load.load(REAL, cost.shapes(backbone), backbone.spec).backbone
  with np.load(REAL) as npz:
    same(got, {name: npz[name].astype(np.float32) for name in got})


def test_linear_positions():
  """A plane stays a plane, corners stay corners, also when not square."""

  def plane(rows, columns):
    return np.stack(
      np.meshgrid(
        np.linspace(0, 1, rows), np.linspace(0, 2, columns), indexing="ij"
      ),
      axis=-1,
    ).reshape(1, -1, 2)

  got = positions.resize(plane(4, 4), (4, 4), (3, 7))
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, plane(3, 7), atol=1e-6)


@pytest.mark.parametrize("grid", [(3, 7), (6, 5), (4, 4), (14, 2)])
def test_bicubic_positions_are_torchs(grid):
  torch = pytest.importorskip("torch")
  table = np.random.default_rng(0).normal(size=(1, 4, 5, 6))
  want = torch.nn.functional.interpolate(
    torch.tensor(table).permute(0, 3, 1, 2),
    mode="bicubic",
    scale_factor=tuple((new + 0.1) / old for new, old in zip(grid, (4, 5))),
  )
  got = positions.resize(table.reshape(1, 20, 6), (4, 5), grid, "bicubic")
  np.testing.assert_allclose(
    got.reshape(*grid, 6), want[0].permute(1, 2, 0), atol=1e-5
  )


def test_sincos_positions():
  """Chen et al.'s table, value by value; the file's own is not read."""
  want = np.zeros((2, 3, 8))
  for (row, column, channel), _ in np.ndenumerate(want):
    place = (row, row, column, column)[channel // 2]
    wave = (np.sin, np.cos)[channel // 2 % 2]
    want[row, column, channel] = wave(place / 10000 ** (channel % 2 / 2))
  np.testing.assert_allclose(
    positions.sincos((2, 3), 8).reshape(2, 3, 8), want, atol=1e-6
  )
  got = positions.resize(np.full((1, 4, 8), np.nan), (2, 2), (2, 3), "sincos")
  np.testing.assert_array_equal(got, positions.sincos((2, 3), 8))
  with pytest.raises(ValueError, match="divisible by 4, not 6"):
    positions.sincos((2, 3), 6)


@pytest.mark.parametrize("how", ["linear", "bicubic", "sincos"])
@pytest.mark.parametrize("layout", ["today", "of_2020"])
def test_positions_are_resized_as_asked(how, layout, flat):
  wide = VIT.clone(image_size=(16, 64))  # 2 x 8: as many as 4 x 4.
  got, _ = load.fit(
    LAYOUTS[layout](flat), cost.shapes(wide), "x", wide.spec, how
  )
  table = positions.resize(flat["pos_embedding"], (4, 4), (2, 8), how)
  same(got, flat | {"pos_embedding": table})
  assert (table != flat["pos_embedding"]).any()


def test_positions_stay_where_the_grid_does(flat, template):
  for how in "linear", "bicubic", "sincos":
    same(load.fit(flat, template, "x", VIT.spec, how)[0], flat)


def test_as_many_positions_as_a_class_token_would_make(flat):
  """2 x 5 = 1 + 3 x 3: taken for a class position only in old layouts."""
  wide = VIT.clone(image_size=(16, 40))
  flat = flat | {"pos_embedding": np.ones((1, 10, 48), np.float32)}

  def fit(flat):
    return load.fit(flat, cost.shapes(wide), "x", wide.spec)[0]

  same(fit(flat), flat)
  same(fit(in_encoder(flat)), flat | {"cls": flat["cls"] + 1})


def test_the_final_norm_that_the_backbone_asks_for(flat, template):
  """After the pooling it may have its own name; fresh, it is not read."""
  norms = [f"Transformer/encoder_norm/{leaf}" for leaf in ("bias", "scale")]
  fine_tuned = {
    name.replace("encoder_norm", "fc_norm"): array
    for name, array in flat.items()
  }
  fresh = flat | {norms[0]: np.zeros(48), norms[1]: np.ones(48)}
  none = {name: flat[name] for name in flat if name not in norms}
  for order, file, want in (
    ("after", flat, flat),
    ("after", fine_tuned, flat),
    ("fresh", flat, fresh),
    ("fresh", none, fresh),
  ):
    spec = VIT.clone(norm_order=order).spec
    same(load.fit(file, template, "x", spec)[0], want)
  for order in "before", "after":
    with pytest.raises(ValueError, match=r"missing.*\n- .*encoder_norm/bias"):
      load.fit(none, template, "x", VIT.clone(norm_order=order).spec)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, jnp.bfloat16])
def test_save_and_load(dtype, flat, template, tmp_path):
  flat = {name: jnp.asarray(array) for name, array in flat.items()}
  load.save(tmp_path / "x.npz", flat, dtype)
  assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
  same(
    load.load(tmp_path / "x.npz", template, VIT.spec).backbone,
    {name: array.astype(dtype) for name, array in flat.items()},
  )


def test_failed_save_leaves_the_old_file(tmp_path):
  load.save(tmp_path / "x.npz", {"a": np.ones(2)})
  with pytest.raises(ValueError, match="'a' holds numbers too large for float"):
    load.save(tmp_path / "x.npz", {"a": np.full(2, 1e5)})
  with pytest.raises(TypeError):
    load.save(tmp_path / "x.npz", {1: np.ones(2)})
  np.testing.assert_array_equal(file_formats.read(tmp_path / "x.npz")["a"], 1)
  assert len(list(tmp_path.iterdir())) == 1


def test_addresses(flat, template, tmp_path, monkeypatch):
  get = functools.partial(load.load, template=template, spec=VIT.spec)
  (tmp_path / "assets").mkdir()
  path = write(tmp_path / "assets" / "mini.npz", flat)
  digest = load.sha256(path)
  monkeypatch.setattr(load.resources, "files", lambda _: tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  for address in "package:mini.npz", "~/assets/mini.npz", str(path), path:
    assert get(address, checksum=f"sha256:{digest}").sha256 == digest
    with pytest.raises(ValueError, match=f"sha256:{digest}, expected"):
      get(address, checksum="sha256:012345")
  with pytest.raises(ValueError, match="did you mean 'mini.npz'"):
    get("package:mimi.npz")
  with pytest.raises(ValueError, match="unknown scheme .* 's3'"):
    get("s3://bucket/x.npz")
  with pytest.raises(ValueError, match="none.npz: no such file"):
    get(tmp_path / "none.npz", checksum="md5:000000")

  asked = []
  monkeypatch.setattr(
    load.download, "fetch", lambda *args: asked.append(args) or path
  )
  same(get("gs://bucket/x.npz", cache=tmp_path).backbone, flat)
  assert asked == [("gs://bucket/x.npz", "", tmp_path)]
