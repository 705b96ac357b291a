"""Translates checkpoints of any known layout; see `name_maps.py`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import re

import numpy as np

from vpt_jax.weights.name_maps import (
  BESIDE,
  CLASSIFIER,
  HEADS,
  LAYOUTS,
  POOLING,
  Rule,
  WRAPPERS,
)

Arrays = dict[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]

# Of several networks in one file, which is not the published backbone.
_SECOND = re.compile(r"momentum|student|ema|optimizer|opt/(?!target)")
# Which is none, even if it is the only one.
_NEVER = re.compile(r"momentum|(^|/)opt(imizer)?/(?!target)")
# What a prefix may end with that stands before the encoder's names alone, while
# the head is beside it.
_ENCODER = re.compile(r"(backbone|vit|deit|swin|encoder)[./]$")
# Swin's `layers.S.blocks.B.REST` and `layers.S.downsample.REST`.
_STAGED = re.compile(
  r"(?P<encoder>(?:encoder\.)?)layers\.(?P<stage>\d+)\."
  r"(?P<kind>blocks|downsample)(?:\.(?P<block>\d+))?\.(?P<rest>.*)"
)

_MOST_BLOCKS = 1000  # of a sound file; a name each for millions is an attack


def _unchanged(x: np.ndarray) -> np.ndarray:
  """Returns the array as it is."""
  return x


def _from_conv(x: np.ndarray) -> np.ndarray:
  """Returns PyTorch's kernel [out, in, h, w] as [h, w, in, out]."""
  return x.transpose(2, 3, 1, 0)


# {kind of module: {leaf: (our leaf, transform)}}
_LEAVES: dict[str, dict[str, tuple[str, Transform]]] = {
  "norm": {"weight": ("scale", _unchanged), "bias": ("bias", _unchanged)},
  "dense": {"weight": ("kernel", np.transpose), "bias": ("bias", _unchanged)},
  "conv": {"weight": ("kernel", _from_conv), "bias": ("bias", _unchanged)},
}


@dataclasses.dataclass(frozen=True)
class Translated:
  """A checkpoint under our names.

  Attributes:
    arrays: our name -> array; attention's kernels may still be [D, D].
    layout: name of the layout found.
    origin: our name -> the file's.
    ignored: the file's names of what changes no output of a backbone.
    heads: the file's names of heads that are left out.
  """

  arrays: Arrays
  layout: str
  origin: dict[str, str]
  ignored: list[str]
  heads: list[str]


def translate(
  flat: Mapping[str, np.ndarray], may_pool: bool = False
) -> Translated:
  """Finds the layout of a checkpoint and renames its arrays.

  Args:
    flat: name -> array, as `file_formats.read` gives it; wrappers such as
      `model/` or `module.base_encoder.` may stand before the names.
    may_pool: the user chose how features are pooled, so that the network's own
      pooling may be ignored.

  Raises:
    ValueError: no known layout, or two arrays would get one name.
  """
  flat = dict(_unstacked(flat))
  layout, prefix, rules = _find_layout(flat)
  sorted_names = _names_of_network(flat, prefix)
  names = sorted_names.network
  ignored = sorted_names.ignored
  heads = sorted_names.heads
  short_names = _without_stages(list(names.values()))
  arrays: Arrays = {}
  origin: dict[str, str] = {}
  for name, short in zip(names, short_names, strict=True):
    renamed = _rename(short, flat[name], rules, may_pool)
    if renamed is None and _is_head(short):
      heads.append(name)
      continue
    if renamed == []:
      ignored.append(name)
    # What no rule knows keeps its name, for `load.restore` to refuse.
    if renamed is None:
      renamed = [(short, flat[name])]
    for path, array in renamed:
      if path in arrays:
        raise ValueError(
          f"the checkpoint holds {path!r} twice, in two layouts "
          f"({origin[path]!r} and {name!r}); it was put "
          "together wrongly"
        )
      arrays[path] = array
      origin[path] = name
  _take_classifier(heads, flat, arrays, origin)
  _undo_weight_norm(arrays)
  _add_batch_axis(arrays)
  return Translated(arrays, layout, origin, ignored, heads)


@dataclasses.dataclass(frozen=True)
class _Names:
  """The names in a file.

  Attributes:
    network: {name: without what stands before it} of the network and of what
      nobody knows.
    ignored: of other networks and of what only training needs.
    heads: of heads that stand beside it.
  """

  network: dict[str, str]
  ignored: list[str]
  heads: list[str]


def _names_of_network(flat: Mapping[str, np.ndarray], prefix: str) -> _Names:
  """Returns the names, by what they belong to."""
  # What belongs to the same model but stands beside its encoder.
  base = _ENCODER.sub("", prefix)
  found = _Names({}, [], [])
  for name in sorted(flat):
    if name.startswith(prefix):
      found.network[name] = name.removeprefix(prefix)
    elif _stands_beside(name, prefix, BESIDE):
      found.ignored.append(name)
    elif name.startswith(base):
      found.network[name] = name.removeprefix(base)
    elif _stands_beside(name, prefix, HEADS) and not _pools(name):
      found.heads.append(name)
    else:
      found.network[name] = name
  return found


def _stands_beside(name: str, prefix: str, words: str) -> bool:
  """Returns whether one of the words stands first in a name.

  Args:
    name: in the file, outside of the network.
    prefix: what stands before the network's names; its parts, and others that
      only wrap, may stand before the word.
    words: regular expression.
  """
  of_prefix = re.split("[./]", prefix)
  wrappers = {*WRAPPERS, *of_prefix}
  # vision_transformer saves a tuple of parameters, optimizer and step.
  is_in_tuple = of_prefix[0].isdigit()
  for part in re.split("[./]", name):
    if re.fullmatch(words, part):
      return True
    if part not in wrappers and not (is_in_tuple and part.isdigit()):
      return False
  return is_in_tuple and name.isdigit()


def _is_head(name: str) -> bool:
  """Returns whether an array is of a head, by its name without prefix."""
  first, _, rest = name.partition(".")
  return bool(rest and re.fullmatch(HEADS, first) and not _pools(rest))


def _pools(name: str) -> bool:
  """Returns whether an array is of an attention that pools."""
  return re.fullmatch(POOLING, name) is not None


def _take_classifier(
  heads: list[str],
  flat: Mapping[str, np.ndarray],
  arrays: Arrays,
  origin: dict[str, str],
) -> None:
  """Moves the one dense classifier among the heads to `head/`, in place.

  Several make an MLP or belong to several tasks; they stay left out.
  """
  if "head/kernel" in arrays:
    return
  modules = []
  for name in heads:
    module, _, leaf = name.rpartition(".")
    is_dense = f"{module}.bias" in flat and flat[name].ndim == 2
    is_classifier = re.search(rf"(?:^|[./]){CLASSIFIER}$", module)
    if leaf == "weight" and is_dense and is_classifier:
      modules.append(module)
  if len(modules) != 1:
    return
  (module,) = modules
  for leaf, path in (("weight", "head/kernel"), ("bias", "head/bias")):
    name = f"{module}.{leaf}"
    heads.remove(name)
    arrays[path] = flat[name].T
    origin[path] = name


def _find_layout(
  flat: Mapping[str, np.ndarray],
) -> tuple[str, str, tuple[Rule, ...]]:
  """Returns (layout, what stands before its names, rules).

  Raises:
    ValueError: no known layout, or no network that is a published backbone.
  """
  for layout, marker, rules in LAYOUTS:
    prefixes = []
    for name in flat:
      if name == marker or name.endswith((f"/{marker}", f".{marker}")):
        prefixes.append(name.removesuffix(marker))
    if not prefixes:
      continue
    prefix = min(prefixes, key=_preference)
    if _NEVER.search(prefix):
      raise ValueError(
        f"all that it holds is {prefix!r}, which is no "
        "published backbone but a momentum encoder or an "
        "optimizer's state"
      )
    return layout, prefix, rules
  some = ", ".join(sorted(flat)[:4])
  known = ", ".join(layout for layout, _, _ in LAYOUTS)
  raise ValueError(
    f"the names in it are of no known layout (it begins with {some}); known: "
    f"{known}. Is it another kind of model (a ResNet, say) or only an "
    "optimizer's state?"
  )


def _preference(prefix: str) -> tuple[bool, int, str]:
  """Returns a key that is smallest for the published network of several."""
  return bool(_SECOND.search(prefix)), len(prefix), prefix


def _unstacked(
  flat: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the items; [L, ...] arrays of a scan over blocks as L arrays."""
  for name, array in flat.items():
    before, scan, rest = name.partition("Transformer/encoderblock/")
    if scan and array.ndim and len(array) <= _MOST_BLOCKS:
      for i, part in enumerate(array):
        yield f"{before}Transformer/encoderblock_{i}/{rest}", part
    else:
      yield name, array


def _without_stages(names: list[str]) -> list[str]:
  """Returns names whose blocks are counted over all of Swin's stages.

  `layers.S.blocks.B.` becomes `blocks.I.`. `layers.S.downsample.` becomes
  `merge.I.`, I being the block after it. It is at the end of its stage in the
  original files, at the start in timm's.
  """
  matches = [_STAGED.match(name) for name in names]
  starts, at_end = _stage_starts(matches)
  out = []
  for name, match in zip(names, matches, strict=True):
    if not match:
      out.append(name)
      continue
    stage = int(match["stage"])
    rest = match["rest"]
    if match["kind"] == "downsample":
      following = stage + 1 if at_end else stage
      # A file that is cut may lack the stage that follows.
      out.append(f"merge.{starts[following]}.{rest}")
    else:
      block = starts[stage] + int(match["block"])
      before = "encoder.layer" if match["encoder"] else "blocks"
      out.append(f"{before}.{block}.{rest}")
  return out


def _stage_starts(
  matches: Iterable[re.Match[str] | None],
) -> tuple[dict[int, int], bool]:
  """Returns ({stage: its first block}, whether merges end their stages)."""
  depths: dict[int, int] = {}
  stages = set()
  at_end = False
  for match in matches:
    if not match:
      continue
    stage = int(match["stage"])
    stages |= {stage, stage + 1}
    if match["kind"] == "downsample":
      at_end = at_end or stage == 0
    else:
      block = int(match["block"])
      depths[stage] = max(depths.get(stage, 0), block + 1)
  starts = {}
  for stage in stages:
    before = [depth for other, depth in depths.items() if other < stage]
    starts[stage] = sum(before)
  return starts, at_end


def _rename(
  name: str, array: np.ndarray, rules: tuple[Rule, ...], may_pool: bool
) -> list[tuple[str, np.ndarray]] | None:
  """Returns (path, array) of one tensor, three of a fused one.

  Returns:
    [] if it is not needed; None if no rule knows it.
  """
  module, _, leaf = name.replace("in_proj_", "in_proj.").rpartition(".")
  for pattern, replacement, kind in rules:
    whole = kind in ("array", "ignore", "pooling")
    match = re.fullmatch(pattern, name if whole else module)
    if not match:
      continue
    if kind == "ignore" or (kind == "pooling" and may_pool):
      return []
    if kind == "pooling":
      return [(name, array)]
    if kind == "array":
      return [(match.expand(replacement), array)]
    if leaf not in ("weight", "bias"):
      continue
    if kind == "conv" and leaf == "weight" and array.ndim != 4:
      continue
    if kind == "qkv" and len(array) % 3:
      continue
    new_leaf, transform = _LEAVES["dense" if kind == "qkv" else kind][leaf]
    path = match.expand(replacement)
    if kind != "qkv":
      return [(f"{path}/{new_leaf}", transform(array))]
    query, key, value = np.split(array, 3)
    return [
      (f"{path}/query/{new_leaf}", transform(query)),
      (f"{path}/key/{new_leaf}", transform(key)),
      (f"{path}/value/{new_leaf}", transform(value)),
    ]
  return None


def _undo_weight_norm(arrays: Arrays) -> None:
  """Replaces g and v of DINO's last layer by its kernel, in place.

  The weights are g v / |v|; the kernel is their transpose.
  """
  v = arrays.pop("projection/prototypes/v", None)
  g = arrays.pop("projection/prototypes/g", None)
  if v is None or v.ndim != 2:
    return
  weights = v / np.linalg.norm(v, axis=1, keepdims=True)
  if g is not None:
    weights = weights * g
  arrays["projection/prototypes/kernel"] = weights.T


def _add_batch_axis(arrays: Arrays) -> None:
  """Makes [1, 1, D] and [1, T, D] of CLIP's [D] and [T, D], in place.

  These are its class token and its positions.
  """
  for name in ("cls", "pos_embedding"):
    if name in arrays and arrays[name].ndim < 3:
      array = arrays[name]
      width = array.shape[-1] if array.ndim else 1
      arrays[name] = array.reshape(1, -1, width)
