"""Scores how much each learned prompt matters.

Prompt Condensation (Kim et al. 2023, arXiv 2305.17223) ranks the prompts of
all layers together by a score from gradients. There is no official code, and
the formula of the score was not available here: these are several candidates,
none of which is claimed to be the paper's.

Prompts are in L sets of P: a set per block (VPT-deep), or one that is carried
through the blocks (VPT-shallow). Each has its row p [D], the loss' gradient g
[D] there, and a mask m, 1 until the prompt is removed:

  weights of a query over its keys k:  m_k exp(logit_k) / sum_k m_k exp(logit_k)

The mask of a carried prompt does so in all blocks that see it; if the pooling
reads prompts, a row counts m times. So m = 0 is the model without the prompt.

A prompt that one block sees (VPT-deep) acts through its LayerNorm alone, which
removes its scale but for eps:

  sum_d g p = eps / (var(p) + eps) <dL/dLN(p), LN(p)>

with LN(p) before its scale and bias. This is not zero: at the published start
it is a systematic 0.1 % of the gradient, and below float32 rounding once
prompts have grown. It ranks nothing that matters. For carried prompts, whose
rows are added to what blocks give, it means what it says.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import re
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.problems import Classification, Problem
from vpt_jax.utils import lookup, trees

# What each score of a prompt is. A mean over batches counts each batch as often
# as it has images; if it is of a nonlinear function of the batch's gradient, it
# depends on the batches. The others are of all images, however batched.
STATISTICS = {
  # To first order, removing the prompt changes the loss by -dloss/dm.
  "removal": "|dloss/dm|",
  "removal_signed": "-dloss/dm",
  # The prompt's scale: dloss/ds of s p is sum_d g p. (The first one is the
  # derivative itself: positive where removal would help.)
  "taylor_signed": "sum_d g p",
  "taylor_abs_of_mean": "|sum_d g p|",
  "taylor_batch_abs": "mean over batches of |sum_d g p|",
  "taylor_sample_abs": "mean over images of |sum_d g p|",
  "elementwise_sample_abs": "mean over images of sum_d |g p|",
  "elementwise_abs": "mean over batches of sum_d |g p|",
  "elementwise_sq": "mean over batches of sum_d (g p)^2",
  "grad_l1": "mean over batches of sum_d |g|",
  "grad_l2": "mean over batches of the 2-norm of g",
}

# Where the prompts are among the parameters.
PROMPT_PATH = re.compile(r"(params/)?method/prompt(_\d+)?")

Apply = Callable[..., jax.Array]
Batches = Iterable[dict[str, Any]]
# (g, p), both [..., D], of a batch or of an image -> its score [...].
Formula = Callable[[jax.Array, jax.Array], jax.Array]


def taylor(g: jax.Array, p: jax.Array) -> jax.Array:
  """Returns sum_d g p."""
  return (g * p).sum(-1)


def taylor_abs(g: jax.Array, p: jax.Array) -> jax.Array:
  """Returns |sum_d g p|."""
  return jnp.abs((g * p).sum(-1))


def elementwise_abs(g: jax.Array, p: jax.Array) -> jax.Array:
  """Returns sum_d |g p|."""
  return jnp.abs(g * p).sum(-1)


def elementwise_sq(g: jax.Array, p: jax.Array) -> jax.Array:
  """Returns sum_d (g p)^2."""
  return ((g * p) ** 2).sum(-1)


def grad_l1(g: jax.Array, p: jax.Array) -> jax.Array:
  """Returns sum_d |g|."""
  del p
  return jnp.abs(g).sum(-1)


def grad_l2(g: jax.Array, p: jax.Array) -> jax.Array:
  """Returns sqrt(sum_d g^2)."""
  del p
  return jnp.linalg.norm(g, axis=-1)


# Statistics of the gradient of each batch, ...
_OF_BATCH: dict[str, Formula] = {
  "taylor_signed": taylor,
  "taylor_batch_abs": taylor_abs,
  "elementwise_abs": elementwise_abs,
  "elementwise_sq": elementwise_sq,
  "grad_l1": grad_l1,
  "grad_l2": grad_l2,
}
# ... of the gradient of each image, ...
_OF_IMAGE: dict[str, Formula] = {
  "taylor_sample_abs": taylor_abs,
  "elementwise_sample_abs": elementwise_abs,
}
# ... and absolute values of another statistic, which is a mean over all images.
_ABSOLUTE = {"removal": "removal_signed", "taylor_abs_of_mean": "taylor_signed"}


class Images(NamedTuple):
  """Some images, with what the loss needs of them.

  Attributes:
    image: [B, ...].
    label: [B, ...].
    weight: [B], how often each image counts.
  """

  image: jax.Array
  label: jax.Array
  weight: jax.Array


def scores(
  model: model_lib.Model,
  variables: dict[str, Any],
  batches: Batches,
  statistics: Sequence[str] = tuple(STATISTICS),
  apply: Apply | None = None,
  problem: Problem | None = None,
) -> dict[str, np.ndarray]:
  """Returns scores of all prompts, the higher the more they matter.

  Each batch takes one backward pass (`..._sample_abs`: one more).

  Args:
    model: with learned prompts.
    variables: {params: {backbone, method, head}, ...}.
    batches: {image, label} and, where images do not count, {mask}: see
      `pipeline.Feed`.
    statistics: names in `STATISTICS`.
    apply: (variables, image of a batch) -> logits; None: images are normalised.
    problem: gives the loss; None: classification.

  Returns:
    {statistic: [L, P]}.

  Raises:
    ValueError: unknown statistic, or prompts that cannot be told apart.
  """
  check(model)
  for name in statistics:
    lookup.choose(name, STATISTICS, "statistic")
  # With no mutable collection flax's `apply` returns the logits alone.
  apply = apply or cast(Apply, model.apply)
  problem = problem or Classification(model.num_classes)
  needed = {_ABSOLUTE.get(name, name) for name in statistics}
  step = _score_step(apply, problem, needed)
  totals = dict.fromkeys(needed, 0.0)
  num_images = 0.0
  for batch in batches:
    found, count = jax.device_get(step(variables, batch))
    num_images += count
    for name in needed:
      totals[name] += count * found[name].astype(np.float64)
  if not num_images:
    raise ValueError("scores of prompts need at least one image; got no batch")
  out = {}
  for name in statistics:
    if name in _ABSOLUTE:
      out[name] = np.abs(totals[_ABSOLUTE[name]]) / num_images
    else:
      out[name] = totals[name] / num_images
  return out


def _score_step(
  apply: Apply, problem: Problem, needed: Collection[str]
) -> Callable[..., tuple[dict[str, jax.Array], jax.Array]]:
  """Returns step(variables, batch) -> ({statistic: [L, P]}, images).

  Args:
    apply: (variables, images) -> logits.
    problem: gives the loss.
    needed: names in `STATISTICS`, without those of `_ABSOLUTE`.
  """

  @jax.jit
  def step(variables, batch):
    prompts = _prompts(variables)
    mask = jnp.ones(shape(variables))
    images = _images(batch)

    def loss(prompts, mask, images):
      changed = _with_prompts(variables, prompts, mask)
      return _mean_loss(problem, apply, changed, images)

    def scores_of_image(image, label):
      alone = Images(image[None], label[None], jnp.ones(1))
      prompt_grads = jax.grad(loss)(prompts, mask, alone)
      return _apply_formulas(_OF_IMAGE, prompt_grads, prompts)

    prompt_grads, mask_grad = jax.grad(loss, argnums=(0, 1))(
      prompts, mask, images
    )
    found = _apply_formulas(_OF_BATCH, prompt_grads, prompts)
    found["removal_signed"] = -mask_grad
    if _OF_IMAGE.keys() & needed:
      of_images = jax.vmap(scores_of_image)(images.image, images.label)
      shares = images.weight / images.weight.sum()
      for name, each in of_images.items():
        found[name] = jnp.tensordot(shares, each, 1)
    return {name: found[name] for name in needed}, images.weight.sum()

  return step


def _apply_formulas(
  formulas: Mapping[str, Formula], grads: trees.Flat, prompts: trees.Flat
) -> dict[str, jax.Array]:
  """Returns {statistic: [L, P]} from gradients and prompts, in block order."""
  out = {}
  for name, formula in formulas.items():
    sets = [formula(grads[path], p) for path, p in prompts.items()]
    out[name] = jnp.concatenate(sets)
  return out


def leave_one_out(
  model: model_lib.Model,
  variables: dict[str, Any],
  batches: Batches,
  apply: Apply | None = None,
  chunk: int = 8,
  problem: Problem | None = None,
) -> tuple[float, np.ndarray]:
  """Returns the exact loss without each prompt.

  It takes L P + 1 forward passes for each batch.

  Args:
    model: see `scores`.
    variables: see `scores`.
    batches: see `scores`.
    apply: see `scores`.
    chunk: how many models run at a time.
    problem: see `scores`.

  Returns:
    (loss with all prompts, [L, P] loss without this one).
  """
  check(model)
  # With no mutable collection flax's `apply` returns the logits alone.
  apply = apply or cast(Apply, model.apply)
  problem = problem or Classification(model.num_classes)
  num_sets, num_tokens = shape(variables)
  num_prompts = num_sets * num_tokens
  # The first mask keeps all prompts, each further one all but one.
  of_prompts = np.ones((num_prompts + 1, num_prompts), np.float32)
  of_prompts[1:] -= np.eye(num_prompts)
  masks = of_prompts.reshape(-1, num_sets, num_tokens)

  @jax.jit
  def step(variables, batch, masks):
    images = _images(batch)

    def loss(mask):
      changed = _with_prompts(variables, {}, mask)
      return _mean_loss(problem, apply, changed, images)

    losses = jax.lax.map(loss, masks, batch_size=chunk)
    return losses, images.weight.sum()

  total = np.zeros(len(masks))
  num_images = 0.0
  for batch in batches:
    losses, count = jax.device_get(step(variables, batch, masks))
    total += count * losses.astype(np.float64)
    num_images += count
  if not num_images:
    raise ValueError("leave-one-out needs at least one image; got no batch")
  mean = total / num_images
  return float(mean[0]), mean[1:].reshape(num_sets, num_tokens)


def check(model: model_lib.Model) -> None:
  """Raises ValueError unless prompts of this model can be left out."""
  method = model.method
  if not hasattr(method, "kept"):
    raise ValueError(refusal(type(method).__name__))
  if method.kept:
    raise ValueError(
      "these prompts are condensed already (vpt.kept); score "
      "those of the model that has them all"
    )


def refusal(method: str) -> str:
  """Returns the message why a method's prompts can't be condensed."""
  return (
    f"method {method!r} can't be condensed: prompts are left out one by "
    "one, which needs learned ones that nothing else acts on, as those "
    "of 'vpt'. Those of 'vapt' are functions of the image, 'linear' has "
    "none; to run with fewer, set the method's num_tokens"
  )


def _prompts(variables: dict[str, Any]) -> trees.Flat:
  """Returns {path: [L_s, P, D_s]}, in the order of the blocks."""
  flat = trees.flatten(variables)
  return {
    path: leaf for path, leaf in flat.items() if PROMPT_PATH.fullmatch(path)
  }


def shape(variables: dict[str, Any]) -> tuple[int, int]:
  """Returns (L, P) of the learned prompts."""
  arrays = list(_prompts(variables).values())
  num_sets = sum(len(array) for array in arrays)
  return num_sets, arrays[0].shape[1]


def _with_prompts(
  variables: dict[str, Any], prompts: trees.Flat, mask: jax.Array
) -> dict[str, Any]:
  """Returns the variables with other prompts and a mask [L, P] over them."""
  changed = {**trees.flatten(variables), **prompts}
  return {**trees.unflatten(changed), "mask": {"method": {"prompt": mask}}}


def _images(batch: dict[str, Any]) -> Images:
  """Returns the images of a batch; without a mask each counts once."""
  label = batch["label"]
  weight = batch.get("mask", jnp.ones(len(label)))
  return Images(batch["image"], label, weight)


def _mean_loss(
  problem: Problem, apply: Apply, variables: dict[str, Any], images: Images
) -> jax.Array:
  """Returns the mean loss of the images that count."""
  outputs = apply(variables, images.image)
  loss = problem.loss(outputs, images.label)
  return (loss * images.weight).sum() / images.weight.sum()
