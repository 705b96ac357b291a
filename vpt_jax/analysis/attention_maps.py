"""Computes and draws attention maps, with prompts and without."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpt_jax import model as model_lib
from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter, Images
from vpt_jax.nn.tokens import POOLS, Tokens
from vpt_jax.utils import trees

MOST_IMAGES = 6
# Blocks that are drawn where none are named.
BLOCKS_SHOWN = 4
LARGEST_PANEL = 1.5  # inches


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


class Shares(NamedTuple):
  """Where the attention of the pooled rows of a block goes; the sum is 1.

  Attributes:
    to_class_tokens: [B].
    to_prompts: [B].
    to_patches: [B, N], to each patch.
  """

  to_class_tokens: Any
  to_prompts: Any
  to_patches: Any


class Maps(NamedTuple):
  """The attention of one model.

  Attributes:
    name: of the model, in the figure.
    blocks: the shares of every block, on the host.
    seen: the images as the backbone sees them, [B, H, W, 3] in [0, 1].
  """

  name: str
  blocks: list[Shares]
  seen: np.ndarray


def matrices(
  model: model_lib.Model, variables: subject.Variables, image: jax.Array
) -> list[Attention]:
  """Returns the attention of every block for images [B, H, W, 3].

  Raises:
    ValueError: the backbone attends in windows.
  """
  depth = model.backbone.spec.depth
  _, state = model.apply(
    variables, image, mutable=["intermediates"], method=model.features
  )
  seen = trees.flatten(state["intermediates"])
  blocks = []
  for i in range(depth):
    path = (
      f"backbone/Transformer/encoderblock_{i}/"
      "MultiHeadDotProductAttention_0/weights"
    )
    if path not in seen:
      raise ValueError(
        f"the backbone is a {type(model.backbone).__name__}, which has no "
        "attention over the whole image; use an adapter of a ViT"
      )
    weights = seen[path][0]
    tokens, _ = seen[f"block_in_{i}"][0]
    asked = tokens
    if i == depth - 1:
      asked = tokens.rows(_pool(model))
    blocks.append(Attention(weights, tokens, asked))
  return blocks


def _pool(model: model_lib.Model) -> str:
  return model.pool or model.backbone.spec.pool


def shares(attention: Attention, pool: str) -> Shares:
  """Returns where the attention of the pooled rows goes, mean over heads.

  They are the class token, or, if the pooling reads none, all patches (mean).

  Args:
    attention: of a block.
    pool: a name in `tokens.POOLS`.
  """
  weights, tokens, asked = attention
  rows = asked.replace(x=weights.mean(axis=1))  # [B, Q, K]
  reads_class_token = POOLS[pool][0]
  pooled = rows.cls if reads_class_token else rows.patch
  row = pooled.mean(axis=1)
  # Keys are the tokens, and behind them the context's prompts.
  to_tokens, to_context = jnp.split(row, [tokens.x.shape[1]], axis=1)
  keys = tokens.replace(x=to_tokens[:, :, None])
  return Shares(
    keys.cls.sum((1, 2)),
    keys.prompt.sum((1, 2)) + to_context.sum(1),
    keys.patch[:, :, 0],
  )


def maps(adapter: Adapter, pixels: np.ndarray) -> list[Shares]:
  """Returns `shares` of every block for uint8 images [N, H, W, 3].

  Raises:
    ValueError: the pooling reads neither class token nor patches.
  """
  pool = _pool(adapter.model)
  reads_class_token, _, reads_patches = POOLS[pool]
  if not (reads_class_token or reads_patches):
    raise ValueError(
      f"pool={pool!r} reads prompts alone, so that no class "
      "token or patch asks in the last block"
    )

  def all_shares(variables, image):
    blocks = matrices(adapter.model, variables, image)
    return [shares(block, pool) for block in blocks]

  return subject.run(adapter, all_shares, pixels)


def draw(
  adapter: Adapter, images: Images, blocks: Sequence[int], to: Path
) -> str:
  """Draws attention maps of blocks over images, with prompts and without.

  Args:
    adapter: of a ViT.
    images: to look at.
    blocks: their indices; (): four of them.
    to: the PNG.

  Returns:
    A summary for the terminal.

  Raises:
    ValueError: no such block, too many images, or no attention to show.
  """
  chosen = _choose_blocks(blocks, adapter.model.backbone.spec.depth)
  figures.check_room(len(images.names), MOST_IMAGES)
  found = _with_and_without(adapter, images)
  _draw_figure(adapter, images, found, chosen, to)
  _write_numbers(images, found, to)
  to_prompts = [block.to_prompts.mean() for block in found[0].blocks]
  percents = " ".join(f"{100 * share:.0f}" for share in to_prompts)
  return f"attention to prompts by block, percent: {percents}"


def _choose_blocks(blocks: Sequence[int], depth: int) -> list[int]:
  """Returns indices from 0, of evenly spaced blocks where none are given."""
  if not blocks:
    spaced = np.linspace(0, depth - 1, BLOCKS_SHOWN).round().astype(int)
    return sorted(set(spaced.tolist()))
  chosen = [depth + i if i < 0 else i for i in blocks]
  for i in chosen:
    if not 0 <= i < depth:
      raise ValueError(
        f"--blocks {i}: the backbone has blocks 0 to {depth - 1}"
      )
  return chosen


def _with_and_without(adapter: Adapter, images: Images) -> list[Maps]:
  """Returns the maps of an adapter, then those of its backbone alone.

  The latter are left out if the method has no parameters.
  """
  named_models = [(adapter.config.method, adapter)]
  if adapter.variables["params"]["method"]:
    named_models.append(("without", subject.plain(adapter)))
  found = []
  for name, model in named_models:
    blocks = maps(model, images.pixels)
    found.append(Maps(name, blocks, subject.shown(model, images.pixels)))
  return found


def _draw_figure(
  adapter: Adapter,
  images: Images,
  found: Sequence[Maps],
  blocks: Sequence[int],
  to: Path,
) -> None:
  """Draws a row for every image and model: the image, then the blocks."""
  reads_class_token = POOLS[_pool(adapter.model)][0]
  who = "class token" if reads_class_token else "patches (mean)"
  title = (
    f"{adapter.title}\nAttention of the {who} to patches, mean over heads\n"
    "Each map's colours go from 0 to its maximum"
  )
  rows = len(images.names) * len(found)
  columns = 1 + len(blocks)
  panel = min(LARGEST_PANEL, figures.WIDEST / columns)
  width = max(panel * columns + 0.3, 5)
  height = (panel + 0.4) * rows + 0.8
  with figures.figure(to, width, height, title) as fig:
    axes = fig.subplots(rows, columns, squeeze=False)
    for n, image in enumerate(images.names):
      for m, model_maps in enumerate(found):
        row = axes[n * len(found) + m]
        caption = f"{model_maps.name}\n{_shorten(image)}"
        figures.picture(row[0], model_maps.seen[n], caption)
        for panel_axes, i in zip(row[1:], blocks, strict=True):
          # Of the second model no share goes to prompts.
          _draw_map(panel_axes, adapter, model_maps, n, i, with_share=m == 0)


def _draw_map(
  axes: Any, adapter: Adapter, found: Maps, n: int, i: int, with_share: bool
) -> None:
  """Draws the attention of block i over image n."""
  to_patches = found.blocks[i].to_patches[n]
  caption = f"block {i}, at most {100 * to_patches.max():.0f} %"
  if with_share:
    caption += f"\n{100 * found.blocks[i].to_prompts[n]:.0f} % to prompts"
  grid = adapter.model.backbone.spec.grids[i]
  figures.picture(axes, found.seen[n], caption, to_patches.reshape(grid))


def _write_numbers(images: Images, found: Sequence[Maps], to: Path) -> None:
  """Writes a line for every image, model and block."""
  num_patches = found[0].blocks[0].to_patches.shape[1]
  header = ["image", "method", "block", "to_class_tokens", "to_prompts"]
  header += [f"patch_{k}" for k in range(num_patches)]
  rows = []
  for n, image in enumerate(images.names):
    for model_maps in found:
      for i, block in enumerate(model_maps.blocks):
        to_others = [block.to_class_tokens[n], block.to_prompts[n]]
        rows.append(
          [image, model_maps.name, i, *to_others, *block.to_patches[n]]
        )
  figures.write_csv(to, header, rows)


def _shorten(name: str, most: int = 20) -> str:
  """Returns a file name, its end if it is long."""
  if len(name) <= most:
    return name
  return f"...{name[3 - most :]}"
