"""Converts any published checkpoint to one npz under our names (big_vision's).

python -m vpt_jax.backbones.convert IN --to OUT.npz
"""

import argparse
import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
import re
import sys

import jax.numpy as jnp
import numpy as np

from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.nn import cost
from vpt_jax.ops.gelu import NAMES
from vpt_jax.utils import command_line, trees
from vpt_jax.weights import (
  facts,
  file_formats,
  grids,
  identify,
  load,
  timm_check,
)
from vpt_jax.weights.agreement import Told
from vpt_jax.weights.facts import Facts
from vpt_jax.weights.name_maps import EXTRAS
from vpt_jax.weights.translate import (
  Arrays,
  Translated,
)

DTYPES = {
  "float16": np.float16,
  "bfloat16": jnp.bfloat16,
  "float32": np.float32,
}
TOLERANCE = 1e-3  # Of the largest value.
_FINAL_NORM = "Transformer/encoder_norm/scale"


def convert(
  flat: Mapping[str, np.ndarray],
  source: str,
  backbone: str = "",
  heads: int = 0,
  beside: Sequence[Facts] = (),
  gelu: str = "",
  grid: tuple[int, int] | None = None,
) -> tuple[Arrays, ViT | Swin, Translated, Facts]:
  """Returns the arrays of a file in any known layout under our names.

  Args:
    flat: as `file_formats.read` gives it; of a run's `adapter.npz` too.
    source: name of the file, for errors.
    backbone: see `identify.module_of`.
    heads: see `identify.module_of`.
    beside: what the configs beside the file say.
    gelu: the activation, if the user said it.
    grid: (rows, columns) of the positions, if the user said it.

  Returns:
    (backbone's parameters and extras, a module with these parameters, what was
    found in the file, what the arrays do not say).

  Raises:
    ValueError: unknown layout, or arrays that make no whole backbone.
  """
  flat, left_out = _without_adapter(flat, source)
  try:
    told = Told(gelu=bool(gelu))
    found, known = load.understood(flat, beside, told)
    if gelu:
      known = dataclasses.replace(known, gelu=gelu)
    found.ignored.extend(left_out)
    patch_size = load.patch_size(found.arrays)
    if grid is not None:
      rows, columns = grid
      size = (rows * patch_size, columns * patch_size)
      known = dataclasses.replace(known, image_size=size, source="--grid")
    file_grid = facts.grid_of(known, patch_size)
    arrays = grids.split_class_position(found, None, file_grid)
    grids.check(arrays, file_grid, known.source)
    # Fine-tuned with mean pooling: `load.fit` looks where that norm is to go.
    is_pooled = _FINAL_NORM not in arrays
    own = {}
    extras = {}
    for name, array in arrays.items():
      if name.startswith(EXTRAS):
        extras[name] = array
      elif is_pooled:
        own[name.replace("fc_norm", "encoder_norm")] = array
      else:
        own[name] = array
    module = identify.module_of(own, backbone, heads, known)
  except ValueError as error:
    raise ValueError(f"{source} cannot be converted: {error}") from error
  out = load.restore(own, cost.shapes(module), source)
  if is_pooled:
    out = {
      name.replace("encoder_norm", "fc_norm"): array
      for name, array in out.items()
    }
  arrays = dict(sorted((out | extras).items()))
  return arrays, module, found, _facts(module, known)


def _facts(module: ViT | Swin, known: Facts) -> Facts:
  """Returns what the arrays of a module do not say."""
  heads = module.num_heads if isinstance(module, ViT) else 0
  return Facts(
    gelu=module.gelu,
    eps=module.eps,
    heads=heads,
    image_size=module.image_size if isinstance(module, ViT) else (),
    mean=known.mean,
    std=known.std,
  )


def _without_adapter(
  flat: Mapping[str, np.ndarray], source: str
) -> tuple[Mapping[str, np.ndarray], list[str]]:
  """Returns (backbone and head of a run's adapter, names of all else).

  Other files are not changed.

  Raises:
    ValueError: the run did not train its backbone.
  """
  if "meta" not in flat:
    return flat, []
  kept = {}
  left_out = []
  for name, array in flat.items():
    if name.startswith(("backbone/", "head/")):
      kept[name] = array
    else:
      left_out.append(name)
  if not any(name.startswith("backbone/") for name in kept):
    raise ValueError(
      f"{source} holds no backbone; train it with config.method=full"
    )
  return kept, left_out


def mapping(found: Translated) -> Iterator[str]:
  """Yields what became what, a line for all blocks; then what was ignored."""
  prefix = re.sub(r"[^./]*$", "", _common_prefix(list(found.origin.values())))
  files: dict[str, set[str]] = {}
  # The values of the inner dict mean nothing: its keys are an ordered set.
  paths: dict[str, dict[str, None]] = {}
  for path, name in found.origin.items():
    kind = _starred(name.removeprefix(prefix))
    files.setdefault(kind, set()).add(name)
    paths.setdefault(kind, {})[_starred(path)] = None
  heading = f"layout: {found.layout}"
  if prefix:
    heading += f"; names follow {prefix!r}"
  yield heading
  for kind, names in paths.items():
    merged = _merged(list(names))
    if merged != kind:
      yield f"  {kind} -> {merged}{_times(len(files[kind]))}"
  left_out = found.ignored + found.heads
  ignored = collections.Counter(map(_starred, left_out))
  if ignored:
    yield "ignored:"
  for name, count in ignored.items():
    yield f"  {name}{_times(count)}"


def _common_prefix(names: list[str]) -> str:
  """Returns the characters that all names begin with."""
  first = min(names)
  last = max(names)
  for i, (a, b) in enumerate(zip(first, last, strict=False)):
    if a != b:
      return first[:i]
  return first


def _merged(names: list[str]) -> str:
  """Returns several paths of one length as one: `block/{query,key,value}`."""
  parts = []
  for column in zip(*(name.split("/") for name in names), strict=True):
    different = list(dict.fromkeys(column))
    if len(different) == 1:
      parts.append(different[0])
    else:
      parts.append(f"{{{','.join(different)}}}")
  return "/".join(parts)


def _times(count: int) -> str:
  """Returns how many there are, if there are several."""
  return f"  x{count}" if count > 1 else ""


def _starred(name: str) -> str:
  """Returns the name with numbers of blocks and stages as *."""
  return re.sub(r"(blocks?|layers?|merge)([._])\d+(?=[./])", r"\1\2*", name)


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  out = argparse.ArgumentParser(
    prog="python -m vpt_jax.backbones.convert",
    description=__doc__.splitlines()[0],
  )
  out.add_argument(
    "input",
    metavar="IN",
    help="npz, safetensors, PyTorch or msgpack file, "
    "folder of Orbax or Hugging Face, address, or a run's adapter.npz",
  )
  out.add_argument(
    "--to",
    required=True,
    metavar="OUT.npz",
    help="for config.backbone.checkpoint",
  )
  out.add_argument(
    "--backbone",
    default="",
    metavar="NAME",
    help="entry of `python -m vpt_jax.backbones`, needed where only that tells "
    "the number of heads",
  )
  out.add_argument(
    "--heads",
    type=int,
    default=0,
    metavar="N",
    help="attention heads of a ViT that is no entry",
  )
  out.add_argument(
    "--gelu",
    default="",
    choices=NAMES,
    help="the activation, needed of a CLIP where no config beside IN says it",
  )
  out.add_argument(
    "--grid",
    nargs=2,
    type=int,
    metavar=("ROWS", "COLUMNS"),
    help="of the positions, where they are on no square grid",
  )
  out.add_argument(
    "--dtype",
    choices=DTYPES,
    help="how floats are stored; default: float16 "
    "if that changes no number or IN is an adapter.npz, else float32",
  )
  out.add_argument(
    "--verify",
    action=argparse.BooleanOptionalAction,
    help="compare with timm's model, fed with IN; default: where torch and "
    "timm can",
  )
  return out


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit status.

  Args:
    argv: name of the program, then its arguments.
  """
  args = parser().parse_args(argv[1:])
  return command_line.exit_status(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
  """Writes the npz; prints what became what and the file's sha256."""
  with load.local(args.input, "", None) as path:
    flat = file_formats.read(path)
    arrays, module, found, known = convert(
      flat,
      args.input,
      args.backbone,
      args.heads,
      facts.beside(path),
      args.gelu,
      args.grid,
    )
    for line in mapping(found):
      sys.stdout.write(f"{line}\n")
    verdict = "not verified, as asked for"
    if args.verify is not False:
      verdict = _verdict(path, found, module, arrays, args.verify)
  sys.stdout.write(f"{verdict}\n")
  dtype = args.dtype
  if not dtype:
    is_small = "meta" in flat or _fits_float16(arrays)
    dtype = "float16" if is_small else "float32"
  load.save(args.to, arrays, DTYPES[dtype], known)
  sys.stdout.write(
    f"{args.to}: {trees.count(arrays):,} numbers as {dtype}, "
    f"sha256:{load.sha256(args.to)}\n"
  )
  return 0


def _fits_float16(arrays: Arrays) -> bool:
  """Returns whether float16 changes no number."""
  with np.errstate(over="ignore"):
    for array in arrays.values():
      if not np.array_equal(array, array.astype(np.float16)):
        return False
  return True


def _verdict(
  path: Path,
  found: Translated,
  module: ViT | Swin,
  arrays: Arrays,
  is_required: bool | None,
) -> str:
  """Returns what the comparison with timm says.

  Raises:
    ValueError: they differ, or nothing to compare with where it `is_required`.
  """
  try:
    (file,) = file_formats.files_of(path)
  except ValueError:
    file = path  # Several files, of which timm's check does not know.
  try:
    relative = timm_check.difference(file, found, module, arrays)
  except timm_check.CannotVerify as error:
    if is_required:
      raise ValueError(
        f"cannot verify: {error}; without --verify it is converted all the same"
      ) from error
    return f"not verified: {error}"
  text = (
    f"tokens differ from timm's by {relative:.1e} of the largest, with "
    f"{module.num_heads} heads, {module.gelu} GELU and eps {module.eps} "
    "in both"
  )
  if not relative <= TOLERANCE:  # Nor if it is not a number.
    raise ValueError(
      f"{text}; expected is {TOLERANCE} at most. Nothing was "
      "written: timm reads these names in another way"
    )
  return f"verified: {text}"


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv))
