"""Learning-rate schedules and optimizers of the papers, as optax chains."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vpt_jax.utils import lookup, trees

Rate = Callable[[jax.Array | int], jax.Array]
Policies = Sequence[tuple[str, Mapping[str, float]]]


def _cosine(epoch: np.ndarray, warmup: int, epochs: int) -> np.ndarray:
  """VPT: linear warm-up, then half a cosine to 0 (it rises again after)."""
  progress = (epoch - warmup) / max(1, epochs - warmup)
  return np.where(
    epoch < warmup, epoch / max(1, warmup), (1 + np.cos(np.pi * progress)) / 2
  )


def _cosine_hardrestart(
  epoch: np.ndarray, warmup: int, epochs: int
) -> np.ndarray:
  """VPT's `cosine_hardrestart` with its one cycle: the same, then 0."""
  over = epoch - warmup >= max(1, epochs - warmup)
  return np.where(over, 0.0, _cosine(epoch, warmup, epochs))


def _pgn_cosine(epoch: np.ndarray, warmup: int, epochs: int) -> np.ndarray:
  """PGN: epochs 0 and 1 share a rate; the cosine ends at 1 % of the base."""
  warm = np.maximum(epoch, 1) / max(1, warmup)
  return np.where(
    epoch < warmup, warm, 0.01 + 0.99 * _cosine(epoch, warmup, epochs)
  )


SCHEDULES = {
  "cosine": _cosine,
  "cosine_hardrestart": _cosine_hardrestart,
  "pgn_cosine_with_warmup": _pgn_cosine,
  "constant": lambda epoch, warmup, epochs: np.where(
    epoch < warmup, epoch / max(1, warmup), 1.0
  ),
}


def epoch_factors(
  schedule: str,
  epochs: int,
  warmup_epochs: int,
  warmup_from_zero: bool = True,
  length: int | None = None,
) -> np.ndarray:
  """Factor of the learning rate in every epoch, float64 [length or epochs].

  The published schedulers step once per epoch.

  Args:
    schedule: a name in `SCHEDULES`.
    epochs: T.
    warmup_epochs: W; the factor grows linearly and is 1 in epoch W.
    warmup_from_zero: True as published by VPT: epoch e has factor e / W, so
      the whole first epoch has rate 0. False: (e + 1) / W.
    length: how many epochs to list.

  Raises:
    ValueError: unknown schedule.
  """
  lookup.choose(schedule, SCHEDULES, "optim.schedule")
  epoch = np.arange(epochs if length is None else length, dtype=np.float64)
  factors = SCHEDULES[schedule](epoch, warmup_epochs, epochs)
  if not warmup_from_zero:
    factors = np.where(
      epoch < warmup_epochs, (epoch + 1) / max(1, warmup_epochs), factors
    )
  return factors


def per_epoch(rates: np.ndarray | jax.Array, steps_per_epoch: int) -> Rate:
  """`rates[epoch]` as a function of the step, constant within an epoch."""
  table = jnp.asarray(rates, jnp.float32)
  return lambda step: table[
    jnp.minimum(step // steps_per_epoch, len(table) - 1)
  ]


def scaled_rate(lr: float, batch_size: int) -> float:
  """VPT's rule: the configured rate is for a batch of 256 images."""
  return lr / 256 * batch_size


def make_optimizer(
  name: str,
  rate: Rate,
  paths: Iterable[str],
  *,
  weight_decay: float,
  momentum: float = 0.9,
  policies: Policies = ((".*", {}),),
) -> optax.GradientTransformation:
  """An optimizer over a flat trainable tree.

  Args:
    name: `sgd` and `adam` couple the decay (add it to the gradient, as torch
      does), `adamw` decouples it (Loshchilov & Hutter 2019, arXiv 1711.05101):
      each step subtracts rate * decay * parameter.
    rate: learning rate of a step.
    paths: of the trainable parameters.
    weight_decay: applied to every parameter, unless its policy says otherwise.
    momentum: of SGD.
    policies: ordered (regex over paths, {"lr": factor, "weight_decay":
      factor}); both default to 1. Every path needs a rule and every rule a
      path.

  Raises:
    ValueError: unknown name, or a policy table that does not fit the paths.
  """
  decay_first = {"sgd": True, "adam": True, "adamw": False}
  lookup.choose(name, decay_first, "optim.name")

  def chain(policy: Mapping[str, float]) -> optax.GradientTransformation:
    for key in policy:
      lookup.choose(key, ("lr", "weight_decay"), "policy")
    direction = (
      optax.trace(momentum) if name == "sgd" else optax.scale_by_adam()
    )
    decay = optax.add_decayed_weights(
      weight_decay * policy.get("weight_decay", 1.0)
    )
    steps = [decay, direction] if decay_first[name] else [direction, decay]
    factor = policy.get("lr", 1.0)
    return optax.chain(
      *steps, optax.scale_by_learning_rate(lambda step: factor * rate(step))
    )

  labels = trees.match(
    paths,
    [(pattern, str(i)) for i, (pattern, _) in enumerate(policies)],
    "optim.policies",
  )
  chains = {str(i): chain(policy) for i, (_, policy) in enumerate(policies)}
  return optax.partition(chains, dict(labels))


def epoch_rates(config: Any, batch_size: int, epochs: int) -> np.ndarray:
  """Learning rate of every epoch, from `config.optim`: float64 [epochs]."""
  lr = scaled_rate(config.lr, batch_size) if config.scale_lr else config.lr
  return lr * epoch_factors(
    config.schedule, epochs, config.warmup_epochs, config.warmup_from_zero
  )


def from_config(
  config: Any,
  rate: Rate,
  weight_decay: float | jax.Array,
  paths: Iterable[str],
  all_paths: Iterable[str],
) -> optax.GradientTransformation:
  """The optimizer that `config.optim` names.

  Args:
    config: its `name`, `momentum` and `policies` are read.
    rate: learning rate of a step, see `per_epoch`.
    weight_decay: a number, or a traced one.
    paths: of the trainable parameters.
    all_paths: of the model's. The policy table must cover them all; rules for
      those that are not trained are then left out.
  """
  try:
    policies = [(pattern, dict(policy)) for pattern, policy in config.policies]
  except (TypeError, ValueError):
    raise ValueError(
      f"config.optim.policies={config.policies!r}; expected pairs (regex, "
      "{'lr': factor, 'weight_decay': factor})"
    ) from None
  rule_of = trees.match(
    all_paths,
    [(pattern, i) for i, (pattern, _) in enumerate(policies)],
    "optim.policies",
  )
  used = {rule_of[path] for path in paths}
  return make_optimizer(
    config.name,
    rate,
    paths,
    weight_decay=weight_decay,
    momentum=config.momentum,
    policies=[policies[i] for i in sorted(used)],
  )
