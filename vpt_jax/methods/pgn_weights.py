"""The released generators of Prompt Generation Networks, under our names."""

from collections.abc import Mapping
import re

import numpy as np

from vpt_jax.utils import trees

_LIBRARY = "tl_vectors"

# (module in the file, ours), regular expressions that match all of the name.
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
# (leaf, number of axes) -> (ours, transform), of PyTorch's layouts.
_PARAMS = {
  ("weight", 4): ("kernel", lambda x: x.transpose(2, 3, 1, 0)),
  ("weight", 2): ("kernel", np.transpose),
  ("weight", 1): ("scale", lambda x: x),
  ("bias", 1): ("bias", lambda x: x),
}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def load_generator(
  flat: Mapping[str, np.ndarray],
) -> tuple[trees.Flat, trees.Flat]:
  """(parameters, batch statistics) of PGN from a published file.

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
  found = [
    name.removesuffix(_LIBRARY)
    for name in flat
    if re.fullmatch(rf"(.*[./])?{_LIBRARY}", name)
  ]
  if len(found) != 1:
    raise ValueError(
      f"expected the weights of one prompt generation network, with one "
      f"{_LIBRARY!r}; found {len(found)} among {', '.join(sorted(flat)[:4])}"
      " ..."
    )
  params, statistics = {"library": flat[found[0] + _LIBRARY]}, {}
  for name, array in flat.items():
    short = name.removeprefix(found[0])
    module, _, leaf = _counted(short).rpartition(".")
    if (
      short == _LIBRARY
      or leaf == "num_batches_tracked"
      or not name.startswith(found[0] + "model.")
    ):
      continue
    ours = next(
      (
        match.expand(ours)
        for pattern, ours in _RULES
        if (match := re.fullmatch(pattern, module))
      ),
      "",
    )
    if ours and leaf in _STATISTICS:
      statistics[f"generator/{ours}/{_STATISTICS[leaf]}"] = array
    elif ours and (leaf, array.ndim) in _PARAMS:
      to, transform = _PARAMS[leaf, array.ndim]
      params[f"generator/{ours}/{to}"] = transform(array)
    else:
      raise ValueError(
        f"{name!r} {array.shape} is no known part of a prompt "
        "generation network (resnet10 or resnet18)"
      )
  return params, statistics


def _counted(name: str) -> str:
  """ResNet18's `model.layerG.B.` as `model.blocks.I.`."""
  return re.sub(
    r"^model\.layer(\d)\.(\d)\.",
    lambda match: f"model.blocks.{2 * int(match[1]) - 2 + int(match[2])}.",
    name,
  )
