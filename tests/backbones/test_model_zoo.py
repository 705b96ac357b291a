"""Each backbone of the table: what it costs, where it is, how it is listed.

Parameters are those of timm's and open_clip's modules without heads and
projections; they were counted there, not here. Multiply-adds are published.
"""

import contextlib
import io
import re

import numpy as np
import pytest

from vpt_jax.backbones import factory, model_zoo
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost
from vpt_jax.weights import download, listing, load

NAMES = [name for name in model_zoo.BACKBONES if not name.endswith("_test")]
# Architecture -> (parameters of the peer, width D if it holds a class token:
# ours adds its position, of D parameters, to it; GMACs). Where authors give
# none these are of torch's FlopCounter, halved.
COST = {
  "ti16": (5_524_416, 192, "1.3"),  # DeiT, in the papers after it
  "s16": (21_665_664, 384, "4.6"),  # DeiT, MoCo v3
  "s32": (22_493_952, 384, "1.14"),  # counted
  "s8": (21_670_272, 384, "22.4"),  # counted
  "b16": (85_798_656, 768, "17.6"),  # torchvision (DeiT: 17.5)
  "b32": (87_455_232, 768, "4.4"),  # torchvision
  "b8": (85_807_872, 768, "78.1"),  # counted
  "b16_384": (86_090_496, 768, "55.5"),  # DeiT
  "l16": (303_301_632, 1024, "61.6"),  # torchvision
  "l32": (305_510_400, 1024, "15.4"),  # counted
  "h14": (630_764_800, 1280, "167"),  # timm
  "g14": (1_011_202_432, 1408, "267"),  # timm's 1012.61 M with 1000 classes
  "clip_b32": (87_456_000, 768, "4.41"),  # open_clip: 8.82 GFLOPs
  "clip_b16": (85_799_424, 768, "17.6"),  # open_clip: 35.13 GFLOPs
  "clip_l14": (303_179_776, 1024, "81.0"),  # open_clip: 162.03 GFLOPs
  "clip_l14_336": (303_507_456, 1024, "191"),  # open_clip: 381.92 GFLOPs
  "swin_t": (27_519_354, 0, "4.5"),  # Swin's README, and below
  "swin_s": (48_837_258, 0, "8.7"),
  "swin_b": (86_743_224, 0, "15.4"),
  "swin_b_384": (86_878_584, 0, "47.1"),
  # timm's at 384 px (428,225,600), less its pooling by attention
  # (15,238,352) and 27^2 - 16^2 positions; counted.
  "so400m14": (412_442_352, 0, "109"),
  # By hand: 4 blocks of 12 D^2 + 13 D; 49 D, D, 65 D and 2 D; D = 96.
  "mini4": (458_592, 96, "0.03"),
}
ARCHITECTURE = {
  "vit_b16_in21k": "b16",
  "vit_b32_in21k": "b32",
  "vit_l16_in21k": "l16",
  "vit_l32_in21k": "l32",
  "vit_h14_in21k": "h14",
  "augreg_ti16": "ti16",
  "augreg_s16": "s16",
  "augreg_s32": "s32",
  "augreg_b16": "b16",
  "augreg_b32": "b32",
  "augreg_l16": "l16",
  "mae_b16": "b16",
  "mae_l16": "l16",
  "mae_h14": "h14",
  "mocov3_b16": "b16",
  "mocov3_b16_pretrain": "b16",
  "mocov3_s16": "s16",
  "dino_s16": "s16",
  "dino_s8": "s8",
  "dino_b16": "b16",
  "dino_b8": "b8",
  "clip_b32": "clip_b32",
  "clip_b16": "clip_b16",
  "clip_l14": "clip_l14",
  "clip_l14_336": "clip_l14_336",
  "vit_b32_in1k": "b32",
  "vit_b16_in1k": "b16",
  "vit_l16_in1k": "l16",
  "deit_ti16": "ti16",
  "deit_s16": "s16",
  "deit_b16": "b16",
  "deit_b16_384": "b16_384",
  "swin_t": "swin_t",
  "swin_s": "swin_s",
  "swin_b": "swin_b",
  "swin_b_in21k": "swin_b",
  "swin_b_in21k_384": "swin_b_384",
  "vit_mini4_cifar10": "mini4",
  "vit_mini4": "mini4",
  "vit_ti16": "ti16",
  "vit_s16": "s16",
  "vit_s32": "s32",
  "vit_b16": "b16",
  "vit_b32": "b32",
  "vit_l16": "l16",
  "vit_h14": "h14",
  "vit_g14": "g14",
  "siglip_so400m14": "so400m14",
  "vit_so400m14": "so400m14",
}


@pytest.fixture(name="cache", scope="module")
def cache_fixture(tmp_path_factory):
  """A cache that holds a file of swin_s, and nothing else."""
  with pytest.MonkeyPatch.context() as monkeypatch:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VPT_JAX_CACHE", str(folder))
    path = download.location(model_zoo.BACKBONES["swin_s"].url)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    yield folder


def cells(line):
  return re.split("  +", line.strip())


@pytest.fixture(name="rows", scope="module")
def rows_fixture(cache):
  """Name -> [parameters, GMACs, pixels, weights, licence], as printed."""
  del cache
  with contextlib.redirect_stdout(io.StringIO()) as out:
    assert listing.main(["backbones"]) == 0
  heading, *lines = out.getvalue().splitlines()
  assert cells(heading) == [
    "name",
    "parameters",
    "GMACs",
    "px",
    "weights",
    "licence",
  ]
  return {name: rest for name, *rest in map(cells, lines)}


@pytest.mark.parametrize("name", NAMES)
def test_cost(name, rows):
  """A new entry needs a row here, counted elsewhere."""
  theirs, width, macs = COST[ARCHITECTURE[name]]
  ours, found, pixels, *_ = rows[name]
  assert int(ours.replace(",", "")) == theirs - width
  # Half a unit of the last digit that is published, and of ours.
  digits = len(macs.partition(".")[2])
  assert abs(float(found) - float(macs)) <= 0.5 * 10**-digits + 0.005
  assert int(pixels) == model_zoo.BACKBONES[name].image_size


def test_the_rows_above_are_all_of_the_table():
  assert set(ARCHITECTURE) == set(NAMES)
  assert set(ARCHITECTURE.values()) == set(COST)


@pytest.mark.parametrize(
  "module",
  [ViT((32, 32), 8, 48, 3, 3, 96), Swin((32, 32), 16, (2, 1, 3), (2, 4, 8), 2)],
)
def test_cost_by_depth_is_that_of_all_blocks(module):
  flat = cost.shapes(module)
  assert cost.parameters(module) == sum(
    np.prod(leaf.shape) for leaf in flat.values()
  )
  stages = [
    (
      len(stage),
      module.spec.widths[stage.start],
      np.prod(module.spec.grids[stage.start]),
    )
    for stage in module.spec.stages
  ]
  vit, total = isinstance(module, ViT), 0
  for s, (depth, width, patches) in enumerate(stages):
    rows, hidden = patches + vit, module.mlp_dim if vit else 4 * width
    seen = rows if vit else 4  # Of a window.
    total += (
      depth * rows * (4 * width**2 + 2 * seen * width + 2 * width * hidden)
    )
    if s:
      total += patches * 4 * (width // 2) * width  # Merging.
    else:
      total += patches * 3 * module.patch_size**2 * width
  assert cost.multiply_adds(module) == total


@pytest.mark.parametrize("name", NAMES)
def test_addresses_and_checksums(name, tmp_path):
  entry = model_zoo.BACKBONES[name]
  if not entry.url:
    assert not entry.checksum and not entry.licence
    return
  assert entry.licence
  assert re.fullmatch("https://[^ ]+|package:[^/ ]+", entry.url)
  if entry.checksum:
    (tmp_path / "x").touch()
    with pytest.raises(download.FetchError, match=f"expected {entry.checksum}"):
      download.verify(tmp_path / "x", entry.checksum, "")
    algorithm, _, digits = entry.checksum.partition(":")
    assert len(digits) in (6, 8, 64)
    # What a file or its folder is named after.
    if algorithm == "sha256" and "://" in entry.url:
      assert digits in entry.url


def test_no_address_is_given_twice():
  urls = [entry.url for entry in model_zoo.BACKBONES.values() if entry.url]
  assert len(set(urls)) == len(urls)


@pytest.mark.parametrize("name", NAMES)
def test_entries_fit_their_modules(name):
  """Options are the module's own; the published image sizes can be built."""
  entry = model_zoo.BACKBONES[name]
  spec = factory.make(name, entry, (entry.image_size,) * 2).spec
  assert set(entry.arch) <= set(entry.module.__dataclass_fields__)
  assert spec.normalize == entry.normalize
  assert (entry.text is not None) <= (entry.projection is not None)
  assert len(spec.stages) == (4 if entry.module is Swin else 1)
  heads = entry.arch["num_heads"]
  for width, count in zip(
    sorted(set(spec.widths)), (heads if isinstance(heads, tuple) else [heads])
  ):
    assert width % count == 0


def test_the_package_has_the_file_that_it_names():
  entry = model_zoo.BACKBONES["vit_mini4_cifar10"]
  module = factory.make("vit_mini4_cifar10", entry, (32, 32))
  got = load.load(
    entry.url, cost.shapes(module), module.spec, checksum=entry.checksum
  )
  assert entry.checksum == f"sha256:{got.sha256}"


def test_listing(rows):
  """In the table's order, with where the weights are."""
  assert list(rows) == list(model_zoo.BACKBONES)
  where = {name: row[3] for name, row in rows.items()}
  assert [name for name in where if where[name] == "cached"] == ["swin_s"]
  for name, entry in model_zoo.BACKBONES.items():
    if name != "swin_s":
      assert where[name] == (
        "not fetched"
        if "://" in entry.url
        else "included"
        if entry.url
        else "your file"
      )
    assert rows[name][4:] == [entry.licence] * bool(entry.licence)


@pytest.mark.parametrize(
  "name,want",
  [
    (
      "swin_s",
      {
        "weights": "cached",
        "checksum": "not published",
        "pool": "imgprompt",
        "normalize": "imagenet",
        "projection": "no",
        "blocks": "2 x 96 on 56 x 56, 2 x 192 on 28 x 28, 18 x 384 on "
        "14 x 14, 2 x 768 on 7 x 7",
      },
    ),
    (
      "clip_b16",
      {
        "weights": "not fetched",
        "normalize": "clip",
        "gelu": "quick",
        "projection": "yes",
        "text tower": "yes",
        "blocks": "12 x 768 on 14 x 14",
      },
    ),
    (
      "vit_ti16",
      {
        "weights": "your file",
        "address": "-",
        "cache": "-",
        "licence": "-",
        "num_cls": "1",
        "projection": "no",
      },
    ),
  ],
)
def test_details(name, want, cache, capsys):
  assert listing.main(["backbones", name]) == 0
  rows = dict(map(cells, capsys.readouterr().out.splitlines()))
  assert {key: rows[key] for key in want} == want
  if model_zoo.BACKBONES[name].url:
    assert rows["address"] == model_zoo.BACKBONES[name].url
    assert rows["cache"].startswith(str(cache))


def test_wrong_use_of_the_listing(capsys):
  assert listing.main(["backbones", "swin_bb"]) == 1
  captured = capsys.readouterr()
  assert not captured.out
  assert re.match(
    "error: unknown backbone 'swin_bb'; did you mean 'swin_b'?", captured.err
  )
  assert "vit_b16_in21k" in captured.err
  assert listing.main(["backbones", "a", "b"]) == 1
  assert listing.main(["backbones", "--help"]) == 0
  assert capsys.readouterr().out == 2 * f"{listing.__doc__}\n"
