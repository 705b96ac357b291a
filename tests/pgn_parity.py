"""Prompt Generation Networks against fixtures of the published code.

The backbones' weights go through the loader in their own layouts, the
generator's through `load_generator`; so do gradients and what the statistics
are afterwards, since all it does is rename and transpose.
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.parity_report import Report
from tests.published import loaded
from tests.reference import Arrays, below
from vpt_jax import model as models
from vpt_jax.backbones.vit import DinoHead, ViT
from vpt_jax.methods.method import Method
from vpt_jax.methods.pgn import IIP, PGN, resize
from vpt_jax.methods.pgn_weights import load_generator
from vpt_jax.nn.tokens import Spec, Tokens
from vpt_jax.utils import trees

# With the statistics of three images.
LOOSE = 1e-4


def method_of(
  settings: dict[str, Any] | None, spec: Spec, **more: Any
) -> Method:
  """The method of a reference's `pgn_settings`."""
  if not settings:
    return Method(spec)
  num_tokens = settings["nr_output_vectors"]
  if settings.get("prompt_mode") == "iip":
    return IIP(spec, num_tokens=num_tokens)
  return PGN(
    spec,
    **{
      "num_tokens": num_tokens,
      "library": settings["mixture_size"],
      "act": settings["pgn_act_fn"],
      "network": settings["model_type"],
      "init_max_pool": settings["init_max_pool"],
      "initial_channels": settings["initial_channels"],
      "groups": settings["nr_groups"],
      "blocks_per_group": settings["blocks_per_group"],
      "resolution": settings["pgn_resolution"],
      **more,
    },
  )


def method_part(flat: Arrays) -> tuple[trees.Flat, trees.Flat]:
  """(parameters, statistics) of the module in a reference's state_dict."""
  if "pgn_module.pgn_vectors" in flat:
    return {"prompt": flat["pgn_module.pgn_vectors"][None]}, {}
  if not any("pgn_module" in key for key in flat):
    return {}, {}
  return load_generator({"pgn_module.tl_vectors": np.zeros(0), **flat})


def build(
  meta: dict[str, Any], flat: Arrays, size: tuple[int, int]
) -> tuple[models.Model, dict[str, Any]]:
  """(model, its variables) of a fixture."""
  sizes, where = meta["sizes"], meta["reference_class"]
  own = {
    key: array
    for key, array in flat.items()
    if "pgn_module" not in key and key != "text_features"
  }
  options: dict[str, Any] = dict(gelu="exact", mlp_dim=2 * sizes["hidden"])
  if "clip" in where.lower():
    options = dict(
      gelu="quick",
      eps=1e-5,
      patch_bias=False,
      pre_norm=True,
      mlp_dim=4 * sizes["hidden"],
      projection=nn.Dense(sizes["embed"], use_bias=False),
    )
  prototypes = own.pop("dino_head.last_layer.weight", None)
  if prototypes is not None:
    bottleneck, hidden = own["dino_head.mlp.4.weight"].shape
    options["projection"] = DinoHead(hidden, bottleneck, prototypes=0)
  backbone = ViT(
    size,
    sizes["patch"],
    sizes["hidden"],
    sizes["layers"],
    sizes["heads"],
    **options,
  )
  _, params, extras = loaded(backbone, own, Path("fixture"), "linear")
  if "text_features" in flat:
    text = flat["text_features"]
    kernel = (text / np.linalg.norm(text, axis=1, keepdims=True)).T
    head = {
      "kernel": np.exp(extras["logit_scale"]) * kernel,
      "bias": np.zeros(len(text), np.float32),
    }
  elif prototypes is not None:
    head = {
      "kernel": prototypes.T,
      "bias": np.zeros(len(prototypes), np.float32),
    }
  else:
    head = {"kernel": extras["head/kernel"], "bias": extras["head/bias"]}
  model = models.Model(
    backbone,
    method_of(meta.get("pgn_settings"), backbone.spec),
    len(head["bias"]),
    cosine="text_features" in flat,
  )
  of_method, statistics = method_part(flat)
  params = {
    "backbone": trees.unflatten(params),
    "head": head,
    "method": trees.unflatten(of_method),
  }
  return model, jax.tree.map(
    jnp.asarray,
    {"params": params, "batch_stats": {"method": trees.unflatten(statistics)}},
  )


def in_order(tokens: Tokens) -> jax.Array:
  """Tokens as the reference has them: class token, patches, prompts."""
  return jnp.concatenate([tokens.cls, tokens.patch, tokens.prompt], axis=1)


def compare(
  path: Path, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """Compares all that a fixture of PGN shows."""
  if path.name.startswith("pgn_real"):
    released(arrays, meta, report)
    return
  images, labels = arrays["input/images"], arrays["input/labels"]
  flat = below(arrays, "param/")
  model, variables = build(meta, flat, images.shape[1:3])
  train = meta["batch_norm_mode"].startswith("train")
  floor = LOOSE if train else 0.0
  seen: dict[str, Tokens] = {}

  def spy(call, args, kwargs, context):
    if isinstance(context.module, ViT) and context.method_name == "block":
      i, tokens = args
      seen[f"block_in/{i}"] = tokens
      if i == model.backbone.depth - 1:
        seen["encoded"] = call(i, tokens, **{**kwargs, "pool": None})
    elif isinstance(context.module, ViT) and context.method_name == "norm":
      seen["norm"] = args[0]
    return call(*args, **kwargs)

  @jax.jit
  def run(params):
    def loss_of(params):
      logits, changed = model.apply(
        {**variables, "params": params},
        images,
        train=train,
        mutable=["batch_stats", "intermediates"]
        if train
        else ["intermediates"],
        rngs={"dropout": jax.random.key(0)},
      )
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return loss.mean(), (logits, changed)

    (loss, (logits, changed)), grads = jax.value_and_grad(
      loss_of, has_aux=True
    )(params)
    with nn.intercept_methods(spy):
      model.apply(
        {**variables, "params": params},
        images,
        train=train,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
      )
    norm = lambda x: model.backbone.apply(
      {"params": params["backbone"]}, x, method=lambda module, x: module.norm(x)
    )
    tokens = {
      name: in_order(value)
      for name, value in seen.items()
      if isinstance(value, Tokens)
    }
    return loss, logits, changed, grads, tokens, norm(tokens["encoded"])

  loss, logits, changed, grads, tokens, encoded = run(variables["params"])
  inner = changed["intermediates"].get("method", {})
  ours = {
    "logits": logits,
    "loss": loss,
    "ln_pre": tokens["block_in/0"],
    "encoder_in": tokens["block_in/0"],
    "block_in/0": tokens["block_in/0"],
    "encoded": encoded,
    "ln_post": encoded[:, 0],
    "block_in_LND/2": tokens["block_in/2"].swapaxes(0, 1),
    **{name: value[0] for name, value in inner.items()},
  }
  if isinstance(model.method, PGN):
    ours["generator_in"] = resize(images, model.method.resolution).transpose(
      0, 3, 1, 2
    )
  elif isinstance(model.method, IIP):
    prompt = variables["params"]["method"]["prompt"]
    ours["prompts"] = jnp.repeat(prompt, len(images), axis=0)
  if "out/head_mlp" in arrays:
    theirs = arrays["out/head_mlp"]
    ours["head_mlp"] = changed["intermediates"]["pooled"][0]
    arrays = {
      **arrays,
      "out/head_mlp": theirs / np.linalg.norm(theirs, axis=-1, keepdims=True),
    }
  for name, theirs in below(arrays, "out/").items():
    group = name if name in ("logits", "loss") else "intermediates"
    report.add(group, name, ours[name], theirs, floor)

  gradients(
    report,
    trees.flatten(grads),
    below(arrays, "grad/"),
    "gradients_saved_only_for_tensors_up_to" not in meta,
  )
  state = below(arrays, "state_after/")
  if train:
    statistics(report, changed["batch_stats"]["method"], state)


def gradients(
  report: Report, ours: trees.Flat, theirs: Arrays, whole: bool
) -> None:
  """Compares those of every trained parameter, or of all a fixture holds."""
  mine, _ = method_part(theirs)
  renamed = {
    f"method/{name}": array for name, array in mine.items() if array.size
  }
  for key, array in theirs.items():
    if key.startswith("vit_model.heads.head."):
      leaf = key.rpartition(".")[2]
      renamed["head/kernel" if leaf == "weight" else "head/bias"] = array.T
  if len(renamed) != len(theirs):
    raise ValueError(
      f"gradients of {sorted(theirs)} became those of {sorted(renamed)}"
    )
  missing = {
    name for name in ours if name.startswith("method/")
  } - renamed.keys()
  if whole and missing:
    raise ValueError(f"no gradient of {sorted(missing)}")
  for name, array in renamed.items():
    report.add("gradients", name, ours[name], array)


def statistics(report: Report, ours: dict[str, Any], theirs: Arrays) -> None:
  """Compares running means and variances."""
  mine = trees.flatten(ours)
  wanted = method_part(theirs)[1]
  if mine.keys() != wanted.keys():
    raise ValueError(f"other statistics: {sorted(mine.keys() ^ wanted.keys())}")
  for name, array in wanted.items():
    report.add("intermediates", f"state_after/{name}", mine[name], array)


def released(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Images -> prompts with published weights."""
  images = arrays["input/images"]
  params, statistics_ = load_generator(below(arrays, "param/"))
  variables = {
    "params": trees.unflatten(params),
    "batch_stats": trees.unflatten(statistics_),
  }
  settings = meta["pgn_settings"]
  spec = Spec(images.shape[1:3], 16, (settings["vector_dim"],), (None,))
  for name, options, train in (
    ("prompts", {}, False),
    ("prompts_train_mode", {}, True),
    ("prompts_no_init_max_pool", {"init_max_pool": False}, False),
    ("prompts_resolution_96", {"resolution": 96}, False),
  ):
    method = method_of(settings, spec, **options)
    prompts, changed = jax.jit(
      lambda images, method=method, train=train: method.apply(
        variables,
        images,
        None,
        train=train,
        mutable=["batch_stats", "intermediates"],
        method="prompts",
      )
    )(images)
    report.add("intermediates", name, prompts, arrays[f"out/{name}"])
    if name == "prompts":
      report.add(
        "logits",
        "generator_logits",
        changed["intermediates"]["generator_logits"][0],
        arrays["out/generator_logits"],
      )
    if train:
      state = below(arrays, "state_after_train_mode/")
      statistics(
        report,
        changed["batch_stats"],
        {f"pgn_module.{key}": array for key, array in state.items()},
      )
