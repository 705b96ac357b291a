"""A frozen backbone, a prompt method and a head: the one loop over blocks.

No method knows a backbone, no backbone knows a method; they meet here.
"""

from collections.abc import Iterable, Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax.backbones import factory as backbones
from vpt_jax.methods import method as base
from vpt_jax.methods import registry as methods
from vpt_jax.nn import cost, transformer
from vpt_jax.nn.layers import Head, HEAD_INITS
from vpt_jax.nn.tokens import POOLS, Tokens
from vpt_jax.problems import heads
from vpt_jax.utils import lookup, trees
from vpt_jax.weights import file_formats, load


class Model(nn.Module):
  """Classifier with the parameter tree {backbone, method, head}.

  Attributes:
    backbone: gives tokens, blocks and the final norm (see `backbones/vit.py`).
    method: speaks at the sites of `methods/base.py`.
    num_classes: K.
    pool: the rows whose mean is the feature: `cls`, `img`, `prompt` or
      `imgprompt` ("": the backbone's own). A ViT's last block computes these
      rows only.
    cosine: the head sees the feature at unit length (CLIP).
    groups: classes of the head that make one class of the task each (their
      probabilities are added); (): they are the task's.
    head_init, hidden_layers: of the head.
    remat: compute a block's activations again in the backward pass, instead of
      keeping them.
  """

  backbone: nn.Module
  method: nn.Module
  num_classes: int
  pool: str = ""
  cosine: bool = False
  groups: tuple[tuple[int, ...], ...] = ()
  head_init: str = "kaiming"
  hidden_layers: int = 0
  remat: bool = False

  def setup(self):
    self.head = Head(
      sum(map(len, self.groups)) or self.num_classes,
      self.head_init,
      self.hidden_layers,
    )

  def features(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Normalised images [B, H, W, 3] -> pooled features [B, D], float32."""
    backbone, method = self.backbone, self.method
    spec = backbone.spec
    pool = self.pool or spec.pool
    image = method.image(image, train=train)
    tokens = backbone.embed(image)
    pixels = method.patches(image)
    if pixels is not None:
      tokens = tokens.with_prompt(backbone.embed_patches(pixels))
    prompts = method.prompts(image, tokens, train=train)
    if prompts is not None:
      tokens = tokens.with_prompt(prompts)
    block = type(self)._block  # a subclass may look into it, see analyze/
    step = nn.remat(block, static_argnums=(1, 3)) if self.remat else block
    for i in range(spec.depth):
      tokens = step(self, i, tokens, train)
    self.sow("intermediates", "block_out", tokens)

    if not tokens.x.shape[1]:
      raise ValueError(
        "pool='prompt' reads prompts, but this method leaves none after the "
        "last block; use pool='cls' or 'img'"
        if POOLS[pool][1]
        else f"pool={pool!r} reads the class token, but this backbone has none; "
        "use pool='img'"
      )
    prompt_bias = method.prompt_bias(spec.depth - 1)
    if spec.norm == "before":
      feature = tokens.replace(x=backbone.norm(tokens.x)).mean(prompt_bias)
    else:
      feature = backbone.norm(
        tokens.replace(x=tokens.x.astype(jnp.float32)).mean(prompt_bias)
      )
    feature = backbone.project(feature)
    if self.cosine:
      feature /= jnp.linalg.norm(feature, axis=-1, keepdims=True)
    self.sow("intermediates", "pooled", feature)
    return feature

  def _block(self, i: int, tokens: Tokens, train: bool) -> Tokens:
    """Block i, and all that a method says there."""
    backbone, method = self.backbone, self.method
    pool, last = self.pool or backbone.spec.pool, backbone.spec.depth - 1
    tokens = backbone.enter(i, tokens)
    tokens = method.before(i, tokens, train=train)
    context = method.context(i, tokens, train=train)
    if i == last and POOLS[pool][1] and context is not None:
      tokens, context = tokens.with_prompt(context), None
    self.sow("intermediates", f"block_in_{i}", (tokens, context))
    silent = type(method).inside is base.Method.inside
    edit = (
      transformer.no_edit if silent else functools.partial(method.inside, i)
    )
    tokens_out = backbone.block(
      i,
      tokens,
      context=context,
      temperature=method.temperature(i),
      pool=pool if i == last else None,
      edit=edit,
      prompt_bias=method.prompt_bias(i),
    )
    return method.after(i, tokens, tokens_out, train=train)

  def classify(self, feature: jax.Array, *, train: bool = False) -> jax.Array:
    """Features [B, D] -> logits [B, K]."""
    logits = self.head(feature, train)
    if not self.groups:
      return logits
    ends = np.cumsum([len(group) for group in self.groups])[:-1]
    return jnp.stack(
      [
        jax.nn.logsumexp(part, axis=-1)
        for part in jnp.split(logits, ends, axis=-1)
      ],
      axis=-1,
    )

  def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Normalised images [B, H, W, 3] -> logits [B, K].

    `train=True` needs an rng named `dropout` and draws the method's dropout;
    the backbone's own is always off, as published.
    """
    return self.classify(self.features(image, train=train), train=train)


def build(config: ConfigDict, num_classes: int) -> Model:
  """The model that a config names, see `Model`.

  Raises:
    ValueError: unknown names or options, or parts that do not fit.
  """
  if config.pool:
    lookup.choose(config.pool, POOLS, "pool")
  lookup.choose(config.head, heads.HEADS, "head")
  lookup.choose(config.head_init, HEAD_INITS, "head_init")
  if config.head == "zero_shot" and not config.backbone.projection:
    raise ValueError(
      "head='zero_shot' compares projected features with texts; "
      "set config.backbone.projection=True"
    )
  backbone = backbones.build(
    config.backbone,
    config.image_size,
    config.compute.dtype,
    config.compute.attention,
  )
  options = config.get(config.method, {})
  if getattr(methods.get(config.method), "needs_grid", False) and (
    None in backbone.spec.grids
  ):
    raise ValueError(
      f"method {config.method!r} needs patch tokens on a grid, backbone "
      f"{config.backbone.name!r} has none; use 'linear' or 'pad'"
    )
  method = methods.build(config.method, options, backbone.spec)
  if config.head == "prototypes":
    backbone = heads.without_prototypes(backbone)
  return Model(
    backbone,
    method,
    num_classes,
    config.pool,
    cosine=config.head == "zero_shot",
    groups=heads.groups(config, num_classes),
    head_init=config.head_init,
    hidden_layers=config.head_layers,
    remat=config.compute.remat,
  )


def init(
  model: Model,
  rng: jax.Array,
  parts: Iterable[str] = ("backbone", "method", "head"),
) -> dict[str, Any]:
  """Freshly initialised parameters {backbone, method, head}.

  Those of `parts` only: what is not asked for is not computed.
  """

  @jax.jit
  def values(rng):
    params = {"method": {}, **_variables(model, rng)["params"]}
    return {part: params[part] for part in parts}

  out = values(rng)
  return {part: out[part] for part in parts}


def collections(model: Model, rng: jax.Array) -> dict[str, Any]:
  """What is not trained and yet changes: batch statistics, or {}."""
  return jax.jit(
    lambda rng: {
      name: value
      for name, value in _variables(model, rng).items()
      if name not in ("params", "intermediates")
    }
  )(rng)


# Traced once for all that asks (shapes, then values), as models are hashable.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _variables(model: Model, rng: jax.Array) -> dict[str, Any]:
  image = jnp.zeros((1, *model.method.input_size, 3))
  return model.init({"params": rng}, image)


def load_backbone(model: Model, config: ConfigDict) -> load.Loaded | None:
  """The checkpoint that a config names; None for "random".

  Raises:
    ValueError: the checkpoint is missing, damaged or does not fit.
  """
  entry = backbones.get(config.backbone.name)
  source = config.backbone.checkpoint or entry.url
  if source == "random":
    if config.head != "linear":
      raise ValueError(
        f"head={config.head!r} is in a checkpoint, but "
        "config.backbone.checkpoint is 'random'"
      )
    return None
  if not source:
    raise ValueError(
      f"backbone {config.backbone.name!r} is an architecture without known "
      "weights; set config.backbone.checkpoint to a file or an address"
    )
  template = trees.flatten(
    jax.eval_shape(lambda: init(model, jax.random.PRNGKey(0), ["backbone"]))[
      "backbone"
    ]
  )
  return load.load(
    source,
    template,
    model.backbone.spec,
    resize=getattr(model.backbone, "resize", "linear"),
    checksum="" if config.backbone.checkpoint else entry.checksum,
  )


def pretrained(
  model: Model,
  config: ConfigDict,
  rng: jax.Array,
  class_names: Sequence[str] = (),
  loaded: load.Loaded | None = None,
) -> tuple[dict[str, Any], str]:
  """Initialised parameters with the backbone's from its checkpoint.

  Args:
    config: names the checkpoint; `backbone.checkpoint="random"` has none.
    rng: key of the initial values.
    class_names: of the task, for head='zero_shot'.
    loaded: the checkpoint, if it was read before.

  Returns:
    (parameters, sha256 of the checkpoint or "random").

  Raises:
    ValueError: see `load_backbone`.
  """
  loaded = loaded or load_backbone(model, config)
  if loaded is None:
    return init(model, rng), "random"
  fresh = init(model, rng, ["method", "head"])
  fresh["head"] = heads.initial(
    config,
    backbones.get(config.backbone.name),
    loaded.extras,
    fresh["head"],
    class_names,
  )
  return {
    "backbone": trees.unflatten(jax.device_put(loaded.backbone)),
    **fresh,
  }, loaded.sha256


def multiply_adds(model: Model) -> int:
  """Of one image, with its prompts and the head; see `backbones/cost.py`."""
  image = jnp.zeros((1, *model.method.input_size, 3))
  variables = jax.eval_shape(lambda: _variables(model, jax.random.PRNGKey(0)))
  return cost.counted(model.apply, variables, image)


def restore(values: dict[str, Any], saved: trees.Flat) -> dict[str, Any]:
  """Nested values, those that are in a flat `saved` taken from there."""
  flat = trees.flatten(values)
  for path, leaf in flat.items():
    if path in saved and leaf.shape != saved[path].shape:
      raise ValueError(
        f"{path} is {saved[path].shape} where it was saved, "
        f"{leaf.shape} in this model"
      )
  return values | trees.unflatten(
    {path: jnp.asarray(saved.get(path, leaf)) for path, leaf in flat.items()}
  )


def start_method(
  model: Model, params: dict[str, Any], collections: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(params, collections) with the method's own weights, if it names a file.

  Raises:
    ValueError: the file is missing, damaged or does not fit.
  """
  source = model.method.weights
  if not source:
    return params, collections
  statistics = collections.get("batch_stats", {})
  with load.local(source, "", None) as path:
    found = model.method.pretrained(file_formats.read(path))
  for fresh, flat in zip(
    (params["method"], statistics.get("method", {})), found
  ):
    want, have = (
      {name: np.shape(leaf) for name, leaf in part.items()}
      for part in (trees.flatten(fresh), flat)
    )
    wrong = [
      f"{name}: {want.get(name, 'none')} here, "
      f"{have.get(name, 'none')} in the file"
      for name in sorted(want.keys() | have.keys())
      if want.get(name) != have.get(name)
    ]
    if wrong:
      raise ValueError(
        f"{source} does not fit the method's options ({'; '.join(wrong[:4])}"
        f"{' ...' * (len(wrong) > 4)}); set those that it was trained with"
      )
  params, statistics = (
    {**whole, "method": trees.unflatten(jax.device_put(flat))}
    for whole, flat in zip((params, statistics), found)
  )
  return params, {**collections, "batch_stats": statistics}


def store(frozen: trees.Flat, config: ConfigDict) -> trees.Flat:
  """Frozen parameters in the type that the config stores them in."""
  return {
    path: leaf.astype(config.backbone.frozen_dtype)
    for path, leaf in frozen.items()
  }
