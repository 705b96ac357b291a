"""Compares a dense head with the published one; names of its parameters."""

from collections.abc import Callable, Iterator
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.parity_report import Report
from tests.reference import Arrays, below
from vpt_jax.nn import dense_heads
from vpt_jax.nn.dense_heads import Design, UpHead
from vpt_jax.problems.semantic_segmentation import Segmentation
from vpt_jax.utils import trees

# Of gradients that are zero in theory, sums over all pixels, to the largest.
_NOISE = 1e-5
_BUFFER = "num_batches_tracked"
_NORM_LEAVES = {
  "weight": "scale",
  "bias": "bias",
  "running_mean": "mean",
  "running_var": "var",
}


# Names of the heads' parameters.


def _kernel(x: np.ndarray) -> np.ndarray:
  """Returns a kernel [out, in, h, w] as [h, w, in, out]."""
  return x.transpose(2, 3, 1, 0)


def _places(key: str, last_convolution: str) -> tuple[str, str]:
  """Returns the module and leaf of a head's parameter under our names.

  Args:
    key: in the reference.
    last_convolution: name there of the classifier.

  Raises:
    ValueError: no such parameter is known.
  """
  module, _, leaf = key.rpartition(".")
  if module == "norm":
    return "norm", _NORM_LEAVES[leaf]
  if module == last_convolution:
    return "classifier", "kernel" if leaf == "weight" else leaf
  convolution = re.fullmatch(r"up_convs\.(\d+)\.0\.conv|conv_(\d+)", module)
  if convolution:
    number = convolution[1] or convolution[2]
    return f"conv_{number}", "kernel" if leaf == "weight" else leaf
  norm = re.fullmatch(r"up_convs\.(\d+)\.0\.bn|syncbn_fc_(\d+)", module)
  if norm:
    return f"norm_{norm[1] or norm[2]}", _NORM_LEAVES[leaf]
  raise ValueError(f"no rule for the head's parameter {key!r}")


def _classifier_of(arrays: Arrays) -> str:
  """Returns the reference's name of the classifier."""
  if "conv_seg.weight" in arrays:
    return "conv_seg"
  numbers = []
  for key in arrays:
    found = re.fullmatch(r"conv_(\d+)\.weight", key)
    if found:
      numbers.append(int(found[1]))
  return f"conv_{max(numbers)}"


def _renamed(arrays: Arrays, classifier: str) -> Iterator[tuple[str, str, Any]]:
  """Yields (their key, our path, array in our layout); buffers are left out."""
  for key, array in arrays.items():
    if key.endswith(_BUFFER):
      continue
    module, leaf = _places(key, classifier)
    value = _kernel(array) if leaf == "kernel" else array
    yield key, f"{module}/{leaf}", value


def variables_of(arrays: Arrays) -> dict[str, Any]:
  """Returns the variables of a head from the reference's `state_dict`."""
  params = {}
  statistics = {}
  for _, path, value in _renamed(arrays, _classifier_of(arrays)):
    is_statistic = path.endswith(("/mean", "/var"))
    part = statistics if is_statistic else params
    part[path] = jnp.asarray(value)
  return {
    "params": trees.unflatten(params),
    "batch_stats": trees.unflatten(statistics),
  }


def compare_named(
  report: Report,
  group: str,
  prefix: str,
  ours: dict[str, Any],
  theirs: Arrays,
  classifier: str,
  floor: Callable[[str], float],
) -> None:
  """Compares a head's gradients, parameters or statistics, every one.

  Args:
    report: gets the rows.
    group: of the rows.
    prefix: of their names.
    ours: a nested tree.
    theirs: by the reference's names.
    classifier: its name there.
    floor: our path -> a difference that is allowed in any case.
  """
  own = trees.flatten(ours)
  for key, path, value in _renamed(theirs, classifier):
    report.add(group, prefix + key, own[path], value, floor(path))


# A head by itself.


def _design(meta: dict[str, Any]) -> Design:
  """Returns the design that a fixture's options of a head describe."""
  head = meta["head"]
  if "num_convs" in head:  # mmsegmentation's
    scales = (head["up_scale"],) * head["num_convs"]
    return Design(scales, 1, use_bias=False)
  layers = head["num_upsampe_layer"]  # sic
  names = {4: "setr_pup", 2: "setr_aux_ade", 1: "setr_aux"}
  return dense_heads.design_of(names[layers])


def _patches(arrays: Arrays) -> tuple[jax.Array, tuple[int, int], str]:
  """Returns (patches [B, N, D], their grid, name of the input)."""
  if "input/tokens" in arrays:
    tokens = arrays["input/tokens"]
    side = int((tokens.shape[1] - 1) ** 0.5)
    return jnp.asarray(tokens[:, 1:]), (side, side), "tokens"
  feature = arrays["input/feature_nchw"]
  return flat(feature), feature.shape[2:], "feature_nchw"


def flat(feature: np.ndarray) -> jax.Array:
  """Returns a map [B, D, h, w] as patches [B, h w, D]."""
  batch, width, rows, columns = feature.shape
  in_columns = feature.reshape(batch, width, rows * columns)
  return jnp.asarray(in_columns.swapaxes(1, 2))


def nchw(x: jax.Array) -> np.ndarray:
  """Returns maps [B, H, W, C] as [B, C, H, W]."""
  return np.asarray(x).transpose(0, 3, 1, 2)


def _is_before_a_norm(path: str) -> bool:
  """Returns whether batch statistics remove what this parameter adds."""
  return path.startswith("conv_") and path.endswith("/bias")


def compare(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares one head: logits, loss, all gradients, running statistics."""
  reference = below(arrays, "param/")
  classifier = _classifier_of(reference)
  patches, grid, name = _patches(arrays)
  options_of_head = meta["head"]
  num_classes = options_of_head["num_classes"]
  align_corners = options_of_head["align_corners"]
  head = UpHead(
    num_classes,
    grid,
    _design(meta),
    width=len(reference[f"{classifier}.weight"][0]),
    align_corners=align_corners,
  )
  problem = Segmentation(num_classes, align_corners=align_corners)
  train = meta["bn_mode"].startswith("train")
  labels = jnp.asarray(arrays["input/labels"])
  weight = options_of_head["loss_decode"]["loss_weight"]
  variables = variables_of(reference)

  def is_first_norm(module: nn.Module, method: str) -> bool:
    return module.name == "norm_0" and method == "__call__"

  def loss_of(params, patches):
    """Returns (the weighted loss, (logits, changed collections))."""
    logits, changed = head.apply(
      {**variables, "params": params},
      patches,
      train,
      mutable=["batch_stats", "intermediates"],
      capture_intermediates=is_first_norm,
    )
    return weight * problem.loss(logits, labels).mean(), (logits, changed)

  differentiate = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
  (loss, (logits, changed)), (grads, input_grad) = jax.jit(differentiate)(
    variables["params"], patches
  )

  report.add("logits", "logits", nchw(logits), arrays["out/logits_nchw"])
  report.add("loss", "loss", loss, arrays["out/loss"][0])
  if "out/acc_seg" in arrays:
    share = accuracy(problem, logits, labels)
    report.add("percent", "acc_seg", share, arrays["out/acc_seg"][0])
  if "out/up_conv_nchw/0" in arrays:
    normed = changed["intermediates"]["norm_0"]["__call__"][0]
    _, rows, columns, _ = normed.shape
    scale = head.design.scales[0]
    size = (scale * rows, scale * columns)
    first = head.ops.bilinear(nn.relu(normed), size, align_corners)
    theirs = arrays["out/up_conv_nchw/0"]
    report.add("intermediates", "up_conv/0", nchw(first), theirs)
  gradients(report, grads, below(arrays, "grad/"), classifier, train)
  _input_gradient(report, input_grad, arrays[f"grad/input_{name}"])
  state = below(arrays, "state_after/")
  if bool(state) != train:
    raise ValueError(f"bn_mode {meta['bn_mode']!r}, state {sorted(state)}")
  compare_named(
    report,
    "intermediates",
    "state_after/",
    changed["batch_stats"],
    state,
    classifier,
    no_floor,
  )


def no_floor(path: str) -> float:
  """Returns 0 for every parameter."""
  del path
  return 0.0


def accuracy(
  problem: Segmentation, logits: jax.Array, labels: jax.Array
) -> float:
  """Returns the share of pixels that are right, in percent."""
  every = jnp.ones(len(labels))
  sums = problem.training_sums(logits, labels, every)
  return problem.score_training(sums, len(labels))


def gradients(
  report: Report,
  ours: dict[str, Any],
  theirs: Arrays,
  classifier: str,
  train: bool,
  prefix: str = "",
) -> None:
  """Compares a head's gradients, each of its parameters having one."""
  of_head = {}
  for key, array in theirs.items():
    if not key.startswith("input_"):
      of_head[key] = array
  own = trees.flatten(ours)
  if len(of_head) != len(own):
    raise ValueError(f"gradients of {sorted(of_head)}, ours: {sorted(own)}")
  largest = max(float(np.abs(grad).max()) for grad in theirs.values())

  def floor(path):
    """Returns what rounding leaves of a gradient that is 0 in theory."""
    return _NOISE * largest if train and _is_before_a_norm(path) else 0.0

  compare_named(report, "gradients", prefix, ours, of_head, classifier, floor)


def _input_gradient(
  report: Report, ours: jax.Array, theirs: np.ndarray
) -> None:
  """Compares the gradient of the patches."""
  if theirs.ndim == 4:
    report.add("gradients", "input", ours, flat(theirs))
    return
  report.add("gradients", "input", ours, theirs[:, 1:])
  class_token = theirs[:, :1]
  zeros = np.zeros_like(class_token)
  report.add("gradients", "class token", zeros, class_token)
