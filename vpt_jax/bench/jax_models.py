"""Makes the models of the benchmark in vpt_jax, and their random weights."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.bench import dense_cases
from vpt_jax.nn import dense_heads
from vpt_jax.nn.tokens import Reads
from vpt_jax.problems import Problem
from vpt_jax.problems.semantic_segmentation import Segmentation
from vpt_jax.utils import lookup, trees

MOMENTUM = 0.9  # as in `pytorch_side.py`


@dataclasses.dataclass(frozen=True)
class MethodConfig:
  """How a method of the benchmark is configured.

  Attributes:
    name: `config.method`.
    options: of its section.
    dropout_rates: options that are dropout rates.
  """

  name: str
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  dropout_rates: tuple[str, ...] = ()


METHODS = {
  "linear": MethodConfig("linear"),
  "vpt_shallow": MethodConfig("vpt", {"deep": False}, ("dropout",)),
  "vpt_deep": MethodConfig("vpt", {"deep": True}, ("dropout",)),
  "vapt": MethodConfig(
    "vapt", dropout_rates=("dropout", "dropout_channel", "dropout_mlp")
  ),
  "gated": MethodConfig("gated", dropout_rates=("dropout",)),
  "pgn": MethodConfig("pgn"),
}

# Leaf -> (mean, standard deviation) of its random values; others: 0 and
# fan-in^-1/2. Nothing is 0 or 1, so that every number has a part in the logits.
_VALUES = {
  "scale": (1.0, 0.1),
  "bias": (0.0, 0.1),
  "mean": (0.0, 0.1),
  "var": (1.0, 0.05),
  "temperature": (1.0, 0.1),
  "gate_logit": (0.0, 1.0),
  "cls": (0.0, 0.5),
  "pos_embedding": (0.0, 0.5),
  "prompt": (0.0, 0.5),
  "library": (0.0, 0.5),
}

# Rates and decay of parameters, of classification and of segmentation.
POLICIES: dict[bool, tuple[tuple[str, dict[str, float]], ...]] = {
  False: (("head/bias", {"weight_decay": 0.0}), (".*", {})),
  True: (("head/.*", {"lr": dense_cases.HEAD_RATE}), (".*", {})),
}


def _is_segmentation(case: dict[str, Any]) -> bool:
  return bool(case.get("segmentation"))


def config_of(case: dict[str, Any]) -> ConfigDict:
  """Returns what `model.build` and `optim.from_config` read.

  Args:
    case: see `measure.Case`.
  """
  method = METHODS[lookup.choose(case["method"], METHODS, "method")]
  options = dict(method.options)
  for rate in method.dropout_rates:
    options[rate] = case["dropout"]
  if method.name != "linear":
    options["num_tokens"] = case["prompts"]
  return ConfigDict(
    {
      "method": method.name,
      method.name: options,
      "image_size": case["image_size"],
      "pool": "",
      "head": "linear",
      "head_init": "kaiming",
      "head_groups": (),
      "head_layers": 0,
      "backbone": {
        "name": case["backbone"],
        "gelu": "torch",
        "norm": "",
        "projection": False,
        "frozen_dtype": case["dtype"],
      },
      "compute": {
        "dtype": case["dtype"],
        "remat": False,
        "attention": case.get("attention", "ours"),
      },
      "optim": {
        "name": "sgd",
        "momentum": MOMENTUM,
        "policies": POLICIES[_is_segmentation(case)],
      },
    }
  )


def model_of(case: dict[str, Any]) -> model_lib.Model:
  """Returns the model of a case.

  Args:
    case: see `measure.Case`.
  """
  model = model_lib.build(config_of(case), case["classes"])
  if _is_segmentation(case):
    dtype = case.get("head_dtype", "float32")
    return with_dense_head(model, case["segmentation"], dtype)
  return model


def with_dense_head(
  model: model_lib.Model, name: str, dtype: str
) -> model_lib.Model:
  """Returns a model that gives every pixel its logits.

  Args:
    model: that gives an image its logits.
    name: of the head, of `dense_cases.HEADS`.
    dtype: that its 3 x 3 convolutions are computed in.
  """
  lookup.choose(name, dense_cases.HEADS, "head of segmentation")
  spec = model.backbone.spec
  blocks = dense_cases.blocks(name, spec.depth)
  grids = tuple(spec.grids[i] for i in blocks)
  classes = model.num_classes
  if name == "linear":
    linear = dense_heads.LinearHead(classes, grids, ops=spec.ops)
    return model.clone(dense=linear, reads=Reads(blocks))
  setr = dense_heads.setr(classes, grids, dtype=dtype, ops=spec.ops)
  return model.clone(dense=setr, reads=Reads(blocks, final_norm=False))


def problem_of(case: dict[str, Any]) -> Problem:
  """Returns what the model of a case is trained for."""
  if not _is_segmentation(case):
    return problems.build("classification", case["classes"])
  return Segmentation(
    case["classes"],
    ignore=dense_cases.IGNORE,
    auxiliary_weight=dense_cases.AUXILIARY_WEIGHT,
  )


def random_values(shapes: dict[str, tuple[int, ...]], seed: int) -> trees.Flat:
  """Returns float32 arrays of sizes as in a trained model.

  Args:
    shapes: {path of a leaf: shape}.
    seed: of the random values.
  """
  rng = np.random.default_rng(seed)
  out = {}
  for path, shape in shapes.items():
    *_, layer, leaf = path.split("/")
    # Kernels of attention are [D, heads, d], others [..., inputs, outputs].
    inputs = shape[:1] if layer in ("query", "key", "value") else shape[:-1]
    mean, std = _VALUES.get(leaf, (0.0, np.prod(inputs) ** -0.5))
    out[path] = (mean + std * rng.standard_normal(shape)).astype(np.float32)
  return out
