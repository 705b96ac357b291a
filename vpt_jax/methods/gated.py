"""Defines Gated Prompt Tuning (Yoo et al., ICML 2023), a gate per block.

Shallow prompts of self-supervised ViTs do best when they enter at a block that
differs from task to task; gates learn which. A temperature per block shapes its
attention.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vpt_jax.distributed import shard_gradients
from vpt_jax.methods.method import check_options, Method, per_image, prompt_sets
from vpt_jax.nn.layers import Dropout


class Gated(Method):
  """Learns shallow prompts, a gate after and a temperature in each block.

    [x_i, Z~_i, E_i] = L_i([x_{i-1}, Z_{i-1}, E_{i-1}]; tau_i),   Z_0 = P
    Z_i = g_i Z~_i + (1 - g_i) Z_{i-1},   g_i = sigmoid(gate_logit_i)
    attention in L_i: softmax(Q K^T / (sqrt(d) tau_i)) V, for all tokens

  With all gates open and tau = 1 this is VPT-shallow. While gates are closed
  the prompts enter every block as they were learned.

  Attributes:
    num_tokens: P.
    gates: False leaves the gates out (they are open).
    num_gates: gated blocks, from the first (0: all but the last).
    gate_init: the logits start at MINUS this, as in the published code: gates
      start closed, 10 is g = 5e-5. The paper's tables list the positive number.
    hard: gates are 0 or 1. In training they are drawn for every image, with
      probability g of 1 (Gumbel-sigmoid, Jang et al. 2017, arXiv 1611.01144;
      the gradient is that of the soft draw); else they are g > 1/2. The paper
      compares with such gates, its code has none.
    learn_temperature: learn tau; False: it stays as it is.
    temperature_init: tau of all blocks at the start.
    temperature_min, temperature_max: range of learned temperatures.
    dropout: rate of the prompts' dropout, per image.
  """

  start_options = ("gate_init",)

  num_tokens: int = 10
  gates: bool = True
  num_gates: int = 0
  gate_init: float = 10.0
  hard: bool = False
  learn_temperature: bool = True
  temperature_init: float = 1.0
  temperature_min: float = 0.01
  temperature_max: float = 10.0
  dropout: float = 0.1

  @property
  def gated(self) -> range:
    """Indices of the blocks that have a gate."""
    if not self.gates:
      return range(0)
    return range(self.num_gates or self.spec.depth - 1)

  def check(self):
    """Raises ValueError if the options do not fit each other."""
    check_options(
      self,
      "gated",
      at_least={"num_tokens": 1, "num_gates": 0},
      rates=["dropout"],
    )
    if self.num_gates > self.spec.depth:
      raise ValueError(
        f"gated.num_gates={self.num_gates}, the backbone has "
        f"{self.spec.depth} blocks"
      )
    low, high = self.temperature_min, self.temperature_max
    if not 0 < low <= self.temperature_init <= high:
      raise ValueError(
        f"gated.temperature_init={self.temperature_init}, temperature_min="
        f"{low}, temperature_max={high}; expected 0 < min <= init <= max"
      )

  def setup(self):
    """Makes the prompts, gates and temperatures."""
    self.check()
    prompted = range(1)  # the first block alone
    self.prompt = prompt_sets(self, prompted, self.num_tokens)[0]
    self.prompt_dropout = Dropout(self.dropout)
    if self.gated:
      self.gate_logit = self.param(
        "gate_logit",
        nn.initializers.constant(-self.gate_init),
        (len(self.gated),),
      )
    if self.learn_temperature:
      self.tau = self.param(
        "temperature",
        nn.initializers.constant(self.temperature_init),
        (self.spec.depth,),
      )

  def prompts(self, image, tokens, *, train):
    """Returns the prompts P, which are carried through all blocks."""
    return per_image(self.prompt, tokens, self.prompt_dropout, train)

  def temperature(self, i):
    """Returns tau_i, within its range."""
    if not self.learn_temperature:
      return self.temperature_init
    # The published code clamps outside of autograd: the value is clipped, the
    # gradient is not.
    tau = self.tau[i]
    clipped = jax.lax.stop_gradient(self._clip(tau))
    return clipped + _zero_with_gradient_of(tau)

  def after(self, i, tokens_in, tokens_out, *, train):
    """Mixes the prompts that leave block i with those that entered it."""
    # The last block may have left the prompts out, as nothing reads them.
    if i not in self.gated or not tokens_out.num_prompt:
      return tokens_out
    g = self._gate(i, len(tokens_out.x), train)
    mixed = g * tokens_out.prompt + (1 - g) * tokens_in.prompt
    return tokens_out.with_prompt(mixed)

  def _gate(self, i: int, batch: int, train: bool) -> jax.Array:
    """Returns g_i; a hard one is 0 or 1, in training [B, 1, 1]."""
    logit = self.gate_logit[i]
    if not self.hard:
      return nn.sigmoid(logit)
    if not train:
      return (logit > 0).astype(logit.dtype)
    noise = shard_gradients.draw_for_shard(
      jax.random.logistic, self.make_rng("dropout"), (batch, 1, 1)
    )
    soft = nn.sigmoid(logit + noise)
    return jnp.round(soft) + _zero_with_gradient_of(soft)

  def _clip(self, tau: jax.Array) -> jax.Array:
    return jnp.clip(tau, self.temperature_min, self.temperature_max)

  def constrain(self, params: dict[str, Any]) -> dict[str, Any]:
    """Clips the temperatures, if they are among the trained parameters."""
    if "temperature" not in params:
      return params
    return {**params, "temperature": self._clip(params["temperature"])}


def _zero_with_gradient_of(x: jax.Array) -> jax.Array:
  """Returns zeros whose gradient is that of x ("straight through")."""
  return x - jax.lax.stop_gradient(x)


def log_weights(gate_logit: jax.Array) -> jax.Array:
  """Returns how the last gate's prompts mix what all blocks gave.

    Z_L = w_0 P + sum_l w_l Z~_l,   w_l = g_l prod_{k > l} (1 - g_k),
    w_0 = prod_k (1 - g_k)

  Args:
    gate_logit: [L], of the gated blocks in order.

  Returns:
    [1 + L] logarithms of w_0, ..., w_L, which sum to 1.
  """
  closed = jax.nn.log_sigmoid(-gate_logit)
  # log g_l, and 0 for P; then sum_{k > l} log(1 - g_k), for l = 0 ... L.
  opened = jnp.append(0.0, jax.nn.log_sigmoid(gate_logit))
  closed_later = jnp.append(jnp.cumsum(closed[::-1])[::-1], 0.0)
  return opened + closed_later


def selection_ratio(gate_logit: jax.Array) -> jax.Array:
  """Returns each block's share of the prompts of the last one (figure 4).

    r_l = w_l / sum_k w_k over the gated blocks, without the initial prompts

  Args:
    gate_logit: [L], of the gated blocks in order.

  Returns:
    [L], which sums to 1.
  """
  return jax.nn.softmax(log_weights(gate_logit)[1:])
