"""Brings a frozen backbone, a prompt method and a head together.

The loop over blocks (`Model.features`) is the one place where they meet: no
method knows a backbone, no backbone knows a method.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import problems
from vpt_jax.backbones import factory
from vpt_jax.methods import registry
from vpt_jax.methods.method import Method
from vpt_jax.nn import cost, transformer
from vpt_jax.nn.layers import Head, HEAD_INITS
from vpt_jax.nn.tokens import POOLS, Reads, Spec, Tokens
from vpt_jax.ops.switch import ATTENTION_FORMS, KINDS, Ops
from vpt_jax.problems import heads, segmentation_heads
from vpt_jax.utils import lookup, trees
from vpt_jax.weights import file_formats, known_files, load
from vpt_jax.weights.agreement import Told


class Model(nn.Module):
  """Backbone, method and head, with the parameter tree of these three names.

  Attributes:
    backbone: gives tokens, blocks and the final norm (see `backbones/vit.py`).
    method: acts at the sites of `methods/method.py`.
    num_classes: K.
    pool: the rows whose mean is the feature: `cls`, `img`, `prompt` or
      `imgprompt` ("": the backbone's own). A ViT's last block computes these
      rows only.
    cosine: the head sees the feature at unit length (CLIP).
    groups: classes of the head that make one class of the task each (their
      probabilities are added); (): they are the task's.
    head_init: of the head.
    hidden_layers: of the head.
    remat: compute a block's activations again in the backward pass, instead of
      keeping them.
    reads: what the head reads; the last block computes just that.
    dense: head that gives every pixel its logits, of the patches in `reads`
      (see `nn/dense_heads.py`); None: the linear one, or MLP, of the others.
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
  reads: Reads = Reads()
  dense: nn.Module | None = None

  def setup(self):
    """Makes the head; backbone and method are made by those who give them."""
    if self.dense is not None:
      self.head = self.dense.copy(name="head")
      return
    outputs = self.num_classes
    if self.groups:
      outputs = sum(len(group) for group in self.groups)
    self.head = Head(outputs, self.head_init, self.hidden_layers)

  def features(
    self, image: jax.Array, *, train: bool = False
  ) -> jax.Array | tuple[jax.Array, ...]:
    """Returns what the head reads of normalised images [B, H, W, 3].

    The pooled feature [B, D]; or, if `reads` names blocks, the patches
    [B, N, D] after each of these, in float32. The backbone's final norm is
    applied to pooled features, before or after the mean as the backbone's spec
    says; and to the patches of the backbone's last block where it stands before
    the mean, so that they are what would be averaged (unless `reads` leaves it
    out). Other patches are as their block gives them.
    """
    run_block = type(self)._block  # subclasses may look into it: Grad-CAM
    if self.remat:
      run_block = nn.remat(run_block, static_argnums=(1, 3))
    tokens = self._embed(image, train)
    patches = {}
    for i in range(self._num_blocks()):
      tokens = run_block(self, i, tokens, train)
      if i in self.reads.blocks:
        patches[i] = self._patches(i, tokens)
    self.sow("intermediates", "block_out", tokens)
    if not self.reads.patches:
      return self._pooled(tokens)
    if self.is_initializing():
      self._pooled(tokens)  # the backbone has all of its parameters
    return tuple(patches[i] for i in self.reads.blocks)

  def _embed(self, image: jax.Array, train: bool) -> Tokens:
    """Returns the tokens, with carried prompts, that enter the first block."""
    backbone = self.backbone
    method = self.method
    image = method.image(image, train=train)
    tokens = backbone.embed(image)
    pixels = method.patches(image)
    if pixels is not None:
      tokens = tokens.with_prompt(backbone.embed_patches(pixels))
    prompts = method.prompts(image, tokens, train=train)
    if prompts is not None:
      tokens = tokens.with_prompt(prompts)
    return tokens

  def _block(self, i: int, tokens: Tokens, train: bool) -> Tokens:
    """Returns the tokens after block i, and after all that a method does."""
    backbone = self.backbone
    method = self.method
    pool = self._rows_of(i)
    tokens = backbone.enter(i, tokens)
    tokens = method.before(i, tokens, train=train)
    context = method.context(i, tokens, train=train)
    if context is not None and pool is not None and _reads_prompts(pool):
      tokens = tokens.with_prompt(context)
      context = None
    self.sow("intermediates", f"block_in_{i}", (tokens, context))
    tokens_out = backbone.block(
      i,
      tokens,
      context=context,
      temperature=method.temperature(i),
      pool=pool,
      edit=self._edit(i),
      prompt_bias=method.prompt_bias(i),
    )
    return method.after(i, tokens, tokens_out, train=train)

  def _num_blocks(self) -> int:
    """Returns how many blocks run: up to the last one that is read."""
    depth = self.backbone.spec.depth
    last = self.reads.last_block(depth)
    return depth if self.is_initializing() else last + 1

  def _rows_of(self, i: int) -> str | None:
    """Returns the pooling whose rows block i computes; None: all rows."""
    spec = self.backbone.spec
    if i != self.reads.last_block(spec.depth):
      return None
    if self.reads.patches:
      return "img"
    return self.pool or spec.pool

  def _edit(self, i: int) -> transformer.Edit:
    """Returns what the method changes inside block i."""
    method_class: Any = type(self.method)
    if method_class.inside is Method.inside:
      return transformer.no_edit
    return functools.partial(self.method.inside, i)

  def _patches(self, i: int, tokens: Tokens) -> jax.Array:
    """Returns the patches [B, N, D] after block i, float32; see `features`."""
    spec = self.backbone.spec
    is_last = i == spec.depth - 1
    is_normed = is_last and spec.norm == "before" and self.reads.final_norm
    patch = self.backbone.norm(tokens.patch) if is_normed else tokens.patch
    return patch.astype(jnp.float32)

  def _pooled(self, tokens: Tokens) -> jax.Array:
    """Returns the feature [B, D], float32, of the rows that are pooled.

    Raises:
      ValueError: there are no such rows.
    """
    backbone = self.backbone
    spec = backbone.spec
    _check_rows(tokens, self.pool or spec.pool)
    prompt_bias = self.method.prompt_bias(spec.depth - 1)
    if spec.norm == "before":
      normed = tokens.replace(x=backbone.norm(tokens.x))
      feature = normed.mean(prompt_bias)
    else:
      wide = tokens.replace(x=tokens.x.astype(jnp.float32))
      feature = backbone.norm(wide.mean(prompt_bias))
    feature = backbone.project(feature)
    if self.cosine:
      feature /= jnp.linalg.norm(feature, axis=-1, keepdims=True)
    self.sow("intermediates", "pooled", feature)
    return feature

  def classify(
    self,
    feature: jax.Array | tuple[jax.Array, ...],
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the head's outputs for `features`: logits [B, K]."""
    logits = self.head(feature, train)
    if not self.groups:
      return logits
    ends = np.cumsum([len(group) for group in self.groups])[:-1]
    parts = jnp.split(logits, ends, axis=-1)
    sums = [jax.nn.logsumexp(part, axis=-1) for part in parts]
    return jnp.stack(sums, axis=-1)

  def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
    """Returns the logits [B, K] of normalised images [B, H, W, 3].

    `train=True` needs an rng named `dropout` and draws the method's dropout;
    the backbone's own is always off, as published.
    """
    return self.classify(self.features(image, train=train), train=train)


def _reads_prompts(pool: str) -> bool:
  _, with_prompts, _ = POOLS[pool]
  return with_prompts


def _check_rows(tokens: Tokens, pool: str) -> None:
  """Raises ValueError if a pooling finds no rows."""
  if tokens.x.shape[1]:
    return
  if _reads_prompts(pool):
    raise ValueError(
      "pool='prompt' reads prompts, but this method leaves none after the "
      "last block; use pool='cls' or 'img'"
    )
  raise ValueError(
    f"pool={pool!r} reads the class token, but this backbone has none; "
    "use pool='img'"
  )


def build(
  config: ConfigDict, num_classes: int, platform: str | None = None
) -> Model:
  """Returns the model that a config names, see `Model`.

  Args:
    config: a whole one.
    num_classes: K, the width of the head.
    platform: that it is compiled for: `cpu`, `gpu` or `tpu`; None: JAX's.

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
  backbone = factory.build(
    config.backbone,
    config.image_size,
    config.compute.dtype,
    choose_ops(config.compute, platform or jax.default_backend()),
  )
  method_class = registry.get(config.method)
  needs_grid = getattr(method_class, "needs_grid", False)
  if needs_grid and None in backbone.spec.grids:
    raise ValueError(
      f"method {config.method!r} needs patch tokens on a grid, backbone "
      f"{config.backbone.name!r} has none; use 'linear' or 'pad'"
    )
  options = config.get(config.method, {})
  method = registry.build(config.method, options, backbone.spec)
  if config.head == "prototypes":
    backbone = heads.without_prototypes(backbone)
  if problems.of_run(config).dense:
    return _dense(config, backbone, method, num_classes)
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


def _dense(
  config: ConfigDict,
  backbone: nn.Module,
  method: Method,
  num_classes: int,
) -> Model:
  """Returns the model of a problem with a class for every pixel.

  Raises:
    ValueError: a method that shifts the image, or see `segmentation_heads`.
  """
  spec: Spec = backbone.spec
  if tuple(method.input_size) != tuple(spec.image_size):
    raise ValueError(
      f"method {config.method!r} puts an image of {list(method.input_size)} "
      f"into one of {list(spec.image_size)} pixels, so that patches are not "
      "where the labels are; choose another method for segmentation"
    )
  head, reads = segmentation_heads.build(
    config.segmentation, num_classes, spec, jnp.dtype(config.compute.dtype)
  )
  return Model(
    backbone,
    method,
    num_classes,
    remat=config.compute.remat,
    reads=reads,
    dense=head,
  )


def choose_ops(compute: ConfigDict, platform: str) -> Ops:
  """Returns the form of all operations that `config.compute` chooses.

  Args:
    compute: the section; one of an old run may lack `ops`.
    platform: that is compiled for.

  Raises:
    ValueError: unknown names, or cuDNN where it is not.
  """
  kind = lookup.choose(compute.get("ops", "auto"), KINDS, "compute.ops")
  attention = lookup.choose(
    compute.attention, ATTENTION_FORMS, "compute.attention"
  )
  if attention == "cudnn" and platform != "gpu":
    raise ValueError(
      "compute.attention='cudnn' is for NVIDIA GPUs, JAX has "
      f"{platform!r}; use 'auto'"
    )
  return Ops(kind, platform, attention)


def init(
  model: Model,
  rng: jax.Array,
  parts: Iterable[str] = ("backbone", "method", "head"),
) -> dict[str, Any]:
  """Returns freshly initialised parameters {backbone, method, head}.

  Args:
    model: whose they are.
    rng: key of the initial values.
    parts: which are returned; the others are not computed.
  """

  @jax.jit
  def values(rng):
    params = {"method": {}, **_variables(model, rng)["params"]}
    return {part: params[part] for part in parts}

  values_of_parts = values(rng)  # in alphabetical order, as `jit` returns it
  return {part: values_of_parts[part] for part in parts}


def collections(model: Model, rng: jax.Array) -> dict[str, Any]:
  """Returns what is not trained and yet changes: batch statistics, or {}."""

  @jax.jit
  def values(rng):
    variables = dict(_variables(model, rng))
    variables.pop("params")
    variables.pop("intermediates", None)
    return variables

  return values(rng)


# Traced once for all that asks (shapes, then values), as models are hashable.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _variables(model: Model, rng: jax.Array) -> dict[str, Any]:
  image = jnp.zeros((1, *model.method.input_size, 3))
  variables: Any = model.init({"params": rng}, image)
  return variables


def load_backbone(
  model: Model, config: ConfigDict, told: Told | None = None
) -> load.Loaded | None:
  """Returns the checkpoint that a config names; None for "random".

  Args:
    model: whose backbone it is of.
    config: names the checkpoint.
    told: what is said of the checkpoint; None: what the config says.

  Raises:
    ValueError: the checkpoint is missing, damaged or does not fit.
  """
  entry = factory.get(config.backbone.name)
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
  shapes = jax.eval_shape(
    lambda: init(model, jax.random.PRNGKey(0), ["backbone"])
  )
  loaded = load.load(
    source,
    trees.flatten(shapes["backbone"]),
    model.backbone.spec,
    resize=getattr(model.backbone, "resize", "linear"),
    checksum="" if config.backbone.checkpoint else entry.checksum,
    told=told or _told(config),
  )
  if load.is_local(source):
    known_files.remember(source, loaded.sha256)
  return loaded


def _told(config: ConfigDict) -> Told:
  """Returns what a config says of the checkpoint that it names."""
  backbone = config.backbone
  if not backbone.checkpoint:  # The model zoo knows its own.
    return Told(pool=bool(config.pool), all=True)
  return Told(
    gelu=backbone.gelu not in ("", "torch"),
    eps=backbone.get("eps", 0.0) > 0,
    pool=bool(config.pool),
    grid=tuple(backbone.get("grid", ())) or None,
  )


def pretrained(
  model: Model,
  config: ConfigDict,
  rng: jax.Array,
  class_names: Sequence[str] = (),
  loaded: load.Loaded | None = None,
  told: Told | None = None,
) -> tuple[dict[str, Any], str]:
  """Returns initialised parameters with the backbone's from its checkpoint.

  Args:
    model: whose they are.
    config: names the checkpoint; `backbone.checkpoint="random"` has none.
    rng: key of the initial values.
    class_names: of the task, for head='zero_shot'.
    loaded: the checkpoint, if it was read before.
    told: see `load_backbone`.

  Returns:
    (parameters, sha256 of the checkpoint or "random").

  Raises:
    ValueError: see `load_backbone`.
  """
  if loaded is None:
    loaded = load_backbone(model, config, told)
  if loaded is None:
    return init(model, rng), "random"
  fresh = init(model, rng, ["method", "head"])
  params = {
    "backbone": trees.unflatten(jax.device_put(loaded.backbone)),
    "method": fresh["method"],
    "head": heads.initial(
      config,
      factory.get(config.backbone.name),
      loaded.extras,
      fresh["head"],
      class_names,
    ),
  }
  return params, loaded.sha256


def multiply_adds(model: Model) -> int:
  """Returns those of one image, with its prompts and the head.

  Of dense heads the main one is counted, with all patches of the last block; to
  enlarge maps is no product, and counts as nothing.
  """
  image = jnp.zeros((1, *model.method.input_size, 3))
  variables = jax.eval_shape(lambda: _variables(model, jax.random.PRNGKey(0)))
  return cost.counted(model.apply, variables, image)


def restore(values: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested values, those that are in a flat `saved` taken from there.

  Raises:
    ValueError: a saved one has another shape.
  """
  flat = trees.flatten(values)
  restored = {}
  for path, leaf in flat.items():
    if path in saved and leaf.shape != saved[path].shape:
      raise ValueError(
        f"{path} is {saved[path].shape} where it was saved, "
        f"{leaf.shape} in this model"
      )
    restored[path] = jnp.asarray(saved.get(path, leaf))
  return values | trees.unflatten(restored)


def start_method(
  model: Model, params: dict[str, Any], collections: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns both with the method's own weights, if it names a file of them.

  Args:
    model: whose they are.
    params: {backbone, method, head}.
    collections: see the function of this name.

  Raises:
    ValueError: the file is missing, damaged or does not fit.
  """
  source = model.method.weights
  if not source:
    return params, collections
  with load.local(source, "", None) as path:
    arrays = file_formats.read(path)
  found_params, found_statistics = model.method.pretrained(arrays)
  statistics = collections.get("batch_stats", {})
  _check_shapes(params["method"], found_params, source)
  _check_shapes(statistics.get("method", {}), found_statistics, source)
  params = _with_method(params, found_params)
  statistics = _with_method(statistics, found_statistics)
  return params, {**collections, "batch_stats": statistics}


def _with_method(tree: dict[str, Any], flat: trees.Flat) -> dict[str, Any]:
  """Returns {backbone, method, head} with these arrays for the method's."""
  return {**tree, "method": trees.unflatten(jax.device_put(flat))}


def _check_shapes(
  fresh: dict[str, Any], found: Mapping[str, Any], source: str
) -> None:
  """Raises ValueError if a file's flat arrays are not those of a method."""
  expected = trees.flatten(fresh)
  wrong = []
  for name in sorted(expected.keys() | found.keys()):
    here = np.shape(expected[name]) if name in expected else "none"
    there = np.shape(found[name]) if name in found else "none"
    if here != there:
      wrong.append(f"{name}: {here} here, {there} in the file")
  if not wrong:
    return
  shown = "; ".join(wrong[:4])
  if len(wrong) > 4:
    shown += " ..."
  raise ValueError(
    f"{source} does not fit the method's options ({shown}); set those that it "
    "was trained with"
  )


def store(frozen: trees.Flat, config: ConfigDict) -> trees.Flat:
  """Returns frozen parameters in the type that the config stores them in."""
  dtype = config.backbone.frozen_dtype
  return {path: leaf.astype(dtype) for path, leaf in frozen.items()}
