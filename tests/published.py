"""Compares tiny checkpoint files with the features of their published code."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from tests import options
from tests.parity_report import Report
from tests.reference import Arrays, below
from vpt_jax import model as model_lib
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.method import Method
from vpt_jax.nn import positions
from vpt_jax.utils import trees
from vpt_jax.weights import file_formats, load, translate
from vpt_jax.weights.agreement import Told


class Feature(NamedTuple):
  """How a feature is read from the tokens.

  Attributes:
    pool: the rows that it is the mean of, see `tokens.POOLS`.
    norm: where the final norm stands, see `tokens.NORMS`.
    projected: whether it goes through the file's projection.
  """

  pool: str
  norm: str
  projected: bool = False


# What a fixture compares -> how it is read; what is not here is read as the
# file's architecture does it (`features`, `pooled`, `logits`).
FEATURES = {
  "features_cls_norm": Feature("cls", "before"),
  "larger_features": Feature("cls", "before"),
  "features_global_pool_fresh_fc_norm": Feature("imgprompt", "fresh"),
  "features_mean_patch_then_norm": Feature("imgprompt", "after"),
  "cls_ln_post": Feature("cls", "before"),
  "image_features": Feature("cls", "before", projected=True),
}
OWN_FEATURES = ("features", "pooled", "logits")
# How the published code of a case brings positions to another grid.
# A fixture says of which network it is; its file need not.
SAID = Told(all=True)
RESIZE = {"dino": "bicubic", "moco": "sincos"}
CLIP_HEAD_WIDTH = 64  # OpenAI's code makes a head for each 64 of the width.


def own_feature(flat: Arrays) -> Feature:
  """Returns how a file's own architecture reads its feature.

  Args:
    flat: the file's arrays under our names.
  """
  if _has_pooled_norm(flat):
    return Feature("img", "after")
  if "cls" in flat:
    return Feature("cls", "before")
  return Feature("imgprompt", "before")


def _has_pooled_norm(flat: Arrays) -> bool:
  """Returns whether the only final norm is one after the pooling.

  timm's models with `global_pool="avg"` name it `fc_norm`; what they call
  `norm` is the identity then.
  """
  names = [name for name in flat if name.endswith("_norm/scale")]
  return (
    "Transformer/fc_norm/scale" in names
    and "Transformer/encoder_norm/scale" not in names
  )


def backbone_of(
  meta: dict[str, Any], flat: Arrays, size: int, **more: Any
) -> ViT | Swin:
  """Returns the backbone of a file, for images of this size.

  Args:
    meta: of the fixture; it tells the number of heads, and eps and GELU where
      these are not what the architecture usually has.
    flat: the file's arrays under our names.
    size: side of the images.
    **more: further options of the backbone.
  """
  own = {
    name.replace("fc_norm", "encoder_norm"): array
    for name, array in flat.items()
  }
  family = "vit"
  if any(name.endswith("relative_position_bias") for name in own):
    family = "swin"
  elif "embedding_norm/scale" in own:
    family = "clip"
  gelu = options.gelu_of(meta, "quick" if family == "clip" else "exact")
  eps = options.layer_norm_eps(meta, family)
  heads = meta.get("sizes", {}).get("heads")
  if family == "clip" and heads is None:
    heads = own["cls"].shape[-1] // CLIP_HEAD_WIDTH
  if family == "vit" and not isinstance(heads, int):
    raise ValueError(f"meta.sizes.heads is {heads!r}, expected a number")
  image_size = (size, size)
  return options.architecture(
    own, image_size, heads, gelu=gelu, eps=eps, **more
  )


def loaded(
  backbone: ViT | Swin, flat: Arrays, file: Path, resize: str
) -> tuple[model_lib.Model, trees.Flat, Arrays]:
  """Returns a model and what the library loads into it.

  Returns:
    (linear probe, its backbone's parameters, what else the file holds).
  """
  model = model_lib.Model(backbone, Method(backbone.spec), 1)

  def initial():
    """Returns the backbone's parameters, nested."""
    return model_lib.init(model, jax.random.key(0), ["backbone"])["backbone"]

  template = trees.flatten(jax.eval_shape(initial))
  params, extras = load.fit(
    flat, template, str(file), backbone.spec, resize, told=SAID
  )
  return model, params, extras


def tokens(
  backbone: ViT | Swin, params: trees.Flat, images: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Returns all tokens after the last block, and after the final norm."""

  def run(module):
    """Goes through the blocks."""
    x = module.embed(images)
    for i in range(module.spec.depth):
      x = module.block(i, module.enter(i, x))
    return x.x, module.norm(x.x)

  return nn.apply(run, backbone)({"params": trees.unflatten(params)})


class _Checkpoint:
  """A fixture's checkpoint file, and the comparison of one output at a time."""

  def __init__(self, path: Path, arrays: Arrays, meta: dict[str, Any]):
    self.file = path.parent / meta["file"]
    self.arrays = arrays
    self.meta = meta
    self.flat = file_formats.read(self.file)
    self.translated = translate.translate(self.flat).arrays
    kind = meta["case"].split("_")[1]
    self.resize = RESIZE.get(kind, "linear")

  def compare(self, name: str, theirs: np.ndarray, report: Report) -> None:
    """Compares one output."""
    larger = name.startswith("larger")
    images = self.arrays["out/larger_image" if larger else "input/images"]
    feature = FEATURES.get(name, own_feature(self.translated))
    more: dict[str, Any] = {"pool": feature.pool, "norm_order": feature.norm}
    if feature.projected:
      width = self.translated["projection/kernel"].shape[1]
      more["projection"] = nn.Dense(width, use_bias=False)
    backbone = backbone_of(self.meta, self.translated, images.shape[1], **more)
    model, params, extras = loaded(backbone, self.flat, self.file, self.resize)
    variables = {"params": {"backbone": trees.unflatten(params)}}

    if name == "logits":
      pooled = model.apply(variables, images, method=model.features)
      ours = pooled @ extras["head/kernel"] + extras["head/bias"]
      report.add("logits", name, ours, theirs)
    elif name in FEATURES or name in OWN_FEATURES:
      ours = model.apply(variables, images, method=model.features)
      report.add("intermediates", name, ours, theirs)
    elif name.startswith("tokens_"):
      last, normed = tokens(backbone, params, images)
      is_normed = name == "tokens_after_norm" and feature.norm == "before"
      report.add("intermediates", name, normed if is_normed else last, theirs)
    elif name.endswith("pos_embed"):
      self._positions(name, params["pos_embedding"], theirs, backbone, report)
    elif name != "larger_image":
      report.notes.append(f"not compared: out/{name}")

  def _positions(
    self,
    name: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    backbone: ViT | Swin,
    report: Report,
  ) -> None:
    """Compares positions, theirs [1, 1 + N, D] with the class token's first."""
    if backbone.spec.num_cls:
      theirs = theirs[:, 1:]
    group = "bicubic" if self.resize == "bicubic" else "weights"
    report.add(group, name, ours, theirs)
    if self.resize == "sincos":
      table = positions.sincos(backbone.spec.grids[0], theirs.shape[-1])
      report.add("weights", "the fixed table", table, theirs)


def compare(
  path: Path, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """Loads the checkpoint that a fixture names and compares all it shows."""
  checkpoint = _Checkpoint(path, arrays, meta)
  for name, theirs in below(arrays, "out/").items():
    checkpoint.compare(name, theirs, report)
