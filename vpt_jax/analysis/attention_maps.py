"""Attention maps with and without prompts, and the spectra of the matrices."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as models
from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter, Images
from vpt_jax.nn.tokens import POOLS, Tokens
from vpt_jax.utils import trees

# Shares of the sum of singular values that a rank is given for.
ENERGIES = (0.9, 0.95)
MOST_IMAGES = 6


class Attention(NamedTuple):
  """What the queries of a block attend to.

  Attributes:
    weights: [B, heads, Q, K], rows sum to 1. Keys are class tokens, carried
      prompts, patches, then the context's prompts.
    tokens: that entered the block.
    asked: those of them that ask, Q; not all in the last block.
  """

  weights: jax.Array
  tokens: Tokens
  asked: Tokens


def matrices(
  model: models.Model, variables: subject.Variables, image: jax.Array
) -> list[Attention]:
  """The attention of every block for images [B, H, W, 3].

  Raises:
    ValueError: the backbone attends in windows.
  """
  spec = model.backbone.spec
  _, state = model.apply(
    variables, image, mutable=["intermediates"], method=model.features
  )
  seen, out = trees.flatten(state["intermediates"]), []
  for i in range(spec.depth):
    path = (
      f"backbone/Transformer/encoderblock_{i}/"
      "MultiHeadDotProductAttention_0/weights"
    )
    if path not in seen:
      raise ValueError(
        f"the backbone is a {type(model.backbone).__name__}, which has no "
        "attention over the whole image; use an adapter of a ViT"
      )
    tokens, _ = seen[f"block_in_{i}"][0]
    last = i == spec.depth - 1
    out.append(
      Attention(
        seen[path][0],
        tokens,
        tokens.rows(model.pool or spec.pool) if last else tokens,
      )
    )
  return out


def shares(
  attention: Attention, pool: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Where the attention of the pooled rows goes, mean over heads.

  They are the class token, or, if the pooling reads none, all patches (mean).

  Returns:
    (to class tokens [B], to prompts [B], to each patch [B, N]); the sum is 1.
  """
  weights, tokens, asked = attention
  rows = asked.replace(x=weights.mean(axis=1))  # [B, Q, K]
  row = (rows.cls if POOLS[pool][0] else rows.patch).mean(axis=1)
  own, context = jnp.split(row, [tokens.x.shape[1]], axis=1)
  keys = tokens.replace(x=own[:, :, None])
  return (
    keys.cls.sum((1, 2)),
    keys.prompt.sum((1, 2)) + context.sum(1),
    keys.patch[:, :, 0],
  )


def maps(
  adapter: Adapter, pixels: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """`shares` of every block for uint8 images [N, H, W, 3]."""
  pool = adapter.model.pool or adapter.model.backbone.spec.pool
  if not (POOLS[pool][0] or POOLS[pool][2]):
    raise ValueError(
      f"pool={pool!r} reads prompts alone, so that no class "
      "token or patch asks in the last block"
    )
  return subject.run(
    adapter,
    lambda variables, image: [
      shares(block, pool) for block in matrices(adapter.model, variables, image)
    ],
    pixels,
  )


def draw(
  adapter: Adapter, images: Images, blocks: Sequence[int], to: Path
) -> str:
  """Attention maps of blocks over images, with prompts and without.

  Args:
    adapter: of a ViT.
    images: to look at.
    blocks: their indices; (): four of them.
    to: the PNG.

  Raises:
    ValueError: no such block, too many images, or no attention to show.
  """
  spec = adapter.model.backbone.spec
  blocks = [spec.depth + i if i < 0 else i for i in blocks] or sorted(
    set(np.linspace(0, spec.depth - 1, 4).round().astype(int).tolist())
  )
  for i in blocks:
    if not 0 <= i < spec.depth:
      raise ValueError(
        f"--blocks {i}: the backbone has blocks 0 to {spec.depth - 1}"
      )
  if len(images.names) > MOST_IMAGES:
    raise ValueError(
      f"{len(images.names)} images; a figure has room for {MOST_IMAGES}"
    )
  models_shown = [(adapter.config.method, adapter)]
  if adapter.variables["params"]["method"]:
    models_shown.append(("without", subject.plain(adapter)))
  found = [
    (name, maps(one, images.pixels), subject.shown(one, images.pixels))
    for name, one in models_shown
  ]
  who = (
    "class token"
    if POOLS[adapter.model.pool or spec.pool][0]
    else "patches (mean)"
  )

  rows, columns = len(images.names) * len(found), 1 + len(blocks)
  side = min(1.5, figures.WIDEST / columns)
  with figures.figure(
    to,
    max(side * columns + 0.3, 5),
    (side + 0.4) * rows + 0.8,
    f"{adapter.title}\nAttention of the {who} to patches, mean over heads\n"
    "Each map's colours go from 0 to its maximum",
  ) as fig:
    axes = fig.subplots(rows, columns, squeeze=False)
    for n, image in enumerate(images.names):
      for m, (name, blocks_seen, seen) in enumerate(found):
        line = axes[n * len(found) + m]
        figures.picture(line[0], seen[n], f"{name}\n{_short(image)}")
        for j, i in enumerate(blocks):
          _, prompts, patches = blocks_seen[i]
          share = f"\n{100 * prompts[n]:.0f} % to prompts" * (not m)
          figures.picture(
            line[1 + j],
            seen[n],
            f"block {i}, at most {100 * patches[n].max():.0f} %{share}",
            patches[n].reshape(spec.grids[i]),
          )
  size = found[0][1][0][2].shape[1]
  figures.table(
    to,
    [
      "image",
      "method",
      "block",
      "to_class_tokens",
      "to_prompts",
      *(f"patch_{k}" for k in range(size)),
    ],
    [
      [image, name, i, of[i][0][n], of[i][1][n], *of[i][2][n]]
      for n, image in enumerate(images.names)
      for name, of, _ in found
      for i in range(spec.depth)
    ],
  )
  mass = np.mean([block[1] for block in found[0][1]], axis=1)
  return "attention to prompts by block, percent: " + " ".join(
    f"{100 * share:.0f}" for share in mass
  )


def _short(name: str, most: int = 20) -> str:
  return name if len(name) <= most else f"...{name[3 - most :]}"


def cumulative(matrix: jax.Array) -> jax.Array:
  """sum_{j <= k} s_j / sum_j s_j of the singular values s of [..., T, K].

  Returns:
    [..., min(T, K)], k from 1.
  """
  values = jnp.linalg.svd(matrix.astype(jnp.float32), compute_uv=False)
  return jnp.cumsum(values, -1) / values.sum(-1, keepdims=True)


def spectra(adapter: Adapter, pixels: np.ndarray) -> np.ndarray:
  """Cumulative singular values of the attention matrices of every block.

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

  def curves(variables, image):
    blocks = matrices(adapter.model, variables, image)[:-1]
    if not blocks:
      raise ValueError(
        "the backbone has one block, of whose attention only "
        "the pooled rows are computed"
      )
    return [cumulative(block.weights).mean(axis=1) for block in blocks]

  found = subject.run(adapter, curves, pixels)
  longest = max(curve.shape[1] for curve in found)
  # Where prompts are carried from a later block on, earlier ones have fewer.
  return np.stack(
    [
      np.pad(curve.mean(0), (0, longest - curve.shape[1]), constant_values=1.0)
      for curve in found
    ]
  )


def rank(curves: np.ndarray, energy: float) -> np.ndarray:
  """The least k with c_k >= energy, of curves [..., T]; [...]."""
  return 1 + np.argmax(curves >= energy - 1e-6, axis=-1)


def eigenvalues(opened: Sequence[Adapter], count: int, to: Path) -> str:
  """Spectra of several adapters, and their ranks by number of prompts.

  Args:
    opened: adapters of ViTs.
    count: test images of each one's task.
    to: the PNG.
  """
  found = [
    spectra(one, subject.test(one, count, seed=0).pixels) for one in opened
  ]
  numbers = [float(np.mean(subject.prompts(one))) for one in opened]
  labels, common = figures.apart([one.key for one in opened])
  with figures.figure(
    to,
    9.5,
    4.2,
    "Singular values of attention matrices, mean over heads "
    f"and {count} images: {common}",
  ) as fig:
    left, right = fig.subplots(1, 2)
    for n, (label, curves) in enumerate(zip(labels, found)):
      k = np.arange(1, curves.shape[1] + 1)
      mean, std = curves.mean(0), curves.std(0)
      left.plot(k, mean, color=figures.colour(n), label=label or common)
      left.fill_between(
        k,
        mean - std,
        np.minimum(mean + std, 1),
        lw=0,
        color=figures.colour(n),
        alpha=0.1,
      )
    left.set(
      xlabel="singular values, largest first",
      ylim=(0, 1.02),
      ylabel="share of their sum",
      title="mean and std over blocks",
    )
    left.legend(loc="lower right")
    # Side by side, where several have as many prompts.
    step = (max(numbers) - min(numbers) or 1) / 50
    for n, (number, curves) in enumerate(zip(numbers, found)):
      beside = number + step * numbers[:n].count(number)
      for e, (energy, fill) in enumerate(zip(ENERGIES, ("full", "none"))):
        ranks = rank(curves, energy)
        right.errorbar(
          beside + e * step / 2,
          ranks.mean(),
          ranks.std(),
          fmt="o",
          capsize=3,
          fillstyle=fill,
          elinewidth=0.8,
          color=figures.colour(n),
        )
    for energy, fill in zip(ENERGIES, ("full", "none")):
      right.plot(
        [],
        [],
        "o",
        fillstyle=fill,
        color="#444444",
        label=f"{100 * energy:g} % of the sum",
      )
    right.set(
      xlabel="prompts in a block (mean)",
      ylabel="singular values needed",
      title="rank, mean and std over blocks",
      ylim=(0, None),
    )
    right.legend(loc="lower right")
  longest = max(curves.shape[1] for curves in found)
  figures.table(
    to,
    [
      "adapter",
      "prompts",
      "block",
      *(f"rank_{100 * energy:g}" for energy in ENERGIES),
      *(f"c_{k + 1}" for k in range(longest)),
    ],
    [
      [
        one.path,
        number,
        i,
        *(rank(curve, energy) for energy in ENERGIES),
        *curve,
        *[""] * (longest - len(curve)),
      ]
      for one, number, curves in zip(opened, numbers, found)
      for i, curve in enumerate(curves)
    ],
  )
  return "\n".join(
    f"{one.path}: {rank(curves, energy).mean():.1f} for {100 * energy:g} %"
    for one, curves in zip(opened, found)
    for energy in ENERGIES
  )
