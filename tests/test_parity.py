"""The golden fixtures, and that the comparison can fail."""

import json
from pathlib import Path
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests import parity, running
from tests.options import Unsupported
from tests.reference import Names, read
from vpt_jax.methods.vapt import VAPT
from vpt_jax.nn.tokens import Spec
from vpt_jax.weights import file_formats

GOLDEN = Path(__file__).parent / "golden"
OURS = sorted(GOLDEN.glob("*.npz"))
# Where the whole collection lies beside the repository, the rest of it too.
COLLECTION = GOLDEN.parents[2] / "shared" / "golden"
SHARED = [
  path
  for folder in (COLLECTION, COLLECTION / "segmentation")
  for path in sorted(folder.glob("*.npz"))
  if not (GOLDEN / path.name).exists()
]
UNSUPPORTED = "base_side"


def check(path):
  report = parity.compare(path)
  assert report.rows
  assert not report.failed, "\n".join(report.lines(verbose=False))


def check_if_supported(path):
  if path.stem == UNSUPPORTED:
    with pytest.raises(Unsupported, match=r"\w+"):
      parity.compare(path)
  else:
    check(path)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_golden(path):
  check_if_supported(path)


@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.stem)
def test_collection(path):
  check_if_supported(path)


@pytest.mark.parametrize(
  "name", ["gated_mae_clamp_both", "traj_vapt_sgd", "vpt_vit_deep"]
)
def test_as_users_compile(name, monkeypatch):
  """With all of XLA's optimisations, of which tests have few."""
  options = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
  }
  monkeypatch.setattr(
    running,
    "run",
    jax.jit(
      running.run.__wrapped__, static_argnums=2, compiler_options=options
    ),
  )
  check(GOLDEN / f"{name}.npz")


def edited(tmp_path, name, edit):
  """A copy of a fixture after `edit(arrays, meta)`."""
  arrays, meta = read(GOLDEN / f"{name}.npz")
  edit(arrays, meta)
  path = tmp_path / f"{name}_edited.npz"
  np.savez(path, meta=json.dumps(meta), **arrays)
  return path


@pytest.mark.parametrize(
  "key, by",
  [
    ("out/logits", 1e-4),
    ("out/logits", np.nan),
    ("out/loss", 1e-4),
    ("out/pooled", 1e-3),
    ("out/block_in/1", 1e-3),
    ("out/encoded", 1e-3),
    ("grad/enc.transformer.deep_prompt_embeddings", 1e-3),
    ("grad/head.last_layer.bias", 1e-3),
    ("param/enc.transformer.prompt_embeddings", 1e-2),
    ("param/enc.transformer.encoder.layer.1.attn.value.bias", 1e-2),
    ("param/enc.transformer.embeddings.cls_token", 1e-2),
    ("input/images", 1e-2),
  ],
)
def test_a_difference_fails(tmp_path, capsys, key, by):
  def edit(arrays, meta):
    # One entry: a shift of all may be invisible to a LayerNorm.
    arrays[key] = np.array(arrays[key])
    arrays[key].flat[-1] += by

  path = edited(tmp_path, "vpt_vit_deep", edit)
  assert parity.main([str(path)]) == 1
  out = capsys.readouterr().out
  assert "FAIL  vpt_vit_deep_edited.npz" in out and "BEYOND" in out
  assert out.endswith("0 passed, 1 failed, 0 unsupported\n")
  if not key.startswith(("param/", "input/")):
    assert f"{key.partition('/')[2]}  BEYOND" in out


def test_rows_that_are_never_computed_are_left_out(tmp_path):
  def edit(arrays, meta):
    # What enters block 1, but for its prompts, is what left block 0.
    out = arrays["out/block_in/1"].copy()
    out[:, 1:5] = np.nan
    arrays.update(
      {
        "out/block_out/0": out,
        "out/block_out/0_first3": out[:, :3],
        "out/block_out/0/first9": out[:, :9],
        "out/something": out,
      }
    )

  path = edited(tmp_path, "vpt_vit_deep", edit)
  check(path)
  report = parity.compare(path)
  assert sum("block_out/0" in row.name for row in report.rows) == 3
  assert "not compared: out/something" in report.notes
  assert any(
    "forgotten prompts" in note and "out/block_out/0/first9" in note
    for note in report.notes
  )


@pytest.mark.parametrize(
  "key",
  [
    "out/loss",
    "out/lr",
    "out/grad_norm",
    "out/final_logits_batch0",
    "mid/head.last_layer.bias",
    "final/head.last_layer.weight",
  ],
)
def test_a_difference_in_training_fails(tmp_path, trained, key):
  def edit(arrays, meta):
    arrays[key] = 1.01 * arrays[key]

  report = parity.compare(edited(tmp_path, "traj_vpt_deep_sgd", edit))
  assert [row.name in key for row in report.rows if row.failed] == [True]


@pytest.fixture(scope="module")
def results():
  """What the one training gave, for all tests of its comparison."""
  return []


@pytest.fixture
def trained(monkeypatch, results):
  """Runs the training once for all tests of its comparison."""
  train = running.train

  def once(*args):
    if not results:
      results.append(train(*args))
    return results[0]

  # Undone after each test: others train something else.
  monkeypatch.setattr(running, "train", once)


@pytest.mark.parametrize(
  "edit, message",
  [
    (
      lambda arrays, meta: arrays.update(
        {"param/enc.transformer.surprise.weight": np.ones(3)}
      ),
      "enc.transformer.surprise.weight",
    ),
    (
      lambda arrays, meta: arrays.pop(
        "param/enc.transformer.encoder.layer.1.attn.out.bias"
      ),
      "encoderblock_1/MultiHeadDotProductAttention_0/out/bias",
    ),
    (
      lambda arrays, meta: arrays.pop(
        "param/enc.transformer.embeddings.cls_token"
      ),
      "cls_token",
    ),
    (
      lambda arrays, meta: arrays.pop("grad/head.last_layer.bias"),
      "grad/head.last_layer.bias is missing",
    ),
    (
      lambda arrays, meta: arrays.update(
        {"grad/enc.transformer.encoder.encoder_norm.bias": np.ones(48)}
      ),
      "not among the trained",
    ),
    (
      lambda arrays, meta: arrays.update(
        {"out/encoded": arrays["out/encoded"][:, :5]}
      ),
      "shape",
    ),
    (lambda arrays, meta: arrays.pop("out/loss"), "no fixture"),
    (
      lambda arrays, meta: meta["prompt_cfg"].update(VIT_POOL_TYPE="all"),
      "unknown pool 'all'",
    ),
    (
      lambda arrays, meta: meta.update(trainable=["head.last_layer.bias"]),
      "method/prompt",
    ),
  ],
)
def test_a_wrong_fixture_is_an_error(tmp_path, capsys, edit, message):
  assert parity.main([str(edited(tmp_path, "vpt_vit_deep", edit))]) == 1
  assert message in capsys.readouterr().out


def test_a_wrong_schedule_fails(tmp_path):
  def edit(arrays, meta):
    arrays["lr/cosine/warmup2_total5"][3] += 1e-6

  rows = parity.compare(edited(tmp_path, "schedules", edit)).rows
  assert [row.name for row in rows if row.failed] == ["cosine/warmup2_total5"]


def test_no_fixture_is_an_error(tmp_path, capsys):
  (tmp_path / "text.npz").write_text("no archive")
  (tmp_path / "cut.npz").write_bytes(OURS[0].read_bytes()[:5000])
  np.save(tmp_path / "array.npy", np.ones(3))
  np.savez(tmp_path / "other.npz", weights=np.ones(3))
  np.savez(tmp_path / "list.npz", meta="[]")
  np.savez(tmp_path / "pickle.npz", x=np.array([{}], object))
  names = [
    "text.npz",
    "cut.npz",
    "array.npy",
    "other.npz",
    "list.npz",
    "pickle.npz",
    "absent.npz",
  ]
  good = str(GOLDEN / "schedules.npz")
  assert parity.main([str(tmp_path / name) for name in names] + [good]) == 1
  out = capsys.readouterr().out
  for name in names:
    assert f"ERROR  {name}: " in out
  assert out.endswith("1 passed, 7 failed, 0 unsupported\n")


@pytest.mark.parametrize(
  "edit, why",
  [
    (lambda meta: meta["prompt_cfg"].update(LOCATION="add-1"), "'add-1'"),
    (lambda meta: meta.update(deep_prompt_norm_eps=1e-6), "eps 1e-06 of"),
    (
      lambda meta: meta.update(adapter_cfg={"STYLE": "Houlsby"}),
      "style 'Houlsby'",
    ),
    (
      lambda meta: meta.update(
        reference="GatedPromptTuning", prompt_cfg={"PROJECT": 4, "DEEP": False}
      ),
      "projected prompts with gates",
    ),
    (lambda meta: meta.update(gelu="relu"), "GELU 'relu'"),
  ],
)
def test_unsupported_says_why(tmp_path, capsys, edit, why):
  path = edited(tmp_path, "vpt_vit_deep", lambda arrays, meta: edit(meta))
  assert parity.main([str(path), str(GOLDEN / "schedules.npz")]) == 0
  out = capsys.readouterr().out
  assert re.search(f"^unsupported: .*{why}", out)
  assert out.endswith("1 passed, 0 failed, 1 unsupported\n")


def test_unsupported_solver(tmp_path):
  path = edited(
    tmp_path,
    "traj_vpt_deep_sgd",
    lambda arrays, meta: meta["solver"].update(OPTIMIZER="adamw"),
  )
  with pytest.raises(Unsupported, match="AdamW"):
    parity.compare(path)


def test_verbose_prints_every_comparison(capsys):
  path = str(GOLDEN / "vit_plain.npz")
  assert parity.main([path]) == 0
  short = capsys.readouterr().out
  assert parity.main([path, "--verbose"]) == 0
  full = capsys.readouterr().out
  assert "ffn.fc2.weight" not in short
  assert full.count("ffn.fc2.weight") == 3


def test_google_layout_is_compared_with_the_file_beside_it(tmp_path):
  alone = tmp_path / "x_google_layout.npz"
  alone.write_bytes((GOLDEN / "vit_plain_google_layout.npz").read_bytes())
  report = parity.compare(alone)
  assert not report.rows
  assert "no file beside it" in report.notes[0]
  arrays, meta = read(GOLDEN / "vit_plain.npz")
  arrays["param/transformer.encoder.layer.0.ffn.fc1.bias"][0] += 1
  np.savez(tmp_path / "x.npz", meta=json.dumps(meta), **arrays)
  failed = [row.name for row in parity.compare(alone).rows if row.failed]
  assert failed == ["Transformer/encoderblock_0/MlpBlock_0/Dense_0/bias"]


# What the format allows beside the shipped files, made from these.


def with_one_more_block(arrays, layer, nothing):
  """Puts a block that changes nothing before the first one.

  Args:
    arrays: of a fixture; changed in place.
    layer: what stands before a block's number in the names of parameters.
    nothing: layers of a block which, if they give zeros, leave tokens alone.
  """
  first = {}
  for key in sorted(arrays, reverse=True):  # block 2 before block 1
    found = re.match(rf"(.*{layer}|out/block_(?:in|out)/)(\d+)(.*)", key)
    if not found:
      continue
    before, number, after = found.groups()
    array = arrays.pop(key)
    arrays[f"{before}{int(number) + 1}{after}"] = array
    if number == "0" and key.startswith("param/"):
      is_nothing = any(name in after for name in nothing)
      first[key] = np.zeros_like(array) if is_nothing else array
  arrays.update(first)


def test_any_depth(tmp_path):
  def edit(arrays, meta):
    with_one_more_block(arrays, r"encoder\.layer\.", ("attn.out", "ffn.fc2"))
    meta["sizes"]["layers"] += 1

  path = edited(tmp_path, "vpt_vit_shallow", edit)
  check(path)
  names = [row.name for row in parity.compare(path).rows]
  assert {"block_in/1", "block_in/2", "block_in/3"} <= {*names}


def test_any_depth_of_pgn(tmp_path):
  def edit(arrays, meta):
    tokens = arrays["out/encoder_in"]
    with_one_more_block(
      arrays,
      "encoder_layer_",
      ("self_attention.out_proj", "mlp.linear_2", "mlp.3"),
    )
    for i in (0, 1):  # the first block changes nothing
      arrays[f"out/block_in_LND/{i}"] = tokens.swapaxes(0, 1)
    arrays["out/block_out/0"] = tokens
    arrays["out/something"] = tokens

  path = edited(tmp_path, "pgn_vit_softmax_train", edit)
  check(path)
  report = parity.compare(path)
  names = {row.name for row in report.rows}
  assert {"block_in_LND/0", "block_in_LND/1", "block_out/0"} <= names
  assert report.notes == ["not compared: out/something"]


def test_pgn_of_two_blocks(tmp_path):
  def edit(arrays, meta):
    for key in [*arrays]:
      # What the third block changes is not at hand.
      after = key.startswith(("grad/", "out/logits", "out/loss", "out/encoded"))
      if after or "encoder_layer_2" in key:
        arrays.pop(key)
    meta["gradients_saved_only_for_tensors_up_to"] = 0

  check(edited(tmp_path, "pgn_vit_softmax_train", edit))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_what_meta_need_not_say(tmp_path, path):
  """Optional entries are missing; sizes are seen in the parameters."""

  def edit(arrays, meta):
    for key in ("layer_norm_eps", "layer_norm_eps_swin", "gelu", "mlp_num"):
      meta.pop(key, None)
    for key in ("note", "torch_version", "batch_norm", "adapter_cfg"):
      if not meta.get(key) or key != "adapter_cfg":
        meta.pop(key, None)
    sizes = meta.get("sizes", {})
    meta["sizes"] = {
      key: sizes[key] for key in ("heads", "tokens") if key in sizes
    }
    for key in ("file", "source_npz"):  # beside the shipped fixture
      if key in meta:
        meta[key] = str(GOLDEN / meta[key])

  if path.stem.endswith("google_layout"):
    pytest.skip("it has no meta")
  if path.stem == UNSUPPORTED:
    pytest.skip("it is not compared")
  check(edited(tmp_path, path.stem, edit))


def test_eps_is_what_meta_says(tmp_path):
  def edit(arrays, meta):
    meta["layer_norm_eps"] = 1e-3

  assert parity.compare(edited(tmp_path, "vpt_vit_deep", edit)).failed


def rewritten(tmp_path, name, file, edit):
  """A copy of a fixture of a checkpoint file, both after `edit`."""
  arrays, meta = read(GOLDEN / f"{name}.npz")
  flat = file_formats.read(GOLDEN / "checkpoints" / file)
  edit(flat, arrays)
  safetensors.numpy.save_file(
    {key: np.ascontiguousarray(array) for key, array in flat.items()},
    tmp_path / "weights.safetensors",
  )
  meta["file"] = "weights.safetensors"
  path = tmp_path / f"{name}.npz"
  np.savez(path, meta=json.dumps(meta), **arrays)
  return path


def test_checkpoint_of_a_swin_with_absolute_positions(tmp_path):
  """The same vector at every place is a bias of the norm before them."""

  def edit(flat, arrays):
    bias = flat["model/patch_embed.norm.bias"]
    vector = np.linspace(-0.5, 0.5, len(bias), dtype=np.float32)
    flat["model/patch_embed.norm.bias"] = bias - vector
    flat["model/absolute_pos_embed"] = np.tile(vector, (1, 8 * 8, 1))

  path = rewritten(tmp_path, "ckpt_swin", "swin_tiny_random.pth", edit)
  check(path)


def test_swin_with_absolute_positions(tmp_path):
  def edit(arrays, meta):
    # One image: the reference mixes those of a batch.
    for key in ("input/images", "input/labels"):
      arrays[key] = arrays[key][:1]
    logits = arrays.pop("out/logits_each_image_alone")[:1]
    picked = logits[0, arrays["input/labels"][0]]
    patches = arrays["out/patch_embed_first20"][:1]
    for key in [*arrays]:
      if key.startswith(("out/", "grad/")):
        arrays.pop(key)
    meta["gradients_saved_only_for_tensors_up_to"] = 0
    norm = "param/enc.patch_embed.norm.bias"
    vector = np.linspace(-0.5, 0.5, len(arrays[norm]), dtype=np.float32)
    arrays[norm] = arrays[norm] - vector
    count = (meta["sizes"]["img"] // meta["sizes"]["patch"]) ** 2
    arrays["param/enc.absolute_pos_embed"] = np.tile(vector, (1, count, 1))
    arrays["out/logits"] = logits
    arrays["out/loss"] = np.log(np.exp(logits).sum()) - picked
    arrays["out/patch_embed_first20"] = patches - vector

  path = edited(tmp_path, "vpt_swin_shallow", edit)
  check(path)
  assert "patch_embed_first20" in [
    row.name for row in parity.compare(path).rows
  ]


def test_checkpoint_whose_norm_is_after_the_pooling(tmp_path):
  """timm's `fc_norm`; Gated Prompt Tuning uses the file's `norm` so."""

  def edit(flat, arrays):
    for leaf in ("weight", "bias"):
      flat[f"model/fc_norm.{leaf}"] = flat.pop(f"model/norm.{leaf}")
    pooled = arrays.pop("out/features_mean_patch_then_norm")
    head = np.random.default_rng(0).normal(size=(5, pooled.shape[1]))
    flat["model/head.weight"] = head.astype(np.float32)
    flat["model/head.bias"] = np.arange(5, dtype=np.float32)
    arrays["out/pooled"] = pooled
    arrays["out/logits"] = pooled @ head.T + flat["model/head.bias"]

  path = rewritten(tmp_path, "ckpt_mae_gated", "mae_pretrain_tiny.pth", edit)
  check(path)
  assert {row.name for row in parity.compare(path).rows} == {"pooled", "logits"}


def test_model_whose_norm_is_after_the_pooling(tmp_path):
  """It is seen in the parameters, whatever the class is called."""
  source = [path for path in SHARED if path.stem == "vpt_mae_shallow"]
  if not source:
    pytest.skip("the whole collection is not here")
  arrays, meta = read(source[0])
  assert "param/enc.fc_norm.weight" in arrays
  meta["reference_class"] = "timm.models.vision_transformer.VisionTransformer"
  path = tmp_path / "edited.npz"
  np.savez(path, meta=json.dumps(meta), **arrays)
  check(path)


# Options without a fixture of their own, made from one that is equal by theory.


def test_vapt_that_generates_nothing_is_vpt_deep(tmp_path):
  def edit(arrays, meta):
    width = meta["sizes"]["hidden"]
    meta["prompt_cfg"].update(
      ADAPTIVE=True,
      ACTIVATION="relu",
      HIDDEN_DIM=2,
      CONV=True,
      KERNEL=2,
      PADDING=0,
      VPT_DEPTH=meta["sizes"]["layers"],
      LEARNABLE_SCALE=False,
      CHANNELWISE=True,
      FEAT_PROJECTOR=True,
      SHARE_PROJECTOR=True,
    )
    mlp = "param/enc.transformer.deep_prompt_embeddings_mlp.block."
    arrays[mlp + "0.weight"] = np.ones((2, width), np.float32)
    arrays[mlp + "2.weight"] = np.ones((width, 2), np.float32)

  check(edited(tmp_path, "vpt_vit_deep", edit))


def test_one_deep_layer_is_shallow(tmp_path):
  def edit(arrays, meta):
    meta["prompt_cfg"].update(DEEP=True, NUM_DEEP_LAYERS=1)
    key = "enc.transformer.deep_prompt_embeddings"
    arrays[f"param/{key}"] = np.zeros((0, 4, 48), np.float32)
    arrays[f"grad/{key}"] = np.zeros((0, 4, 48), np.float32)
    meta["trainable"].append(key)

  check(edited(tmp_path, "vpt_vit_shallow", edit))


@pytest.mark.parametrize(
  "pool, rows",
  [
    ("img_pool", np.s_[5:]),
    ("prompt_pool", np.s_[1:5]),
    ("imgprompt_pool", np.s_[1:]),
  ],
)
def test_pools_that_count_removed_prompts(tmp_path, pool, rows):
  def edit(arrays, meta):
    meta["prompt_cfg"]["VIT_POOL_TYPE"] = pool
    # Gradients of this pool are not at hand.
    meta["gradients_saved_only_for_tensors_up_to"] = 0
    for key in [key for key in arrays if key.startswith("grad/")]:
      arrays.pop(key)
    pooled = arrays["out/encoded"][:, rows].mean(axis=1)
    logits = (
      pooled @ arrays["param/head.last_layer.weight"].T
      + arrays["param/head.last_layer.bias"]
    )
    picked = logits[np.arange(len(logits)), arrays["input/labels"]]
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - picked)
    arrays.update(
      {"out/pooled": pooled, "out/logits": logits, "out/loss": loss}
    )

  path = edited(tmp_path, "vpt_vit_deep_partial2_noexpand", edit)
  check(path)
  slips = "counts the removed prompts" in " ".join(parity.compare(path).notes)
  assert slips == (pool != "imgprompt_pool")


def test_generated_blocks_are_counted_after_the_static_ones():
  spec = Spec((8, 8), patch_size=2, widths=(8,) * 4, grids=((4, 4),) * 4)
  names = Names(2, VAPT(spec, static_layers=2), offset=2)
  norm = "enc.transformer.deep_prompt_norm.{}.weight"
  assert names.places(norm.format(1))[0].path == (
    "method/generator_3/norm/scale"
  )
  assert names.places(norm.format(2)) == []
  shared = "transformer.deep_prompt_embeddings_mlp.block.0.weight"
  assert names.places(shared)[0].path == "method/project_shared/down/kernel"
