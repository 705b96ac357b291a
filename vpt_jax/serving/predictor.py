"""Loads a saved adapter and predicts with it."""

from collections.abc import Callable
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import model as models
from vpt_jax.data import datasets
from vpt_jax.training import checkpoints, evaluation
from vpt_jax.utils import trees


def load_adapter(
  path: str | os.PathLike, backbone: str = ""
) -> Callable[[np.ndarray], np.ndarray]:
  """A predict function from an adapter file.

  Args:
    path: `adapter.npz` of a run.
    backbone: checkpoint of the backbone, if it is not where the run had it.

  Returns:
    `predict(images)`: uint8 [N, H, W, 3] (or [N, H, W], grey) of any size ->
    probabilities [N, K], float32. `predict.meta` is what the file says of the
    run.

  Raises:
    ValueError: a damaged file, or a backbone other than the one trained on.
  """
  model, variables, meta = read_model(path, backbone)
  config = ConfigDict(meta["config"])
  apply = jax.jit(evaluation.make_apply(model, config.data.normalize))

  def predict(images: np.ndarray) -> np.ndarray:
    images = datasets.check_images(images)
    size = min(len(images), config.batch_size)
    parts = []
    for first in range(0, len(images), size):
      part = images[first : first + size]
      # Filled up to one shape, which compiles once.
      with jax.default_matmul_precision(config.compute.matmul_precision):
        logits = apply(variables, np.resize(part, (size, *part.shape[1:])))
      parts.append(np.asarray(jax.nn.softmax(logits))[: len(part)])
    return np.concatenate(parts)

  predict.meta = meta
  return predict


def read_model(
  path: str | os.PathLike, backbone: str = ""
) -> tuple[models.Model, dict[str, Any], dict[str, Any]]:
  """(model, its variables, what the file says of the run) of an adapter.

  See `load_adapter`.
  """
  saved, meta = checkpoints.read_adapter(path)
  config = ConfigDict(meta["config"])
  config.backbone.checkpoint = backbone or config.backbone.checkpoint
  model = models.build(config, meta["num_classes"])
  rng = jax.random.PRNGKey(config.seed)
  want = {
    name: leaf.shape
    for name, leaf in trees.flatten(
      jax.eval_shape(
        lambda: models.init(model, rng) | models.collections(model, rng)
      )
    ).items()
  }
  if not any(want.get(name) != leaf.shape for name, leaf in saved.items()):
    # The backbone's frozen part: the rest is always in the file.
    missing = {
      name
      for name in want.keys() - saved.keys()
      if name.startswith("backbone/")
    }
    if missing:
      config.head = "linear"
      params, sha256 = models.pretrained(model, config, rng)
      checkpoints.check_backbone(
        str(path),
        meta["backbone"],
        {"name": config.backbone.name, "sha256": sha256},
      )
      flat = models.store(trees.flatten(params), config)
      saved.update({name: flat[name] for name in missing})
  if {name: leaf.shape for name, leaf in saved.items()} != want:
    raise ValueError(
      f"{path} does not fit the model of its own config; the "
      "file is damaged or of another version"
    )
  variables = trees.unflatten(jax.device_put(saved))
  variables["params"] = {
    part: variables.pop(part, {}) for part in ("backbone", "method", "head")
  }
  return model, variables, meta
