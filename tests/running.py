"""Runs a model for the comparison: one pass with all it shows, or training."""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vpt_jax import model as models
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import ViT
from vpt_jax.utils import trees

Batch = tuple[np.ndarray, np.ndarray]  # images and labels


def _variables(train: trees.Flat, frozen: trees.Flat) -> dict[str, Any]:
  """Of both; paths below `batch_stats/` are running statistics."""
  params = trees.merge(train, frozen)
  statistics = params.pop("batch_stats", None)
  return {"params": params} | (
    {} if statistics is None else {"batch_stats": statistics}
  )


def _loss(
  train: trees.Flat,
  frozen: trees.Flat,
  model: models.Model,
  images: jax.Array,
  labels: jax.Array,
):
  """Mean cross entropy, and (logits, features, what has changed).

  The features are the pooled one, and that after the head's hidden layers.
  """
  variables = _variables(train, frozen)
  logits, state = model.apply(
    variables,
    images,
    mutable=["intermediates", "batch_stats"],
    capture_intermediates=lambda module, _: (
      module.name == (f"norm_{model.hidden_layers - 1}")
    ),
  )
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  sown = trees.flatten(state["intermediates"])
  features = {
    "pooled": sown["pooled"][0],
    **{
      "mlp_hidden": value[0]
      for path, value in sown.items()
      if path.startswith("head/")
    },
  }
  changed = {
    "batch_stats": state.get("batch_stats", {}),
    "method": model.method.constrain(variables["params"].get("method", {})),
  }
  return loss, (logits, features, trees.flatten(changed))


def _trace(variables: dict[str, Any], model: models.Model, images: jax.Array):
  """All tokens on their way, in the reference's order.

  The model runs as it is, but for its last block, which is asked for all rows
  (and so carries its prompts).

  Returns:
    {name of a fixture's `out/`: [B, N, D]}, {name: zeros [P] for P prompts
    whose rows the block does not compute}.
  """
  seen, thrown = {}, {}
  spec = model.backbone.spec
  last = spec.depth - 1
  named = [
    f"{s}.{j}" if isinstance(model.backbone, Swin) else f"{i}"
    for s, stage in enumerate(spec.stages)
    for j, i in enumerate(stage)
  ]

  def spy(call, args, kwargs, context):
    if not isinstance(context.module, (ViT, Swin)):
      return call(*args, **kwargs)
    if context.method_name == "enter":
      return entered(call(*args, **kwargs), args[0])
    if context.method_name != "block":
      return call(*args, **kwargs)
    i, tokens = args
    prompt, name = kwargs["context"], f"block_out/{named[i]}"
    whole = tokens if prompt is None else tokens.with_prompt(prompt)
    seen[f"block_in/{i}"], seen[f"prompts_in/{i}"] = whole.x, whole.prompt
    if i == last:
      tokens, kwargs = whole, {**kwargs, "context": None, "pool": None}
    elif prompt is not None:
      thrown[name] = jnp.zeros(prompt.shape[1])
    out = call(i, tokens, **kwargs)
    seen[name] = out.x
    if i == last:
      seen[f"stage_out/{len(spec.stages) - 1}"] = out.x
      seen["encoded"] = context.module.norm(out.x)
    return out

  def entered(tokens, i):
    """What stands between Swin's stages belongs to the first of them."""
    before = f"block_out/{named[max(i - 1, 0)]}"
    if i in (stage.start for stage in spec.stages[1:]):
      name = f"stage_out/{named[i - 1].partition('.')[0]}"
      seen[name] = tokens.x
      if before in thrown:
        thrown[name] = thrown[before]
    elif i == 0:
      seen["patch_embed"] = tokens.patch
    return tokens

  with nn.intercept_methods(spy):
    model.clone(pool="img").apply(variables, images)
  return seen, thrown


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
  model: models.Model,
  images: jax.Array,
  labels: jax.Array,
) -> Pass:
  """One pass; the model is static, so equal ones share a compilation."""
  (loss, (logits, features, changed)), grads = jax.value_and_grad(
    _loss, has_aux=True
  )(train, frozen, model, images, labels)
  seen, thrown = _trace(_variables(train, frozen), model, images)
  return Pass(loss, logits, grads, {**seen, **features}, thrown, changed)


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
  model: models.Model,
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
    nested = trees.unflatten(flat)
    if "method" in nested:
      nested["method"] = model.method.constrain(nested["method"])
    return trees.flatten(nested)

  @jax.jit
  def update(trainable, frozen, state, images, labels):
    (loss, (logits, *_)), grads = jax.value_and_grad(_loss, has_aux=True)(
      trainable, frozen, model, images, labels
    )
    updates, state = optimizer.update(grads, state, trainable)
    return (
      constrained(optax.apply_updates(trainable, updates)),
      state,
      loss,
      logits,
      optax.tree.norm(grads),
    )

  trainable = constrained(trainable)
  mid, state, losses, norms = trainable, optimizer.init(trainable), [], []
  for step in range(steps):
    trainable, state, loss, _, norm = update(
      trainable, frozen, state, *batches[step % len(batches)]
    )
    losses.append(loss)
    norms.append(norm)
    if step + 1 == steps // 2:
      mid = trainable
  _, _, _, logits, _ = update(trainable, frozen, state, *batches[0])
  return Training(mid, trainable, losses, norms, logits)
