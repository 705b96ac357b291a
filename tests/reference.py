"""Golden fixtures, and the reference's parameters under our names.

A fixture is one `.npz`: `param/` is the `state_dict` of a published PyTorch
model, `input/` and `out/` are what went in and came out, `grad/` the gradients,
and `meta` a JSON string with the reference's options. `options.py` builds the
same model from the options, `parity.py` compares the results.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
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
  """Arrays and `meta` ({} if there is none) of a file.

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
  """The arrays whose keys begin with `prefix`, without it."""
  return {
    key[len(prefix) :]: value
    for key, value in arrays.items()
    if key.startswith(prefix)
  }


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a part of a reference tensor is in our tree.

  Attributes:
    path: of our leaf.
    take: reference tensor -> what is at `path[start:stop]`.
    start, stop: rows of the leaf.
  """

  path: str
  take: Transform = lambda x: x
  start: int = 0
  stop: int | None = None


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
  (
    _BLOCK + r"attn\.out|" + _TIMM.replace("1", "2") + r"attn\.proj",
    _ATTENTION + "/out",
    "unheads",
  ),
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
_BUFFERS = (".attn_mask", ".relative_position_index", ".num_batches_tracked")
STATS = "batch_stats/"  # before the paths of running statistics


def _pixels(x: np.ndarray) -> np.ndarray:
  """[1, C, H, W] -> [H, W, C]."""
  return x[0].transpose(1, 2, 0)


# Parameters of a method: {name in the reference: (ours, transform)}.
OWN: dict[type[Method], dict[str, tuple[str, Transform]]] = {
  Gated: {
    name: (f"method/{ours}", lambda x: x)
    for name, ours in (("gate_logit", "gate_logit"), ("temp", "temperature"))
  },
  # Both sides one beside the other.
  Pad: {
    "prompt_embeddings_tb": (
      "method/top_bottom",
      lambda x: np.stack(np.split(_pixels(x), 2, axis=0)),
    ),
    "prompt_embeddings_lr": (
      "method/left_right",
      lambda x: np.stack(np.split(_pixels(x), 2, axis=1)),
    ),
  },
  Below: {"prompt_embeddings": ("method/channels", lambda x: _pixels(x)[None])},
  # All patches one beside the other.
  PrependPixel: {
    "prompt_embeddings": (
      "method/pixels",
      lambda x: np.stack(
        np.split(_pixels(x), x.shape[3] // x.shape[2], axis=1)
      ),
    )
  },
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
    self.heads, self.method, self.offset = heads, method, offset
    self.depths = depths

  def of(self, method: Method, offset: int = 0) -> "Names":
    """The same backbone's names, with a method's."""
    return Names(self.heads, method, offset, self.depths)

  def _leaves(
    self, kind: str, block: int
  ) -> dict[str, list[tuple[str, Transform]]]:
    """{leaf in the reference: [(ours, transform)]} of a kind of module."""
    same = lambda x: x
    heads = self.heads if isinstance(self.heads, int) else self.heads[block]
    weight = lambda x: x.T.reshape(x.shape[1], heads, -1)
    bias = lambda x: x.reshape(heads, -1)
    if kind == "qkv":
      third = lambda take, j: lambda x: take(np.split(x, 3)[j])
      parts = list(enumerate(("query", "key", "value")))
      return {
        "weight": [(f"{name}/kernel", third(weight, j)) for j, name in parts],
        "bias": [(f"{name}/bias", third(bias, j)) for j, name in parts],
      }
    leaves = {
      "norm": {"weight": ("scale", same), "bias": ("bias", same)},
      "dense": {"weight": ("kernel", np.transpose), "bias": ("bias", same)},
      "batch norm": {
        "weight": ("scale", same),
        "bias": ("bias", same),
        "running_mean": ("mean", same),
        "running_var": ("var", same),
      },
      # The image's channels come first.
      "conv": {
        "weight": ("kernel", lambda x: x.transpose(2, 3, 1, 0)[:, :, :3]),
        "bias": ("bias", same),
      },
      "heads": {"weight": ("kernel", weight), "bias": ("bias", bias)},
      "unheads": {
        "weight": ("kernel", lambda x: x.T.reshape(heads, -1, len(x))),
        "bias": ("bias", same),
      },
      "depthwise": {"kernel": ("kernel", lambda x: x[:, 0].transpose(1, 2, 0))},
      "scale": {"scale": ("scale", same)},
      "bias table": {
        "relative_position_bias_table": ("relative_position_bias", same)
      },
    }[kind]
    return {leaf: [place] for leaf, place in leaves.items()}

  def numbered(self, key: str) -> str:
    """Swin's `layers.S.blocks.B.` as `blocks.I.`, downsample as `merge.I.`.

    The head's `projection.N.` is `hidden.I.` or `norm.I.`: there are four
    modules in each of its layers.
    """
    found = re.match(r"head\.projection\.(\d+)\.(.*)", key)
    if found:
      i, place = divmod(int(found[1]), 4)
      return f"head.{('hidden', '', 'norm', '')[place]}.{i}.{found[2]}"
    found = re.match(r"layers\.(\d+)\.(?:blocks\.(\d+)|downsample)\.(.*)", key)
    if not found:
      return key
    start = sum(self.depths[: int(found[1])])
    if found[2] is None:
      return f"merge.{start + self.depths[int(found[1])]}.{found[3]}"
    return f"blocks.{start + int(found[2])}.{found[3]}"

  def places(self, key: str) -> list[Place]:
    """Where a reference tensor is; [] if the reference never reads it.

    Raises:
      ValueError: no such tensor is known.
    """
    whole, key = key, self.numbered(key.removeprefix("enc."))
    short = key.removeprefix("transformer.").removeprefix("embeddings.")
    if short == "cls_token":
      return [Place("backbone/cls")]
    if short in ("position_embeddings", "pos_embed"):
      # Ours has the class token's position in the class token itself.
      return [
        Place("backbone/cls", lambda x: x[:, :1]),
        Place("backbone/pos_embedding", lambda x: x[:, 1:]),
      ]
    own = OWN.get(type(self.method), {})
    if short in own:
      return [Place(*own[short])]
    if short in OWN[Gated]:
      return []  # deep prompts have no gates
    if short == "prompt_embeddings":
      return [
        Place("method/prompt_0" if self.depths else "method/prompt", stop=1)
      ]
    if re.fullmatch(r"deep_prompt_embeddings_\d", short):
      return [
        Place(f"method/prompt_{short[-1]}", start=int(short.endswith("_0")))
      ]
    if short == "deep_prompt_embeddings":
      return self._deep_prompts()
    if key.endswith(_BUFFERS):
      return []
    module, _, leaf = key.rpartition(".")
    for pattern, ours, kind in MODULES:
      found = re.fullmatch(pattern, module)
      if not found:
        continue
      if kind in ("heads", "qkv", "unheads", "bias table"):
        block = next(group for group in found.groups() if group)
        ours = ours.replace(r"\1", block)
      leaves = self._leaves(
        kind, int(block) if kind in ("heads", "qkv", "unheads") else 0
      )
      if leaf in leaves:
        base = found.expand(ours)
        if isinstance(self.method, VAPT) and "deep_prompt" in module:
          blocks = range(self.method.static_layers, self.method.spec.depth)
          i = int(found[1]) + self.offset if found[1] else blocks.stop - 1
          if i not in blocks:
            return []
          base = base.format(i=i)
        if leaf.startswith("running_"):
          base = STATS + base
        out = [Place(f"{base}/{name}", take) for name, take in leaves[leaf]]
        if isinstance(self.method, Below) and (kind, leaf) == (
          "conv",
          "weight",
        ):
          out.append(
            Place(
              "method/embedding/kernel",
              lambda x: x.transpose(2, 3, 1, 0)[:, :, 3:],
            )
          )
        return out
    raise ValueError(f"no rule for the reference's parameter {whole!r}")

  def _deep_prompts(self) -> list[Place]:
    """The later sets of prompts; sets beyond the last block are never read."""
    first, sets = 1, 1
    if isinstance(self.method, VAPT):
      sets = self.method.static_layers
    elif isinstance(self.method, Add):
      sets = self.method.spec.depth
    elif isinstance(self.method, VPT) and not self.method.shared:
      first, sets = int(not self.method.reverse), len(self.method.prompted)
    if first == sets:
      return []
    return [Place("method/prompt", lambda x: x[: sets - first], first, sets)]

  def cancels(self, key: str) -> bool:
    """Whether this tensor's gradient is zero in theory.

    A key's bias adds the same to all logits of a query's softmax, and a
    LayerNorm removes what a generator's bias adds to all channels.
    """
    if getattr(self.method, "projector", "") == "none" and re.search(
      r"deep_prompt_downsample\.\d+\.(linear\.)?bias$", key
    ):
      return True
    return key.endswith(("attn.key.bias", "/key/bias)"))

  def parameters(self, arrays: Arrays) -> trees.Flat:
    """Our flat parameters from a reference's `state_dict`."""
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for key, array in arrays.items():
      for place in self.places(key):
        parts.setdefault(place.path, []).append(
          (place.start, place.take(array))
        )
    flat = {}
    for path, found in parts.items():
      found = [array for _, array in sorted(found, key=lambda part: part[0])]
      if path == "backbone/cls":
        if len(found) != 2:
          raise ValueError("cls_token or position_embeddings is missing")
        flat[path] = found[0] + found[1]
      else:
        flat[path] = np.concatenate(found) if len(found) > 1 else found[0]
    return dict(sorted(flat.items()))

  def paths(self, keys: Iterable[str]) -> set[str]:
    """Our paths of these reference tensors."""
    return {place.path for key in keys for place in self.places(key)}

  def pairs(
    self, ours: trees.Flat, theirs: Arrays
  ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(key, our part, the reference's in our layout) for every tensor."""
    for key, array in theirs.items():
      places = self.places(key)
      for place in places:
        if place.path not in ours:
          raise ValueError(
            f"{key!r} is {place.path!r} here, which is not "
            "among the trained parameters"
          )
        label = key if len(places) == 1 else f"{key} ({place.path})"
        yield (
          label,
          np.asarray(ours[place.path])[place.start : place.stop],
          place.take(array),
        )
