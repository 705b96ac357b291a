"""How much each learned prompt matters, and models that keep the best.

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
"""

from collections.abc import Callable, Iterable, Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as models
from vpt_jax.problems import Classification, Problem
from vpt_jax.utils import lookup, trees

# What each score of a prompt is. A mean over batches counts each batch as often
# as it has images; if it is of a nonlinear function of the batch's gradient, it
# depends on the batches. The others are of all images, however batched.
STATISTICS = {
  # To first order, removing the prompt changes the loss by -dloss/dm.
  "removal": "|dloss/dm|",
  "removal_signed": "-dloss/dm",
  # The prompt's scale: dloss/ds of s p is sum_d g p. A context prompt acts
  # through its LayerNorm alone, so that this is zero up to rounding. (This
  # first one is the derivative itself: positive where removal would help.)
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

# [L, P] of a batch, from its g and p [L, P, D].
_ROWS = {
  "taylor_signed": lambda g, p: (g * p).sum(-1),
  "taylor_batch_abs": lambda g, p: jnp.abs((g * p).sum(-1)),
  "elementwise_abs": lambda g, p: jnp.abs(g * p).sum(-1),
  "elementwise_sq": lambda g, p: ((g * p) ** 2).sum(-1),
  "grad_l1": lambda g, p: jnp.abs(g).sum(-1),
  "grad_l2": lambda g, p: jnp.linalg.norm(g, axis=-1),
}
# The same, of every image alone.
_IMAGES = {
  "taylor_sample_abs": _ROWS["taylor_batch_abs"],
  "elementwise_sample_abs": _ROWS["elementwise_abs"],
}
# Absolute values of a mean over all images: (score, of which).
_ABSOLUTE = {"removal": "removal_signed", "taylor_abs_of_mean": "taylor_signed"}

Apply = Callable[..., jax.Array]
Batches = Iterable[dict[str, Any]]


def scores(
  model: models.Model,
  variables: dict[str, Any],
  batches: Batches,
  statistics: Sequence[str] = tuple(STATISTICS),
  apply: Apply | None = None,
  problem: Problem | None = None,
) -> dict[str, np.ndarray]:
  """Scores of all prompts, the higher the more they matter.

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
    ValueError: unknown statistic, or prompts that can't be told apart.
  """
  check(model)
  for name in statistics:
    lookup.choose(name, STATISTICS, "statistic")
  apply = apply or model.apply
  problem = problem or Classification(model.num_classes)
  needed = tuple({_ABSOLUTE.get(name, name) for name in statistics})

  @jax.jit
  def step(variables, batch):
    prompts, ones = _prompts(variables), jnp.ones(shape(variables))
    image, label, weight = _parts(batch)

    def loss(prompts, mask):
      return _loss(
        problem, apply, _with(variables, prompts, mask), image, label, weight
      )

    g, dm = jax.grad(loss, argnums=(0, 1))(prompts, ones)
    each = lambda functions, g: {
      name: jnp.concatenate([rows(g[path], p) for path, p in prompts.items()])
      for name, rows in functions.items()
    }
    found = each(_ROWS, g) | {"removal_signed": -dm}

    def alone(image, label):
      return each(
        _IMAGES,
        jax.grad(
          lambda prompts: _loss(
            problem,
            apply,
            _with(variables, prompts, ones),
            image[None],
            label[None],
            jnp.ones(1),
          )
        )(prompts),
      )

    if _IMAGES.keys() & needed:
      found |= {
        name: jnp.tensordot(weight / weight.sum(), of, 1)
        for name, of in jax.vmap(alone)(image, label).items()
      }
    return {name: found[name] for name in needed}, weight.sum()

  total, images = dict.fromkeys(needed, 0.0), 0.0
  for batch in batches:
    found, count = jax.device_get(step(variables, batch))
    images += count
    for name in needed:
      total[name] += count * found[name].astype(np.float64)
  if not images:
    raise ValueError("scores of prompts need at least one image; got no batch")
  return {
    name: np.abs(total[_ABSOLUTE[name]]) / images
    if name in _ABSOLUTE
    else total[name] / images
    for name in statistics
  }


def leave_one_out(
  model: models.Model,
  variables: dict[str, Any],
  batches: Batches,
  apply: Apply | None = None,
  chunk: int = 8,
  problem: Problem | None = None,
) -> tuple[float, np.ndarray]:
  """The exact loss without each prompt: L P + 1 forward passes per batch.

  Args:
    model, variables, batches, apply, problem: see `scores`.
    chunk: how many models run at a time.

  Returns:
    (loss with all prompts, [L, P] loss without this one).
  """
  check(model)
  apply = apply or model.apply
  problem = problem or Classification(model.num_classes)
  sets, each = shape(variables)
  number = sets * each
  masks = np.ones((number + 1, number), np.float32)
  masks[1:] -= np.eye(number)

  @jax.jit
  def step(variables, batch, masks):
    image, label, weight = _parts(batch)
    of = lambda mask: _loss(
      problem, apply, _with(variables, {}, mask), image, label, weight
    )
    return jax.lax.map(of, masks, batch_size=chunk), weight.sum()

  total, images = np.zeros(number + 1), 0.0
  for batch in batches:
    losses, count = jax.device_get(
      step(variables, batch, masks.reshape(-1, sets, each))
    )
    total += count * losses.astype(np.float64)
    images += count
  if not images:
    raise ValueError("leave-one-out needs at least one image; got no batch")
  loss, *without = total / images
  return float(loss), np.reshape(without, (sets, each))


def ranking(score: np.ndarray) -> np.ndarray:
  """Indices into the flat [L P] scores, highest first, ties by index."""
  return np.argsort(-np.ravel(score), kind="stable")


def keep(score: np.ndarray, share: float) -> np.ndarray:
  """Mask [L, P], True at the k prompts with the highest scores of all sets.

    k = max(1, round(share L P))

  Raises:
    ValueError: the share is not in (0, 1], or a score is NaN.
  """
  score = np.asarray(score)
  if not 0 < share <= 1:
    raise ValueError(f"share={share} of the prompts; expected 0 < share <= 1")
  if np.isnan(score).any():
    raise ValueError(
      f"{np.isnan(score).sum()} of {score.size} scores are NaN; "
      "the model that they are of has diverged"
    )
  mask = np.zeros(score.size, bool)
  mask[ranking(score)[: max(1, round(share * score.size))]] = True
  return mask.reshape(score.shape)


def indices(mask: np.ndarray) -> tuple[tuple[int, ...], ...]:
  """A mask [L, P] as the option `kept` of VPT: of every set its prompts."""
  return tuple(tuple(map(int, np.flatnonzero(row))) for row in mask)


def pack(flat: trees.Flat, mask: np.ndarray) -> trees.Flat:
  """A flat tree with the prompts of a mask [L, P], as VPT with `kept` has them."""
  mask, out, first = np.asarray(mask, bool), dict(flat), 0
  for path in filter(_PROMPT.fullmatch, flat):
    rows = mask[first : first + len(flat[path])]
    first += len(rows)
    out[path] = np.asarray(flat[path])[rows]
    if not len(out[path]):
      del out[path]
  return out


def condensed(
  model: models.Model, variables: dict[str, Any], mask: np.ndarray
) -> tuple[models.Model, dict[str, Any]]:
  """The smaller model of the kept prompts, and its variables.

  Args:
    model, variables: see `scores`.
    mask: [L, P], True for prompts that stay.

  Raises:
    ValueError: a mask of another shape, or of no prompt.
  """
  check(model)
  mask = np.asarray(mask, bool)
  if mask.shape != shape(variables) or not mask.any():
    raise ValueError(
      f"the mask of prompts keeps {mask.sum()} of {mask.shape}; expected at "
      f"least one of {shape(variables)}"
    )
  smaller = model.clone(method=model.method.clone(kept=indices(mask)))
  return smaller, trees.unflatten(pack(trees.flatten(variables), mask))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  """Rank correlation, ties at their mean rank; 0 if all of one are equal."""

  def ranks(x):
    _, inverse, counts = np.unique(
      np.ravel(x), return_inverse=True, return_counts=True
    )
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

  a, b = ranks(a), ranks(b)
  a, b = a - a.mean(), b - b.mean()
  norm = np.sqrt((a @ a) * (b @ b))
  return float(a @ b / norm) if norm else 0.0


def check(model: models.Model) -> None:
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
  """Why a method's prompts can't be condensed."""
  return (
    f"method {method!r} can't be condensed: prompts are left out one by "
    "one, which needs learned ones that nothing else acts on, as those "
    "of 'vpt'. Those of 'vapt' are functions of the image, 'linear' has "
    "none; to run with fewer, set the method's num_tokens"
  )


_PROMPT = re.compile(r"(params/)?method/prompt(_\d+)?")


def _prompts(variables: dict[str, Any]) -> trees.Flat:
  """{path: [L_s, P, D_s]}, in the order of the blocks."""
  return {
    path: leaf
    for path, leaf in trees.flatten(variables).items()
    if _PROMPT.fullmatch(path)
  }


def shape(variables: dict[str, Any]) -> tuple[int, int]:
  """(L, P) of the learned prompts."""
  found = _prompts(variables)
  return (
    sum(len(leaf) for leaf in found.values()),
    next(iter(found.values())).shape[1],
  )


def _with(
  variables: dict[str, Any], prompts: trees.Flat, mask: jax.Array
) -> dict[str, Any]:
  """The variables with other prompts, and a mask [L, P] over them."""
  return {
    **trees.unflatten({**trees.flatten(variables), **prompts}),
    "mask": {"method": {"prompt": mask}},
  }


def _parts(batch: dict[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Images, labels and how often each image counts."""
  label = batch["label"]
  return batch["image"], label, batch.get("mask", jnp.ones(len(label)))


def _loss(
  problem: Problem,
  apply: Apply,
  variables: dict[str, Any],
  image: jax.Array,
  label: jax.Array,
  weight: jax.Array,
) -> jax.Array:
  """Mean loss of the images that count."""
  loss = problem.loss(apply(variables, image), label)
  return (loss * weight).sum() / weight.sum()
