"""What no array says is read from the config beside a file, or asked.

Two networks of the same names and shapes may differ in activation, eps, heads
and grid. Each of these is known, told by the user, or the file is refused.
"""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.weights import test_convert as layouts
from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax.backbones import factory
from vpt_jax.nn import cost, positions
from vpt_jax.weights import facts, file_formats, grids, load
from vpt_jax.weights.agreement import Told

VISION = {
  "hidden_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "image_size": 16,
}
HF_CLIP = {"model_type": "clip_vision_model", **VISION}
OPEN_CLIP = {"vision_cfg": {"width": 24, "head_width": 8, "image_size": 16}}
TIMM = {"architecture": "vit_base_patch16_clip_224"}
# Config beside the file -> the activation that it means; "": it is not said.
CONFIGS = {
  "HF, its default": (HF_CLIP, "quick"),
  "HF, LAION": (HF_CLIP | {"hidden_act": "gelu"}, "exact"),
  "HF, both towers": (
    {"model_type": "clip", "vision_config": {**VISION, "hidden_act": "gelu"}},
    "exact",
  ),
  "open_clip, LAION": ({"model_cfg": OPEN_CLIP}, "exact"),
  "open_clip, DFN": ({"model_cfg": OPEN_CLIP | {"quick_gelu": True}}, "quick"),
  "timm, LAION": (TIMM | {"pretrained_cfg": {"tag": "laion2b"}}, "exact"),
  "timm, a name with quickgelu": (
    {"architecture": "vit_base_patch16_clip_quickgelu_224"},
    "quick",
  ),
  # timm's name says exact, but the weights were trained with quick GELU.
  "timm, OpenAI": (TIMM | {"pretrained_cfg": {"tag": "openai"}}, ""),
  "timm, no tag": (TIMM, ""),
  "a run's own": ({"backbone": {}, "optim": {}}, ""),
}


def clip_file(folder, config=HF_CLIP):
  """A CLIP of either activation, in the layout of a config's library."""
  layout = "Hugging Face CLIP"
  if "model_cfg" in config:
    layout = "OpenAI CLIP"
  if "architecture" in config:
    layout = "timm CLIP"
  _, _, file = layouts.made(layout, folder / "model.safetensors")
  return file


def load_clip(file, gelu, is_told=False):
  module = layouts.CLIP.clone(gelu=gelu)
  template = cost.shapes(module)
  return load.load(file, template, module.spec, told=Told(gelu=is_told))


@pytest.mark.parametrize("case", CONFIGS)
def test_the_config_beside_a_clip_says_its_activation(case, tmp_path):
  content, gelu = CONFIGS[case]
  name = "open_clip_config.json" if "model_cfg" in content else "config.json"
  (tmp_path / name).write_text(json.dumps(content))
  file = clip_file(tmp_path, content)
  for other in ("quick", "exact"):
    if gelu == other:
      assert load_clip(file, other).backbone
    elif gelu:
      with pytest.raises(ValueError, match=f"{name} says activation '{gelu}'"):
        load_clip(file, other)
    else:
      match = "nothing says which .* config.backbone.gelu=quick or"
      with pytest.raises(ValueError, match=match):
        load_clip(file, other)
    assert load_clip(file, other, is_told=True).backbone  # The user's word.


def test_an_activation_that_no_backbone_has(tmp_path):
  (tmp_path / "config.json").write_text(
    json.dumps(HF_CLIP | {"hidden_act": "relu"})
  )
  with pytest.raises(ValueError, match="'relu', .*choose another backbone"):
    load_clip(clip_file(tmp_path), "quick")


def test_the_users_word_against_the_files_is_told(tmp_path, caplog):
  (tmp_path / "config.json").write_text(json.dumps(HF_CLIP))
  load_clip(clip_file(tmp_path), "exact", is_told=True)
  assert "says activation 'quick'; 'exact' is computed" in caplog.text


@pytest.mark.parametrize(
  "change,match",
  [
    ({"num_attention_heads": 4}, "4 attention heads, this backbone has 3"),
    (
      {"hidden_size": 48},
      "of a model of width 48, the file of one of width 24",
    ),
    ({"num_hidden_layers": 3}, "of depth 3, the file of one of depth 2"),
    (
      {"layer_norm_eps": 1e-6},
      "norms with eps 1e-06, .* 1e-05; set config.*eps",
    ),
  ],
)
def test_what_else_a_config_contradicts(change, match, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(HF_CLIP | change))
  with pytest.raises(ValueError, match=match):
    load_clip(clip_file(tmp_path), "quick")


OTHERS = {
  "a CLIP beside a ViT": (HF_CLIP, "Hugging Face"),
  "timm beside Hugging Face": ({"architecture": "vit_base"}, "Hugging Face"),
  "a ViT beside a CLIP": ({"model_type": "vit"}, "Hugging Face CLIP"),
  "open_clip beside timm": ({"model_cfg": OPEN_CLIP}, "timm"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_config_of_another_model_decides_nothing(case, tmp_path):
  """As in a folder of downloads: it is refused, or of no interest to an npz."""
  content, layout = OTHERS[case]
  (tmp_path / "config.json").write_text(json.dumps(content))
  module, flat, file = layouts.made(layout, tmp_path / "x.safetensors")
  with pytest.raises(ValueError, match="config.json is of another model or"):
    load.load(
      file, cost.shapes(module), module.spec, told=Told(gelu=True, eps=True)
    )
  own = (
    {name: flat[name] for name in cost.shapes(layouts.VIT)}
    if ("CLIP" not in layout)
    else layouts.numbers(cost.shapes(layouts.VIT))
  )
  load.save(tmp_path / "own.npz", own, np.float32)
  assert facts.of(tmp_path / "own.npz") == facts.NOTHING
  assert load.load(
    tmp_path / "own.npz", cost.shapes(layouts.VIT), layouts.VIT.spec
  ).backbone


def test_of_two_configs_the_one_of_the_files_library(tmp_path):
  """LAION's folders hold files of Hugging Face and of open_clip."""
  hf = {"model_type": "clip_vision_model", **VISION, "hidden_act": "gelu"}
  (tmp_path / "config.json").write_text(json.dumps(hf))
  (tmp_path / "open_clip_config.json").write_text(
    json.dumps({"model_cfg": OPEN_CLIP})
  )
  for layout in ("Hugging Face CLIP", "OpenAI CLIP"):
    for name in ("renamed.safetensors", "open_clip_model.safetensors"):
      _, _, file = layouts.made(layout, tmp_path / name)
      assert load_clip(file, "exact").backbone
      with pytest.raises(ValueError, match="says activation 'exact'"):
        load_clip(file, "quick")


@pytest.mark.parametrize(
  "content",
  [
    "",
    "{",
    "[1]",
    "[" * 50_000,
    '{"model_type": "vit", "image_size": "large"}',
    '{"model_type": "vit", "hidden_act": 3}',
    '{"model_type": "clip", "vision_config": 3}',
    '{"architecture": "vit", "pretrained_cfg": {"input_size": 3}}',
    '{"model_cfg": 3}',
    '{"model_cfg": {"vision_cfg": {"head_width": 0, "width": 8}}}',
    '{"model_type": "vit", "image_size": [1, 2, 3]}',
    '{"model_type": "vit", "layer_norm_eps": "x"}',
    '{"architecture": "' + "x" * 2**20 + '"}',
  ],
  ids=lambda content: content[:40],
)
def test_a_damaged_config_is_named(content, tmp_path):
  file = tmp_path / "config.json"
  file.write_text(content)
  with pytest.raises(ValueError, match="config.json (is|holds)"):
    facts.beside(tmp_path / "model.safetensors")


def test_a_run_computes_what_the_config_beside_its_checkpoint_says(
  config, tmp_path
):
  """Filled in before training, so that an adapter knows it for ever."""
  config.backbone.name = "clip_test"
  config.backbone.checkpoint = str(tmp_path / "model.safetensors")
  plain = configs.resolve(config)
  assert (plain.backbone.gelu, plain.backbone.eps) == ("", 0)
  beside = {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": [4, 8],
  }
  (tmp_path / "config.json").write_text(json.dumps(beside))
  found = configs.resolve(config).backbone
  assert (found.gelu, found.eps, tuple(found.grid)) == ("exact", 1e-6, (1, 2))
  model = models.build(configs.resolve(config), 3)
  assert (model.backbone.gelu, model.backbone.eps) == ("exact", 1e-6)
  config.backbone.gelu = "quick"
  config.backbone.eps = 1e-4
  config.backbone.grid = (2, 2)
  said = configs.resolve(config).backbone
  assert (said.gelu, said.eps, tuple(said.grid)) == ("quick", 1e-4, (2, 2))


def test_the_digest_of_a_config_is_that_of_before(config):
  """New fields with their defaults change no run's name."""
  resolved = configs.resolve(config)
  older = resolved.copy_and_resolve_references()
  with older.unlocked():
    del older.backbone.eps
    del older.backbone.grid
  assert configs.digest(resolved) == configs.digest(older)
  assert not configs.difference(configs.plain(older), configs.plain(resolved))


@pytest.mark.parametrize("grid", [(9,), (9, 0), (9, 1.5), ("9", 16), (True, 1)])
def test_a_grid_is_two_numbers(config, grid):
  config.backbone.grid = grid
  with pytest.raises((ValueError, TypeError), match="grid"):
    configs.resolve(config)


def test_hugging_faces_vit_by_its_names():
  """Without a config its eps, 1e-12, is known by the library's names."""
  flat = layouts.numbers(cost.shapes(layouts.VIT))
  file = layouts.huggingface(layouts.apart(flat))
  for eps, is_right in ((1e-6, False), (1e-12, True)):
    module = layouts.VIT.clone(eps=eps)
    arguments = (file, cost.shapes(module), "x.bin", module.spec)
    if is_right:
      assert load.fit(*arguments)[0]
      continue
    with pytest.raises(ValueError, match="eps 1e-12.*backbone.eps=1e-12"):
      load.fit(*arguments)
    assert load.fit(*arguments, told=Told(eps=True))[0]


def test_text_tower_and_images_have_one_activation(config):
  config.backbone.gelu = "exact"
  assert factory.gelu_of(config.backbone) == "exact"
  config.backbone.name = "clip_test"
  config.backbone.gelu = "torch"
  assert factory.gelu_of(config.backbone) == "quick"


def test_facts_come_back_from_an_npz(tmp_path):
  known = facts.Facts(
    gelu="exact", eps=1e-12, heads=3, image_size=(4, 8), mean=(0.5, 0.5, 0.5)
  )
  load.save(tmp_path / "x.npz", {"cls": jnp.ones(3)}, np.float16, known)
  assert facts.of(tmp_path / "x.npz").image_size == (4, 8)
  flat, got = facts.take(file_formats.read(tmp_path / "x.npz"))
  assert got.source and facts.dataclasses.replace(got, source="") == known
  assert flat.keys() == {"cls"}
  for damaged in (
    "3",
    "{",
    '{"eps": "x"}',
    '{"heads": true}',
    '{"mean": ["x", 1, 2]}',
    '{"mean": [NaN, 1, 2]}',
    '{"image_size": 3}',
  ):
    with pytest.raises(ValueError, match="its 'vpt_jax_facts'"):
      facts.take({facts.FACTS: np.array(damaged)})


# Positions of a grid that is no square.


def on_grid(rows, columns):
  """A ViT for images of this grid, and its arrays."""
  module = layouts.VIT.clone(image_size=(4 * rows, 4 * columns))
  return module, layouts.numbers(cost.shapes(module))


def test_positions_of_9_x_16_are_not_taken_for_12_x_12(tmp_path):
  """Both are 144: what is told, or the config beside the file, decides."""
  module, flat = on_grid(9, 16)
  square, _ = on_grid(6, 6)
  template = cost.shapes(square)
  wanted = positions.resize(flat["pos_embedding"], (9, 16), (6, 6))
  path = layouts.write(tmp_path / "x.safetensors", layouts.timm(flat))

  told = load.load(path, template, square.spec, told=Told(grid=(9, 16)))
  np.testing.assert_allclose(told.backbone["pos_embedding"], wanted, atol=1e-6)

  beside = {
    "architecture": "vit_base_patch4_224",
    "model_args": {"img_size": [36, 64]},
  }
  (tmp_path / "config.json").write_text(json.dumps(beside))
  said = load.load(path, template, square.spec)
  np.testing.assert_array_equal(
    said.backbone["pos_embedding"], told.backbone["pos_embedding"]
  )
  own = load.load(path, cost.shapes(module), module.spec)
  np.testing.assert_allclose(
    own.backbone["pos_embedding"], flat["pos_embedding"], atol=1e-6
  )
  for grid in ((12, 13), (1, 143)):
    with pytest.raises(
      ValueError, match="backbone.grid says a grid of .* 14[45]"
    ):
      load.load(path, template, square.spec, told=Told(grid=grid))


@pytest.mark.parametrize(
  "config",
  [
    {"model_type": "swin", "window_size": [5, 13]},
    {"architecture": "swin_tiny", "model_args": {"window_size": [5, 13]}},
  ],
)
def test_windows_that_are_no_squares(config, tmp_path):
  """Their tables may have as many rows as those of squares."""
  layout = "timm Swin" if "architecture" in config else "Hugging Face Swin"
  module, _, file = layouts.made(layout, tmp_path / "model.safetensors")
  template = cost.shapes(module)
  square = config | {"window_size": 2, "model_args": {"window_size": 2}}
  (tmp_path / "config.json").write_text(json.dumps(square))
  assert load.load(file, template, module.spec).backbone
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="says windows of 5 x 13; here they are"):
    load.load(file, template, module.spec)


def test_positions_that_are_no_square_are_refused_unless_told():
  _, flat = on_grid(3, 5)
  module, _ = on_grid(4, 4)
  arguments = (layouts.timm(flat), cost.shapes(module), "x", module.spec)
  with pytest.raises(ValueError, match="16 positions.*config.backbone.grid"):
    load.fit(*arguments)
  got, _ = load.fit(*arguments, told=Told(grid=(3, 5)))
  np.testing.assert_allclose(
    got["pos_embedding"],
    positions.resize(flat["pos_embedding"], (3, 5), (4, 4)),
    atol=1e-6,
  )


REAL = (
  Path(__file__).parents[3]
  / "shared"
  / "models"
  / "vit_ti16_224_in1k_bigvision_f16.npz"
)


def smooth(rows, columns):
  """A table whose neighbours are alike, as in every trained one."""
  return positions.sincos((rows, columns), 24)


@pytest.mark.parametrize("grid", [(9, 16), (16, 9), (8, 18), (18, 8), (4, 9)])
def test_positions_that_look_like_no_square_are_refused(grid):
  """144 of them, and nobody says their grid: neighbours are alike on 9 x 16."""
  rows, columns = grid
  count = rows * columns
  n = int(count**0.5)
  module, flat = on_grid(n, n)
  arguments = (cost.shapes(module), "x", module.spec)
  file = layouts.timm(flat | {"pos_embedding": smooth(rows, columns)})
  text = rf"look like those of a grid of {rows} x {columns}, not {n} x {n}.*"
  with pytest.raises(
    ValueError, match=text + r"backbone.grid=\(\d+, \d+\), or"
  ):
    load.fit(file, *arguments)
  got, _ = load.fit(file, *arguments, told=Told(grid=(n, n)))
  np.testing.assert_allclose(
    got["pos_embedding"], smooth(rows, columns), atol=1e-6
  )
  for table in (smooth(n, n), flat["pos_embedding"]):
    file = layouts.timm(flat | {"pos_embedding": table})
    got, _ = load.fit(file, *arguments)
    np.testing.assert_allclose(got["pos_embedding"], table, atol=1e-6)


@pytest.mark.skipif(not REAL.exists(), reason="the shared model is not there")
@pytest.mark.parametrize(
  "grid", [(9, 16), (14, 14), (12, 12), (18, 32), (7, 28)]
)
def test_trained_positions_show_their_grid(grid):
  with np.load(REAL) as npz:
    table = npz["pos_embedding"].astype(np.float32)
  likeness = grids.alike(positions.resize(table, (14, 14), grid))
  assert max(likeness, key=likeness.get) == grid[1]
