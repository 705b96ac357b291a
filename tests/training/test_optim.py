"""Schedules against their formulas, optimizers against plain numpy loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from vpt_jax.training import optim

RNG = np.random.default_rng(0)
SHAPES = {"head/bias": (4,), "head/kernel": (3, 4), "method/prompt": (2, 3)}
PARAMS = {path: RNG.normal(size=shape) for path, shape in SHAPES.items()}
# One gradient of every parameter for every step; a rate that falls to zero in
# between, as VPT's first epoch has it.
GRADS = [
  {path: RNG.normal(size=shape) for path, shape in SHAPES.items()}
  for _ in range(10)
]
for grads in GRADS:
  grads["head/bias"][0] *= 1e-8  # as small as Adam's epsilon
RATES = np.array([0.0, 0.0, 0.3, 0.5, 0.2, 0.0, 0.1, 0.4, 0.05, 0.01])


def ours(name, rates=RATES, **options):
  """{path: parameters after each of the steps}."""
  tx = optim.make_optimizer(name, optim.per_epoch(rates, 1), PARAMS, **options)

  @jax.jit
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(jnp.add, params, updates), state

  as_float32 = lambda flat: {k: jnp.float32(v) for k, v in flat.items()}
  params = as_float32(PARAMS)
  state, seen = tx.init(params), []
  for grads in GRADS:
    params, state = step(params, state, as_float32(grads))
    seen.append(params)
  return {path: np.stack([p[path] for p in seen]) for path in PARAMS}


def sgd(path, rates, decay, momentum):
  """torch.optim.SGD: buf = m buf + (g + wd p); p -= lr buf."""
  p, buf, seen = PARAMS[path], 0.0, []
  for grads, rate in zip(GRADS, rates):
    buf = momentum * buf + (grads[path] + decay * p)
    p = p - rate * buf
    seen.append(p)
  return np.stack(seen)


def adam(path, rates, decay, coupled):
  """torch.optim.Adam (coupled) and AdamW, at their default constants."""
  p, m, v, seen = PARAMS[path], 0.0, 0.0, []
  for t, (grads, rate) in enumerate(zip(GRADS, rates), start=1):
    g = grads[path] + coupled * decay * p
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    p = p * (1 - rate * decay * (not coupled))
    p = p - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    seen.append(p)
  return np.stack(seen)


def close(actual, desired):
  """To float32: 1 - 0.999 in Adam has lost four digits."""
  np.testing.assert_allclose(actual, desired, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_torch_s(momentum):
  out = ours("sgd", weight_decay=0.1, momentum=momentum)
  for path in PARAMS:
    close(out[path], sgd(path, RATES, 0.1, momentum))


def test_the_momentum_fills_while_the_rate_is_zero():
  out = ours("sgd", weight_decay=0.1)["method/prompt"]
  close(out[1], PARAMS["method/prompt"])  # two steps of rate 0
  late = sgd("method/prompt", RATES, 0.1, 0.9)[2]
  empty = PARAMS["method/prompt"] - RATES[2] * (
    GRADS[2]["method/prompt"] + 0.1 * PARAMS["method/prompt"]
  )
  close(out[2], late)
  assert np.abs(out[2] - empty).max() > 0.1


@pytest.mark.parametrize("name,coupled", [("adam", True), ("adamw", False)])
def test_adam_couples_the_decay_and_adamw_does_not(name, coupled):
  out = ours(name, weight_decay=0.1)
  for path in PARAMS:
    close(out[path], adam(path, RATES, 0.1, coupled))
  other = adam("head/kernel", RATES, 0.1, not coupled)
  assert np.abs(out["head/kernel"] - other).max() > 1e-2


@pytest.mark.parametrize(
  "name,reference",
  [
    ("sgd", lambda path, rates, decay: sgd(path, rates, decay, 0.9)),
    ("adam", lambda path, rates, decay: adam(path, rates, decay, True)),
    ("adamw", lambda path, rates, decay: adam(path, rates, decay, False)),
  ],
)
def test_policies_scale_rate_and_decay(name, reference):
  """Of the paths that they match first, and of no others."""
  out = ours(
    name,
    weight_decay=0.1,
    policies=(
      ("head/bias", {"weight_decay": 0.0}),
      ("head/.*", {"lr": 0.5, "weight_decay": 2.0}),
      (".*", {}),
    ),
  )
  close(out["head/bias"], reference("head/bias", RATES, 0.0))
  close(out["head/kernel"], reference("head/kernel", RATES / 2, 0.2))
  close(out["method/prompt"], reference("method/prompt", RATES, 0.1))


def test_rate_zero_by_policy_freezes():
  out = ours(
    "sgd", weight_decay=0.1, policies=(("method/.*", {"lr": 0.0}), (".*", {}))
  )
  np.testing.assert_array_equal(
    out["method/prompt"][-1], np.float32(PARAMS["method/prompt"])
  )
  assert (out["head/kernel"][-1] != np.float32(PARAMS["head/kernel"])).all()


def test_errors_of_policies():
  make = lambda *policies: optim.make_optimizer(
    "sgd", lambda step: 0.1, PARAMS, weight_decay=0.0, policies=policies
  )
  with pytest.raises(
    ValueError, match=("optim.policies: rule r'hed/bias' matches no parameter")
  ):
    make(("hed/bias", {}), (".*", {}))
  with pytest.raises(ValueError, match="rule r'head/bias' matches no param"):
    make((".*", {}), ("head/bias", {}))
  with pytest.raises(
    ValueError,
    match=("optim.policies: no rule matches parameter 'method/prompt'"),
  ):
    make(("head/.*", {}))
  with pytest.raises(
    ValueError,
    match=("unknown policy 'weight_deca'; did you mean 'weight_decay'\\?"),
  ):
    make((".*", {"weight_deca": 0.0}))


def test_unknown_names():
  with pytest.raises(
    ValueError, match=("unknown optim.name 'adamv'; did you mean 'adamw?'\\?")
  ):
    optim.make_optimizer("adamv", lambda step: 0.1, PARAMS, weight_decay=0.0)
  with pytest.raises(
    ValueError,
    match=("unknown optim.schedule 'cosin'; did you mean 'cosine'\\?"),
  ):
    optim.epoch_factors("cosin", 10, 1)


# Schedules.


def half_cosine(epoch, warmup, epochs):
  """VPT's WarmupCosineSchedule."""
  if epoch < warmup:
    return epoch / warmup
  progress = (epoch - warmup) / max(1, epochs - warmup)
  return 0.5 * (1 + math.cos(math.pi * progress))


CASES = [(100, 10), (30, 3), (7, 0), (5, 5), (1, 0), (1, 1)]


@pytest.mark.parametrize("epochs,warmup", CASES)
def test_cosine(epochs, warmup):
  factors = optim.epoch_factors("cosine", epochs, warmup)
  np.testing.assert_allclose(
    factors, [half_cosine(e, warmup, epochs) for e in range(epochs)]
  )


def test_cosine_at_vpt_s_hundred_epochs():
  factors = optim.epoch_factors("cosine", 100, 10)
  assert factors.shape == (100,)
  np.testing.assert_allclose(
    factors[[0, 1, 9, 10, 55, 99]],
    [0, 0.1, 0.9, 1, 0.5, 3.0458649e-4],
    atol=1e-10,
  )
  assert factors.argmax() == 10
  longer = optim.epoch_factors("cosine", 100, 10, length=150)
  np.testing.assert_array_equal(longer[:100], factors)
  assert longer[100] < 1e-12 and (np.diff(longer[100:]) > 0).all()


@pytest.mark.parametrize("schedule", sorted(optim.SCHEDULES))
def test_warmup_from_zero_or_not(schedule):
  """Either way linear; from epoch W on the factors are the same."""
  zero = optim.epoch_factors(schedule, 12, 4)
  one = optim.epoch_factors(schedule, 12, 4, warmup_from_zero=False)
  first = 0.25 if schedule == "pgn_cosine_with_warmup" else 0
  np.testing.assert_allclose(zero[:5], [first, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(one[:5], [0.25, 0.5, 0.75, 1, 1])
  np.testing.assert_array_equal(zero[4:], one[4:])
  for from_zero in (True, False):
    assert optim.epoch_factors(schedule, 12, 0, from_zero)[0] == 1


@pytest.mark.parametrize("epochs,warmup", CASES)
def test_hard_restart_ends_at_zero(epochs, warmup):
  factors = optim.epoch_factors(
    "cosine_hardrestart", epochs, warmup, length=epochs + 5
  )
  np.testing.assert_array_equal(
    factors[:epochs], optim.epoch_factors("cosine", epochs, warmup)
  )
  end = max(epochs, warmup + 1)  # one epoch of full rate at least
  assert (factors[end:] == 0).all()
  assert (factors[1:end] > 0).all()


def test_pgn_warms_up_from_its_second_epoch_and_ends_at_a_hundredth():
  factors = optim.epoch_factors("pgn_cosine_with_warmup", 100, 50, length=101)
  warm = [max(epoch, 1) / 50 for epoch in range(50)]
  # torch's CosineAnnealingLR with eta_min = lr / 100 and T_max = 50.
  cosine = [
    0.01 + 0.99 * (1 + math.cos(math.pi * t / 50)) / 2 for t in range(51)
  ]
  np.testing.assert_allclose(factors, warm + cosine)
  assert factors[0] == factors[1] == 0.02
  np.testing.assert_allclose(factors[100], 0.01)


def test_constant():
  np.testing.assert_array_equal(
    optim.epoch_factors("constant", 6, 2), [0, 0.5, 1, 1, 1, 1]
  )


def test_a_rate_is_constant_within_an_epoch_and_stays_after_the_end():
  rate = optim.per_epoch(np.array([0.5, 0.25, 0.125]), 4)
  want = [0.5] * 4 + [0.25] * 4 + [0.125] * 12
  assert [float(rate(step)) for step in range(20)] == want
  np.testing.assert_array_equal(jax.jit(jax.vmap(rate))(jnp.arange(20)), want)


def test_the_configured_rate_is_for_256_images():
  assert optim.scaled_rate(1.0, 64) == 0.25
  assert optim.scaled_rate(2.5, 256) == 2.5
  assert optim.scaled_rate(0.1, 512) == pytest.approx(0.2)


def test_from_config():
  config = common.get_config().optim
  config.lr, config.weight_decay, config.warmup_epochs = 2.0, 0.1, 2
  rate = optim.per_epoch(optim.epoch_rates(config, 128, 6), 3)
  tx = optim.from_config(config, rate, config.weight_decay, PARAMS, PARAMS)
  lr = optim.epoch_factors("cosine", 6, 2)
  np.testing.assert_allclose(
    [float(rate(step)) for step in range(18)], lr.repeat(3), rtol=1e-6
  )

  # Without gradients only the decay acts, from the second epoch on, and as
  # published not on the head's bias.
  params = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
  zeros = jax.tree.map(jnp.zeros_like, params)
  state = tx.init(params)
  for step in range(4):
    updates, state = tx.update(zeros, state, params)
    moved = {path for path in updates if (updates[path] != 0).any()}
    assert moved == (set() if step < 3 else {"head/kernel", "method/prompt"})
  np.testing.assert_allclose(
    updates["head/kernel"],
    -lr[1] * 0.1 * (1 + 0.9 + 0.9**2 + 0.9**3),
    rtol=1e-5,
  )

  config.scale_lr, config.warmup_from_zero = False, False
  rate = optim.per_epoch(optim.epoch_rates(config, 128, 6), 3)
  assert [float(rate(step)) for step in (0, 3)] == [1.0, 2.0]


def test_rules_for_frozen_parameters_are_left_out():
  config = common.get_config().optim
  make = lambda: optim.from_config(
    config, lambda step: 0.1, 0.0, ["head/kernel"], PARAMS
  )
  tx = make()
  tx.init({"head/kernel": jnp.ones(2)})
  config.policies = (("head/bais", {}), (".*", {}))
  with pytest.raises(ValueError, match="rule r'head/bais' matches no param"):
    make()


POLY = {"lr_min": 1e-4, "power": 0.9}


@pytest.mark.parametrize("form, left", [("mmengine", 0.0), ("mmcv", 0.1)])
def test_poly_rates_are_the_formula(form, left):
  """Both published ways to count the steps, down to a smallest rate."""
  rates = optim.poly_rates(0.01, 10, form=form, **POLY)
  steps = 9 if form == "mmengine" else 10
  want = [(0.01 - 1e-4) * (1 - t / steps) ** 0.9 + 1e-4 for t in range(10)]
  np.testing.assert_allclose(rates, want, rtol=1e-12)
  last = (0.01 - 1e-4) * left**0.9 + 1e-4
  assert rates[-1] == pytest.approx(last, rel=1e-12)


def test_poly_rates_after_a_warm_up():
  rates = optim.poly_rates(0.5, 7, power=1.0, warmup_steps=3)
  want = [0.5e-6, 0.5 * (1 + 1e-6) / 2, 0.5, 0.5, 1 / 3, 1 / 6, 0]
  np.testing.assert_allclose(rates, want, rtol=1e-12, atol=1e-15)


def test_poly_of_one_step():
  for form in optim.POLY_FORMS:
    assert optim.poly_rates(0.5, 1, form=form).tolist() == [0.5]


@pytest.mark.parametrize(
  "options, says",
  [
    ({"form": "mmcv1"}, "did you mean 'mmcv'"),
    ({"warmup_steps": 10}, "10 warm-up steps of 10"),
    ({"lr_min": 0.2}, "falls from 0.1 to 0.2"),
  ],
)
def test_poly_schedules_that_cannot_be(options, says):
  with pytest.raises(ValueError, match=says):
    optim.poly_rates(0.1, 10, **options)


def test_the_heads_rate_is_ten_times_and_ends_at_the_same():
  """The smallest rate is absolute, so rates are no multiple of each other."""
  steps = len(GRADS)
  options = {"momentum": 0.0, "weight_decay": 0.0}
  tx = optim.make_optimizer(
    "sgd",
    optim.per_epoch(RATES, 1),
    PARAMS,
    policies=optim.head_policies(),
    rate_of=optim.poly_rate_of(0.01, steps, **POLY),
    **options,
  )
  grads = {path: jnp.ones(shape) for path, shape in SHAPES.items()}
  state = tx.init(grads)
  moved = {path: [] for path in SHAPES}
  for _ in range(steps):
    updates, state = tx.update(grads, state, grads)
    for path, update in updates.items():
      moved[path].append(-float(np.max(update)))
  own = optim.poly_rates(0.01, steps, **POLY)
  of_head = optim.poly_rates(0.1, steps, **POLY)
  np.testing.assert_allclose(moved["method/prompt"], own, rtol=1e-6)
  np.testing.assert_allclose(moved["head/kernel"], of_head, rtol=1e-6)
  assert moved["head/bias"][-1] == moved["method/prompt"][-1]
