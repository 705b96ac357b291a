"""Where prompts matter: Gated Prompt Tuning's gates, accuracy without a block's
prompts."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as models
from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter
from vpt_jax.methods import gated


def gates(adapter: Adapter) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """What a Gated adapter learned.

    Z^l = g_l Z~^l + (1 - g_l) Z^{l-1},   g_l = sigmoid(gate_l)
    w_l = g_l prod_{k > l} (1 - g_k),     w_0 = prod_k (1 - g_k)

  with Z~^l what block l gave and Z^0 the learned prompts, so that the last gate
  lets sum_l w_l Z~^l through (Z~^0 = Z^0). The last block has no gate.

  Returns:
    (g [L], w [1 + L], temperatures of all blocks [depth]).

  Raises:
    ValueError: another method, or one without gates.
  """
  method, options = adapter.model.method, adapter.config.get("gated", {})
  if adapter.config.method != "gated" or not options.gates:
    what = (
      "this adapter's are all open (gated.gates=False)"
      if adapter.config.method == "gated"
      else f"this adapter is of {adapter.config.method!r}"
    )
    raise ValueError(f"{adapter.path}: only 'gated' has gates, {what}")
  params = adapter.variables["params"]["method"]
  logit = params["gate_logit"]
  if options.hard:  # as the model has them where it does not train
    logit = jnp.where(logit > 0, jnp.inf, -jnp.inf)
  if options.learn_temperature:
    tau = np.clip(
      params["temperature"], options.temperature_min, options.temperature_max
    )
  else:
    tau = np.full(method.spec.depth, options.temperature_init)
  return (
    np.asarray(jax.nn.sigmoid(logit)),
    np.exp(gated.log_weights(logit)),
    tau,
  )


def draw_gates(opened: Sequence[Adapter], to: Path) -> str:
  """Each block's part in the final prompts, and the temperatures.

  Args:
    opened: adapters of Gated Prompt Tuning.
    to: the PNG.
  """
  found = [gates(one) for one in opened]
  labels, common = figures.apart([one.key for one in opened])
  with figures.figure(to, 9.5, 3.8, common) as fig:
    left, right = fig.subplots(1, 2)
    width = 0.8 / len(found)
    for n, (label, (_, weight, tau)) in enumerate(zip(labels, found)):
      shift = (n - (len(found) - 1) / 2) * width
      left.bar(
        np.arange(len(weight)) + shift,
        weight,
        width,
        color=figures.colour(n),
        label=label or "this adapter",
      )
      right.plot(
        np.arange(len(tau)),
        tau,
        figures.marker(n) + "-",
        color=figures.colour(n),
      )
    most = max(len(weight) for _, weight, _ in found)
    left.set_xticks(range(most), ["none", *range(most - 1)])
    left.set(
      xlabel="block (none: the prompts as they were learned)",
      ylabel="weight, sum 1",
      ylim=(0, None),
      title="whose outputs the final prompts are",
    )
    if len(found) > 1:
      left.legend()
    depth = max(len(tau) for *_, tau in found)
    right.set_xticks(range(depth))
    right.axhline(1, color="#888888", lw=0.8, ls="--")
    right.set(
      xlabel="block",
      ylabel="temperature",
      title="attention temperature (dashed: unchanged)",
    )
  rows = []
  for one, (gate, weight, tau) in zip(opened, found):
    rows.append([one.path, "none", "", weight[0], ""])
    for i, temperature in enumerate(tau):
      own = [gate[i], weight[1 + i]] if i < len(gate) else ["", ""]
      rows.append([one.path, i, *own, temperature])
  figures.table(to, ["adapter", "block", "gate", "weight", "temperature"], rows)
  return "\n".join(
    f"{one.path}: weights (none, block 0, ...) "
    + " ".join(f"{value:.2f}" for value in weight)
    for one, (_, weight, _) in zip(opened, found)
  )


def maskable(model: models.Model, numbers: Sequence[int]) -> models.Model:
  """The model with a variable `mask/method/blocks` [L], 1 or 0: 0 hides all
  prompts from that block.

  Their attention logits become -inf, so that nothing attends to them: for
  prompts that only this block sees it is the model without them. Carried ones
  go on, and are seen again by the next block.

  Args:
    model: with prompts.
    numbers: [L], how many prompts each block sees.
  """

  class Masked(type(model.method)):
    def prompt_bias(self, i):
      if numbers[i]:
        mask = self.get_variable("mask", "blocks")
        return jnp.full(numbers[i], jnp.log(mask[i]))

  return model.clone(method=subject.recast(Masked, model.method))


def accuracies(
  adapter: Adapter, pixels: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[int, float]]:
  """The problem's first score with all prompts, and {block: without its}.

  Raises:
    ValueError: no block sees prompts.
  """
  numbers = subject.prompts(adapter)
  blocks = [i for i, number in enumerate(numbers) if number]
  if not blocks:
    raise ValueError(
      f"{adapter.path}: method {adapter.config.method!r} has no prompts "
      "beside the tokens that a block could do without; use an adapter of "
      "'vpt' or 'vapt', for example"
    )
  masks = np.ones((1 + len(blocks), len(numbers)), np.float32)
  masks[np.arange(1, len(masks)), blocks] = 0
  model = maskable(adapter.model, numbers)

  def outputs(variables, image):
    of_masks = jax.lax.map(
      lambda mask: model.apply(
        {**variables, "mask": {"method": {"blocks": mask}}}, image
      ),
      masks,
    )
    return jnp.swapaxes(of_masks, 0, 1)

  found = subject.run(adapter, outputs, pixels)
  score = adapter.problem.scores[0].name
  whole, *without = [
    adapter.problem.measure_outputs(found[:, i], labels)[score]
    for i in range(len(masks))
  ]
  return whole, dict(zip(blocks, without))


def draw_layers(adapter: Adapter, count: int, to: Path) -> str:
  """Accuracy without the prompts of one block, for every block.

  Args:
    adapter: with prompts.
    count: test images, at random; 0: all.
    to: the PNG.
  """
  numbers = subject.prompts(adapter)
  images = subject.test(adapter, count, seed=0)
  whole, without = accuracies(adapter, images.pixels, images.labels)
  score = adapter.problem.scores[0]
  with figures.figure(
    to,
    min(max(6.5, 0.45 * len(numbers)), figures.WIDEST),
    3.8,
    f"{score.title} when one block does not see its prompts\n"
    f"{adapter.title}, {len(images.labels)} test images",
  ) as fig:
    axes = fig.subplots()
    bars = axes.bar(
      list(without),
      [value - whole for value in without.values()],
      color=figures.colour(0),
    )
    axes.bar_label(bars, fmt="%+.1f", fontsize=7, padding=1)
    axes.margins(y=0.12)
    axes.axhline(0, color="#444444", lw=0.8)
    axes.set_xticks(range(len(numbers)))
    axes.set(
      xlabel="block",
      ylabel=f"change of {score.title}, points",
      title=f"with all prompts: {whole:.1f} {score.unit}",
    )
  figures.table(
    to,
    ["block", "prompts", score.name, "change"],
    [
      ["", sum(numbers), whole, 0.0],
      *([i, numbers[i], value, value - whole] for i, value in without.items()),
    ],
  )
  worst = min(without, key=without.get)
  return (
    f"{score.title} {whole:.2f} {score.unit} with all prompts, "
    f"{without[worst]:.2f} {score.unit} without those of block {worst}, which matter most"
  )
