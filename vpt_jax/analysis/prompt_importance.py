"""Computes and draws how well a model does without the prompts of one block."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter
from vpt_jax.problems import Score


def maskable(
  model: model_lib.Model, num_prompts: Sequence[int]
) -> model_lib.Model:
  """Returns a model that has a mask of blocks.

  It has a variable `mask/method/blocks` [L], 1 or 0: 0 hides all prompts from
  that block. Their attention logits become -inf, so that nothing attends to
  them: for prompts that only this block sees it is the model without them.
  Carried prompts pass the block, and the next one sees them again.

  Args:
    model: with prompts.
    num_prompts: [L], that each block sees.
  """
  method_class: Any = type(model.method)

  class Masked(method_class):
    """The method, with a mask."""

    def prompt_bias(self, i):
      """Returns -inf for the prompts of a block that is masked."""
      if not num_prompts[i]:
        return None
      mask = self.get_variable("mask", "blocks")
      return jnp.full(num_prompts[i], jnp.log(mask[i]))

  return model.clone(method=subject.recast(Masked, model.method))


def scores_without_blocks(
  adapter: Adapter, pixels: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[int, float]]:
  """Returns the problem's first score, and those without a block's prompts.

  Args:
    adapter: with prompts.
    pixels: uint8 [N, H, W, 3].
    labels: [N, ...].

  Returns:
    (with all prompts, {block: without its prompts}).

  Raises:
    ValueError: no block sees prompts.
  """
  num_prompts = subject.prompts(adapter)
  blocks = [i for i, number in enumerate(num_prompts) if number]
  if not blocks:
    raise ValueError(
      f"{adapter.path}: method {adapter.config.method!r} has no prompts "
      "beside the tokens that a block could do without; use an adapter of "
      "'vpt' or 'vapt', for example"
    )
  # The first row hides nothing, every other one the prompts of one block.
  masks = np.ones((1 + len(blocks), len(num_prompts)), np.float32)
  masks[np.arange(1, len(masks)), blocks] = 0
  model = maskable(adapter.model, num_prompts)

  def outputs_of_masks(variables, image):
    def outputs(mask):
      masked = {**variables, "mask": {"method": {"blocks": mask}}}
      return model.apply(masked, image)

    return jnp.swapaxes(jax.lax.map(outputs, masks), 0, 1)

  outputs = subject.run(adapter, outputs_of_masks, pixels)  # [N, masks, ...]
  problem = adapter.problem
  name = problem.scores[0].name
  scores = []
  for i in range(len(masks)):
    scores.append(problem.measure_outputs(outputs[:, i], labels)[name])
  return scores[0], dict(zip(blocks, scores[1:], strict=True))


def draw(adapter: Adapter, count: int, to: Path) -> str:
  """Draws the score without the prompts of one block, for every block.

  Args:
    adapter: with prompts.
    count: test images, at random; 0: all.
    to: the PNG.

  Returns:
    A summary for the terminal.
  """
  images = subject.test(adapter, count, seed=0)
  labels = np.asarray(images.labels)  # Those of test images are known.
  with_all, without = scores_without_blocks(adapter, images.pixels, labels)
  num_prompts = subject.prompts(adapter)
  score = adapter.problem.scores[0]
  title = (
    "Accuracy when one block does not see its prompts\n"
    f"{adapter.title}, {len(labels)} test images"
  )
  _draw_figure(title, score, with_all, without, len(num_prompts), to)

  rows = [["", sum(num_prompts), with_all, 0.0]]
  for i, value in without.items():
    rows.append([i, num_prompts[i], value, value - with_all])
  figures.write_csv(to, ["block", "prompts", score.name, "change"], rows)
  worst = min(without, key=without.__getitem__)
  return (
    f"{score.title} {with_all:.2f} {score.unit} with all prompts, "
    f"{without[worst]:.2f} {score.unit} without those of block {worst}, which "
    "matter most"
  )


def _draw_figure(
  title: str,
  score: Score,
  with_all: float,
  without: dict[int, float],
  depth: int,
  to: Path,
) -> None:
  """Draws a bar for every block that has prompts."""
  width = min(max(6.5, 0.45 * depth), figures.WIDEST)
  with figures.figure(to, width, 3.8, title) as fig:
    axes = fig.subplots()
    changes = [value - with_all for value in without.values()]
    bars = axes.bar(list(without), changes, color=figures.colour(0))
    axes.bar_label(bars, fmt="%+.1f", fontsize=7, padding=1)
    axes.margins(y=0.12)
    axes.axhline(0, color="#444444", lw=0.8)
    axes.set_xticks(range(depth))
    axes.set(
      xlabel="block",
      ylabel=f"change of {score.title}, points",
      title=f"with all prompts: {with_all:.1f} {score.unit}",
    )
