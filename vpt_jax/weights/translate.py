"""Checkpoints of any known layout under our names; see `layouts.py`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import math
import re

import numpy as np

from vpt_jax.weights.name_maps import LAYOUTS, Rule

Arrays = dict[str, np.ndarray]

# Of several networks in one file, which is the published backbone.
_SECOND = re.compile(r"momentum|student|ema|optimizer|opt/(?!target)")
# Which is none, even if it is the only one.
_NEVER = re.compile(r"momentum|(^|/)opt(imizer)?/(?!target)")

_MOST_BLOCKS = 1000  # of a sound file; a name each for millions is an attack

_SAME: Callable[[np.ndarray], np.ndarray] = lambda x: x
# kind -> {leaf: (our leaf, transform)}
_LEAVES = {
  "norm": {"weight": ("scale", _SAME), "bias": ("bias", _SAME)},
  "dense": {"weight": ("kernel", np.transpose), "bias": ("bias", _SAME)},
  "conv": {
    "weight": ("kernel", lambda x: x.transpose(2, 3, 1, 0)),
    "bias": ("bias", _SAME),
  },
}


@dataclasses.dataclass(frozen=True)
class Translated:
  """A checkpoint under our names.

  Attributes:
    arrays: our name -> array; attention's kernels may still be [D, D].
    layout: name of the layout found.
    origin: our name -> the file's.
    ignored: the file's names of what a backbone does not need.
  """

  arrays: Arrays
  layout: str
  origin: dict[str, str]
  ignored: list[str]


def translate(flat: Mapping[str, np.ndarray]) -> Translated:
  """Finds the layout of a checkpoint and renames it.

  Args:
    flat: name -> array, as `formats.read` gives it; wrappers such as `model/`
      or `module.base_encoder.` may stand before the names.

  Raises:
    ValueError: no known layout, or two arrays would get one name.
  """
  flat = dict(_unstacked(flat))
  layout, prefix, rules = _find(flat)
  # What belongs to the same model but stands beside its encoder.
  base = re.sub(r"(backbone|vit|deit|swin|encoder)[./]$", "", prefix)
  own, ignored = {}, []
  for name in sorted(flat):
    place = next((p for p in (prefix, base) if name.startswith(p)), None)
    if place is None or (place == base != prefix and _SECOND.search(name)):
      ignored.append(name)
    else:
      own[name] = name.removeprefix(place)
  own = dict(zip(own, _flat_stages(own.values())))
  arrays, origin = {}, {}
  for name, short in own.items():
    for ours, array in _rename(short, flat[name], rules):
      if not ours:
        ignored.append(name)
      elif ours in arrays:
        raise ValueError(
          f"the checkpoint holds {ours!r} twice, in two layouts "
          f"({origin[ours]!r} and {name!r}); it was put "
          "together wrongly"
        )
      else:
        arrays[ours], origin[ours] = array, name
  return Translated(
    _with_batch_axis(_prototypes(arrays)), layout, origin, ignored
  )


def _find(flat: Mapping[str, np.ndarray]) -> tuple[str, str, tuple[Rule, ...]]:
  """(layout, what stands before its names, rules)."""
  for layout, marker, rules in LAYOUTS:
    found = [
      name.removesuffix(marker)
      for name in flat
      if name == marker or name.endswith((f"/{marker}", f".{marker}"))
    ]
    if found:
      prefix = min(
        found,
        key=lambda prefix: (bool(_SECOND.search(prefix)), len(prefix), prefix),
      )
      if _NEVER.search(prefix):
        raise ValueError(
          f"all that it holds is {prefix!r}, which is no "
          "published backbone but a momentum encoder or an "
          "optimizer's state"
        )
      return layout, prefix, rules
  some = ", ".join(sorted(flat)[:4])
  raise ValueError(
    f"the names in it are of no known layout (it begins with {some}); known: "
    f"{', '.join(layout for layout, _, _ in LAYOUTS)}. Is it another kind of "
    "model (a ResNet, say) or only an optimizer's state?"
  )


def _unstacked(
  flat: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
  """Items of `flat`; [L, ...] arrays of a scan over blocks as L arrays."""
  for name, array in flat.items():
    before, scan, rest = name.partition("Transformer/encoderblock/")
    if scan and array.ndim and len(array) <= _MOST_BLOCKS:
      for i, part in enumerate(array):
        yield f"{before}Transformer/encoderblock_{i}/{rest}", part
    else:
      yield name, array


def _flat_stages(names: Iterable[str]) -> list[str]:
  """Swin's `layers.S.blocks.B.` -> `blocks.I.`, counted over all stages.

  `layers.S.downsample.` becomes `merge.I.`, I being the block after it. It is
  at the end of its stage in the original files, at the start in timm's.
  """
  names = list(names)
  found = [
    re.match(
      r"((?:encoder\.)?)layers\.(\d+)\.(blocks|downsample)"
      r"(?:\.(\d+))?\.(.*)",
      name,
    )
    for name in names
  ]
  depths: dict[int, int] = {}
  for match in found:
    if match and match[3] == "blocks":
      s, b = int(match[2]), int(match[4])
      depths[s] = max(depths.get(s, 0), b + 1)
  at_end = any(m and m[3] == "downsample" and m[2] == "0" for m in found)
  start = lambda s: sum(depth for t, depth in depths.items() if t < s)
  out = []
  for name, match in zip(names, found):
    if not match:
      out.append(name)
      continue
    encoder, s, rest = match[1], int(match[2]), match[5]
    if match[3] == "downsample":
      out.append(f"merge.{start(s + at_end)}.{rest}")
    else:
      block = "encoder.layer" if encoder else "blocks"
      out.append(f"{block}.{start(s) + int(match[4])}.{rest}")
  return out


def _rename(
  name: str, array: np.ndarray, rules: tuple[Rule, ...]
) -> Iterator[tuple[str, np.ndarray]]:
  """Our (name, array) of one tensor; ("", array) if it is not needed."""
  module, _, leaf = name.replace("in_proj_", "in_proj.").rpartition(".")
  for pattern, ours, kind in rules:
    if kind in ("array", "ignore"):
      match = re.fullmatch(pattern, name)
      if match:
        yield ("" if kind == "ignore" else match.expand(ours)), array
        return
      continue
    match = re.fullmatch(pattern, module)
    if not match or leaf not in ("weight", "bias"):
      continue
    ours = match.expand(ours)
    if kind == "qkv":
      to, transform = _LEAVES["dense"][leaf]
      if len(array) % 3:
        continue
      for part, third in zip(("query", "key", "value"), np.split(array, 3)):
        yield f"{ours}/{part}/{to}", transform(third)
    elif kind == "conv" and leaf == "weight" and array.ndim != 4:
      continue
    else:
      to, transform = _LEAVES[kind][leaf]
      yield f"{ours}/{to}", transform(array)
    return
  yield name, array


def _prototypes(arrays: Arrays) -> Arrays:
  """Undoes the weight norm of DINO's last layer: w = g v / |v|."""
  v, g = (arrays.pop(f"projection/prototypes/{x}", None) for x in "vg")
  if v is not None and v.ndim == 2:
    v = v / np.linalg.norm(v, axis=1, keepdims=True) * (1.0 if g is None else g)
    arrays["projection/prototypes/kernel"] = v.T
  return arrays


def _with_batch_axis(arrays: Arrays) -> Arrays:
  """CLIP's class token [D] and positions [T, D] as [1, 1, D] and [1, T, D]."""
  for name in ("cls", "pos_embedding"):
    if name in arrays and arrays[name].ndim < 3:
      array = arrays[name]
      arrays[name] = array.reshape(1, -1, array.shape[-1] if array.ndim else 1)
  return arrays


def split_class_position(
  found: Translated, grid: tuple[int, int] | None
) -> Arrays:
  """Adds the class token's position, the first of 1 + n n, to the token.

  Args:
    found: the checkpoint.
    grid: of the backbone; where big_vision has its positions today, just as
      many have none for the class token (5 x 10 is 1 + 7 x 7).

  Raises:
    ValueError: n n positions in a layout that has the class token's as well.
  """
  arrays = found.arrays
  cls, table = arrays.get("cls"), arrays.get("pos_embedding")
  if cls is None or table is None or table.ndim != 3:
    return arrays
  name, count = found.origin["pos_embedding"], table.shape[1]
  always = found.layout != "big_vision" or "posembed_input" in name
  if (
    not always
    and grid
    and count == math.prod(grid)
    and not ("Transformer/" in name and side(count - 1))
  ):
    return arrays
  first, rest = table[:, :1], table[:, 1:]
  if cls.shape == first.shape and side(count - 1):
    return arrays | {"cls": cls + first, "pos_embedding": rest}
  if always and side(count):
    raise ValueError(
      f"its {count} positions are not the class token's and "
      "those of an n x n grid"
    )
  return arrays


def side(count: int) -> int:
  """n if count is n n, else 0."""
  n = math.isqrt(count)
  return n if n * n == count else 0
