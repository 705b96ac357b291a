"""An adapter at work: its model, images to show it, what it makes of them."""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import model as models
from vpt_jax import problems
from vpt_jax.data import datasets
from vpt_jax.data.cache import decoding
from vpt_jax.data.transforms import views
from vpt_jax.serving import predictor

Variables = dict[str, Any]
LARGEST_BATCH = 64


class Images(NamedTuple):
  """Images that an adapter is shown.

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
  """A trained model.

  Attributes:
    path: of its file.
    model, variables: see `predictor.read_model`.
    config: of its run.
  """

  path: str
  model: models.Model
  variables: Variables
  config: ConfigDict

  @property
  def problem(self) -> problems.Problem:
    """What it was trained for."""
    return problems.from_config(self.config, self.model.num_classes)

  @property
  def key(self) -> tuple[str, str, str, str]:
    """(method and its prompts, backbone, task, folder) for titles."""
    method, number = self.config.method, float(np.mean(prompts(self)))
    if number:
      method += f", {number:.3g} prompt{'s' * (number != 1)} per block"
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


def read(path: str, backbone: str = "", data_dir: str = "") -> Adapter:
  """An adapter from its file.

  Args:
    path: `adapter.npz` of a run.
    backbone: its checkpoint, if it is not where the run had it.
    data_dir: folder of the data sets, likewise.

  Raises:
    ValueError: a damaged file, or another backbone.
  """
  model, variables, meta = predictor.read_model(path, backbone)
  config = ConfigDict(meta["config"])
  if data_dir:
    config.data.dir = data_dir
  return Adapter(path, model, variables, config)


def plain(adapter: Adapter) -> Adapter:
  """The same backbone without what the method adds."""
  config = ConfigDict(adapter.config.to_dict())
  config.method = "linear"
  params = {**adapter.variables["params"], "method": {}}
  return dataclasses.replace(
    adapter,
    config=config,
    model=models.build(config, adapter.model.num_classes),
    variables={**adapter.variables, "params": params},
  )


def prompts(adapter: Adapter) -> list[int]:
  """How many prompts each block sees."""
  model = adapter.model
  image = jax.ShapeDtypeStruct((1, *model.method.input_size, 3), np.float32)
  _, state = jax.eval_shape(
    lambda variables, image: model.apply(
      variables, image, mutable=["intermediates"]
    ),
    adapter.variables,
    image,
  )
  found = []
  for i in range(model.backbone.spec.depth):
    tokens, context = state["intermediates"][f"block_in_{i}"][0]
    found.append(
      tokens.num_prompt + (0 if context is None else context.shape[1])
    )
  return found


def files(adapter: Adapter, paths: Sequence[str]) -> Images:
  """Images from files, brought to size as those of the adapter's task.

  Raises:
    ValueError: a file that can't be read.
  """
  geometry = decoding.Geometry(
    adapter.config.data.preprocess, adapter.model.method.input_size, False
  )
  pixels = []
  for path in paths:
    try:
      pixels.append(
        geometry.fit(datasets.decode_image(Path(path).read_bytes()), None)
      )
    except (OSError, SyntaxError, ValueError) as error:
      raise ValueError(f"cannot read image {path}: {error}") from None
  data = adapter.config.data
  try:
    known = datasets.open_split(
      adapter.config.task,
      data.test_split,
      source=data.source,
      folder=data.dir,
      seed=data.seed,
      multi_label=adapter.problem.multi_label,
    ).class_names
  except (OSError, ValueError):
    known = ()  # without the task's images there are no names of its classes
  return Images(
    np.stack(pixels), [Path(path).name for path in paths], class_names=known
  )


def test(adapter: Adapter, count: int = 0, seed: int | None = None) -> Images:
  """Test images of the adapter's own task.

  Args:
    adapter: its config names the task.
    count: how many at most; 0: all.
    seed: they are drawn at random; None: the first.

  Raises:
    ValueError: they are not there.
  """
  data = adapter.config.data
  split = datasets.load(
    adapter.config.task,
    data.test_split,
    folder=data.dir,
    image_size=adapter.model.method.input_size,
    on_error=data.on_error,
    source=data.source,
    seed=data.seed,
    family=data.preprocess,
    cache_dir=data.cache or None,
    multi_label=adapter.problem.multi_label,
  )
  chosen = np.arange(len(split))
  if seed is not None:
    chosen = np.random.default_rng(seed).permutation(chosen)
  chosen = np.sort(chosen[: count or None])
  names = split.names or range(len(split))
  return Images(
    split.images[chosen],
    [Path(str(names[i])).name for i in chosen],
    split.labels[chosen],
    split.class_names,
  )


def run(
  adapter: Adapter,
  function: Callable[[Variables, jax.Array], Any],
  pixels: np.ndarray,
) -> Any:
  """What a function gives for images, batch by batch.

  Args:
    adapter: whose variables, size and normalisation these are.
    function: (variables, normalised images [B, H, W, 3]) -> arrays [B, ...].
    pixels: uint8 [N, H, W, 3], N > 0.

  Returns:
    The arrays [N, ...], on the host.
  """
  config, size = adapter.config, adapter.model.method.input_size

  @jax.jit
  def step(variables, image):
    return function(
      variables, views.prepare(image, size, config.data.normalize)
    )

  batch, parts = min(len(pixels), config.batch_size, LARGEST_BATCH), []
  for first in range(0, len(pixels), batch):
    part = pixels[first : first + batch]
    with jax.default_matmul_precision(config.compute.matmul_precision):
      # Filled up to one shape, which compiles once.
      out = jax.device_get(
        step(adapter.variables, np.resize(part, (batch, *pixels.shape[1:])))
      )
    parts.append(jax.tree.map(lambda x: x[: len(part)], out))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def shown(adapter: Adapter, pixels: np.ndarray) -> np.ndarray:
  """The images as the backbone sees them, with pixel prompts: in [0, 1]."""
  mean, std = map(np.array, views.NORMALIZE[adapter.config.data.normalize])
  model = adapter.model
  seen = run(
    adapter,
    lambda variables, image: model.apply(
      variables,
      image,
      method=lambda module, image: module.method.image(image, train=False),
    ),
    pixels,
  )
  return np.clip(seen[..., :3] * std + mean, 0, 1)


def recast(cls: type, module: Any) -> Any:
  """A module as one of a subclass with the same fields."""
  return cls(
    **{
      field.name: getattr(module, field.name)
      for field in dataclasses.fields(module)
      if field.name not in ("parent", "name")
    }
  )
