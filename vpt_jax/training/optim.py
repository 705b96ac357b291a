"""Defines the papers' learning-rate schedules and optimizers, in optax."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vpt_jax.utils import lookup, trees

# Step -> learning rate.
Rate = Callable[[jax.Array | int], jax.Array | float]
# Factor of a policy -> learning rate of its parameters.
RateOf = Callable[[float], Rate]
# Ordered (regex over paths, {"lr": factor, "weight_decay": factor}).
Policies = Sequence[tuple[str, Mapping[str, float]]]
# (epoch [E], warm-up epochs W, epochs T) -> factor of the learning rate [E].
Schedule = Callable[[np.ndarray, int, int], np.ndarray]

# Optimizer -> whether weight decay is added to the gradient before the
# optimizer sees it (coupled, as in torch) or to its update (decoupled).
IS_DECAY_COUPLED = {"sgd": True, "adam": True, "adamw": False}
POLICY_KEYS = ("lr", "weight_decay")
BATCH_OF_RATE = 256  # images, for which `config.optim.lr` is meant


def _cosine(epoch: np.ndarray, warmup: int, epochs: int) -> np.ndarray:
  """Rises linearly, then falls as half a cosine to 0 (VPT's; rises after)."""
  progress = (epoch - warmup) / max(1, epochs - warmup)
  rising = epoch / max(1, warmup)
  falling = (1 + np.cos(np.pi * progress)) / 2
  return np.where(epoch < warmup, rising, falling)


def _cosine_hardrestart(
  epoch: np.ndarray, warmup: int, epochs: int
) -> np.ndarray:
  """VPT's `cosine_hardrestart` with its one cycle: the same, then 0."""
  is_over = epoch - warmup >= max(1, epochs - warmup)
  return np.where(is_over, 0.0, _cosine(epoch, warmup, epochs))


def _pgn_cosine(epoch: np.ndarray, warmup: int, epochs: int) -> np.ndarray:
  """Ends a cosine at 1 % of the base (PGN's); epochs 0 and 1 share a rate."""
  rising = np.maximum(epoch, 1) / max(1, warmup)
  falling = 0.01 + 0.99 * _cosine(epoch, warmup, epochs)
  return np.where(epoch < warmup, rising, falling)


def _constant(epoch: np.ndarray, warmup: int, epochs: int) -> np.ndarray:
  """Rises linearly, then stays at 1."""
  del epochs
  return np.where(epoch < warmup, epoch / max(1, warmup), 1.0)


SCHEDULES: dict[str, Schedule] = {
  "cosine": _cosine,
  "cosine_hardrestart": _cosine_hardrestart,
  "pgn_cosine_with_warmup": _pgn_cosine,
  "constant": _constant,
}


def epoch_factors(
  schedule: str,
  epochs: int,
  warmup_epochs: int,
  warmup_from_zero: bool = True,
  length: int | None = None,
) -> np.ndarray:
  """Returns the factor of the learning rate in every epoch.

  The published schedulers step once per epoch.

  Args:
    schedule: a name in `SCHEDULES`.
    epochs: T.
    warmup_epochs: W; the factor grows linearly and is 1 in epoch W.
    warmup_from_zero: True as published by VPT: epoch e has factor e / W, so
      the whole first epoch has rate 0. False: (e + 1) / W.
    length: how many epochs to list; None: T.

  Returns:
    float64 [length].

  Raises:
    ValueError: unknown schedule.
  """
  factor_of = SCHEDULES[lookup.choose(schedule, SCHEDULES, "optim.schedule")]
  epoch = np.arange(epochs if length is None else length, dtype=np.float64)
  factors = factor_of(epoch, warmup_epochs, epochs)
  if warmup_from_zero:
    return factors
  from_first_step = (epoch + 1) / max(1, warmup_epochs)
  return np.where(epoch < warmup_epochs, from_first_step, factors)


def epoch_rates(config: Any, batch_size: int, epochs: int) -> np.ndarray:
  """Returns the learning rate of every epoch, float64 [epochs].

  Args:
    config: `config.optim`.
    batch_size: of all devices together.
    epochs: of the run.
  """
  rate = scaled_rate(config.lr, batch_size) if config.scale_lr else config.lr
  return rate * epoch_factors(
    config.schedule, epochs, config.warmup_epochs, config.warmup_from_zero
  )


def scaled_rate(lr: float, batch_size: int) -> float:
  """Returns VPT's rate: the configured one is for a batch of 256 images."""
  return lr / BATCH_OF_RATE * batch_size


def per_epoch(rates: np.ndarray | jax.Array, steps_per_epoch: int) -> Rate:
  """Returns `rates[epoch]` as a function of the step.

  After the last epoch its rate stays.
  """
  rate_of_epoch = jnp.asarray(rates, jnp.float32)

  def rate(step):
    epoch = jnp.minimum(step // steps_per_epoch, len(rate_of_epoch) - 1)
    return rate_of_epoch[epoch]

  return rate


def _until_last(step: np.ndarray, steps: int) -> np.ndarray:
  """Returns what remains as mmengine counts: nothing in the last step."""
  return 1 - step / max(1, steps - 1)


def _until_over(step: np.ndarray, steps: int) -> np.ndarray:
  """Returns what remains as mmcv counts: 1 / T in the last step."""
  return 1 - step / steps


# (step [T], T) -> the part of the training that remains [T].
POLY_FORMS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
  "mmengine": _until_last,
  "mmcv": _until_over,
}
WARMUP_START = 1e-6  # of the rate, as mmsegmentation's ViT configs begin


def poly_rates(
  lr: float,
  steps: int,
  *,
  form: str = "mmengine",
  power: float = 0.9,
  lr_min: float = 0.0,
  warmup_steps: int = 0,
) -> np.ndarray:
  """Returns the learning rate of every step of a poly schedule.

    (lr - lr_min) remaining^power + lr_min

  `lr_min` is absolute: parameters whose policy multiplies the rate have a
  larger `lr` and the same `lr_min`, so their rates are no multiple of others';
  see `poly_rate_of`.

  Args:
    lr: rate at the start.
    steps: T, of the whole training.
    form: how the remaining part is counted, a name in `POLY_FORMS`.
    power: of the polynomial.
    lr_min: rate at the end.
    warmup_steps: first the rate rises linearly to `lr` in these; the poly
      schedule is of the others.

  Returns:
    float64 [T].

  Raises:
    ValueError: unknown form, or numbers out of range.
  """
  lookup.choose(form, POLY_FORMS, "form of the poly schedule")
  if not 0 <= warmup_steps < steps:
    raise ValueError(
      f"a poly schedule has {warmup_steps} warm-up steps of {steps}; expected "
      "0 <= warm-up < steps"
    )
  if not 0 <= lr_min <= lr:
    raise ValueError(
      f"a poly schedule falls from {lr} to {lr_min}; expected 0 <= lr_min <= lr"
    )
  step = np.arange(steps - warmup_steps, dtype=np.float64)
  remaining = POLY_FORMS[form](step, len(step))
  falling = (lr - lr_min) * remaining**power + lr_min
  rising = lr * np.linspace(WARMUP_START, 1, warmup_steps)
  return np.concatenate([rising, falling])


def poly_rate_of(lr: float, steps: int, **options: Any) -> RateOf:
  """Returns the `rate_of` of `make_optimizer` for a poly schedule.

  Args:
    lr: rate at the start where no policy multiplies it.
    steps: see `poly_rates`.
    **options: see there.
  """

  def rate_of(factor: float) -> Rate:
    return per_epoch(poly_rates(factor * lr, steps, **options), 1)

  return rate_of


def rates_from_config(
  config: Any, batch_size: int, epochs: int, steps_per_epoch: int
) -> RateOf:
  """Returns the rate of parameters by their policy's factor, see `RateOf`.

  Args:
    config: `config.optim`.
    batch_size: of all devices together.
    epochs: of the run.
    steps_per_epoch: steps.
  """
  if config.schedule == "poly":
    lr = scaled_rate(config.lr, batch_size) if config.scale_lr else config.lr
    return poly_rate_of(
      lr,
      max(1, epochs * steps_per_epoch),
      form=config.poly_form,
      power=config.poly_power,
      lr_min=config.poly_min,
      warmup_steps=config.poly_warmup,
    )
  rates = epoch_rates(config, batch_size, epochs)
  rate = per_epoch(rates, steps_per_epoch)
  return functools.partial(_multiple, rate)


def head_policies(factor: float = 10.0) -> Policies:
  """Returns policies that train the head at a multiple of the rate.

  Ten times is what the published configs of SETR have.
  """
  return ((r"head/.*", {"lr": factor}), (r".*", {}))


def make_optimizer(
  name: str,
  rate: Rate,
  paths: Iterable[str],
  *,
  weight_decay: float | jax.Array,
  momentum: float = 0.9,
  policies: Policies = ((".*", {}),),
  rate_of: RateOf | None = None,
) -> optax.GradientTransformation:
  """Returns an optimizer over a flat trainable tree.

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
    rate_of: rate of parameters whose policy has this factor; None: the factor
      times `rate`.

  Raises:
    ValueError: unknown name, or a policy table that does not fit the paths.
  """
  lookup.choose(name, IS_DECAY_COUPLED, "optim.name")
  rules = [(pattern, str(i)) for i, (pattern, _) in enumerate(policies)]
  rule_of_path = trees.match(paths, rules, "optim.policies")
  if rate_of is None:
    rate_of = functools.partial(_multiple, rate)
  chains = {
    str(i): _chain(name, rate_of, weight_decay, momentum, policy)
    for i, (_, policy) in enumerate(policies)
  }
  return optax.partition(chains, rule_of_path)


def _multiple(rate: Rate, factor: float) -> Rate:
  """Returns a multiple of a rate."""

  def multiple(step):
    return factor * rate(step)

  return multiple


def _chain(
  name: str,
  rate_of: RateOf,
  weight_decay: float | jax.Array,
  momentum: float,
  policy: Mapping[str, float],
) -> optax.GradientTransformation:
  """Returns the optimizer of the parameters that share a policy."""
  for key in policy:
    lookup.choose(key, POLICY_KEYS, "policy")
  direction = optax.trace(momentum) if name == "sgd" else optax.scale_by_adam()
  decay = optax.add_decayed_weights(
    weight_decay * policy.get("weight_decay", 1.0)
  )
  own_rate = rate_of(policy.get("lr", 1.0))
  scale = optax.scale_by_learning_rate(own_rate)
  if IS_DECAY_COUPLED[name]:
    return optax.chain(decay, direction, scale)
  return optax.chain(direction, decay, scale)


def from_config(
  config: Any,
  rate: Rate,
  weight_decay: float | jax.Array,
  paths: Iterable[str],
  all_paths: Iterable[str],
  rate_of: RateOf | None = None,
) -> optax.GradientTransformation:
  """Returns the optimizer that `config.optim` names.

  Args:
    config: its `name`, `momentum` and `policies` are read.
    rate: learning rate of a step, see `per_epoch`.
    weight_decay: a number, or a traced one.
    paths: of the trainable parameters.
    all_paths: of the model's. The policy table must cover them all; rules for
      those that are not trained are then left out.
    rate_of: see `make_optimizer`.

  Raises:
    ValueError: see `make_optimizer`; or policies that are no such pairs.
  """
  try:
    policies = [(pattern, dict(policy)) for pattern, policy in config.policies]
  except (TypeError, ValueError):
    raise ValueError(
      f"config.optim.policies={config.policies!r}; expected pairs (regex, "
      "{'lr': factor, 'weight_decay': factor})"
    ) from None
  rules = [(pattern, i) for i, (pattern, _) in enumerate(policies)]
  rule_of_path = trees.match(all_paths, rules, "optim.policies")
  used = sorted({rule_of_path[path] for path in paths})
  return make_optimizer(
    config.name,
    rate,
    paths,
    weight_decay=weight_decay,
    momentum=config.momentum,
    policies=[policies[i] for i in used],
    rate_of=rate_of,
  )
