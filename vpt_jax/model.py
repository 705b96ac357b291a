"""A frozen backbone, a prompt method and a head: the one loop over blocks.

No method knows a backbone, no backbone knows a method; they meet here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import heads, tree
from vpt_jax.backbones import load
from vpt_jax.backbones import registry as backbones
from vpt_jax.methods import registry as methods
from vpt_jax.tokens import POOLS


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
  """

  backbone: nn.Module
  method: nn.Module
  num_classes: int
  pool: str = ""
  cosine: bool = False
  groups: tuple[tuple[int, ...], ...] = ()

  def setup(self):
    self.head = nn.Dense(
        sum(map(len, self.groups)) or self.num_classes, dtype=jnp.float32,
        # As published: Kaiming normal over fan-out, and a prior of 1 % for
        # every class (focal loss' trick): -log((1 - 0.01) / 0.01).
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        bias_init=nn.initializers.constant(-4.59511985))

  def features(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Normalised images [B, H, W, 3] -> pooled features [B, D], float32."""
    backbone, method = self.backbone, self.method
    spec = backbone.spec
    pool = self.pool or spec.pool
    reads_prompts = POOLS[pool][1]
    last = spec.depth - 1

    image = method.image(image, train=train)
    tokens = backbone.embed(image)
    tokens = tokens.with_prompt(method.prompts(image, tokens, train=train))
    for i in range(spec.depth):
      tokens = backbone.enter(i, tokens)
      tokens = method.before(i, tokens, train=train)
      context = method.context(i, tokens, train=train)
      if i == last and reads_prompts and context is not None:
        tokens, context = tokens.with_prompt(context), None
      self.sow("intermediates", f"block_in_{i}", (tokens, context))
      tokens_out = backbone.block(
          i, tokens, context=context, temperature=method.temperature(i),
          pool=pool if i == last else None)
      tokens = method.after(i, tokens, tokens_out)
    self.sow("intermediates", "block_out", tokens)

    if not tokens.x.shape[1]:
      raise ValueError(
          "pool='prompt' reads prompts, but this method leaves none after the "
          "last block; use pool='cls' or 'img'" if reads_prompts else
          f"pool={pool!r} reads the class token, but this backbone has none; "
          "use pool='img'")
    if spec.norm == "before":
      feature = backbone.norm(tokens.x).mean(axis=1)
    else:
      feature = backbone.norm(tokens.x.astype(jnp.float32).mean(axis=1))
    feature = backbone.project(feature)
    if self.cosine:
      feature /= jnp.linalg.norm(feature, axis=-1, keepdims=True)
    self.sow("intermediates", "pooled", feature)
    return feature

  def classify(self, feature: jax.Array) -> jax.Array:
    """Features [B, D] -> logits [B, K]."""
    logits = self.head(feature)
    if not self.groups:
      return logits
    ends = np.cumsum([len(group) for group in self.groups])[:-1]
    return jnp.stack([jax.nn.logsumexp(part, axis=-1) for part in
                      jnp.split(logits, ends, axis=-1)], axis=-1)

  def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Normalised images [B, H, W, 3] -> logits [B, K].

    `train=True` needs an rng named `dropout` and draws the method's dropout;
    the backbone's own is always off, as published.
    """
    return self.classify(self.features(image, train=train))


def build(config: ConfigDict, num_classes: int) -> Model:
  """The model that a config names.

  Raises:
    ValueError: unknown names or options, or parts that do not fit.
  """
  if config.pool:
    tree.choose(config.pool, POOLS, "pool")
  tree.choose(config.head, heads.HEADS, "head")
  if config.head == "zero_shot" and not config.backbone.projection:
    raise ValueError("head='zero_shot' compares projected features with texts; "
                     "set config.backbone.projection=True")
  backbone = backbones.build(config.backbone, config.image_size,
                             config.compute.dtype)
  options = config.get(config.method, {})
  if getattr(methods.get(config.method), "needs_grid", False) and (
      None in backbone.spec.grids):
    raise ValueError(
        f"method {config.method!r} needs patch tokens on a grid, backbone "
        f"{config.backbone.name!r} has none; use 'linear' or 'pixel'")
  method = methods.build(config.method, options, backbone.spec)
  return Model(backbone, method, num_classes, config.pool,
               cosine=config.head == "zero_shot",
               groups=heads.groups(config, num_classes))


def init(model: Model, rng: jax.Array,
         parts: Iterable[str] = ("backbone", "method", "head")
         ) -> dict[str, Any]:
  """Freshly initialised parameters {backbone, method, head}.

  Those of `parts` only: what is not asked for is not computed.
  """
  height, width = model.backbone.spec.image_size

  @jax.jit
  def values(rng):
    image = jnp.zeros((1, height, width, 3))
    params = {"method": {}, **model.init({"params": rng}, image)["params"]}
    return {part: params[part] for part in parts}

  out = values(rng)
  return {part: out[part] for part in parts}


def pretrained(model: Model, config: ConfigDict, rng: jax.Array,
               class_names: Sequence[str] = ()
               ) -> tuple[dict[str, Any], str]:
  """Initialised parameters with the backbone's from its checkpoint.

  Args:
    model: from `build`.
    config: names the checkpoint; `backbone.checkpoint="random"` has none.
    rng: key of the initial values.
    class_names: of the task, for head='zero_shot'.

  Returns:
    (parameters, sha256 of the checkpoint or "random").

  Raises:
    ValueError: the checkpoint is missing, damaged or does not fit.
  """
  entry = backbones.get(config.backbone.name)
  source = config.backbone.checkpoint or entry.url
  if source == "random":
    if config.head != "linear":
      raise ValueError(f"head={config.head!r} is in a checkpoint, but "
                       "config.backbone.checkpoint is 'random'")
    return init(model, rng), "random"
  if not source:
    raise ValueError(
        f"backbone {config.backbone.name!r} is an architecture without known "
        "weights; set config.backbone.checkpoint to a file or an address")
  template = tree.flatten(jax.eval_shape(
      lambda: init(model, rng, ["backbone"]))["backbone"])
  loaded = load.load(
      source, template, model.backbone.spec,
      resize=getattr(model.backbone, "resize", "linear"),
      checksum="" if config.backbone.checkpoint else entry.checksum)
  fresh = init(model, rng, ["method", "head"])
  fresh["head"] = heads.initial(config, entry, loaded.extras, fresh["head"],
                                class_names)
  return {"backbone": tree.unflatten(jax.device_put(loaded.backbone)),
          **fresh}, loaded.sha256


def store(frozen: tree.Flat, config: ConfigDict) -> tree.Flat:
  """Frozen parameters in the type that the config stores them in."""
  return {path: leaf.astype(config.backbone.frozen_dtype)
          for path, leaf in frozen.items()}


def check_backbone(path: str, trained_on: dict[str, str],
                   builds: dict[str, str]) -> None:
  """Raises ValueError unless a saved file fits the backbone of a config.

  Args:
    path: of the saved file, for the error.
    trained_on: {name, sha256} of the backbone that it was trained on.
    builds: the same of the backbone at hand.
  """
  if trained_on != builds:
    raise ValueError(
        f"checkpoint {path} was trained on backbone {trained_on['name']} "
        f"(sha256 {trained_on['sha256'][:8]}..), this config builds "
        f"{builds['name']} (sha256 {builds['sha256'][:8]}..)")
