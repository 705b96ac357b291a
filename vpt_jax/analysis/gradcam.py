"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) on a block's patches."""

from pathlib import Path

import jax
import jax.numpy as jnp

from vpt_jax import model as models
from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter, Images
from vpt_jax.nn.tokens import Tokens
from vpt_jax.problems import Problem
from vpt_jax.utils import lookup

COLUMNS = 7
MOST_IMAGES = 4 * COLUMNS


class Probe(models.Model):
  """A model whose tokens [B, T, D] a variable `nudge/block_i` is added to.

  What enters block i is kept as intermediate `probe_i`.
  """

  def _block(self, i, tokens, train):
    nudge = self.get_variable("nudge", f"block_{i}")
    if nudge is not None:
      tokens = tokens.replace(x=tokens.x + nudge)
    self.sow("intermediates", f"probe_{i}", tokens)
    return super()._block(i, tokens, train)


def gradients(
  model: models.Model,
  variables: subject.Variables,
  image: jax.Array,
  block: int,
  label: int | None,
  problem: Problem,
) -> tuple[jax.Array, jax.Array, Tokens, Tokens]:
  """Gradient of a class's logit for the tokens that a block gives.

  Args:
    model, variables: of an adapter.
    image: normalised, [B, H, W, 3].
    block: its index, not that of the last.
    label: the class; None: the most probable one.
    problem: that the adapter was trained for.

  Returns:
    (classes [B], logits [B, K], tokens [B, T, D], their gradients, likewise).
  """
  probe = subject.recast(Probe, model)
  entered = f"block_{block + 1}", f"probe_{block + 1}"

  def forward(nudge):
    logits, state = probe.apply(
      {**variables, "nudge": {entered[0]: nudge}},
      image,
      mutable=["intermediates"],
    )
    return logits, state["intermediates"][entered[1]][0]

  like = jax.eval_shape(forward, jnp.zeros(()))[1].x
  logits, back, tokens = jax.vjp(
    forward, jnp.zeros(like.shape, like.dtype), has_aux=True
  )
  if label is None:
    classes = problem.top_class(logits)
  else:
    classes = jnp.full(len(logits), label)
  (gradient,) = back(
    jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
  )
  return classes, logits, tokens, tokens.replace(x=gradient)


def heat(tokens: Tokens, gradient: Tokens) -> jax.Array:
  """relu(sum_d w_d x_nd),  w_d = 1/N sum_n dy/dx_nd: [B, N] over patches."""
  weights = gradient.patch.mean(axis=1)
  return jax.nn.relu(jnp.einsum("bnd,bd->bn", tokens.patch, weights))


def class_number(text: str, names: tuple[str, ...], number: int) -> int:
  """A class from its name, or its number in 0 .. number - 1."""
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
  """Which patches speak for a class.

  Args:
    adapter: any whose backbone has its patches on a grid.
    images: to look at.
    block: whose patches; counted from the last if negative.
    label: name or number of the class; "": the predicted one.
    to: the PNG.

  Raises:
    ValueError: no such block or class, or too many images.
  """
  model, problem = adapter.model, adapter.problem
  spec, number = model.backbone.spec, model.num_classes
  at = spec.depth + block if block < 0 else block
  if not 0 <= at < spec.depth - 1:
    raise ValueError(
      f"--block {block}: expected 0 to {spec.depth - 2}, or -{spec.depth} to "
      "-2; of the last block only the pooled rows are computed, so no "
      "gradient reaches its patches"
    )
  if spec.grids[at] is None:
    raise ValueError(
      "Grad-CAM draws patches on a grid, which this backbone does not have"
    )
  if len(images.names) > MOST_IMAGES:
    raise ValueError(
      f"{len(images.names)} images; a figure has room for {MOST_IMAGES}"
    )
  names = images.class_names or tuple(f"class {k}" for k in range(number))
  chosen = class_number(label, images.class_names, number) if label else None

  def explain(variables, image):
    classes, logits, tokens, gradient = gradients(
      model, variables, image, at, chosen, problem
    )
    return classes, problem.probabilities(logits), heat(tokens, gradient)

  classes, probability, found = subject.run(adapter, explain, images.pixels)
  seen = subject.shown(adapter, images.pixels)
  columns = min(COLUMNS, len(images.names))
  lines = -(-len(images.names) // columns)
  with figures.figure(
    to,
    max(1.6 * columns + 0.2, 5),
    3.6 * lines + 0.6,
    f"Grad-CAM on the patches after block {at}\n{adapter.title}",
  ) as fig:
    axes = fig.subplots(2 * lines, columns, squeeze=False)
    for panel in axes.flat:
      panel.set_axis_off()
    for n in range(len(images.names)):
      row, column = divmod(n, columns)
      truth = ""
      if images.labels is not None:
        truth = "\n" + problem.label_text(images.labels[n], names)
      figures.picture(
        axes[2 * row, column], seen[n], f"{images.names[n][-22:]}{truth}"
      )
      figures.picture(
        axes[2 * row + 1, column],
        seen[n],
        f"for {names[classes[n]]}\n{100 * probability[n, classes[n]]:.0f} %",
        found[n].reshape(spec.grids[at]),
      )
  figures.table(
    to,
    [
      "image",
      "label",
      "class",
      "probability",
      *(f"patch_{k}" for k in range(found.shape[1])),
    ],
    [
      [
        name,
        "" if images.labels is None else images.labels[n],
        classes[n],
        probability[n, classes[n]],
        *found[n],
      ]
      for n, name in enumerate(images.names)
    ],
  )
  return "\n".join(
    f"{name}: {names[k]} {100 * p[k]:.1f} %"
    for name, k, p in zip(images.names, classes, probability)
  )
