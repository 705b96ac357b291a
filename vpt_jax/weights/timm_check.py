"""Checks a conversion: timm's model on the file, vpt_jax's on the arrays.

Nothing here knows `name_maps.py`, so that a slip there shows. torch and timm
are needed (`pip install 'vpt_jax[convert]'`).
"""

from collections.abc import Mapping
import functools
from pathlib import Path
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import safetensors

from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.utils import trees
from vpt_jax.weights.name_maps import LAYOUTS
from vpt_jax.weights.translate import Translated

# Names of every layout -> timm's: (regular expression, replacement), all in
# turn.
_TO_TIMM = (
  (
    r"^(visual\.class_embedding|class_token|embeddings\.cls_token|"
    r"(vision_model\.)?embeddings\.class_embedding)$",
    "cls_token",
  ),
  (
    r"^(visual\.positional_embedding|encoder\.pos_embedding|embeddings\."
    r"position_embeddings|(vision_model\.)?embeddings\.position_embedding\."
    r"weight"
    r"|absolute_pos_embed)$",
    "pos_embed",
  ),
  (
    r"^(visual\.conv1|conv_proj|embeddings\.patch_embeddings\.projection|"
    r"(vision_model\.)?embeddings\.patch_embedding)\.",
    "patch_embed.proj.",
  ),
  (r"^embeddings\.norm\.", "patch_embed.norm."),
  (r"^(visual\.ln_pre|(vision_model\.)?pre_layrnorm)\.", "norm_pre."),
  (
    r"^(visual\.ln_post|(vision_model\.)?post_layernorm|encoder\.ln|layernorm|"
    r"fc_norm)\.",
    "norm.",
  ),
  (r"^encoder\.(layers\.\d+\.(blocks|downsample)\.)", r"\1"),
  (
    r"^(visual\.transformer\.resblocks|(vision_model\.)?encoder\.layers?|"
    r"encoder\.layers\.encoder_layer|layers)[._](?=\d+\.(?!blocks|downsample))",
    "blocks.",
  ),
  (r"\.(ln_1|layer_norm1|layernorm_before)\.", ".norm1."),
  (r"\.(ln_2|layer_norm2|layernorm_after)\.", ".norm2."),
  (
    r"\.(attention\.(output\.dense|o_proj)|(attn|self_attn|self_attention)\.out_proj)"
    r"\.",
    ".attn.proj.",
  ),
  (r"\.(attn|self_attention)\.in_proj_", ".attn.qkv."),
  (
    r"\.(attention\.attention|attention\.self|attention|self_attn)\."
    r"([qkv])[a-z_]*\.",
    r".attn.\2.",
  ),
  (r"\.attention\.self\.", ".attn."),
  (r"\.(mlp\.0|mlp\.linear_1|mlp\.c_fc|intermediate\.dense)\.", ".mlp.fc1."),
  (r"\.(mlp\.3|mlp\.linear_2|mlp\.c_proj|output\.dense)\.", ".mlp.fc2."),
)


class CannotVerify(Exception):
  """Says why there is nothing to compare with."""


def difference(
  path: Path,
  found: Translated,
  module: ViT | Swin,
  arrays: Mapping[str, np.ndarray],
) -> float:
  """Runs timm's model on the original file, vpt_jax's on the new arrays.

  Args:
    path: of the original file.
    found: what was found in it.
    module: that the arrays are of.
    arrays: the converted ones.

  Returns:
    The largest difference between all tokens after the final norm, for one
    random image, relative to the largest value.

  Raises:
    CannotVerify: no torch or timm, or they do not take the file.
  """
  rng = np.random.default_rng(0)
  image = rng.standard_normal((1, *module.image_size, 3)).astype(np.float32)
  expected = _timm_tokens(path, found, module, image)
  tokens = our_tokens(module, arrays, image)
  expected = expected.reshape(tokens.shape)  # Swin's have rows and columns.
  largest = np.abs(expected).max()
  return float(np.abs(tokens - expected).max() / largest)


def our_tokens(
  module: ViT | Swin, arrays: Mapping[str, np.ndarray], image: np.ndarray
) -> np.ndarray:
  """Returns all tokens after the final norm, [1, T, D]."""

  def run(module):
    """Goes through the blocks."""
    tokens = module.embed(image)
    for i in range(module.spec.depth):
      tokens = module.block(i, module.enter(i, tokens))
    return module.norm(tokens.x)

  params = {
    name.replace("fc_norm", "encoder_norm"): array
    for name, array in arrays.items()
  }
  variables = {"params": trees.unflatten(params)}
  with jax.default_matmul_precision("highest"):
    return np.asarray(jax.jit(nn.apply(run, module))(variables))


def _timm_tokens(
  path: Path, found: Translated, module: ViT | Swin, image: np.ndarray
) -> np.ndarray:
  """Returns all tokens after the final norm by timm's model.

  Raises:
    CannotVerify: see `difference`.
  """
  if found.layout == "big_vision":
    raise CannotVerify("the file is in this layout already")
  try:
    import torch

    model = _timm_model(module)
    _load_state(model, _state(path, found))
  except ImportError as error:
    raise CannotVerify(f"torch or timm is not installed ({error})") from error
  # Of many kinds: torch and torchvision that do not fit, a file that torch does
  # not take, other sizes than timm's.
  except Exception as error:
    raise CannotVerify(" ".join(str(error).split())[:200]) from error
  channels_first = image.transpose(0, 3, 1, 2).copy()
  with torch.no_grad():
    return model.eval().forward_features(torch.tensor(channels_first)).numpy()


def _timm_model(module: ViT | Swin) -> Any:
  """Returns timm's model of the same sizes."""
  from timm.models import swin_transformer, vision_transformer
  import torch

  options: dict[str, Any] = {
    "img_size": module.image_size,
    "patch_size": module.patch_size,
    "num_classes": 0,
    "embed_dim": module.width,
    "num_heads": module.num_heads,
    "global_pool": "",
    "norm_layer": functools.partial(torch.nn.LayerNorm, eps=module.eps),
  }
  if isinstance(module, Swin):
    return swin_transformer.SwinTransformer(
      depths=module.depths,
      window_size=module.window,
      mlp_ratio=module.mlp_ratio,
      **options,
    )
  return vision_transformer.VisionTransformer(
    depth=module.depth,
    mlp_ratio=module.mlp_dim / module.width,
    class_token=module.num_cls > 0,
    pre_norm=module.pre_norm,
    act_layer="quick_gelu" if module.gelu == "quick" else "gelu",
    **options,
  )


def _load_state(model: Any, state: dict[str, Any]) -> None:
  """Loads tensors by timm's names; those that it does not have are left out."""
  wanted = model.state_dict()
  tensors = {}
  for name, tensor in state.items():
    if name in wanted:
      tensors[name] = tensor.float().reshape(wanted[name].shape)
  model.load_state_dict(tensors)
  if "pos_embed" in state and "pos_embed" not in wanted:
    # timm's Swin has no absolute positions any more.
    _add_positions(model, state["pos_embed"])


def _add_positions(model: Any, table: Any) -> None:
  """Makes timm's Swin add positions [1, N, D] to its embedded patches."""

  def added(layer, inputs, patches):
    """Returns patches [1, rows, columns, D] with the positions added."""
    return patches + table.float().reshape(patches.shape)

  model.patch_embed.register_forward_hook(added)


def _state(path: Path, found: Translated) -> dict[str, Any]:
  """Returns a file's tensors under timm's names, read by torch's readers."""
  import torch

  markers = {layout: marker for layout, marker, _ in LAYOUTS}
  marker = markers[found.layout]
  prefix = found.origin["embedding/kernel"].removesuffix(marker)
  state = {}
  for name, tensor in _tensors(path).items():
    if not name.startswith(prefix) or not isinstance(tensor, torch.Tensor):
      continue
    name = name.removeprefix(prefix)
    for pattern, replacement in _TO_TIMM:
      name = re.sub(pattern, replacement, name)
    state[name] = tensor
  _fuse_qkv(state)
  if "layers.0.downsample.reduction.weight" in state:
    state = _merges_at_start(state)
  return state


def _tensors(path: Path) -> dict[str, Any]:
  """Returns the tensors of a safetensors or PyTorch file."""
  import torch

  with open(path, "rb") as file:
    is_safetensors = file.read(9)[8:] == b"{"
  if not is_safetensors:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return trees.flatten(loaded)
  tensors = {}
  with safetensors.safe_open(path, framework="pt") as file:
    for name in list(file.keys()):
      tensors[name] = file.get_tensor(name)
  return tensors


def _fuse_qkv(state: dict[str, Any]) -> None:
  """Fuses query, key and value of each block, in place, as timm has them."""
  import torch

  for query in [name for name in state if ".attn.q." in name]:
    parts = []
    for part in "qkv":
      parts.append(state.pop(query.replace(".q.", f".{part}.")))
    state[query.replace(".q.", ".qkv.")] = torch.cat(parts)


def _merges_at_start(state: dict[str, Any]) -> dict[str, Any]:
  """Moves Swin's merges from the end of a stage to the start of the next."""
  out = {}
  for name, tensor in state.items():
    found = re.match(r"layers\.(\d+)\.downsample\.(.*)", name)
    if found:
      name = f"layers.{int(found[1]) + 1}.downsample.{found[2]}"
    out[name] = tensor
  return out
