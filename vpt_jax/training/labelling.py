"""Labels every pixel of images of any size with a dense model."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import itertools
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.data.transforms import segmentation
from vpt_jax.distributed import sharding
from vpt_jax.training import other_sizes, sliding
from vpt_jax.training.sliding import Canvas

Size = tuple[int, int]
Variables = dict[str, Any]  # {"params": nested, and collections}

_LOGIT_BYTES = 2**29  # of the windows that are computed at once, about
_MOST_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class Seen:
  """How an image is seen when it is labelled.

  Attributes:
    crop: (height, width) of windows; None: whole.
    stride: from one window to the next.
    scale: that images are resized to fit into; None: as they are.
    multi_scale: of the second form, see `config.segmentation`; "": none.
    factors: of its scales.
    flip: each of these is seen flipped, too.
    normalize: a name in `views.NORMALIZE`.
  """

  crop: Size | None
  stride: Size | None
  scale: Size | None
  multi_scale: str
  factors: tuple[float, ...]
  flip: bool
  normalize: str

  @classmethod
  def from_config(cls, config: ConfigDict) -> "Seen":
    """Returns how a resolved config has its test images seen.

    Raises:
      ValueError: windows that would leave pixels out.
    """
    section = config.segmentation
    side = config.image_size
    stride = section.stride or max(1, 2 * side // 3)
    if stride > side:
      raise ValueError(
        f"config.segmentation.stride={stride} is more than image_size={side}, "
        "so that windows would leave pixels out; expected at most that"
      )
    if section.test_stored and section.multi_scale in ("scale", "setr"):
      raise ValueError(
        f"config.segmentation.multi_scale={section.multi_scale!r} takes "
        "factors of test_scale, but test_stored=True sees images as they are "
        "stored; set config.segmentation.multi_scale=own for factors of that "
        "size"
      )
    slides = section.test == "slide"
    return cls(
      crop=(side, side) if slides else None,
      stride=(stride, stride) if slides else None,
      scale=None if section.test_stored else tuple(section.test_scale),
      multi_scale=section.multi_scale,
      factors=tuple(section.test_factors),
      flip=section.test_flip,
      normalize=config.data.normalize,
    )

  def sizes(self, size: Size, multi_scale: bool) -> list[Size]:
    """Returns the sizes at which an image is seen."""
    if not multi_scale:
      if self.scale is None:
        return [size]
      return [segmentation.fitted_size(size, self.scale)]
    scale = None if self.multi_scale == "own" else self.scale
    shortest = 0
    if self.multi_scale == "setr" and self.crop is not None:
      shortest = min(self.crop)
    return segmentation.evaluation_sizes(size, self.factors, scale, shortest)


class Labeller:
  """Gives every pixel of images its class, with one model.

  Attributes:
    model: a dense one.
    problem: what it has learned.
    seen: how it sees images.
    programs: those of the model that are compiled, by the size that it sees.
  """

  def __init__(
    self,
    model: model_lib.Model,
    problem: problems.Segmentation,
    seen: Seen,
    mesh: Mesh | None = None,
  ):
    """Takes a model.

    Args:
      model: a dense one.
      problem: what it has learned.
      seen: how it is to see images.
      mesh: of the devices that share the windows; None: one device.
    """
    self.model = model
    # A problem that comes from a config does not know the platform.
    self.problem = dataclasses.replace(problem, ops=model.backbone.ops)
    self.seen = seen
    self.programs: dict[Size, Callable[..., jax.Array]] = {}
    self._mesh = mesh

  def __call__(
    self,
    variables: Variables,
    images: Iterable[np.ndarray],
    multi_scale: bool = False,
  ) -> Iterator[Canvas]:
    """Yields the scores of each image's pixels, in order; see `Canvas`.

    They are logits, or, at several scales, sums of probabilities.

    Args:
      variables: of the model.
      images: uint8 [H, W, 3] of any sizes.
      multi_scale: see them at several scales.
    """
    seen = self.seen
    flip = multi_scale and seen.flip
    stored: deque[Size] = deque()  # sizes of images whose views are computed

    def all_views() -> Iterator[np.ndarray]:
      for image in images:
        size = (image.shape[0], image.shape[1])
        stored.append(size)
        sizes = seen.sizes(size, multi_scale)
        yield from sliding.views_of(image, sizes, flip, seen.normalize)

    views_of_image = 1
    if multi_scale:
      views_of_image = len(seen.factors) * (2 if flip else 1)
    slide = sliding.SlidingWindows(
      self._logits_of(variables),
      seen.crop,
      seen.stride,
      at_once=self._at_once(),
    )
    canvases = slide(all_views())
    for first in canvases:
      others = itertools.islice(canvases, views_of_image - 1)
      yield sliding.combined(
        itertools.chain([first], others),
        stored.popleft(),
        flip,
        self.problem.align_corners,
      )

  def _at_once(self) -> int:
    """Returns how many windows are computed at once."""
    height, width = self.seen.crop or self.model.backbone.image_size
    of_window = 4 * height * width * self.problem.num_classes
    count = min(_MOST_AT_ONCE, max(1, _LOGIT_BYTES // of_window))
    devices = 1 if self._mesh is None else self._mesh.shape["data"]
    return -(-count // devices) * devices

  def _logits_of(
    self, variables: Variables
  ) -> Callable[[np.ndarray], jax.Array]:
    """Returns the function from windows [B, h, w, 3] to their logits."""
    variables_at: dict[Size, Variables] = {}

    def logits_of(windows: np.ndarray) -> jax.Array:
      size = (windows.shape[1], windows.shape[2])
      model = self._model_at(size)
      seen = tuple(model.backbone.image_size)
      if seen not in variables_at:
        variables_at[seen] = self._variables_of(model, variables)
      if seen not in self.programs:
        self.programs[seen] = self._compiled(model)
      filled = self._put(_filled_up(windows, seen))
      logits = self.programs[seen](variables_at[seen], filled)
      # Every device has all of them.
      return self._of_window(logits.addressable_data(0), seen, size)

    return logits_of

  def _of_window(self, logits: jax.Array, seen: Size, size: Size) -> jax.Array:
    """Returns the logits of a window's pixels.

    Published: those of what was filled up to whole patches are resized to the
    window. Where a whole window was filled up they are cut to it.

    Args:
      logits: [B, h, w, K] as the head gives them.
      seen: (height, width) of what the model saw.
      size: of the window.
    """
    if seen == other_sizes.filled_size(self.model, size):
      return _resized(self.problem, logits, size)
    whole = _resized(self.problem, logits, seen)
    return whole[:, : size[0], : size[1]]

  def _put(self, windows: np.ndarray) -> Any:
    """Returns windows, of which every device has some."""
    if self._mesh is None:
      return windows
    return jax.make_array_from_callback(
      windows.shape,
      sharding.batch_sharding(self._mesh),
      lambda index: windows[index],
    )

  @functools.cached_property
  def _sees_any_size(self) -> bool:
    return other_sizes.sees_any(self.model)

  def _model_at(self, size: Size) -> model_lib.Model:
    """Returns the model for windows of a size, filled up to whole patches.

    One that sees a single size stays as it is.
    """
    filled = other_sizes.filled_size(self.model, size)
    own = tuple(self.model.backbone.image_size)
    if filled == own or not self._sees_any_size:
      return self.model
    return other_sizes.model_at(self.model, filled)

  def _variables_of(
    self, model: model_lib.Model, variables: Variables
  ) -> Variables:
    """Returns the variables of the model at another size."""
    if model is self.model:
      return variables
    params = other_sizes.params_at(self.model, model, variables["params"])
    return {**variables, "params": params}

  def _compiled(self, model: model_lib.Model) -> Callable[..., jax.Array]:
    """Returns (variables, windows) -> the main head's logits."""

    def logits_of(variables: Variables, windows: jax.Array) -> jax.Array:
      outputs = model.apply(variables, windows)
      return outputs[0] if isinstance(outputs, tuple) else outputs

    out = None if self._mesh is None else sharding.replicated(self._mesh)
    return jax.jit(logits_of, out_shardings=out)


def _filled_up(windows: np.ndarray, size: Size) -> np.ndarray:
  """Returns windows [B, h, w, 3] with zeros below and right, of a size."""
  _, rows, columns, _ = windows.shape
  return np.pad(
    windows, ((0, 0), (0, size[0] - rows), (0, size[1] - columns), (0, 0))
  )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _resized(
  problem: problems.Segmentation, logits: jax.Array, size: Size
) -> jax.Array:
  return problem.resized(logits, size)
