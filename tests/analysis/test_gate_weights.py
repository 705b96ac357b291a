"""What the gates of Gated Prompt Tuning weigh."""

import jax.numpy as jnp
import numpy as np

from tests.analysis.tiny import adapter_of, build, compiled, IMAGES, P, VIT
from vpt_jax.analysis import (
  gate_weights,
)
from vpt_jax.methods.gated import Gated


def gated_adapter(logits, **options):
  model, variables = build(VIT, Gated(VIT.spec, P, **options))
  variables["params"]["method"].update(
    gate_logit=jnp.array(logits), temperature=jnp.array([1.0, 2.0, 99.0])
  )
  return adapter_of(
    model,
    variables,
    method="gated",
    gated={
      "gates": True,
      "hard": False,
      "learn_temperature": True,
      "temperature_min": 0.01,
      "temperature_max": 10.0,
      **options,
    },
  )


def test_weights_of_the_gates_by_hand():
  gate, weight, tau = gate_weights.read(
    gated_adapter([np.log(0.2 / 0.8), np.log(0.5 / 0.5)])
  )
  np.testing.assert_allclose(gate, [0.2, 0.5], rtol=1e-5)
  np.testing.assert_allclose(weight, [0.8 * 0.5, 0.2 * 0.5, 0.5], rtol=1e-5)
  np.testing.assert_allclose(tau, [1, 2, 10])  # as the model clips it
  gate, weight, _ = gate_weights.read(gated_adapter([3.0, -1.0], hard=True))
  assert gate.tolist() == [1, 0] and weight.tolist() == [0, 1, 0]


def test_the_weights_make_the_prompts_of_the_last_block():
  adapter = gated_adapter([0.3, -0.4])
  _, state = compiled(
    lambda *args: adapter.model.apply(*args, mutable=["intermediates"]),
    adapter.variables,
    IMAGES,
  )
  enter = [
    state["intermediates"][f"block_in_{i}"][0][0].prompt for i in range(3)
  ]
  (first, second), weight, _ = gate_weights.read(adapter)
  # Z^l = g Z~^l + (1 - g) Z^{l-1}, solved for what the blocks gave.
  gave = [
    enter[0],
    (enter[1] - (1 - first) * enter[0]) / first,
    (enter[2] - (1 - second) * enter[1]) / second,
  ]
  np.testing.assert_allclose(
    sum(w * z for w, z in zip(weight, gave)), enter[2], rtol=1e-3, atol=1e-4
  )
