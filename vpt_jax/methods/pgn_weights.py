"""Reads released generators of Prompt Generation Networks."""

from collections.abc import Iterable, Mapping
import re

import numpy as np

from vpt_jax.utils import trees

_LIBRARY = "tl_vectors"

# (module in the file, its path here): regular expressions that match all of the
# name.
_RULES = (
  (r"model\.(?:input_net\.0|conv1)", r"stem"),
  (r"model\.(?:input_net\.1|bn1)", r"stem_norm"),
  (r"model\.(?:output_net\.2|fc)", r"out"),
  (r"model\.blocks\.(\d+)\.net\.0", r"block_\1/conv_0"),
  (r"model\.blocks\.(\d+)\.net\.1", r"block_\1/norm_0"),
  (r"model\.blocks\.(\d+)\.net\.3", r"block_\1/conv_1"),
  (r"model\.blocks\.(\d+)\.net\.4", r"block_\1/norm_1"),
  (r"model\.blocks\.(\d+)\.downsample", r"block_\1/shortcut"),
  # Torchvision's ResNet18, its blocks counted over all groups.
  (r"model\.blocks\.(\d+)\.conv1", r"block_\1/conv_0"),
  (r"model\.blocks\.(\d+)\.bn1", r"block_\1/norm_0"),
  (r"model\.blocks\.(\d+)\.conv2", r"block_\1/conv_1"),
  (r"model\.blocks\.(\d+)\.bn2", r"block_\1/norm_1"),
  (r"model\.blocks\.(\d+)\.downsample\.0", r"block_\1/shortcut"),
  (r"model\.blocks\.(\d+)\.downsample\.1", r"block_\1/shortcut_norm"),
)
# (leaf, number of axes) -> (its name here, order of the axes), of PyTorch's
# layouts.
_PARAMS = {
  ("weight", 4): ("kernel", (2, 3, 1, 0)),
  ("weight", 2): ("kernel", (1, 0)),
  ("weight", 1): ("scale", (0,)),
  ("bias", 1): ("bias", (0,)),
}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def load_generator(
  flat: Mapping[str, np.ndarray],
) -> tuple[trees.Flat, trees.Flat]:
  """Returns (parameters, batch statistics) of PGN from a published file.

  Args:
    flat: name -> array of the file, in PyTorch's layouts. All names of the
      generator may have one prefix, as `state_dict/pgn_module.`; what has
      another one is not read.

  Returns:
    Flat trees: `library`, `generator/stem/kernel` ..., `generator/stem_norm/
    mean` ...

  Raises:
    ValueError: not one generator, or with parts that are not known.
  """
  prefix = _prefix(flat)
  params = {"library": flat[prefix + _LIBRARY]}
  statistics = {}
  for name, array in flat.items():
    if not name.startswith(prefix + "model."):
      continue
    short = _with_counted_blocks(name.removeprefix(prefix))
    module, _, leaf = short.rpartition(".")
    if leaf == "num_batches_tracked":
      continue
    path = _path(module)
    if path and leaf in _STATISTICS:
      statistics[f"generator/{path}/{_STATISTICS[leaf]}"] = array
    elif path and (leaf, array.ndim) in _PARAMS:
      leaf_here, axes = _PARAMS[leaf, array.ndim]
      params[f"generator/{path}/{leaf_here}"] = array.transpose(axes)
    else:
      raise ValueError(
        f"{name!r} {array.shape} is no known part of a prompt "
        "generation network (resnet10 or resnet18)"
      )
  return params, statistics


def _prefix(names: Iterable[str]) -> str:
  """Returns what all names of the generator begin with.

  Raises:
    ValueError: there is no library of vectors among the names, or several.
  """
  libraries = [
    name for name in names if re.fullmatch(rf"(.*[./])?{_LIBRARY}", name)
  ]
  if len(libraries) != 1:
    raise ValueError(
      f"expected the weights of one prompt generation network, with one "
      f"{_LIBRARY!r}; found {len(libraries)} among "
      f"{', '.join(sorted(names)[:4])} ..."
    )
  return libraries[0].removesuffix(_LIBRARY)


def _path(module: str) -> str:
  """Returns where a module of the file is below `generator/`; "": unknown."""
  for pattern, path in _RULES:
    match = re.fullmatch(pattern, module)
    if match:
      return match.expand(path)
  return ""


def _with_counted_blocks(name: str) -> str:
  """Returns a name of ResNet18, `model.layerG.B.`, as `model.blocks.I.`."""

  def counted(match: re.Match) -> str:
    group = int(match[1])
    number = int(match[2])
    return f"model.blocks.{2 * (group - 1) + number}."

  return re.sub(r"^model\.layer(\d)\.(\d)\.", counted, name)
