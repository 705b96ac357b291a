"""Published layouts load as the same arrays, from the files and converted.

The files are made here from our own arrays by renaming them back.
"""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests import peers
from vpt_jax.backbones import clip, factory
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost, positions
from vpt_jax.training import adapter_files
from vpt_jax.utils import trees
from vpt_jax.weights import convert, file_formats, load
from vpt_jax.weights.agreement import Told
from vpt_jax.weights.name_maps import EXTRAS

META = adapter_files.AdapterMeta(
  backbone={}, config={}, num_classes=3, versions={}
)
VIT = ViT((16, 16), 4, width=24, depth=2, num_heads=3, mlp_dim=48, gelu="exact")
CLIP = VIT.clone(gelu="quick", eps=1e-5, patch_bias=False, pre_norm=True)
# transformers runs its ViTs with another eps than others.
HF_VIT = VIT.clone(eps=1e-12)
SWIN = Swin((32, 32), 8, (2, 1, 2), (1, 2, 4), window=2, mlp_ratio=2.0)
TEXT = clip.TextTower(
  width=16, depth=1, num_heads=2, output_dim=6, context_length=5, vocab_size=9
)
HEAD = {"head/kernel": (24, 7), "head/bias": (7,)}
BLOCK = "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/"


def numbers(shapes):
  """Multiples of 1/64: exact in float16 and in sums."""
  rng = np.random.default_rng(0)
  return {
    name: (rng.integers(-32, 32, getattr(shape, "shape", shape)) / 64).astype(
      np.float32
    )
    for name, shape in shapes.items()
  }


def clip_numbers():
  ids = jnp.zeros((1, TEXT.context_length), jnp.int32)
  text = trees.flatten(jax.eval_shape(TEXT.init, jax.random.key(0), ids))
  return numbers(
    cost.shapes(CLIP)
    | {"projection/kernel": (24, 6)}
    | {name.replace("params/", "text/"): leaf for name, leaf in text.items()}
    | {"logit_scale": ()}
  )


# Our arrays in PyTorch's layouts: first timm's names, but with query, key and
# value apart, then the names of others.


def renamed(flat, *table):
  """Every rule (regular expression, text) is applied to every name."""
  for pattern, text in table:
    flat = {re.sub(pattern, text, name): array for name, array in flat.items()}
  return flat


def class_position(flat):
  flat = dict(flat)
  first = np.full_like(flat["cls"], 0.5)
  flat["cls"] = flat["cls"] - first
  flat["pos_embedding"] = np.concatenate([first, flat["pos_embedding"]], 1)
  return flat


def weight(name, array):
  """A kernel as PyTorch keeps it."""
  if re.search("(query|key|value)/kernel", name):
    return array.reshape(len(array), -1).T
  if name.endswith("out/kernel"):
    return array.reshape(-1, array.shape[-1]).T
  if array.ndim == 4:
    return array.transpose(3, 2, 0, 1)
  return array.T if name.endswith("kernel") else array


def apart(flat):
  if "cls" in flat:
    flat = class_position(flat)
  out = {
    name: array.reshape(-1)
    if re.search("(query|key|value)/bias", name)
    else weight(name, array)
    for name, array in flat.items()
  }
  return renamed(
    out,
    ("^cls$", "cls_token"),
    ("^pos_embedding", "pos_embed"),
    ("(kernel|scale)$", "weight"),
    ("^embedding/", "patch_embed.proj."),
    ("^embedding_norm/", "patch_embed.norm."),
    (r"Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    ("LayerNorm_0/", "norm1."),
    ("LayerNorm_1/", "norm2."),
    ("MlpBlock_0/Dense_0/", "mlp.fc1."),
    ("MlpBlock_0/Dense_1/", "mlp.fc2."),
    ("MultiHeadDotProductAttention_0/out/", "attn.proj."),
    ("MultiHeadDotProductAttention_0/(query|key|value)/", r"attn.\1."),
    (
      "MultiHeadDotProductAttention_0/relative_position_bias",
      "attn.relative_position_bias_table",
    ),
    ("Transformer/encoder_norm/", "norm."),
    (r"Transformer/merge_(\d+)/norm/", r"merge.\1.norm."),
    (r"Transformer/merge_(\d+)/reduction/", r"merge.\1.reduction."),
    ("^head/", "head."),
  )


def fused(flat):
  """Query, key and value as one."""
  out = {}
  for name, array in flat.items():
    if ".query." in name:
      parts = [
        flat[name.replace("query", part)] for part in ("query", "key", "value")
      ]
      out[name.replace("query", "qkv")] = np.concatenate(parts)
    elif ".key." not in name and ".value." not in name:
      out[name] = array
  return out


def timm(flat):
  return fused(apart(flat))


def torchvision(flat, mlp=("0", "3")):
  return renamed(
    timm(flat),
    ("^cls_token", "class_token"),
    ("^pos_embed", "encoder.pos_embedding"),
    (r"^patch_embed\.proj", "conv_proj"),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"norm(\d)\.", r"ln_\1."),
    (r"attn\.qkv\.", "self_attention.in_proj_"),
    (r"attn\.proj", "self_attention.out_proj"),
    (r"fc1\.", f"{mlp[0]}."),
    (r"fc2\.", f"{mlp[1]}."),
    (r"^norm\.", "encoder.ln."),
    ("^head", "heads.head"),
  )


def huggingface(flat, prefix=""):
  out = renamed(
    flat,
    ("^(cls_token)", r"embeddings.\1"),
    ("^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "embeddings.norm"),
    (r"^blocks\.", "encoder.layer."),
    ("^layers", "encoder.layers"),
    (r"norm1\.", "layernorm_before."),
    (r"norm2\.", "layernorm_after."),
    (r"attn\.(query|key|value)", r"attention.attention.\1"),
    (r"attn\.proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"attn\.rel", "attention.self.rel"),
    (r"^norm\.", "layernorm."),
    ("^head", "classifier"),
  )
  return {
    name if "classifier" in name else prefix + name: array
    for name, array in out.items()
  }


def hf_mae(flat):
  out = huggingface(apart(flat), "vit.")
  rest = {
    "decoder.mask_token": (1, 1, 8),
    "decoder.decoder_pred.bias": (48,),
    "decoder.decoder_layers.0.attention.attention.query.weight": (8, 8),
    "decoder.decoder_pos_embed": (1, 17, 8),
  }
  return out | numbers(rest)


def stages(flat, at_end):
  """Blocks counted by stage; the merge ends its stage, or begins the next."""
  out = {}
  for name, array in flat.items():
    kind, _, rest = name.partition(".")
    if kind in ("blocks", "merge"):
      number, _, rest = rest.partition(".")
      stage = next(
        s for s, blocks in enumerate(SWIN.spec.stages) if int(number) in blocks
      )
      block = int(number) - SWIN.spec.stages[stage].start
      name = (
        f"layers.{stage}.blocks.{block}.{rest}"
        if kind == "blocks"
        else f"layers.{stage - at_end}.downsample.{rest}"
      )
    out[name] = array
  return out


def swin(flat):
  index = {
    f"layers.{s}.blocks.0.attn.relative_position_index": np.zeros(
      (4, 4), np.int64
    )
    for s in range(3)
  }
  return (
    stages(timm(flat), at_end=True)
    | index
    | {"layers.0.blocks.1.attn_mask": np.zeros((16, 4, 4), np.float32)}
  )


def ape_swin(flat):
  """With absolute positions, under their name in the published code."""
  return renamed(swin(flat), ("^pos_embed$", "absolute_pos_embed"))


def timm_swin(flat):
  return renamed(stages(timm(flat), at_end=False), ("^head", "head.fc"))


def hf_swin(flat):
  out = huggingface(stages(apart(flat), at_end=True), "swin.")
  return renamed(out, ("attention.attention", "attention.self"))


def towers(flat, make):
  """Both towers of CLIP by `make`, which names one tower's timm names."""
  text = {
    name.removeprefix("text/"): array
    for name, array in flat.items()
    if name.startswith("text/")
  }
  image = {
    name: array for name, array in flat.items() if not name.startswith(EXTRAS)
  }
  image, text = make(image, "visual"), make(text, "text")
  image, text = (
    renamed(part, (r"^patch_embed\.norm", "norm_pre")) for part in (image, text)
  )
  # CLIP's have no axis of a batch.
  for name, array in image.items():
    if name.endswith("cls_token"):
      image[name] = array.reshape(24)
    elif name.endswith("pos_embed"):
      image[name] = array.reshape(-1, 24)
  return image, text


def openai(flat):
  image, text = towers(flat, lambda part, _: timm(part))
  table = (
    (r"^blocks\.", "transformer.resblocks."),
    (r"norm(\d)\.", r"ln_\1."),
    (r"attn\.qkv\.", "attn.in_proj_"),
    (r"attn\.proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    ("^pos_embed", "positional_embedding"),
  )
  image = renamed(
    image,
    *table,
    ("^cls_token", "class_embedding"),
    ("^norm_pre", "ln_pre"),
    (r"^patch_embed\.proj", "conv1"),
    (r"^norm\.", "ln_post."),
  )
  text = renamed(
    text,
    *table,
    (r"^norm\.", "ln_final."),
    ("^token_embedding", "token_embedding.weight"),
  )
  del text["projection/weight"]
  return (
    {f"visual.{name}": array for name, array in image.items()}
    | text
    | {
      "visual.proj": flat["projection/kernel"],
      "text_projection": flat["text/projection/kernel"],
      "logit_scale": flat["logit_scale"],
      "context_length": np.array(5),
    }
  )


def timm_clip(flat):
  image, _ = towers(flat, lambda part, _: timm(part))
  return image | {
    "cls_token": image["cls_token"][None, None],
    "pos_embed": image["pos_embed"][None],
  }


def hf_clip(flat):
  image, text = towers(flat, lambda part, _: apart(part))
  table = (
    (r"^blocks\.", "encoder.layers."),
    (r"norm(\d)\.", r"layer_norm\1."),
    (r"attn\.(.)(uery|ey|alue)", r"self_attn.\1_proj"),
    (r"attn\.proj", "self_attn.out_proj"),
    ("^pos_embed", "embeddings.position_embedding.weight"),
  )
  image = renamed(
    image,
    *table,
    ("^cls_token", "embeddings.class_embedding"),
    (r"^patch_embed\.proj", "embeddings.patch_embedding"),
    ("^norm_pre", "pre_layrnorm"),
    (r"^norm\.", "post_layernorm."),
  )
  text = renamed(
    text,
    *table,
    (r"^norm\.", "final_layer_norm."),
    ("^token_embedding", "embeddings.token_embedding.weight"),
  )
  text_projection = text.pop("projection/weight")
  return (
    {f"vision_model.{name}": array for name, array in image.items()}
    | {f"text_model.{name}": array for name, array in text.items()}
    | {
      "visual_projection.weight": flat["projection/kernel"].T,
      "text_projection.weight": text_projection,
      "text_model.embeddings.position_ids": np.arange(5)[None],
      "logit_scale": flat["logit_scale"],
    }
  )


def timm_siglip(flat):
  pool = {
    "attn_pool.latent": (1, 1, 24),
    "attn_pool.q.weight": (24, 24),
    "attn_pool.mlp.fc1.bias": (48,),
  }
  return timm(flat) | numbers(pool)


def hf_siglip(flat):
  out = renamed(
    apart(flat),
    (r"^blocks\.", "encoder.layers."),
    (r"norm(\d)\.", r"layer_norm\1."),
    (r"attn\.(.)(uery|ey|alue)", r"self_attn.\1_proj"),
    (r"attn\.proj", "self_attn.out_proj"),
    (r"^norm\.", "post_layernorm."),
    (r"^patch_embed\.proj", "embeddings.patch_embedding"),
    ("^pos_embed", "embeddings.position_embedding.weight"),
    ("^", "vision_model."),
  )
  positions_name = "vision_model.embeddings.position_embedding.weight"
  out[positions_name] = out[positions_name][0]
  return out | numbers(
    {
      "vision_model.head.probe": (1, 1, 24),
      "logit_bias": (1,),
      "vision_model.head.attention.in_proj_weight": (72, 24),
      "text_model.head.bias": (24,),
    }
  )


def mocov3(flat):
  inside = "state_dict/module."
  return {
    f"{inside}{tower}_encoder.{name}": array * (tower == "base")
    for name, array in timm(flat).items()
    for tower in ("momentum", "base")
  } | {
    f"{inside}base_encoder.head.0.weight": np.ones((4, 24)),
    f"{inside}predictor.0.weight": np.ones((4, 4)),
  }


def dino(flat):
  head = numbers(
    {
      "mlp.0.weight": (9, 24),
      "mlp.0.bias": (9,),
      "mlp.4.weight": (4, 9),
      "last_layer.weight_g": (5, 1),
      "last_layer.weight_v": (5, 4),
    }
  )
  own = {f"backbone.{name}": array for name, array in timm(flat).items()} | {
    f"head.{name}": array for name, array in head.items()
  }
  return {f"teacher/{name}": array for name, array in own.items()} | {
    f"student/module.{name}": array * 0 for name, array in own.items()
  }


def of_2020(flat):
  flat = renamed(
    flat,
    ("LayerNorm_1", "LayerNorm_2"),
    ("MlpBlock_0", "MlpBlock_3"),
    ("Attention_0", "Attention_1"),
  )
  flat = renamed(
    class_position(flat), ("^pos_emb", "Transformer/posembed_input/pos_emb")
  )
  return flat | {"pre_logits/kernel": np.zeros((24, 24))}


# Name -> (module, its arrays and extras, how the file has them).
LAYOUTS = {
  "ours": (VIT, HEAD, dict),
  "big_vision, 2020": (VIT, HEAD, of_2020),
  "timm": (VIT, HEAD, timm),
  "timm, mean pooling": (
    VIT.clone(norm_order="after"),
    HEAD,
    lambda flat: renamed(timm(flat), (r"^norm\.", "fc_norm.")),
  ),
  "DeiT, MAE": (VIT, HEAD, lambda flat: renamed(timm(flat), ("^", "model/"))),
  "MoCo v3": (VIT, {}, mocov3),
  "DINO": (VIT, {}, dino),
  "torchvision": (VIT, HEAD, torchvision),
  "torchvision, old": (
    VIT,
    HEAD,
    lambda flat: torchvision(flat, ("linear_1", "linear_2")),
  ),
  "Hugging Face": (HF_VIT, {}, lambda flat: huggingface(apart(flat))),
  "Hugging Face, classifier": (
    HF_VIT,
    HEAD,
    lambda flat: huggingface(apart(flat), "vit."),
  ),
  "Hugging Face MAE": (HF_VIT, {}, hf_mae),
  "Swin": (SWIN, {"head/kernel": (32, 7), "head/bias": (7,)}, swin),
  "Swin with positions": (
    SWIN.clone(absolute_positions=True),
    {},
    ape_swin,
  ),
  "timm Swin": (SWIN, {"head/kernel": (32, 7), "head/bias": (7,)}, timm_swin),
  "Hugging Face Swin": (
    SWIN,
    {"head/kernel": (32, 7), "head/bias": (7,)},
    hf_swin,
  ),
  "OpenAI CLIP": (CLIP, None, openai),
  "timm CLIP": (CLIP, None, timm_clip),
  "Hugging Face CLIP": (CLIP, None, hf_clip),
}


# Whose activation no name tells.
UNKNOWN_GELU = ("timm CLIP", "Hugging Face CLIP")


def options_of(layout, module):
  """What `convert` cannot know of a file."""
  options = ["--heads", "3"] if isinstance(module, ViT) else []
  if layout in UNKNOWN_GELU:
    options += ["--gelu", "quick"]
  return options


def made(layout, path):
  """(module, our arrays, a file of them in this layout)."""
  module, extras, theirs = LAYOUTS[layout]
  flat = (
    clip_numbers() if extras is None else numbers(cost.shapes(module) | extras)
  )
  return module, flat, write(path, theirs(flat))


def write(path, flat):
  safetensors.numpy.save_file(
    {name: np.ascontiguousarray(array) for name, array in flat.items()}, path
  )
  return path


def run(source, out, *options):
  return convert.main(["convert", str(source), "--to", str(out), *options])


def same(got, want):
  assert got.keys() == want.keys()
  for name, array in got.items():
    np.testing.assert_array_equal(array, want[name], err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_as_itself_and_converted(layout, tmp_path, capsys):
  module, flat, file = made(layout, tmp_path / "in.safetensors")
  spec = module.spec
  template = cost.shapes(module)
  told = Told(gelu=layout in UNKNOWN_GELU)
  got = load.load(file, template, spec, told=told)
  same(got.backbone, {name: flat[name] for name in template})
  for name in got.extras.keys() & flat.keys():
    np.testing.assert_array_equal(
      got.extras[name], flat[name].reshape(got.extras[name].shape)
    )
  wanted = {
    "timm CLIP": set(),
    "DINO": {
      "projection/Dense_0/kernel",
      "projection/Dense_0/bias",
      "projection/Dense_2/kernel",
      "projection/prototypes/kernel",
    },
  }
  assert got.extras.keys() == wanted.get(layout, flat.keys() - template.keys())

  out = tmp_path / "out.npz"
  options = options_of(layout, module)
  assert run(file, out, "--no-verify", *options) == 0
  converted = load.load(out, template, spec)
  same(converted.backbone, got.backbone)
  same(converted.extras, got.extras)
  assert f"sha256:{converted.sha256}" in capsys.readouterr().out
  with np.load(out) as npz:
    assert (
      npz[BLOCK + "query/kernel"].shape
      == template[BLOCK + "query/kernel"].shape
    )
    assert npz["embedding/kernel"].dtype == (
      np.float32 if layout == "DINO" else np.float16
    )

  if isinstance(module, ViT):  # The class token's position is not resized.
    larger = module.clone(image_size=(24, 32))
    same(
      load.load(out, cost.shapes(larger), larger.spec).backbone,
      load.load(file, cost.shapes(larger), larger.spec, told=told).backbone,
    )

  again = tmp_path / "again.npz"
  assert run(out, again, "--no-verify") == 0
  assert load.sha256(again) == load.sha256(out)


@pytest.mark.parametrize(
  "layout",
  [layout for layout in LAYOUTS if layout not in ("ours", "big_vision, 2020")],
)
def test_timm_confirms(layout, tmp_path, capsys):
  peers.timm()
  module, _, file = made(layout, tmp_path / "in.safetensors")
  options = options_of(layout, module)
  assert run(file, tmp_path / "out.npz", "--verify", *options) == 0
  found = re.search(
    r"verified: tokens differ from timm's by (\S+) of", capsys.readouterr().out
  )
  assert 0 < float(found[1]) < 1e-5


def test_what_timm_does_not_confirm_is_not_written(
  tmp_path, capsys, monkeypatch
):
  peers.timm()
  _, _, file = made("timm", tmp_path / "in.safetensors")

  translate = load.translate

  def wrong(flat, may_pool):
    found = translate(flat, may_pool)
    a, b = BLOCK + "query/kernel", BLOCK + "value/kernel"
    found.arrays[a], found.arrays[b] = found.arrays[b], found.arrays[a]
    return found

  monkeypatch.setattr(load, "translate", wrong)
  assert run(file, tmp_path / "out.npz", "--heads", "3") == 1
  assert "tokens differ from timm's by " in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.filterwarnings("ignore")  # Of torch, about TorchScript.
def test_torch_files(tmp_path, capsys):
  peers.timm()
  import torch

  flat = {
    name: torch.from_numpy(np.array(array))
    for name, array in timm(numbers(cost.shapes(VIT))).items()
  }
  out = tmp_path / "out.npz"
  for zipped in (True, False):
    torch.save(
      {
        "state_dict": {
          "module." + name: tensor for name, tensor in flat.items()
        },
        "epoch": 1,
      },
      tmp_path / "x.pth",
      _use_new_zipfile_serialization=zipped,
    )
    assert run(tmp_path / "x.pth", out, "--verify", "--heads", "3") == 0
    assert "names follow 'state_dict/module.'" in capsys.readouterr().out

  class Script(torch.nn.Module):
    """Holds all tensors, in modules of modules."""

  root = Script()
  for name, tensor in flat.items():
    *parts, leaf = name.split(".")
    node = root
    for part in parts:
      if not hasattr(node, part):
        node.add_module(part, Script())
      node = getattr(node, part)
    node.register_parameter(leaf, torch.nn.Parameter(tensor))
  torch.jit.save(torch.jit.script(root), tmp_path / "x.pt")
  assert run(tmp_path / "x.pt", out, "--heads", "3") == 0
  assert "not verified: " in capsys.readouterr().out
  same(
    load.load(out, cost.shapes(VIT), VIT.spec).backbone,
    numbers(cost.shapes(VIT)),
  )


def test_without_torch(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  _, _, file = made("timm", tmp_path / "in.safetensors")
  out = tmp_path / "out.npz"
  assert run(file, out, "--heads", "3") == 0
  assert "not verified: torch or timm is not installed" in (
    capsys.readouterr().out
  )
  out.unlink()
  assert run(file, out, "--heads", "3", "--verify") == 1
  assert "cannot verify: torch or timm" in capsys.readouterr().err
  assert not out.exists()


def test_what_is_printed(tmp_path, capsys):
  _, _, file = made("MoCo v3", tmp_path / "in.safetensors")
  assert run(file, tmp_path / "out.npz", "--heads", "3", "--no-verify") == 0
  lines = capsys.readouterr().out.splitlines()
  attention = "Transformer/encoderblock_*/MultiHeadDotProductAttention_0/"
  assert lines[0] == (
    "layout: timm; names follow 'state_dict/module.base_encoder.'"
  )
  assert (
    f"  blocks.*.attn.qkv.weight -> {attention}{{query,key,value}}/kernel  x2"
  ) in lines
  assert "  cls_token -> cls" in lines
  ignored = lines[lines.index("ignored:") :]
  inside = "  state_dict/module."
  assert f"{inside}momentum_encoder.blocks.*.mlp.fc1.bias  x2" in ignored
  assert f"{inside}base_encoder.head.0.weight" in ignored
  assert f"{inside}predictor.0.weight" in ignored
  assert re.fullmatch(
    rf"{re.escape(str(tmp_path))}/out.npz: 11,\d+ numbers as "
    "float16, sha256:[0-9a-f]{64}",
    lines[-1],
  )


def test_how_floats_are_stored(tmp_path, capsys):
  flat = numbers(cost.shapes(VIT))
  flat["cls"][:] = 1 / 3
  file, out = write(tmp_path / "x.safetensors", flat), tmp_path / "out.npz"
  for dtype in (None, "float32", "float16", "bfloat16"):
    options = ["--dtype", dtype] if dtype else []
    assert run(file, out, *options) == 0
    assert f"as {dtype or 'float32'}," in capsys.readouterr().out
    stored = flat["cls"].astype(convert.DTYPES[dtype or "float32"])
    np.testing.assert_array_equal(
      load.load(out, cost.shapes(VIT), VIT.spec).backbone["cls"], stored
    )
  flat["cls"][:] = 1e5
  write(file, flat)
  assert run(file, out) == 0
  assert "as float32," in capsys.readouterr().out
  assert run(file, out, "--dtype", "float16") == 1
  assert "'cls' holds numbers too large for float16" in capsys.readouterr().err


def test_a_run(tmp_path, capsys):
  """All parameters trained: its backbone and head, in float16."""
  flat = numbers(cost.shapes(VIT) | HEAD)
  flat["cls"][:] = 1 / 3
  params = {
    f"backbone/{name}" * (name not in HEAD) or name: array
    for name, array in flat.items()
  }
  file, out = tmp_path / "adapter.npz", tmp_path / "out.npz"
  adapter_files.save_adapter(file, params | {"method/prompt": np.ones(3)}, META)
  assert run(file, out) == 0
  printed = capsys.readouterr().out
  assert "as float16," in printed and "ignored:\n  meta\n  method/" in printed
  got = load.load(out, cost.shapes(VIT), VIT.spec)
  same(
    got.backbone | got.extras,
    {name: array.astype(np.float16) for name, array in flat.items()},
  )

  adapter_files.save_adapter(file, {"head/bias": np.ones(3)}, META)
  assert run(file, out) == 1
  assert "holds no backbone; train it with config.method=full" in (
    capsys.readouterr().err
  )
  del params["backbone/Transformer/encoder_norm/bias"]
  adapter_files.save_adapter(file, params, META)
  assert run(file, out) == 1
  assert "missing in the checkpoint:\n- Transformer/encoder_norm/bias" in (
    capsys.readouterr().err
  )


def test_number_of_heads(tmp_path, capsys, monkeypatch):
  """By the table; where that is not enough, by positions or by the user."""
  flat = numbers(cost.shapes(VIT))
  file, out = tmp_path / "x.safetensors", tmp_path / "out.npz"
  write(file, timm(flat))

  def heads(*options):
    assert run(file, out, "--no-verify", *options) == 0
    with np.load(out) as npz:
      return npz[BLOCK + "query/kernel"].shape[1]

  def refused(match, *options):
    assert run(file, out, *options) == 1
    error = capsys.readouterr().err
    assert re.search(match, error) and str(file) in error

  refused(r"no backbone is of its shape \{.*'width': 24.* --heads N")
  assert heads("--heads", "4") == 4
  refused("does not fit this backbone", "--heads", "5")
  arch = dict(patch_size=4, width=24, depth=2, mlp_dim=48)

  def add(name, **more):
    entry = factory.Entry(arch | more)
    monkeypatch.setitem(factory.BACKBONES, name, entry)

  add("plain", num_heads=3)
  assert heads() == 3
  add("moco", num_heads=6, resize="sincos")
  assert heads() == 3
  assert heads("--backbone", "moco") == 6
  add("other", num_heads=2)
  refused(r"differ: plain \(3\), other \(2\); say .* --backbone NAME")
  assert heads("--backbone", "other") == 2
  refused("did you mean 'other'", "--backbone", "othre")
  refused("Likely cause: .* width 24, .* width 192", "--backbone", "vit_ti16")
  refused("not a multiple of the patch size", "--backbone", "swin_t")
  flat["pos_embedding"] = positions.sincos((4, 4), 24)
  flat["cls"][:] = 0
  theirs = timm(flat)
  theirs["cls_token"] += 0.5
  theirs["pos_embed"][:, 0] = 0
  write(file, theirs)
  assert heads() == 6


def is_fixed(arch):
  """Whether positions are a fixed table of sines."""
  return arch.get("resize") == "sincos"


def test_every_entry_has_its_heads():
  """Where shapes are the same, heads are, but for MoCo v3's."""
  vits = {
    name: entry.arch
    for name, entry in factory.BACKBONES.items()
    if entry.module is ViT
  }
  for arch in vits.values():
    keys = ("patch_size", "width", "depth", "mlp_dim")
    names = factory.fitting({key: arch[key] for key in keys})
    heads = {
      vits[name]["num_heads"]
      for name in names
      if is_fixed(vits[name]) == is_fixed(arch)
    }
    assert heads == {arch["num_heads"]}


def test_swin_says_all_itself(tmp_path):
  module, _, file = made("Swin", tmp_path / "in.safetensors")
  flat = file_formats.read(file)
  assert convert.convert(flat, "x")[1] == module


def test_what_is_refused(tmp_path, capsys):
  file, out = tmp_path / "x.safetensors", tmp_path / "out.npz"
  flat = timm(numbers(cost.shapes(VIT)))

  def refused(match, **changes):
    changed = {
      name: array
      for name, array in (flat | changes).items()
      if array is not None
    }
    write(file, changed)
    assert run(file, out, "--heads", "3") == 1
    error = capsys.readouterr().err
    assert re.search(match, error) and str(file) in error
    assert not out.exists()

  refused("no known layout", **dict.fromkeys(flat), other=np.ones(3))
  refused("transformer is not whole", **{"blocks.0.mlp.fc1.bias": None})
  refused(
    "missing in the checkpoint:\n- .*encoderblock_1/LayerNorm_0/bias",
    **{"blocks.1.norm1.bias": None},
  )
  refused(
    r"unexpected in the checkpoint:\n\+ blocks.1.gate.weight",
    **{"blocks.1.gate.weight": np.ones(24)},
  )
  refused(
    r"positions \(pos_embedding\) are \(1, 12, 24\)",
    pos_embed=np.ones((1, 12, 24)),
  )
  refused(r"positions \(pos_embedding\) are \(\)", pos_embed=None)
  refused("distilled DeiT", dist_token=np.ones((1, 1, 24)))
  assert run(tmp_path / "none.pth", out) == 1
  assert "no such file" in capsys.readouterr().err
  write(file, flat)
  assert run(file, tmp_path / "new" / "out.npz", "--heads", "3") == 0
  assert (tmp_path / "new" / "out.npz").exists()
  (tmp_path / "full").write_text("")
  assert run(file, tmp_path / "full" / "out.npz", "--heads", "3") == 1
  assert "out.npz" in capsys.readouterr().err
