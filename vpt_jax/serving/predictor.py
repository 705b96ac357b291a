"""Loads a saved adapter and predicts with it."""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.backbones import factory
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import processes
from vpt_jax.serving import inputs
from vpt_jax.serving.map_predictor import MapPredictor
from vpt_jax.training import adapter_files, evaluation
from vpt_jax.training.adapter_files import AdapterMeta
from vpt_jax.utils import trees
from vpt_jax.weights import download, known_files
from vpt_jax.weights.agreement import Told

Variables = dict[str, Any]


class Predictor:
  """Predicts the classes of images with a saved adapter.

  Images are decoded, turned upright, brought to size and normalised as those
  on which the run was evaluated, so that the same files get the same numbers.

  Attributes:
    meta: what the file says of the run.
    preprocess: what happens to an image before the model sees it.
    class_names: K, in the order of the probabilities; numbers as text where the
      classes have no names. Files of versions before 0.2 do not hold names.
  """

  def __init__(
    self,
    model: model_lib.Model,
    variables: Variables,
    meta: AdapterMeta,
    preprocess: Preprocess,
  ):
    self.meta = meta.to_json()
    self.preprocess = preprocess
    self.class_names = meta.classes
    self._variables = variables
    self._config = ConfigDict(meta.config)
    self._problem = problems.from_config(self._config, meta.num_classes)
    self._apply = jax.jit(evaluation.make_apply(model, self.preprocess))

  def __call__(self, images: Any, grey: bool = False) -> np.ndarray:
    """Returns the probabilities of the classes.

    Args:
      images: one image, or several. One is a path, a file's content (bytes), an
        image of Pillow, or an array uint8 [H, W, 3], [H, W, 1] or [H, W].
        Several are a list of such images, of any sizes, or an array uint8
        [N, H, W, 3] or [N, H, W, 1].
      grey: an array [N, H, W] is a stack of grey images.

    Returns:
      float32 [K] of one image, [N, K] of several.

    Raises:
      ValueError: an image that cannot be read, an array of another shape, or a
        process that was forked after the adapter was loaded.
    """
    processes.check_not_forked()
    parts, is_single = inputs.split_images(images, grey)
    size = min(len(parts), self._config.batch_size)
    outputs = []
    for first in range(0, len(parts), size):
      batch = [self._read(image) for image in parts[first : first + size]]
      outputs.append(self._predict(batch, size))
    probabilities = np.concatenate(outputs)
    return probabilities[0] if is_single else probabilities

  def _read(self, image: inputs.OneImage) -> np.ndarray:
    """Decodes an image and brings it to its size, on the host.

    Raises:
      ValueError: it cannot be read; naming its file.
    """
    preprocess = self.preprocess
    with inputs.reading(image):
      decoded = inputs.decode_image(image, preprocess)
      if "preprocess" not in self.meta:
        # A file of an old version does not say which size was kept on the
        # host. Small images kept theirs where they all shared one.
        kept_size = preprocess.size_if_small(decoded)
        preprocess = dataclasses.replace(preprocess, kept_size=kept_size)
      return preprocess.fit(decoded)

  def _predict(self, batch: list[np.ndarray], size: int) -> np.ndarray:
    """Returns the probabilities [B, K] of images, at most `size` of them."""
    out = np.empty((len(batch), self.meta["num_classes"]), np.float32)
    precision = self._config.compute.matmul_precision
    for numbers, stack in inputs.equal_shapes(batch):
      # Filled up to one shape, which compiles once.
      filled = np.resize(stack, (size, *stack.shape[1:]))
      with jax.default_matmul_precision(precision):
        outputs = self._apply(self._variables, filled)
      probabilities = np.asarray(self._problem.probabilities(outputs))
      out[numbers] = probabilities[: len(numbers)]
    return out


def load_adapter(
  path: str | os.PathLike, backbone: str = ""
) -> Predictor | MapPredictor:
  """Loads a predict function from an adapter file.

  Args:
    path: `adapter.npz` of a run.
    backbone: path or address of the backbone's checkpoint. Without it only the
      model zoo's addresses, what was fetched before and files that a run on
      this machine used are read, whatever the adapter says.

  Returns:
    `predict(images)`, see `Predictor`; of a problem with a class for every
    pixel see `MapPredictor`.

  Raises:
    ValueError: a damaged file, or a backbone other than the one trained on.
  """
  model, variables, meta = read_model(path, backbone)
  preprocess = read_preprocess(meta, model)
  if problems.of_run(meta.config).dense:
    return MapPredictor(model, variables, meta, preprocess)
  return Predictor(model, variables, meta, preprocess)


def read_preprocess(meta: AdapterMeta, model: model_lib.Model) -> Preprocess:
  """Returns what happens to an image before an adapter's model sees it.

  Files of versions before 0.2 do not say it; then it is what their config asks
  for.

  Args:
    meta: of the adapter file.
    model: of the adapter.

  Raises:
    ValueError: it is not what such a model takes.
  """
  taken = tuple(model.method.input_size)
  if meta.preprocess is None:
    return Preprocess.from_config(ConfigDict(meta.config), taken)
  preprocess = Preprocess.from_json(meta.preprocess)
  if preprocess.image_size != taken:
    raise ValueError(
      f"its images are of {preprocess.image_size} pixels, those of its model "
      f"of {taken}"
    )
  return preprocess


def read_model(
  path: str | os.PathLike, backbone: str = ""
) -> tuple[model_lib.Model, Variables, AdapterMeta]:
  """Reads the model of an adapter file.

  Args:
    path: `adapter.npz` of a run.
    backbone: see `load_adapter`.

  Returns:
    (model, its variables, what the file says of the run).

  Raises:
    ValueError: see `load_adapter`.
  """
  processes.check_not_forked()
  saved, meta = adapter_files.read_adapter(path)
  try:
    config_lib.check_saved(meta.config)
    config = ConfigDict(meta.config)
    problems.from_config(config, meta.num_classes)
    model = model_lib.build(config, meta.num_classes)
    model.method.check()
    read_preprocess(meta, model)
    expected = _expected_shapes(model, config)
  except ValueError as error:
    raise ValueError(f"{path} cannot be used: {error}") from None
  config.backbone.checkpoint = backbone or trusted_checkpoint(path, meta)
  # Where a shape differs the file is refused below, without a backbone.
  if all(expected.get(name) == leaf.shape for name, leaf in saved.items()):
    saved |= _frozen_backbone(path, config, model, meta, expected, saved)
  if {name: leaf.shape for name, leaf in saved.items()} != expected:
    raise ValueError(
      f"{path} does not fit the model of its own config; the "
      "file is damaged or of another version"
    )
  variables = trees.unflatten(jax.device_put(saved))
  parts = {}
  for part in ("backbone", "method", "head"):
    parts[part] = variables.pop(part, {})
  variables["params"] = parts
  return model, variables, meta


def trusted_checkpoint(path: str | os.PathLike, meta: AdapterMeta) -> str:
  """Returns where an adapter's backbone is read from without the user's word.

  An adapter is a stranger's file: it names a backbone, but sends the program
  nowhere.

  Returns:
    `config.backbone.checkpoint`: "" or an address of the model zoo, an address
    whose file is in the cache, or a file that a run on this machine used.

  Raises:
    ValueError: none of these.
  """
  source = meta.config["backbone"]["checkpoint"]
  sha256 = meta.backbone["sha256"]
  if not isinstance(source, str) or not isinstance(sha256, str):
    raise ValueError(
      f"adapter {path} is damaged: its backbone is {source!r}, {sha256!r}"
    )
  addresses = {entry.url for entry in factory.BACKBONES.values()}
  if source in addresses | {"", "random"}:
    return source
  found = known_files.find(sha256)
  if found:
    return found
  is_address = "://" in source
  if source.startswith("package:") or (
    is_address and download.location(source).is_file()
  ):
    return source
  what = "the address" if is_address else "a file"
  raise ValueError(
    f"adapter {path} was trained on a backbone from {what} {source!r} (sha256 "
    f"{sha256[:8]}..), which is neither of the model zoo nor "
    "known on this machine, and is not read on the adapter's word alone. Say "
    "where it is: load_adapter(path, backbone=FILE), or --backbone=FILE on the "
    "command line"
  )


def _expected_shapes(
  model: model_lib.Model, config: ConfigDict
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every array that a model's file and backbone hold."""
  rng = jax.random.PRNGKey(config.seed)

  def all_variables():
    return model_lib.init(model, rng) | model_lib.collections(model, rng)

  leaves = trees.flatten(jax.eval_shape(all_variables))
  return {name: leaf.shape for name, leaf in leaves.items()}


def _frozen_backbone(
  path: str | os.PathLike,
  config: ConfigDict,
  model: model_lib.Model,
  meta: AdapterMeta,
  expected: Mapping[str, tuple[int, ...]],
  saved: trees.Flat,
) -> trees.Flat:
  """Returns the backbone's arrays that an adapter file does not hold.

  The rest is always in the file.

  Raises:
    ValueError: the backbone is not the one that the adapter was trained on.
  """
  missing = []
  for name in expected:
    if name.startswith("backbone/") and name not in saved:
      missing.append(name)
  if not missing:
    return {}
  config = ConfigDict(config.to_dict())
  config.head = "linear"  # the trained one is in the file
  rng = jax.random.PRNGKey(config.seed)
  # The run was checked when it began, and the file is compared below.
  grid = tuple(config.backbone.get("grid", ())) or None
  told = Told(pool=True, grid=grid, all=True)
  params, sha256 = model_lib.pretrained(model, config, rng, told=told)
  built = {"name": config.backbone.name, "sha256": sha256}
  adapter_files.check_backbone(str(path), meta.backbone, built)
  flat = model_lib.store(trees.flatten(params), config)
  return {name: flat[name] for name in missing}
