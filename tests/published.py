"""Published checkpoint files (tiny ones) against the features of their code."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from tests.parity_report import Report
from tests.reference import Arrays, below
from vpt_jax import model as models
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.method import Method
from vpt_jax.nn import positions
from vpt_jax.utils import trees
from vpt_jax.weights import file_formats, load

# What a fixture compares -> (pool, norm order, projected).
FEATURES = {
  "features_cls_norm": ("cls", "before", False),
  "larger_features": ("cls", "before", False),
  "features_global_pool_fresh_fc_norm": ("imgprompt", "fresh", False),
  "features_mean_patch_then_norm": ("imgprompt", "after", False),
  "cls_ln_post": ("cls", "before", False),
  "image_features": ("cls", "before", True),
  "pooled": ("cls", "before", False),
  "features": ("imgprompt", "before", False),
}


def backbone_of(meta: dict[str, Any], size: int, **more: Any) -> ViT | Swin:
  """The backbone of a file, for images of this size."""
  sizes = meta["sizes"]
  if "embed" in sizes and "depths" in sizes:
    return Swin(
      (size,) * 2,
      sizes["embed"],
      tuple(sizes["depths"]),
      tuple(sizes["heads"]),
      sizes["window"],
      sizes["patch"],
      sizes["mlp_ratio"],
      **more,
    )
  width = sizes.get("hidden") or sizes["width"]
  quick = meta.get("activation") == "QuickGELU"
  if not quick:
    more.pop("projection", None)
  return ViT(
    (size,) * 2,
    sizes["patch"],
    width,
    sizes["layers"],
    sizes["heads"],
    sizes.get("mlp", 4 * width),
    eps=meta["layer_norm_eps"],
    gelu="quick" if quick else "exact",
    patch_bias=not quick,
    pre_norm=quick,
    **more,
  )


def loaded(
  backbone: ViT | Swin, flat: Arrays, file: Path, resize: str
) -> tuple[models.Model, trees.Flat, Arrays]:
  """(linear probe, its backbone's parameters, what else the file holds)."""
  model = models.Model(backbone, Method(backbone.spec), 1)
  template = trees.flatten(
    jax.eval_shape(lambda: models.init(model, jax.random.key(0), ["backbone"]))[
      "backbone"
    ]
  )
  return model, *load.fit(flat, template, str(file), backbone.spec, resize)


def tokens(
  backbone: ViT | Swin, params: trees.Flat, images: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """All tokens after the last block, and after the final norm."""

  def run(module):
    x = module.embed(images)
    for i in range(module.spec.depth):
      x = module.block(i, module.enter(i, x))
    return x.x, module.norm(x.x)

  return nn.apply(run, backbone)({"params": trees.unflatten(params)})


def compare(
  path: Path, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """Loads the checkpoint that a fixture names and compares all it shows."""
  file = path.parent / meta["file"]
  flat = file_formats.read(file)
  resize = {"dino": "bicubic", "moco": "sincos"}.get(
    meta["case"].split("_")[1], "linear"
  )
  for name, theirs in below(arrays, "out/").items():
    images = arrays[
      "out/larger_image" if name.startswith("larger") else "input/images"
    ]
    options = {}
    if name in FEATURES:
      pool, order, project = FEATURES[name]
      options = dict(pool=pool, norm_order=order)
      if project:
        options["projection"] = nn.Dense(
          meta["sizes"]["output_dim"], use_bias=False
        )
    backbone = backbone_of(meta, images.shape[1], **options)
    model, params, extras = loaded(backbone, flat, file, resize)
    variables = {"params": {"backbone": trees.unflatten(params)}}
    if name in FEATURES:
      report.add(
        "intermediates",
        name,
        model.apply(variables, images, method=model.features),
        theirs,
      )
    elif name == "logits":
      feature = model.apply(variables, images, method=model.features)
      report.add(
        "logits",
        name,
        feature @ extras["head/kernel"] + extras["head/bias"],
        theirs,
      )
    elif name.startswith("tokens_"):
      ours = tokens(backbone, params, images)
      report.add(
        "intermediates", name, ours[name == "tokens_after_norm"], theirs
      )
    elif name.endswith("pos_embed"):
      report.add(
        resize if resize == "bicubic" else "weights",
        name,
        params["pos_embedding"],
        theirs[:, 1:],
      )
      if resize == "sincos":
        grid = backbone.spec.grids[0]
        report.add(
          "weights",
          "the fixed table",
          positions.sincos(grid, theirs.shape[-1]),
          theirs[:, 1:],
        )
    elif name != "larger_image":
      report.notes.append(f"not compared: out/{name}")
