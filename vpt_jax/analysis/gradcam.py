"""Computes and draws Grad-CAM on a block's patches.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization", arXiv 1610.02391.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter, Images
from vpt_jax.nn.tokens import Tokens
from vpt_jax.problems import Problem
from vpt_jax.utils import lookup

COLUMNS = 7
MOST_IMAGES = 4 * COLUMNS


class Probe(model_lib.Model):
  """A model whose tokens [B, T, D] a variable `nudge/block_i` is added to.

  What enters block i is kept as intermediate `probe_i`.
  """

  def _block(self, i, tokens, train):
    nudge = self.get_variable("nudge", f"block_{i}")
    if nudge is not None:
      tokens = tokens.replace(x=tokens.x + nudge)
    self.sow("intermediates", f"probe_{i}", tokens)
    return super()._block(i, tokens, train)


class Explanation(NamedTuple):
  """Which patches speak for the class of each image.

  Attributes:
    classes: [B], the class that is explained.
    probabilities: [B], of that class.
    heat: [B, N], over the patches.
  """

  classes: np.ndarray
  probabilities: np.ndarray
  heat: np.ndarray


def gradients(
  model: model_lib.Model,
  variables: subject.Variables,
  image: jax.Array,
  block: int,
  label: int | None,
  problem: Problem,
) -> tuple[jax.Array, jax.Array, Tokens, Tokens]:
  """Returns the gradient of a class's logit for the tokens of a block.

  Args:
    model: of an adapter.
    variables: likewise.
    image: normalised, [B, H, W, 3].
    block: the index of the block that gives the tokens, not the last.
    label: the class; None: the most probable one.
    problem: that the adapter was trained for.

  Returns:
    (classes [B], logits [B, K], tokens [B, T, D], their gradients, likewise).
  """
  probe = subject.recast(Probe, model)
  # What a block gives is what enters the next one.
  nudge_name = f"block_{block + 1}"
  probe_name = f"probe_{block + 1}"

  def forward(nudge):
    logits, state = probe.apply(
      {**variables, "nudge": {nudge_name: nudge}},
      image,
      mutable=["intermediates"],
    )
    (tokens,) = state["intermediates"][probe_name]
    return logits, tokens

  _, like = jax.eval_shape(forward, jnp.zeros(()))
  no_nudge = jnp.zeros(like.x.shape, like.x.dtype)
  logits, pull_back, tokens = jax.vjp(forward, no_nudge, has_aux=True)
  if label is None:
    classes = problem.top_class(logits)
  else:
    classes = jnp.full(len(logits), label)
  of_class = jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
  (gradient,) = pull_back(of_class)
  return classes, logits, tokens, tokens.replace(x=gradient)


def heat(tokens: Tokens, gradient: Tokens) -> jax.Array:
  """Returns Grad-CAM's map over the patches, [B, N].

    heat_n = relu(sum_d w_d x_nd),   w_d = 1/N sum_n dy/dx_nd

  Args:
    tokens: x, [B, T, D].
    gradient: dy/dx, likewise.
  """
  weights = gradient.patch.mean(axis=1)
  return jax.nn.relu(jnp.einsum("bnd,bd->bn", tokens.patch, weights))


def class_number(text: str, names: tuple[str, ...], number: int) -> int:
  """Returns a class's index.

  Args:
    text: its name, or its index in 0 .. number - 1.
    names: of the classes, or () if not known.
    number: how many classes there are.

  Raises:
    ValueError: there is no such class.
  """
  if text in names:
    return names.index(text)
  if text.isdecimal() and int(text) < number:
    return int(text)
  if not names:
    raise ValueError(
      f"--class {text}: expected a number from 0 to "
      f"{number - 1}; the names of the classes are not known"
    )
  return names.index(lookup.choose(text, names, "class"))


def draw(
  adapter: Adapter, images: Images, block: int, label: str, to: Path
) -> str:
  """Draws which patches speak for a class.

  Args:
    adapter: any whose backbone has its patches on a grid.
    images: to look at.
    block: whose patches; counted from the last if negative.
    label: name or number of the class; "": the predicted one.
    to: the PNG.

  Returns:
    A summary for the terminal.

  Raises:
    ValueError: no such block or class, or too many images.
  """
  index = _block_index(adapter, block)
  figures.check_room(len(images.names), MOST_IMAGES)
  num_classes = adapter.model.num_classes
  names = images.class_names
  if not names:
    names = tuple(f"class {k}" for k in range(num_classes))
  chosen = None
  if label:
    chosen = class_number(label, images.class_names, num_classes)

  found = _explain(adapter, images, index, chosen)
  _draw_figure(adapter, images, found, names, index, to)
  _write_numbers(images, found, to)
  lines = []
  for image, k, probability in zip(
    images.names, found.classes, found.probabilities, strict=True
  ):
    lines.append(f"{image}: {names[k]} {100 * probability:.1f} %")
  return "\n".join(lines)


def _block_index(adapter: Adapter, block: int) -> int:
  """Returns the index from 0 of a block whose patches have gradients."""
  spec = adapter.model.backbone.spec
  index = spec.depth + block if block < 0 else block
  if not 0 <= index < spec.depth - 1:
    raise ValueError(
      f"--block {block}: expected 0 to {spec.depth - 2}, or -{spec.depth} to "
      "-2; of the last block only the pooled rows are computed, so no "
      "gradient reaches its patches"
    )
  if spec.grids[index] is None:
    raise ValueError(
      "Grad-CAM draws patches on a grid, which this backbone does not have"
    )
  return index


def _explain(
  adapter: Adapter, images: Images, block: int, chosen: int | None
) -> Explanation:
  """Returns Grad-CAM of a class (None: the predicted one) for images."""
  problem = adapter.problem

  def explain(variables, image):
    classes, logits, tokens, gradient = gradients(
      adapter.model, variables, image, block, chosen, problem
    )
    return classes, problem.probabilities(logits), heat(tokens, gradient)

  classes, probabilities, heats = subject.run(adapter, explain, images.pixels)
  of_class = probabilities[np.arange(len(classes)), classes]
  return Explanation(classes, of_class, heats)


def _draw_figure(
  adapter: Adapter,
  images: Images,
  found: Explanation,
  names: Sequence[str],
  block: int,
  to: Path,
) -> None:
  """Draws every image, and below it the map over it."""
  seen = subject.shown(adapter, images.pixels)
  grid = adapter.model.backbone.spec.grids[block]
  columns = min(COLUMNS, len(images.names))
  rows = -(-len(images.names) // columns)
  width = max(1.6 * columns + 0.2, 5)
  height = 3.6 * rows + 0.6
  title = f"Grad-CAM on the patches after block {block}\n{adapter.title}"
  with figures.figure(to, width, height, title) as fig:
    axes = fig.subplots(2 * rows, columns, squeeze=False)
    for panel in axes.flat:
      panel.set_axis_off()
    for n, name in enumerate(images.names):
      row, column = divmod(n, columns)
      caption = name[-22:]
      if images.labels is not None:
        caption += "\n" + adapter.problem.label_text(images.labels[n], names)
      figures.picture(axes[2 * row, column], seen[n], caption)
      percent = 100 * found.probabilities[n]
      caption = f"for {names[found.classes[n]]}\n{percent:.0f} %"
      figures.picture(
        axes[2 * row + 1, column], seen[n], caption, found.heat[n].reshape(grid)
      )


def _write_numbers(images: Images, found: Explanation, to: Path) -> None:
  """Writes a line for every image."""
  header = ["image", "label", "class", "probability"]
  header += [f"patch_{k}" for k in range(found.heat.shape[1])]
  rows = []
  for n, name in enumerate(images.names):
    label = "" if images.labels is None else images.labels[n]
    of_class = [found.classes[n], found.probabilities[n]]
    rows.append([name, label, *of_class, *found.heat[n]])
  figures.write_csv(to, header, rows)
