"""Runs a model for the comparison: one pass with all it shows, or training."""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vpt_jax import model as model_lib
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.utils import trees

Batch = tuple[np.ndarray, np.ndarray]  # images and labels


def _variables(train: trees.Flat, frozen: trees.Flat) -> dict[str, Any]:
  """Returns both as variables; below `batch_stats/` are running statistics."""
  params = trees.merge(train, frozen)
  statistics = params.pop("batch_stats", None)
  if statistics is None:
    return {"params": params}
  return {"params": params, "batch_stats": statistics}


def _loss(
  train: trees.Flat,
  frozen: trees.Flat,
  model: model_lib.Model,
  images: jax.Array,
  labels: jax.Array,
):
  """Returns the mean cross entropy, and (logits, features, what has changed).

  The features are the pooled one, and that after the head's hidden layers.
  """
  variables = _variables(train, frozen)
  last_hidden = f"norm_{model.hidden_layers - 1}"

  def is_hidden_feature(module: nn.Module, method: str) -> bool:
    return module.name == last_hidden and method == "__call__"

  logits, state = model.apply(
    variables,
    images,
    mutable=["intermediates", "batch_stats"],
    capture_intermediates=is_hidden_feature,
  )
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  sown = trees.flatten(state["intermediates"])
  features = {"pooled": sown["pooled"][0]}
  for path, value in sown.items():
    if path.startswith("head/"):
      features["mlp_hidden"] = value[0]
  changed = {
    "batch_stats": state.get("batch_stats", {}),
    "method": model.method.constrain(variables["params"].get("method", {})),
  }
  return loss, (logits, features, trees.flatten(changed))


class _Trace:
  """Keeps all tokens on their way, in the reference's order.

  The model runs as it is, but for its last block, which is asked for all rows
  (and so carries its prompts).

  Attributes:
    seen: {name of a fixture's `out/`: [B, N, D]}.
    thrown: {such a name: zeros [P]} for P prompts whose rows the block does not
      compute.
  """

  def __init__(self, model: model_lib.Model):
    self.seen: dict[str, jax.Array] = {}
    self.thrown: dict[str, jax.Array] = {}
    spec = model.backbone.spec
    self._stages = spec.stages
    self._last = spec.depth - 1
    # Swin's blocks are counted within their stage.
    self._block_names = []
    for s, stage in enumerate(spec.stages):
      for j, i in enumerate(stage):
        of_swin = isinstance(model.backbone, Swin)
        self._block_names.append(f"{s}.{j}" if of_swin else f"{i}")

  def intercept(self, call, args, kwargs, context):
    """Looks at the calls of a backbone; see `nn.intercept_methods`."""
    if not isinstance(context.module, (ViT, Swin)):
      return call(*args, **kwargs)
    if context.method_name == "enter":
      out = call(*args, **kwargs)
      self._entered(context.module, args[0], out)
      return out
    if context.method_name == "block":
      return self._block(context.module, call, args, kwargs)
    return call(*args, **kwargs)

  def _block(self, backbone, call, args, kwargs):
    i, tokens = args
    prompt = kwargs["context"]
    name = f"block_out/{self._block_names[i]}"
    whole = tokens if prompt is None else tokens.with_prompt(prompt)
    self.seen[f"block_in/{i}"] = whole.x
    self.seen[f"prompts_in/{i}"] = whole.prompt
    if i == self._last:
      tokens = whole
      kwargs = {**kwargs, "context": None, "pool": None}
    elif prompt is not None:
      self.thrown[name] = jnp.zeros(prompt.shape[1])
    out = call(i, tokens, **kwargs)
    self.seen[name] = out.x
    if i == self._last:
      self.seen[f"stage_out/{len(self._stages) - 1}"] = out.x
      self.seen["encoded"] = backbone.norm(out.x)
    return out

  def _entered(self, backbone, i, tokens):
    """Looks at what enters block i, the patch merging before it included."""
    if i == 0:
      patches = tokens.patch
      if isinstance(backbone, Swin) and backbone.absolute_positions:
        # The reference adds them after what it calls the patch embedding.
        patches = patches - backbone.pos_embedding
      self.seen["patch_embed"] = patches
    elif i in (stage.start for stage in self._stages[1:]):
      # What stands between Swin's stages belongs to the first of them.
      before = self._block_names[i - 1]
      stage, _, _ = before.partition(".")
      name = f"stage_out/{stage}"
      self.seen[name] = tokens.x
      if f"block_out/{before}" in self.thrown:
        self.thrown[name] = self.thrown[f"block_out/{before}"]


class Pass(NamedTuple):
  """One pass over a batch.

  Attributes:
    loss: mean cross entropy.
    logits: [B, K].
    grads: of the loss, for the trainable tree.
    seen: {name of a fixture's `out/`: tokens [B, N, D] or features [B, D]}.
    thrown: {such a name: zeros [P]}, where P prompts' rows are not computed.
    changed: running statistics after it, and the method's parameters as its
      `constrain` leaves them.
  """

  loss: jax.Array
  logits: jax.Array
  grads: trees.Flat
  seen: dict[str, jax.Array]
  thrown: dict[str, jax.Array]
  changed: trees.Flat


@functools.partial(jax.jit, static_argnums=2)
def run(
  train: trees.Flat,
  frozen: trees.Flat,
  model: model_lib.Model,
  images: jax.Array,
  labels: jax.Array,
) -> Pass:
  """Returns one pass; equal models share a compilation, as they are static."""
  differentiate = jax.value_and_grad(_loss, has_aux=True)
  (loss, more), grads = differentiate(train, frozen, model, images, labels)
  logits, features, changed = more
  trace = _Trace(model)
  with nn.intercept_methods(trace.intercept):
    model.clone(pool="img").apply(_variables(train, frozen), images)
  seen = {**trace.seen, **features}
  return Pass(loss, logits, grads, seen, trace.thrown, changed)


class Training(NamedTuple):
  """What a training did: parameters, and a number per step."""

  mid: trees.Flat
  final: trees.Flat
  losses: list[jax.Array]
  grad_norms: list[jax.Array]
  final_logits: jax.Array


def train(
  trainable: trees.Flat,
  frozen: trees.Flat,
  model: model_lib.Model,
  optimizer: optax.GradientTransformation,
  batches: Sequence[Batch],
  steps: int,
) -> Training:
  """Trains over the batches in order, again and again.

  `mid` is after half the steps, `final_logits` of the first batch at the end.
  Parameters are constrained before the first step too, as the reference clamps
  its own when it runs.
  """

  def constrained(flat):
    """Returns the parameters as the method's `constrain` leaves them."""
    nested = trees.unflatten(flat)
    if "method" in nested:
      nested["method"] = model.method.constrain(nested["method"])
    return trees.flatten(nested)

  @jax.jit
  def update(trainable, frozen, state, images, labels):
    """Returns (parameters, state, loss, logits, norm of the gradients)."""
    differentiate = jax.value_and_grad(_loss, has_aux=True)
    (loss, more), grads = differentiate(
      trainable, frozen, model, images, labels
    )
    logits, _, _ = more
    updates, state = optimizer.update(grads, state, trainable)
    updated = constrained(optax.apply_updates(trainable, updates))
    return updated, state, loss, logits, optax.tree.norm(grads)

  trainable = constrained(trainable)
  state = optimizer.init(trainable)
  mid = trainable
  losses = []
  norms = []
  for step in range(steps):
    batch = batches[step % len(batches)]
    trainable, state, loss, _, norm = update(trainable, frozen, state, *batch)
    losses.append(loss)
    norms.append(norm)
    if step + 1 == steps // 2:
      mid = trainable
  _, _, _, logits, _ = update(trainable, frozen, state, *batches[0])
  return Training(mid, trainable, losses, norms, logits)
