"""Reads golden fixtures, and puts the reference's parameters under our names.

A fixture is one `.npz`: `param/` is the `state_dict` of a published PyTorch
model, `input/` and `out/` are what went in and came out, `grad/` the gradients,
and `meta` a JSON string with the reference's options. `options.py` builds the
same model from the options, `parity.py` compares the results.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import json
import os
import re
from typing import Any

import numpy as np

from vpt_jax.methods.gated import Gated
from vpt_jax.methods.method import Method
from vpt_jax.methods.pixel import Add, Below, Pad, PrependPixel
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT
from vpt_jax.utils import trees

Arrays = dict[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]


def read(path: str | os.PathLike) -> tuple[Arrays, dict[str, Any]]:
  """Returns the arrays and `meta` ({} if there is none) of a file.

  Raises:
    ValueError: the file is no `.npz`, or `meta` is no JSON object.
  """
  with open(path, "rb") as file:
    loaded = np.load(file, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
      raise ValueError("not an .npz archive")
    arrays = {key: loaded[key] for key in loaded.files}
  meta = json.loads(str(arrays.pop("meta", "{}")))
  if not isinstance(meta, dict):
    raise ValueError(f"meta is a {type(meta).__name__}, expected an object")
  return arrays, meta


def below(arrays: Arrays, prefix: str) -> Arrays:
  """Returns the arrays whose keys begin with `prefix`, without it."""
  return {
    key.removeprefix(prefix): array
    for key, array in arrays.items()
    if key.startswith(prefix)
  }


def reference_class(meta: dict[str, Any]) -> str:
  """Returns the name of the class that a fixture was made with."""
  return str(meta.get("reference_class", ""))


def stage_depths(keys: Iterable[str]) -> tuple[int, ...]:
  """Returns the number of blocks in each of a Swin's stages, () of a ViT."""
  depths: dict[int, int] = {}
  for key in keys:
    found = re.search(r"(?:^|\.)layers\.(\d+)\.blocks\.(\d+)\.", key)
    if found:
      stage = int(found[1])
      block = int(found[2])
      depths[stage] = max(depths.get(stage, 0), block + 1)
  return tuple(depths[stage] for stage in sorted(depths))


def attention_heads(
  arrays: Arrays, meta: dict[str, Any]
) -> int | tuple[int, ...]:
  """Returns the heads of every block, as a tuple for a Swin.

  A Swin's are seen in its bias tables, one column for each head. A ViT's
  parameters do not say how many there are; `meta` does.

  Raises:
    ValueError: a ViT's fixture whose `meta` does not say.
  """
  tables = {}
  for key, array in arrays.items():
    found = re.search(
      r"layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$", key
    )
    if found:
      tables[int(found[1]), int(found[2])] = array.shape[-1]
  if tables:
    return tuple(tables[place] for place in sorted(tables))
  heads = meta.get("sizes", {}).get("heads")
  if not isinstance(heads, int):
    raise ValueError(
      f"meta.sizes.heads is {heads!r}, expected the number of attention heads, "
      "which the parameters of a ViT do not tell"
    )
  return heads


# How a tensor of the reference becomes one of ours.


def unchanged(x: np.ndarray) -> np.ndarray:
  """Returns the tensor as it is."""
  return x


def from_conv(x: np.ndarray) -> np.ndarray:
  """Returns a kernel [out, in, h, w] as [h, w, in, out].

  What is left out are inputs after the image's three channels (`below`).
  """
  return x.transpose(2, 3, 1, 0)[:, :, :3]


def from_prompt_channels(x: np.ndarray) -> np.ndarray:
  """Returns the part of such a kernel that `from_conv` leaves out."""
  return x.transpose(2, 3, 1, 0)[:, :, 3:]


def from_depthwise(x: np.ndarray) -> np.ndarray:
  """Returns a kernel [channels, 1, h, w] as [h, w, channels]."""
  return x[:, 0].transpose(1, 2, 0)


def into_heads(x: np.ndarray, heads: int) -> np.ndarray:
  """Returns a kernel [heads * d, in] as [in, heads, d]."""
  return x.T.reshape(x.shape[1], heads, -1)


def bias_into_heads(x: np.ndarray, heads: int) -> np.ndarray:
  """Returns a bias [heads * d] as [heads, d]."""
  return x.reshape(heads, -1)


def from_heads(x: np.ndarray, heads: int) -> np.ndarray:
  """Returns a kernel [out, heads * d] as [heads, d, out]."""
  return x.T.reshape(heads, -1, len(x))


def third(x: np.ndarray, part: int, transform: Transform) -> np.ndarray:
  """Returns the query's (0), key's (1) or value's (2) part of a fused qkv."""
  return transform(np.split(x, 3)[part])


def class_position(x: np.ndarray) -> np.ndarray:
  """Returns the class token's position, the first of [1, 1 + N, D]."""
  return x[:, :1]


def patch_positions(x: np.ndarray) -> np.ndarray:
  """Returns the positions of the patches, all but the first."""
  return x[:, 1:]


def pixels(x: np.ndarray) -> np.ndarray:
  """Returns an image [1, C, H, W] as [H, W, C]."""
  return x[0].transpose(1, 2, 0)


def rows_of_pixels(x: np.ndarray) -> np.ndarray:
  """Returns what is above and below an image, the one above the other."""
  return np.stack(np.split(pixels(x), 2, axis=0))


def columns_of_pixels(x: np.ndarray) -> np.ndarray:
  """Returns what is left and right of an image, the one beside the other."""
  return np.stack(np.split(pixels(x), 2, axis=1))


def channels_of_pixels(x: np.ndarray) -> np.ndarray:
  """Returns learned channels [1, T, H, W] as [1, H, W, T]."""
  return pixels(x)[None]


def patches_of_pixels(x: np.ndarray) -> np.ndarray:
  """Returns square patches that lie one beside the other as [P, p, p, C]."""
  count = x.shape[3] // x.shape[2]
  return np.stack(np.split(pixels(x), count, axis=1))


def first_rows(x: np.ndarray, count: int) -> np.ndarray:
  """Returns the first `count` rows."""
  return x[:count]


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a part of a reference tensor is in our tree.

  Attributes:
    path: of our leaf.
    transform: reference tensor -> what is at `path[start:stop]`.
    start: first row of the leaf.
    stop: row after the last, None for the end.
  """

  path: str
  transform: Transform = unchanged
  start: int = 0
  stop: int | None = None


STATS = "batch_stats/"  # before the paths of running statistics

_BLOCK = r"transformer\.encoder\.layer\.(\d+)\."
_TIMM = r"blocks\.(\d+)\."
_OURS = r"backbone/Transformer/encoderblock_\1/"
_ATTENTION = _OURS + "MultiHeadDotProductAttention_0"
_GENERATOR = r"method/generator_{i}/"
_VAPT = r"(?:transformer\.)?deep_prompt_"
# Modules: (name in the reference, ours, kind); `{i}` is the number of the
# generated block, the reference counts them from the first generated one.
# Swin's `layers.S.blocks.B` has become `blocks.I`, see `Names.numbered`.
MODULES = (
  (
    r"transformer\.embeddings\.patch_embeddings|patch_embed\.proj",
    "backbone/embedding",
    "conv",
  ),
  (r"patch_embed\.norm", "backbone/embedding_norm", "norm"),
  (_BLOCK + "attention_norm", _OURS + "LayerNorm_0", "norm"),
  (_TIMM + "norm1", _OURS + "LayerNorm_0", "norm"),
  (_BLOCK + r"attn\.(query|key|value)", _ATTENTION + r"/\2", "heads"),
  (_TIMM + r"attn\.qkv", _ATTENTION, "qkv"),
  (_BLOCK + r"attn\.out", _ATTENTION + "/out", "unheads"),
  (_TIMM + r"attn\.proj", _ATTENTION + "/out", "unheads"),
  (_BLOCK + "ffn_norm", _OURS + "LayerNorm_1", "norm"),
  (_TIMM + "norm2", _OURS + "LayerNorm_1", "norm"),
  (_BLOCK + r"ffn\.fc1", _OURS + "MlpBlock_0/Dense_0", "dense"),
  (_BLOCK + r"ffn\.fc2", _OURS + "MlpBlock_0/Dense_1", "dense"),
  (_TIMM + r"mlp\.fc1", _OURS + "MlpBlock_0/Dense_0", "dense"),
  (_TIMM + r"mlp\.fc2", _OURS + "MlpBlock_0/Dense_1", "dense"),
  (_TIMM + "attn", _ATTENTION, "bias table"),
  (r"merge\.(\d+)\.norm", r"backbone/Transformer/merge_\1/norm", "norm"),
  (
    r"merge\.(\d+)\.reduction",
    r"backbone/Transformer/merge_\1/reduction",
    "dense",
  ),
  (
    r"transformer\.encoder\.encoder_norm|norm|fc_norm",
    "backbone/Transformer/encoder_norm",
    "norm",
  ),
  (r"transformer\.prompt_proj", "method/projection", "dense"),
  (_BLOCK + "adapter_downsample", r"method/adapter_\1/down", "dense"),
  (_BLOCK + "adapter_upsample", r"method/adapter_\1/up", "dense"),
  (_TIMM + "adapter_downsample", r"method/adapter_\1/down", "dense"),
  (_TIMM + "adapter_upsample", r"method/adapter_\1/up", "dense"),
  (_VAPT + r"norm\.(\d+)", _GENERATOR + "norm", "norm"),
  (_VAPT + r"downsample\.(\d+)(?:\.linear)?", _GENERATOR + "tokens", "dense"),
  (_VAPT + r"downsample\.(\d+)\.conv", _GENERATOR[:-1], "depthwise"),
  (
    _VAPT + r"embeddings_mlp()\.block\.0",
    "method/project_shared/down",
    "dense",
  ),
  (_VAPT + r"embeddings_mlp()\.block\.2", "method/project_shared/up", "dense"),
  (_VAPT + r"embeddings_mlp()", "method/project_shared", "scale"),
  (
    _VAPT + r"embeddings_mlp\.(\d+)\.block\.0",
    "method/project_{i}/down",
    "dense",
  ),
  (
    _VAPT + r"embeddings_mlp\.(\d+)\.block\.2",
    "method/project_{i}/up",
    "dense",
  ),
  (_VAPT + r"embeddings_mlp\.(\d+)", "method/project_{i}", "scale"),
  (r"head(?:\.last_layer)?", "head", "dense"),
  (r"head\.hidden\.(\d+)", r"head/hidden_\1", "dense"),
  (r"head\.norm\.(\d+)", r"head/norm_\1", "batch norm"),
)
# {kind of module: {leaf in the reference: (ours, transform)}}.
LEAVES: dict[str, dict[str, tuple[str, Transform]]] = {
  "norm": {"weight": ("scale", unchanged), "bias": ("bias", unchanged)},
  "dense": {"weight": ("kernel", np.transpose), "bias": ("bias", unchanged)},
  "batch norm": {
    "weight": ("scale", unchanged),
    "bias": ("bias", unchanged),
    "running_mean": ("mean", unchanged),
    "running_var": ("var", unchanged),
  },
  "conv": {"weight": ("kernel", from_conv), "bias": ("bias", unchanged)},
  "depthwise": {"kernel": ("kernel", from_depthwise)},
  "scale": {"scale": ("scale", unchanged)},
  "bias table": {
    "relative_position_bias_table": ("relative_position_bias", unchanged)
  },
}
_BUFFERS = (".attn_mask", ".relative_position_index", ".num_batches_tracked")

# Parameters of a method: {name in the reference: (ours, transform)}.
OWN: dict[type[Method], dict[str, tuple[str, Transform]]] = {
  Gated: {
    "gate_logit": ("method/gate_logit", unchanged),
    "temp": ("method/temperature", unchanged),
  },
  Pad: {
    "prompt_embeddings_tb": ("method/top_bottom", rows_of_pixels),
    "prompt_embeddings_lr": ("method/left_right", columns_of_pixels),
  },
  Below: {"prompt_embeddings": ("method/channels", channels_of_pixels)},
  PrependPixel: {"prompt_embeddings": ("method/pixels", patches_of_pixels)},
}


class Names:
  """Maps keys of a reference's `state_dict` to places in our tree.

  Attributes:
    heads: of every block, or of all.
    method: our method, None if only the backbone is of interest.
    offset: the first generator's block (`VPT_DEPTH` of VAPT's options).
    depths: of Swin's stages, () for a ViT.
  """

  def __init__(
    self,
    heads: int | Sequence[int],
    method: Method | None = None,
    offset: int = 0,
    depths: Sequence[int] = (),
  ):
    self.heads = heads
    self.method = method
    self.offset = offset
    self.depths = depths

  def of(self, method: Method, offset: int = 0) -> "Names":
    """Returns the same backbone's names, with a method's."""
    return Names(self.heads, method, offset, self.depths)

  def numbered(self, key: str) -> str:
    """Returns a key whose blocks are counted over all stages.

    Swin's `layers.S.blocks.B.` becomes `blocks.I.`, its downsample `merge.I.`.
    The head's `projection.N.` becomes `hidden.I.` or `norm.I.`: there are four
    modules in each of its layers.
    """
    found = re.match(r"head\.projection\.(\d+)\.(.*)", key)
    if found:
      layer, place = divmod(int(found[1]), 4)
      module = ("hidden", "", "norm", "")[place]
      return f"head.{module}.{layer}.{found[2]}"
    found = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.(.*)", key)
    if not found:
      return key
    stage = int(found[1])
    start = sum(self.depths[:stage])
    if found[2] is None:
      return f"merge.{start + self.depths[stage]}.{found[3]}"
    return f"blocks.{start + int(found[2])}.{found[3]}"

  def places(self, key: str) -> list[Place]:
    """Returns where a reference tensor is; [] if the reference never reads it.

    Raises:
      ValueError: no such tensor is known.
    """
    name = self.numbered(key.removeprefix("enc."))
    short = name.removeprefix("transformer.").removeprefix("embeddings.")
    places = self._of_positions(short)
    if places is None:
      places = self._of_prompts(short)
    if places is None and name.endswith(_BUFFERS):
      places = []
    if places is None:
      places = self._of_module(name)
    if places is None:
      raise ValueError(f"no rule for the reference's parameter {key!r}")
    return places

  def _of_positions(self, short: str) -> list[Place] | None:
    """Returns the places of the class token and the positions."""
    if short == "cls_token":
      return [Place("backbone/cls")]
    if short in ("position_embeddings", "pos_embed"):
      # Ours has the class token's position in the class token itself.
      return [
        Place("backbone/cls", class_position),
        Place("backbone/pos_embedding", patch_positions),
      ]
    if short == "absolute_pos_embed":  # Swin's, which has no class token
      return [Place("backbone/pos_embedding")]
    return None

  def _of_prompts(self, short: str) -> list[Place] | None:
    """Returns the places of a method's own tensors."""
    own = OWN.get(type(self.method), {})
    if short in own:
      return [Place(*own[short])]
    if short in OWN[Gated]:
      return []  # deep prompts have no gates
    if short == "prompt_embeddings":
      path = "method/prompt_0" if self.depths else "method/prompt"
      return [Place(path, stop=1)]
    if short == "deep_prompt_embeddings":
      return self._deep_prompts()
    stage = re.fullmatch(r"deep_prompt_embeddings_(\d+)", short)
    if stage:
      # The first set of stage 0 is `prompt_embeddings`.
      start = 1 if stage[1] == "0" else 0
      return [Place(f"method/prompt_{stage[1]}", start=start)]
    return None

  def _deep_prompts(self) -> list[Place]:
    """Returns the place of the later sets, but those that no block reads."""
    first = 1
    sets = 1
    if isinstance(self.method, VAPT):
      sets = self.method.static_layers
    elif isinstance(self.method, Add):
      sets = self.method.spec.depth
    elif isinstance(self.method, VPT) and not self.method.shared:
      first = 0 if self.method.reverse else 1
      sets = len(self.method.prompted)
    if first == sets:
      return []
    read = functools.partial(first_rows, count=sets - first)
    return [Place("method/prompt", read, first, sets)]

  def _of_module(self, name: str) -> list[Place] | None:
    """Returns the places of a tensor by the table of modules."""
    module, _, leaf = name.rpartition(".")
    for pattern, ours, kind in MODULES:
      found = re.fullmatch(pattern, module)
      if not found:
        continue
      # A module may be in the table twice, as other kinds of leaves are in it.
      leaves = self._leaves(kind, found)
      if leaf not in leaves:
        continue
      base = found.expand(ours)
      if isinstance(self.method, VAPT) and "deep_prompt" in module:
        block = self._generated_block(found[1])
        if block is None:
          return []
        base = base.format(i=block)
      if leaf.startswith("running_"):
        base = STATS + base
      places = []
      for our_leaf, transform in leaves[leaf]:
        places.append(Place(f"{base}/{our_leaf}", transform))
      if isinstance(self.method, Below) and (kind, leaf) == ("conv", "weight"):
        path = "method/embedding/kernel"
        places.append(Place(path, from_prompt_channels))
      return places
    return None

  def _leaves(
    self, kind: str, found: re.Match[str]
  ) -> dict[str, list[tuple[str, Transform]]]:
    """Returns {leaf in the reference: [(ours, transform)]} of a module."""
    if kind not in ("heads", "unheads", "qkv"):
      return {leaf: [place] for leaf, place in LEAVES[kind].items()}
    block = int(found[1])
    heads = self.heads if isinstance(self.heads, int) else self.heads[block]
    kernel = functools.partial(into_heads, heads=heads)
    bias = functools.partial(bias_into_heads, heads=heads)
    if kind == "heads":
      return {"weight": [("kernel", kernel)], "bias": [("bias", bias)]}
    if kind == "unheads":
      out = functools.partial(from_heads, heads=heads)
      return {"weight": [("kernel", out)], "bias": [("bias", unchanged)]}
    weights = []
    biases = []
    for part, name in enumerate(("query", "key", "value")):
      of_weight = functools.partial(third, part=part, transform=kernel)
      of_bias = functools.partial(third, part=part, transform=bias)
      weights.append((f"{name}/kernel", of_weight))
      biases.append((f"{name}/bias", of_bias))
    return {"weight": weights, "bias": biases}

  def _generated_block(self, number: str) -> int | None:
    """Returns the block of VAPT's generator, None if there is no such block.

    Args:
      number: as the reference counts, "" for what all generators share.
    """
    blocks = range(self.method.static_layers, self.method.spec.depth)
    block = int(number) + self.offset if number else blocks.stop - 1
    return block if block in blocks else None

  def cancels(self, key: str) -> bool:
    """Returns whether this tensor's gradient is zero in theory.

    A key's bias adds the same to all logits of a query's softmax, and a
    LayerNorm removes what a generator's bias adds to all channels.
    """
    no_projector = getattr(self.method, "projector", "") == "none"
    generator_bias = r"deep_prompt_downsample\.\d+\.(linear\.)?bias$"
    if no_projector and re.search(generator_bias, key):
      return True
    return key.endswith(("attn.key.bias", "/key/bias)"))

  def parameters(self, arrays: Arrays) -> trees.Flat:
    """Returns our flat parameters from a reference's `state_dict`."""
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for key, array in arrays.items():
      for place in self.places(key):
        part = (place.start, place.transform(array))
        parts.setdefault(place.path, []).append(part)
    flat = {}
    for path, found in parts.items():
      found.sort(key=lambda part: part[0])
      values = [array for _, array in found]
      if path != "backbone/cls":
        flat[path] = np.concatenate(values) if len(values) > 1 else values[0]
        continue
      if len(values) != 2:
        raise ValueError("cls_token or position_embeddings is missing")
      token, position = values
      flat[path] = token + position
    return dict(sorted(flat.items()))

  def paths(self, keys: Iterable[str]) -> set[str]:
    """Returns our paths of these reference tensors."""
    return {place.path for key in keys for place in self.places(key)}

  def pairs(
    self, ours: trees.Flat, theirs: Arrays
  ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (key, our part, the reference's in our layout) of every tensor."""
    for key, array in theirs.items():
      places = self.places(key)
      for place in places:
        if place.path not in ours:
          raise ValueError(
            f"{key!r} is {place.path!r} here, which is not "
            "among the trained parameters"
          )
        label = key if len(places) == 1 else f"{key} ({place.path})"
        leaf = np.asarray(ours[place.path])
        yield label, leaf[place.start : place.stop], place.transform(array)
