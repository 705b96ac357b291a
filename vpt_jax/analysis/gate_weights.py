"""Computes and draws what the gates of Gated Prompt Tuning have learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.analysis import figures
from vpt_jax.analysis.subject import Adapter
from vpt_jax.methods import gated


class Gates(NamedTuple):
  """What a Gated adapter learned.

  Attributes:
    gates: g [L], in 0 .. 1, of all blocks but the last.
    weights: w [1 + L], sum 1: of the learned prompts, then of each block's
      output, in the final prompts.
    temperatures: of the attention of all blocks, [depth].
  """

  gates: np.ndarray
  weights: np.ndarray
  temperatures: np.ndarray


def read(adapter: Adapter) -> Gates:
  """Returns the gates of an adapter, and what follows from them.

    Z^l = g_l Z~^l + (1 - g_l) Z^{l-1},   g_l = sigmoid(gate_l)
    w_l = g_l prod_{k > l} (1 - g_k),     w_0 = prod_k (1 - g_k)

  with Z~^l what block l gave and Z^0 the learned prompts, so that the last gate
  lets sum_l w_l Z~^l through (Z~^0 = Z^0). The last block has no gate.

  Raises:
    ValueError: another method, or one without gates.
  """
  _check_has_gates(adapter)
  options = adapter.config.gated
  params = adapter.variables["params"]["method"]
  logits = params["gate_logit"]
  if options.hard:  # The same as in the model where it does not train.
    logits = jnp.where(logits > 0, jnp.inf, -jnp.inf)
  if options.learn_temperature:
    temperatures = np.clip(
      params["temperature"], options.temperature_min, options.temperature_max
    )
  else:
    depth = adapter.model.method.spec.depth
    temperatures = np.full(depth, options.temperature_init)
  return Gates(
    np.asarray(jax.nn.sigmoid(logits)),
    np.exp(gated.log_weights(logits)),
    temperatures,
  )


def _check_has_gates(adapter: Adapter) -> None:
  if adapter.config.method != "gated":
    why = f"this adapter is of {adapter.config.method!r}"
  elif not adapter.config.gated.gates:
    why = "this adapter's are all open (gated.gates=False)"
  else:
    return
  raise ValueError(f"{adapter.path}: only 'gated' has gates, {why}")


def draw(adapters: Sequence[Adapter], to: Path) -> str:
  """Draws each block's part in the final prompts, and the temperatures.

  Args:
    adapters: of Gated Prompt Tuning.
    to: the PNG.

  Returns:
    A summary for the terminal.
  """
  found = [read(adapter) for adapter in adapters]
  labels, common = figures.distinguish([adapter.key for adapter in adapters])
  with figures.figure(to, 9.5, 3.8, common) as fig:
    left, right = fig.subplots(1, 2)
    _draw_weights(left, found, labels)
    _draw_temperatures(right, found)
  _write_numbers(adapters, found, to)
  lines = []
  for adapter, gates in zip(adapters, found, strict=True):
    weights = " ".join(f"{value:.2f}" for value in gates.weights)
    lines.append(f"{adapter.path}: weights (none, block 0, ...) {weights}")
  return "\n".join(lines)


def _draw_weights(
  axes: Any, found: Sequence[Gates], labels: Sequence[str]
) -> None:
  """Draws bars of all adapters side by side, for every block."""
  width = 0.8 / len(found)
  for n, (gates, label) in enumerate(zip(found, labels, strict=True)):
    shift = (n - (len(found) - 1) / 2) * width
    axes.bar(
      np.arange(len(gates.weights)) + shift,
      gates.weights,
      width,
      color=figures.colour(n),
      label=label or "this adapter",
    )
  most = max(len(gates.weights) for gates in found)
  axes.set_xticks(range(most), ["none", *range(most - 1)])
  axes.set(
    xlabel="block (none: the prompts as they were learned)",
    ylabel="weight, sum 1",
    ylim=(0, None),
    title="whose outputs the final prompts are",
  )
  if len(found) > 1:
    axes.legend()


def _draw_temperatures(axes: Any, found: Sequence[Gates]) -> None:
  """Draws a line for every adapter."""
  for n, gates in enumerate(found):
    axes.plot(
      np.arange(len(gates.temperatures)),
      gates.temperatures,
      figures.marker(n) + "-",
      color=figures.colour(n),
    )
  depth = max(len(gates.temperatures) for gates in found)
  axes.set_xticks(range(depth))
  axes.axhline(1, color="#888888", lw=0.8, ls="--")
  axes.set(
    xlabel="block",
    ylabel="temperature",
    title="attention temperature (dashed: unchanged)",
  )


def _write_numbers(
  adapters: Sequence[Adapter], found: Sequence[Gates], to: Path
) -> None:
  """Writes a line for the learned prompts of each adapter, and its blocks."""
  header = ["adapter", "block", "gate", "weight", "temperature"]
  rows = []
  for adapter, gates in zip(adapters, found, strict=True):
    rows.append([adapter.path, "none", "", gates.weights[0], ""])
    for i, temperature in enumerate(gates.temperatures):
      gate = ""
      weight = ""
      if i < len(gates.gates):  # The last block has none.
        gate = gates.gates[i]
        weight = gates.weights[1 + i]
      rows.append([adapter.path, i, gate, weight, temperature])
  figures.write_csv(to, header, rows)
