"""Defines an adapter that is analysed, and the images that it is shown."""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.data import datasets, own_sources
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.serving import predictor
from vpt_jax.training.adapter_files import AdapterMeta
from vpt_jax.utils import strange_files

Variables = dict[str, Any]
LARGEST_BATCH = 64


class Images(NamedTuple):
  """Holds images that an adapter is shown.

  Attributes:
    pixels: uint8 [N, H, W, 3].
    names: N.
    labels: int [N], or None if not known.
    class_names: K, or () if not known.
  """

  pixels: np.ndarray
  names: list[str]
  labels: np.ndarray | None = None
  class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Adapter:
  """Holds a trained model.

  Attributes:
    path: of its file.
    model, variables: see `predictor.read_model`.
    config: of its run.
    preprocess: what happens to an image before the model sees it.
    class_names: see `adapter_files.AdapterMeta`.
    has_images: whether its task's images may be looked for; not where only the
      adapter says a path.
  """

  path: str
  model: model_lib.Model
  variables: Variables
  config: ConfigDict
  preprocess: Preprocess
  class_names: tuple[str, ...] | None = None
  has_images: bool = True

  @property
  def problem(self) -> problems.Problem:
    """What it was trained for."""
    return problems.from_config(self.config, self.model.num_classes)

  @property
  def key(self) -> tuple[str, str, str, str]:
    """(method and its prompts, backbone, task, folder) for titles."""
    method = self.config.method
    number = float(np.mean(prompts(self)))
    if number:
      noun = "prompt" if number == 1 else "prompts"
      method += f", {number:.3g} {noun} per block"
    return (
      method,
      self.config.backbone.name,
      self.config.task,
      Path(self.path).absolute().parent.name,
    )

  @property
  def title(self) -> str:
    """What a figure of this adapter alone is of."""
    method, backbone, task, _ = self.key
    return f"{method}; {backbone}; {task}"


def read(
  path: str, backbone: str = "", data_dir: str = "", or_dense: bool = False
) -> Adapter:
  """Reads an adapter from its file.

  Args:
    path: `adapter.npz` of a run.
    backbone: its checkpoint, if it is not where the run had it.
    data_dir: folder of the data sets, likewise.
    or_dense: also one of a problem with a class for every pixel.

  Raises:
    ValueError: a damaged file, another backbone, or a problem that is not
      analysed.
  """
  model, variables, meta = predictor.read_model(path, backbone)
  if not or_dense:
    check_whole_images(path, meta)
  config, has_images = _with_own_paths(path, ConfigDict(meta.config))
  if data_dir:
    config.data.dir = data_dir
  preprocess = predictor.read_preprocess(meta, model)
  names = None if meta.class_names is None else tuple(meta.class_names)
  return Adapter(path, model, variables, config, preprocess, names, has_images)


def check_whole_images(path: str, meta: AdapterMeta) -> None:
  """Raises ValueError for an adapter that gives every pixel a class.

  Args:
    path: of its file.
    meta: what it says of its run.
  """
  problem = problems.of_run(meta.config)
  if problem.dense:
    raise ValueError(
      f"{path} is of problem {problem.name!r}, which gives every pixel a class "
      "and sees an image in windows; this command is for adapters with classes "
      "of whole images. What this one sees in your images is drawn by "
      "vpt_jax.load_adapter(FILE).save(IMAGES, FOLDER, overlays=True), and in "
      "its test images in the folder gallery of its run"
    )


def _with_own_paths(path: str, config: ConfigDict) -> tuple[ConfigDict, bool]:
  """Returns the config of an adapter with paths of this machine alone.

  An adapter file holds only the last part of each, or what a stranger wrote.
  The whole ones are in the `config.json` of the run's folder.

  Returns:
    (config, whether its images are where it says).
  """
  config = ConfigDict(config.to_dict())
  try:
    own = ConfigDict(strange_files.read_json(Path(path).parent / "config.json"))
    own.compute.attention = "ours"  # As `read_adapter` sets it.
    known = (config_lib.public(own), config_lib.plain(own))
    if config_lib.plain(config) in known:
      config.data = own.data
      return config, True
  except (OSError, ValueError, TypeError, AttributeError):
    pass  # No run's folder, or of another run.
  config.data.cache = ""
  config.data.dir = config_lib.defaults().data.dir
  return config, not own_sources.is_own(config.data.source)


def plain(adapter: Adapter) -> Adapter:
  """Returns the same backbone without what the method adds."""
  config = ConfigDict(adapter.config.to_dict())
  config.method = "linear"
  model = model_lib.build(config, adapter.model.num_classes)
  params = {**adapter.variables["params"], "method": {}}
  # A method may put pixels around images, which are smaller then.
  preprocess = dataclasses.replace(
    adapter.preprocess, image_size=model.method.input_size
  )
  return dataclasses.replace(
    adapter,
    config=config,
    model=model,
    variables={**adapter.variables, "params": params},
    preprocess=preprocess,
  )


def prompts(adapter: Adapter) -> list[int]:
  """Returns how many prompts each block sees, of those that are run."""
  model = adapter.model
  image = jax.ShapeDtypeStruct((1, *model.method.input_size, 3), np.float32)

  def apply(variables, image):
    return model.apply(variables, image, mutable=["intermediates"])

  _, state = jax.eval_shape(apply, adapter.variables, image)
  counts = []
  last = model.reads.last_block(model.backbone.spec.depth)
  for i in range(last + 1):
    tokens, context = state["intermediates"][f"block_in_{i}"][0]
    in_context = 0 if context is None else context.shape[1]
    counts.append(tokens.num_prompt + in_context)
  return counts


def files(adapter: Adapter, paths: Sequence[str]) -> Images:
  """Reads images from files, as those of the adapter's task are read.

  Raises:
    ValueError: a file that can't be read.
  """
  pixels = [adapter.preprocess.read(path) for path in paths]
  if len({image.shape for image in pixels}) > 1:
    # Some have the size that is kept on the host: here all are fitted.
    preprocess = dataclasses.replace(adapter.preprocess, kept_size=None)
    pixels = [preprocess.read(path) for path in paths]
  names = [Path(path).name for path in paths]
  return Images(np.stack(pixels), names, class_names=_class_names(adapter))


def _class_names(adapter: Adapter) -> tuple[str, ...]:
  """Returns the names of the classes, () where they are not known."""
  if adapter.class_names is not None:
    return adapter.class_names
  if not adapter.has_images:
    return ()
  data = adapter.config.data
  try:
    examples = datasets.open_split(
      adapter.config.task,
      data.test_split,
      as_text=True,
      **datasets.reading_options(data, adapter.problem.multi_label),
    )
  except (OSError, ValueError):
    return ()
  return examples.class_names


def test(adapter: Adapter, count: int = 0, seed: int | None = None) -> Images:
  """Loads test images of the adapter's own task.

  Args:
    adapter: its config names the task.
    count: how many at most; 0: all.
    seed: they are drawn at random; None: the first.

  Raises:
    ValueError: they are not there, or only the adapter says where.
  """
  data = adapter.config.data
  if not adapter.has_images:
    raise ValueError(
      f"adapter {adapter.path} was trained on images of another folder "
      f"({data.source}), which are not looked for on its word alone; analyse "
      "the adapter in its run's folder, or name files of images"
    )
  split = datasets.load(
    adapter.config.task,
    data.test_split,
    adapter.preprocess,
    on_error=data.on_error,
    cache_dir=data.cache or None,
    as_text=adapter.class_names is None,
    **datasets.reading_options(data, adapter.problem.multi_label),
  )
  if adapter.class_names:
    split = split.with_classes(adapter.class_names, "the adapter's classes")
  chosen = np.arange(len(split))
  if seed is not None:
    chosen = np.random.default_rng(seed).permutation(chosen)
  if count:
    chosen = chosen[:count]
  chosen = np.sort(chosen)
  names = split.names or range(len(split))
  return Images(
    split.images[chosen],
    [Path(str(names[i])).name for i in chosen.tolist()],
    split.labels[chosen],
    split.class_names,
  )


def run(
  adapter: Adapter,
  function: Callable[[Variables, jax.Array], Any],
  pixels: np.ndarray,
) -> Any:
  """Applies a function to images, batch by batch.

  Args:
    adapter: whose variables, size and normalisation these are.
    function: (variables, normalised images [B, H, W, 3]) -> arrays [B, ...].
    pixels: uint8 [N, H, W, 3], N > 0.

  Returns:
    The arrays [N, ...], on the host.
  """
  config = adapter.config

  @jax.jit
  def step(variables, image):
    return function(variables, adapter.preprocess.prepare(image))

  size = min(len(pixels), config.batch_size, LARGEST_BATCH)
  parts = []
  for first in range(0, len(pixels), size):
    part = pixels[first : first + size]
    # Filled up to one shape, which compiles once.
    batch = np.resize(part, (size, *pixels.shape[1:]))
    with jax.default_matmul_precision(config.compute.matmul_precision):
      out = jax.device_get(step(adapter.variables, batch))
    parts.append(_first(out, len(part)))
  return jax.tree.map(_concatenate, *parts)


def _first(arrays: Any, count: int) -> Any:
  """Returns the first entries of all arrays of a tree."""
  return jax.tree.map(lambda array: array[:count], arrays)


def _concatenate(*arrays: np.ndarray) -> np.ndarray:
  return np.concatenate(arrays)


def shown(adapter: Adapter, pixels: np.ndarray) -> np.ndarray:
  """Returns images as the backbone sees them, with pixel prompts: in [0, 1]."""

  def edit_image(module, image):
    return module.method.image(image, train=False)

  def apply(variables, image):
    return adapter.model.apply(variables, image, method=edit_image)

  seen = run(adapter, apply, pixels)
  return np.clip(adapter.preprocess.denormalize(seen[..., :3]), 0, 1)


def recast(cls: type, module: Any) -> Any:
  """Returns a module as one of a subclass with the same fields."""
  fields = {}
  for field in dataclasses.fields(module):
    if field.name not in ("parent", "name"):
      fields[field.name] = getattr(module, field.name)
  return cls(**fields)
