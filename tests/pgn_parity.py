"""Compares Prompt Generation Networks with fixtures of the published code.

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

from tests import options
from tests.parity_report import Report
from tests.published import loaded
from tests.reference import Arrays, below, reference_class
from vpt_jax import model as model_lib
from vpt_jax.backbones.vit import DinoHead, ViT
from vpt_jax.methods.method import Method
from vpt_jax.methods.pgn import IIP, PGN, resize
from vpt_jax.methods.pgn_weights import load_generator
from vpt_jax.nn.tokens import Spec, Tokens
from vpt_jax.utils import trees
from vpt_jax.weights import translate

# With the statistics of three images.
LOOSE = 1e-4
BATCH_NORM = {"eps": 1e-5, "momentum": 0.1}  # ours, the only ones compared


def method_of(
  settings: dict[str, Any] | None, spec: Spec, **more: Any
) -> Method:
  """Returns the method of a reference's `pgn_settings`."""
  if not settings:
    return Method(spec)
  num_tokens = settings["nr_output_vectors"]
  if settings.get("prompt_mode") == "iip":
    return IIP(spec, num_tokens=num_tokens)
  fields = {
    "num_tokens": num_tokens,
    "library": settings["mixture_size"],
    "act": settings["pgn_act_fn"],
    "network": settings["model_type"],
    "init_max_pool": settings["init_max_pool"],
    "initial_channels": settings["initial_channels"],
    "groups": settings["nr_groups"],
    "blocks_per_group": settings["blocks_per_group"],
    "resolution": settings["pgn_resolution"],
  }
  return PGN(spec, **(fields | more))


def method_part(flat: Arrays) -> tuple[trees.Flat, trees.Flat]:
  """Returns (parameters, statistics) of the module in a state_dict."""
  if "pgn_module.pgn_vectors" in flat:
    return {"prompt": flat["pgn_module.pgn_vectors"][None]}, {}
  if not any("pgn_module" in key for key in flat):
    return {}, {}
  return load_generator({"pgn_module.tl_vectors": np.zeros(0), **flat})


def build(
  meta: dict[str, Any], flat: Arrays, size: tuple[int, int]
) -> tuple[model_lib.Model, dict[str, Any]]:
  """Returns (model, its variables) of a fixture.

  Raises:
    Unsupported: batch norms or a GELU that the library does not have.
  """
  batch_norm = meta.get("batch_norm", BATCH_NORM)
  if batch_norm != BATCH_NORM:
    raise options.Unsupported(f"batch norms {batch_norm} (ours: {BATCH_NORM})")
  own = {
    key: array
    for key, array in flat.items()
    if "pgn_module" not in key and key != "text_features"
  }
  prototypes = own.pop("dino_head.last_layer.weight", None)
  backbone = _backbone_of(meta, own, prototypes, size)
  _, params, extras = loaded(backbone, own, Path("fixture"), "linear")
  head = _head_of(flat, prototypes, extras)
  model = model_lib.Model(
    backbone,
    method_of(meta.get("pgn_settings"), backbone.spec),
    len(head["bias"]),
    cosine="text_features" in flat,
  )
  of_method, statistics = method_part(flat)
  variables = {
    "params": {
      "backbone": trees.unflatten(params),
      "head": head,
      "method": trees.unflatten(of_method),
    },
    "batch_stats": {"method": trees.unflatten(statistics)},
  }
  return model, jax.tree.map(jnp.asarray, variables)


def _backbone_of(
  meta: dict[str, Any],
  own: Arrays,
  prototypes: np.ndarray | None,
  size: tuple[int, int],
) -> ViT:
  """Returns the backbone that has these tensors, for images of this size."""
  translated = translate.translate(own).arrays
  is_clip = "clip" in reference_class(meta).lower()
  more: dict[str, Any] = {
    "gelu": options.gelu_of(meta, "quick" if is_clip else "exact"),
    "eps": options.layer_norm_eps(meta, "clip" if is_clip else "vit"),
  }
  if is_clip:
    width = translated["projection/kernel"].shape[1]
    more["projection"] = nn.Dense(width, use_bias=False)
  if prototypes is not None:
    bottleneck, hidden = own["dino_head.mlp.4.weight"].shape
    more["projection"] = DinoHead(hidden, bottleneck, prototypes=0)
  heads = meta.get("sizes", {}).get("heads")
  if not isinstance(heads, int):
    raise ValueError(f"meta.sizes.heads is {heads!r}, expected a number")
  return options.architecture(translated, size, heads, **more)


def _head_of(
  flat: Arrays, prototypes: np.ndarray | None, extras: Arrays
) -> dict[str, np.ndarray]:
  """Returns the head: of texts, of DINO's prototypes, or the model's own."""
  if "text_features" in flat:
    text = flat["text_features"]
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    kernel = np.exp(extras["logit_scale"]) * unit.T
  elif prototypes is not None:
    kernel = prototypes.T
  else:
    return {"kernel": extras["head/kernel"], "bias": extras["head/bias"]}
  return {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}


def in_order(tokens: Tokens) -> jax.Array:
  """Returns tokens as the reference has them: class, patches, prompts."""
  return jnp.concatenate([tokens.cls, tokens.patch, tokens.prompt], axis=1)


class _Spy:
  """Keeps the tokens before and after each block of a ViT.

  Attributes:
    seen: {`block_in/I`, `block_out/I` or `encoded` (before the norm): tokens}.
  """

  def __init__(self, depth: int):
    self.seen: dict[str, Tokens] = {}
    self._last = depth - 1

  def intercept(self, call, args, kwargs, context):
    """Looks at the calls of blocks; see `nn.intercept_methods`."""
    is_block = (
      isinstance(context.module, ViT) and context.method_name == "block"
    )
    if not is_block:
      return call(*args, **kwargs)
    i, tokens = args
    self.seen[f"block_in/{i}"] = tokens
    out = call(*args, **kwargs)
    if i < self._last:
      self.seen[f"block_out/{i}"] = out
      return out
    # The last block computes the pooled rows only, unless it is asked for all.
    whole = call(i, tokens, **{**kwargs, "pool": None})
    self.seen[f"block_out/{i}"] = whole
    self.seen["encoded"] = whole
    return out


class _Run:
  """A fixture's model, run as the fixture says."""

  def __init__(
    self, model: model_lib.Model, variables: dict[str, Any], train: bool
  ):
    self.model = model
    self.variables = variables
    self.train = train

  def _apply(self, params, images, mutable):
    return self.model.apply(
      {**self.variables, "params": params},
      images,
      train=self.train,
      mutable=mutable,
      rngs={"dropout": jax.random.key(0)},
    )

  def loss(self, params, images, labels):
    """Returns the mean loss, and (logits, changed collections)."""
    mutable = ["intermediates"]
    if self.train:
      mutable = ["batch_stats", "intermediates"]
    logits, changed = self._apply(params, images, mutable)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss.mean(), (logits, changed)

  def all(self, params, images, labels, wanted):
    """Returns (loss, logits, changed, gradients, tokens by name).

    Args:
      params: the model's.
      images: [B, H, W, 3].
      labels: [B].
      wanted: names of tokens, see `_Spy`.
    """
    differentiate = jax.value_and_grad(self.loss, has_aux=True)
    (loss, (logits, changed)), grads = differentiate(params, images, labels)
    spy = _Spy(self.model.backbone.depth)
    with nn.intercept_methods(spy.intercept):
      self._apply(params, images, ["batch_stats"])
    tokens = {}
    for name, value in spy.seen.items():
      if name in wanted:
        tokens[name] = in_order(value)
    if "encoded" in tokens:
      tokens["encoded"] = self.model.backbone.apply(
        {"params": params["backbone"]}, tokens["encoded"], method="norm"
      )
    return loss, logits, changed, grads, tokens


# Names of a fixture's `out/` -> names of the tokens that they are made of.
_TOKENS = {
  "ln_pre": "block_in/0",
  "encoder_in": "block_in/0",
  "ln_post": "encoded",
}


def _tokens_of(name: str) -> str:
  """Returns what `_Spy` calls the tokens of a fixture's output.

  CLIP's are [N, B, D], and `_LND` is in their names then.
  """
  return _TOKENS.get(name, name.replace("_LND", ""))


def compare(
  path: Path, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """Compares all that a fixture of PGN shows."""
  if path.name.startswith("pgn_real"):
    released(arrays, meta, report)
    return
  images = arrays["input/images"]
  labels = arrays["input/labels"]
  flat = below(arrays, "param/")
  outputs = below(arrays, "out/")
  model, variables = build(meta, flat, images.shape[1:3])
  train = str(meta.get("batch_norm_mode", "eval")).startswith("train")
  floor = LOOSE if train else 0.0
  params = variables["params"]
  wanted = frozenset(_tokens_of(name) for name in outputs)
  run = _Run(model, variables, train)
  compiled = jax.jit(run.all, static_argnums=3)
  loss, logits, changed, grads, tokens = compiled(
    params, images, labels, wanted
  )

  ours = {"logits": logits, "loss": loss}
  for name, value in changed["intermediates"].get("method", {}).items():
    ours[name] = value[0]
  if isinstance(model.method, PGN):
    small = resize(images, model.method.resolution)
    ours["generator_in"] = small.transpose(0, 3, 1, 2)
  elif isinstance(model.method, IIP):
    prompt = params["method"]["prompt"]
    ours["prompts"] = jnp.repeat(prompt, len(images), axis=0)
  ours["head_mlp"] = changed["intermediates"]["pooled"][0]
  for name, theirs in outputs.items():
    if name == "head_mlp":  # ours is at unit length
      theirs = theirs / np.linalg.norm(theirs, axis=-1, keepdims=True)
    value = _output(name, ours, tokens)
    if value is None:
      report.notes.append(f"not compared: out/{name}")
      continue
    group = name if name in ("logits", "loss") else "intermediates"
    report.add(group, name, value, theirs, floor)

  gradients(
    report,
    trees.flatten(grads),
    below(arrays, "grad/"),
    "gradients_saved_only_for_tensors_up_to" not in meta,
  )
  if train:
    state = below(arrays, "state_after/")
    statistics(report, changed["batch_stats"]["method"], state)


def _output(
  name: str, ours: dict[str, Any], tokens: dict[str, jax.Array]
) -> jax.Array | None:
  """Returns our value of a fixture's output, None if there is none."""
  if name in ours:
    return ours[name]
  value = tokens.get(_tokens_of(name))
  if value is None:
    return None
  if name == "ln_post":  # of the class token
    return value[:, 0]
  return value.swapaxes(0, 1) if "_LND" in name else value


def gradients(
  report: Report, ours: trees.Flat, theirs: Arrays, whole: bool
) -> None:
  """Compares those of every trained parameter, or of all a fixture holds."""
  of_method, _ = method_part(theirs)
  renamed = {}
  for name, array in of_method.items():
    if array.size:
      renamed[f"method/{name}"] = array
  for key, array in theirs.items():
    if key.startswith("vit_model.heads.head."):
      is_kernel = key.endswith(".weight")
      renamed["head/kernel" if is_kernel else "head/bias"] = array.T
  if len(renamed) != len(theirs):
    raise ValueError(
      f"gradients of {sorted(theirs)} became those of {sorted(renamed)}"
    )
  trained = {name for name in ours if name.startswith("method/")}
  missing = trained - renamed.keys()
  if whole and missing:
    raise ValueError(f"no gradient of {sorted(missing)}")
  for name, array in renamed.items():
    report.add("gradients", name, ours[name], array)


def statistics(report: Report, ours: dict[str, Any], theirs: Arrays) -> None:
  """Compares running means and variances."""
  found = trees.flatten(ours)
  _, wanted = method_part(theirs)
  if found.keys() != wanted.keys():
    wrong = sorted(found.keys() ^ wanted.keys())
    raise ValueError(f"other statistics: {wrong}")
  for name, array in wanted.items():
    report.add("intermediates", f"state_after/{name}", found[name], array)


# Outputs of released weights: (name, changed fields of PGN, training mode).
_RELEASED = (
  ("prompts", {}, False),
  ("prompts_train_mode", {}, True),
  ("prompts_no_init_max_pool", {"init_max_pool": False}, False),
  ("prompts_resolution_96", {"resolution": 96}, False),
)


def released(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares the prompts that published weights make of images."""
  images = arrays["input/images"]
  params, batch_stats = load_generator(below(arrays, "param/"))
  variables = {
    "params": trees.unflatten(params),
    "batch_stats": trees.unflatten(batch_stats),
  }
  settings = meta["pgn_settings"]
  width = settings["vector_dim"]
  spec = Spec(images.shape[1:3], patch_size=16, widths=(width,), grids=(None,))
  for name, fields, train in _RELEASED:
    if f"out/{name}" not in arrays:
      continue
    method = method_of(settings, spec, **fields)

    @jax.jit
    def prompts_of(images, method=method, train=train):
      """Returns (prompts, changed collections)."""
      return method.apply(
        variables,
        images,
        None,
        train=train,
        mutable=["batch_stats", "intermediates"],
        method="prompts",
      )

    prompts, changed = prompts_of(images)
    report.add("intermediates", name, prompts, arrays[f"out/{name}"])
    if name == "prompts":
      (logits,) = changed["intermediates"]["generator_logits"]
      report.add(
        "logits", "generator_logits", logits, arrays["out/generator_logits"]
      )
    if train:
      state = below(arrays, "state_after_train_mode/")
      prefixed = {f"pgn_module.{key}": array for key, array in state.items()}
      statistics(report, changed["batch_stats"], prefixed)
