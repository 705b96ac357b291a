"""Computes and draws singular values and ranks of attention matrices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax.analysis import attention_maps, figures, subject
from vpt_jax.analysis.subject import Adapter

# Shares of the sum of singular values that a rank is given for, and how the
# markers of each are filled.
ENERGIES = (0.9, 0.95)
FILLS = ("full", "none")


class Spectra(NamedTuple):
  """The spectra of one adapter.

  Attributes:
    path: of its file.
    label: what tells it apart from the others, or "".
    num_prompts: that a block sees, mean over blocks.
    curves: cumulative singular values [blocks, T], see `spectra`.
  """

  path: str
  label: str
  num_prompts: float
  curves: np.ndarray


def cumulative(matrix: jax.Array) -> jax.Array:
  """Returns sum_{j <= k} s_j / sum_j s_j, s being singular values.

  Args:
    matrix: [..., T, K].

  Returns:
    [..., min(T, K)], k from 1.
  """
  values = jnp.linalg.svd(matrix.astype(jnp.float32), compute_uv=False)
  return jnp.cumsum(values, -1) / values.sum(-1, keepdims=True)


def rank(curves: np.ndarray, energy: float) -> np.ndarray:
  """Returns the least k with c_k >= energy, of curves [..., T]; [...]."""
  rounding = 1e-6
  return 1 + np.argmax(curves >= energy - rounding, axis=-1)


def spectra(adapter: Adapter, pixels: np.ndarray) -> np.ndarray:
  """Returns cumulative singular values of every block's attention matrices.

  A [T, T + P] is what softmax gives, of one head for one image: T tokens (class
  tokens, carried prompts and patches) ask, the same and P prompts of the
  context are asked. s_1 >= s_2 >= ... are its singular values (the square roots
  of the eigenvalues of A A^T; A is not symmetric, nor square where P > 0):

    c_k = sum_{j <= k} s_j / sum_{j <= T} s_j

  averaged over heads and images. The last block is left out: it computes only
  the rows of A that the pooling reads.

  Returns:
    [L - 1, T].
  """

  def block_curves(variables, image):
    blocks = attention_maps.matrices(adapter.model, variables, image)[:-1]
    if not blocks:
      raise ValueError(
        "the backbone has one block, of whose attention only "
        "the pooled rows are computed"
      )
    return [cumulative(block.weights).mean(axis=1) for block in blocks]

  found = subject.run(adapter, block_curves, pixels)
  longest = max(curve.shape[1] for curve in found)
  padded = []
  for curve in found:
    # Where prompts are carried from a later block on, earlier ones have fewer.
    missing = longest - curve.shape[1]
    padded.append(np.pad(curve.mean(0), (0, missing), constant_values=1.0))
  return np.stack(padded)


def draw(adapters: Sequence[Adapter], count: int, to: Path) -> str:
  """Draws spectra of several adapters, and their ranks by number of prompts.

  Args:
    adapters: of ViTs.
    count: how many test images of each one's task.
    to: the PNG.

  Returns:
    A summary for the terminal.
  """
  curves = []
  for adapter in adapters:
    images = subject.test(adapter, count, seed=0)
    curves.append(spectra(adapter, images.pixels))
  labels, common = figures.distinguish([adapter.key for adapter in adapters])
  found = []
  for adapter, label, curve in zip(adapters, labels, curves, strict=True):
    num_prompts = float(np.mean(subject.prompts(adapter)))
    found.append(Spectra(adapter.path, label or common, num_prompts, curve))

  title = (
    "Singular values of attention matrices, mean over heads "
    f"and {count} images: {common}"
  )
  with figures.figure(to, 9.5, 4.2, title) as fig:
    left, right = fig.subplots(1, 2)
    _draw_spectra(left, found)
    _draw_ranks(right, found)
  _write_numbers(found, to)
  lines = []
  for one in found:
    for energy in ENERGIES:
      mean = rank(one.curves, energy).mean()
      lines.append(f"{one.path}: {mean:.1f} for {100 * energy:g} %")
  return "\n".join(lines)


def _draw_spectra(axes: Any, found: Sequence[Spectra]) -> None:
  """Draws a curve for every adapter, mean and std over its blocks."""
  for n, one in enumerate(found):
    k = np.arange(1, one.curves.shape[1] + 1)
    mean = one.curves.mean(0)
    std = one.curves.std(0)
    colour = figures.colour(n)
    axes.plot(k, mean, color=colour, label=one.label)
    above = np.minimum(mean + std, 1)
    axes.fill_between(k, mean - std, above, lw=0, color=colour, alpha=0.1)
  axes.set(
    xlabel="singular values, largest first",
    ylim=(0, 1.02),
    ylabel="share of their sum",
    title="mean and std over blocks",
  )
  axes.legend(loc="lower right")


def _draw_ranks(axes: Any, found: Sequence[Spectra]) -> None:
  """Draws the ranks of every adapter against its number of prompts."""
  numbers = [one.num_prompts for one in found]
  # Side by side, where several have as many prompts.
  step = (max(numbers) - min(numbers) or 1) / 50
  for n, one in enumerate(found):
    beside = one.num_prompts + step * numbers[:n].count(one.num_prompts)
    for e, (energy, fill) in enumerate(zip(ENERGIES, FILLS, strict=True)):
      ranks = rank(one.curves, energy)
      axes.errorbar(
        beside + e * step / 2,
        ranks.mean(),
        ranks.std(),
        fmt="o",
        capsize=3,
        fillstyle=fill,
        elinewidth=0.8,
        color=figures.colour(n),
      )
  # The legend is of the fills alone: colours are those of the other panel.
  for energy, fill in zip(ENERGIES, FILLS, strict=True):
    label = f"{100 * energy:g} % of the sum"
    axes.plot([], [], "o", fillstyle=fill, color="#444444", label=label)
  axes.set(
    xlabel="prompts in a block (mean)",
    ylabel="singular values needed",
    title="rank, mean and std over blocks",
    ylim=(0, None),
  )
  axes.legend(loc="lower right")


def _write_numbers(found: Sequence[Spectra], to: Path) -> None:
  """Writes a line for every adapter and block."""
  longest = max(one.curves.shape[1] for one in found)
  header = ["adapter", "prompts", "block"]
  header += [f"rank_{100 * energy:g}" for energy in ENERGIES]
  header += [f"c_{k + 1}" for k in range(longest)]
  rows = []
  for one in found:
    for i, curve in enumerate(one.curves):
      ranks = [rank(curve, energy) for energy in ENERGIES]
      blanks = [""] * (longest - len(curve))
      rows.append([one.path, one.num_prompts, i, *ranks, *curve, *blanks])
  figures.write_csv(to, header, rows)
