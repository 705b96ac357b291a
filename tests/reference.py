"""Golden fixtures, and the reference's parameters under our names.

A fixture is one `.npz`: `param/` is the `state_dict` of a published PyTorch
model, `input/` and `out/` are what went in and came out, `grad/` the gradients,
and `meta` a JSON string with the reference's options. `options.py` builds the
same model from the options, `parity.py` compares the results.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import json
import os
import re
from typing import Any

import numpy as np

from vpt_jax import tree
from vpt_jax.methods.base import Method
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT

Arrays = dict[str, np.ndarray]


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
  return {key[len(prefix):]: value for key, value in arrays.items()
          if key.startswith(prefix)}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a part of a reference tensor is in our tree.

  Attributes:
    path: of our leaf.
    take: reference tensor -> what is at `path[start:stop]`.
    start, stop: rows of the leaf.
  """

  path: str
  take: Callable[[np.ndarray], np.ndarray] = lambda x: x
  start: int = 0
  stop: int | None = None


_BLOCK = r"transformer\.encoder\.layer\.(\d+)\."
_OURS = r"backbone/Transformer/encoderblock_\1/"
_GENERATOR = r"method/generator_{i}/"
# Modules: (name in the reference, ours, kind); `{i}` is the number of the
# generated block, the reference counts them from the first generated one.
MODULES = (
    (r"transformer\.embeddings\.patch_embeddings", "backbone/embedding",
     "conv"),
    (_BLOCK + "attention_norm", _OURS + "LayerNorm_0", "norm"),
    (_BLOCK + r"attn\.(query|key|value)",
     _OURS + r"MultiHeadDotProductAttention_0/\2", "heads"),
    (_BLOCK + r"attn\.out", _OURS + "MultiHeadDotProductAttention_0/out",
     "unheads"),
    (_BLOCK + "ffn_norm", _OURS + "LayerNorm_1", "norm"),
    (_BLOCK + r"ffn\.fc1", _OURS + "MlpBlock_0/Dense_0", "dense"),
    (_BLOCK + r"ffn\.fc2", _OURS + "MlpBlock_0/Dense_1", "dense"),
    (r"transformer\.encoder\.encoder_norm",
     "backbone/Transformer/encoder_norm", "norm"),
    (r"transformer\.prompt_proj", "method/projection", "dense"),
    (r"transformer\.deep_prompt_norm\.(\d+)", _GENERATOR + "norm", "norm"),
    (r"transformer\.deep_prompt_downsample\.(\d+)(?:\.linear)?",
     _GENERATOR + "tokens", "dense"),
    (r"transformer\.deep_prompt_downsample\.(\d+)\.conv", _GENERATOR[:-1],
     "depthwise"),
    (r"transformer\.deep_prompt_embeddings_mlp()\.block\.0",
     "method/project_shared/down", "dense"),
    (r"transformer\.deep_prompt_embeddings_mlp()\.block\.2",
     "method/project_shared/up", "dense"),
    (r"transformer\.deep_prompt_embeddings_mlp()", "method/project_shared",
     "scale"),
    (r"transformer\.deep_prompt_embeddings_mlp\.(\d+)\.block\.0",
     "method/project_{i}/down", "dense"),
    (r"transformer\.deep_prompt_embeddings_mlp\.(\d+)\.block\.2",
     "method/project_{i}/up", "dense"),
    (r"transformer\.deep_prompt_embeddings_mlp\.(\d+)", "method/project_{i}",
     "scale"),
    (r"head(?:\.last_layer)?", "head", "dense"),
)


class Names:
  """Maps keys of a reference's `state_dict` to places in our tree.

  Attributes:
    method: our method, None if only the backbone is of interest.
    offset: the first generator's block (`VPT_DEPTH` of VAPT's options).
  """

  def __init__(self, num_heads: int, method: Method | None = None,
               offset: int = 0):
    self.method, self.offset = method, offset
    same = lambda x: x
    # kind -> {leaf in the reference: (ours, transform)}
    self.leaves = {
        "norm": {"weight": ("scale", same), "bias": ("bias", same)},
        "dense": {"weight": ("kernel", np.transpose), "bias": ("bias", same)},
        "conv": {"weight": ("kernel", lambda x: x.transpose(2, 3, 1, 0)),
                 "bias": ("bias", same)},
        "heads": {
            "weight": ("kernel",
                       lambda x: x.T.reshape(x.shape[1], num_heads, -1)),
            "bias": ("bias", lambda x: x.reshape(num_heads, -1))},
        "unheads": {
            "weight": ("kernel",
                       lambda x: x.T.reshape(num_heads, -1, len(x))),
            "bias": ("bias", same)},
        "depthwise": {
            "kernel": ("kernel", lambda x: x[:, 0].transpose(1, 2, 0))},
        "scale": {"scale": ("scale", same)},
    }

  def places(self, key: str) -> list[Place]:
    """Where a reference tensor is; [] if the reference never reads it.

    Raises:
      ValueError: no such tensor is known.
    """
    whole, key = key, key.removeprefix("enc.")
    if key == "transformer.embeddings.cls_token":
      return [Place("backbone/cls")]
    if key == "transformer.embeddings.position_embeddings":
      # Ours has the class token's position in the class token itself.
      return [Place("backbone/cls", lambda x: x[:, :1]),
              Place("backbone/pos_embedding", lambda x: x[:, 1:])]
    if key == "transformer.prompt_embeddings":
      return [Place("method/prompt", stop=1)]
    if key == "transformer.deep_prompt_embeddings":
      return self._deep_prompts()
    module, _, leaf = key.rpartition(".")
    for pattern, ours, kind in MODULES:
      found = re.fullmatch(pattern, module)
      if found and leaf in self.leaves[kind]:
        name, take = self.leaves[kind][leaf]
        path = f"{found.expand(ours)}/{name}"
        if isinstance(self.method, VAPT) and "deep_prompt" in module:
          blocks = range(self.method.static_layers, self.method.layout.depth)
          block = int(found[1]) + self.offset if found[1] else blocks.stop - 1
          if block not in blocks:
            return []
          path = path.format(i=block)
        return [Place(path, take)]
    raise ValueError(f"no rule for the reference's parameter {whole!r}")

  def _deep_prompts(self) -> list[Place]:
    """The later sets of prompts; sets beyond the last block are never read."""
    first, sets = 1, 1
    if isinstance(self.method, VAPT):
      sets = self.method.static_layers
    elif isinstance(self.method, VPT) and not self.method.shared:
      first, sets = int(not self.method.reverse), len(self.method.prompted)
    if first == sets:
      return []
    return [Place("method/prompt", lambda x: x[:sets - first],
                  first, sets)]

  def cancels(self, key: str) -> bool:
    """Whether this tensor's gradient is zero in theory.

    A key's bias adds the same to all logits of a query's softmax, and a
    LayerNorm removes what a generator's bias adds to all channels.
    """
    if getattr(self.method, "projector", "") == "none" and re.search(
        r"deep_prompt_downsample\.\d+\.(linear\.)?bias$", key):
      return True
    return key.endswith("attn.key.bias")

  def parameters(self, arrays: Arrays) -> tree.Flat:
    """Our flat parameters from a reference's `state_dict`."""
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for key, array in arrays.items():
      for place in self.places(key):
        parts.setdefault(place.path, []).append(
            (place.start, place.take(array)))
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

  def pairs(self, ours: tree.Flat, theirs: Arrays
            ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(key, our part, the reference's in our layout) for every tensor."""
    for key, array in theirs.items():
      for place in self.places(key):
        if place.path not in ours:
          raise ValueError(f"{key!r} is {place.path!r} here, which is not "
                           "among the trained parameters")
        yield (key, np.asarray(ours[place.path])[place.start:place.stop],
               place.take(array))
