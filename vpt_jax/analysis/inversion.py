"""Inverts prompts: writes a backbone's prompts as patches of pixels.

  python -m vpt_jax.inversion ADAPTER IMAGE --to FOLDER

Where 3 p^2 >= D and the patch embedding K [3 p^2, D] has full rank, every
prompt is the embedding of some patch x:

  x K + b = prompt   <=   x = (prompt - b) K^+

so that a backbone that knows of no prompts gives the same logits for the image
and these further patches, which get no position (Loedeman et al. 2024 name the
idea; how they do it is not in their code).
"""

import argparse
from collections.abc import Sequence
import functools
import math
from pathlib import Path
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vpt_jax import model as model_lib
from vpt_jax.analysis import subject
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.methods.pgn import Inverted
from vpt_jax.serving import predictor
from vpt_jax.utils import command_line

COLUMNS = 8  # patches in a row of the picture
SIDE = 64  # least side of a patch there, in pixels
GAP = 2  # white pixels between patches


def invert(
  prompts: np.ndarray,
  kernel: np.ndarray,
  bias: np.ndarray | None = None,
  cutoff: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the smallest patches whose embeddings are nearest to the prompts.

  Args:
    prompts: [B, P, D].
    kernel: of the patch embedding, [p, p, 3, D].
    bias: [D]; None: no bias.
    cutoff: singular values of K below this part of the largest count as zero:
      what would need them comes out as residual, not as huge pixels.

  Returns:
    (pixels [B, P, p, p, 3], normalised as the backbone's images are, float32;
    what is left, |x K + b - prompt| / |prompt| [B, P]).
  """
  target = np.asarray(prompts, np.float64)
  matrix = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
  shift = 0.0 if bias is None else np.asarray(bias, np.float64)
  inverse = np.linalg.pinv(matrix, rcond=cutoff)
  pixels = ((target - shift) @ inverse).astype(np.float32)
  left = pixels.astype(np.float64) @ matrix + shift - target
  length = np.linalg.norm(target, axis=-1)
  residual = np.linalg.norm(left, axis=-1) / np.maximum(length, 1e-12)
  return pixels.reshape(*target.shape[:2], *kernel.shape[:3]), residual


def check(residual: np.ndarray, kernel: np.ndarray, threshold: float) -> None:
  """Raises ValueError if a prompt is not the embedding of its pixels."""
  if residual.max() > threshold:
    p = len(kernel)
    width = kernel.shape[-1]
    raise ValueError(
      f"the prompts can't be written as pixels: a relative residual of "
      f"{residual.max():.2g} is left, allowed is {threshold:.2g}. Patches of "
      f"{p} x {p} pixels have {3 * p * p} numbers for {width} dimensions, of "
      "which the embedding may reach fewer. Choose a backbone with patches "
      "of more numbers than its width, or allow more"
    )


def prompted(
  model: model_lib.Model, variables: dict[str, Any], image: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns images as the backbone sees them, and their prompts.

  Args:
    model: whose method carries prompts.
    variables: of the model.
    image: normalised, [B, H, W, 3].

  Returns:
    (images [B, H, W, 3], prompts [B, P, D]).

  Raises:
    ValueError: the method carries no prompts from the first block on.
  """

  def see(
    module: model_lib.Model, image: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    image = module.method.image(image, train=False)
    tokens = module.backbone.embed(image)
    return image, module.method.prompts(image, tokens, train=False)

  out: Any = model.apply(variables, image, method=see)
  image, prompts = out
  if prompts is None:
    raise ValueError(
      f"method {type(model.method).__name__} carries no prompts through the "
      "blocks; those of PGN, IIP and shallow VPT can be inverted"
    )
  return image, jnp.broadcast_to(prompts, (len(image), *prompts.shape[1:]))


def unprompted(
  model: model_lib.Model,
  variables: dict[str, Any],
  image: jax.Array,
  pixels: np.ndarray,
) -> jax.Array:
  """Returns the backbone's outputs for images and further patches.

  Args:
    model: its method is left out.
    variables: of the model.
    image: normalised, [B, H, W, 3].
    pixels: normalised, [B, P, p, p, 3].

  Returns:
    Logits [B, K].
  """
  plain = model.clone(method=Inverted(model.method.spec))
  given = {"method": {"pixels": pixels}}
  logits: Any = plain.apply({**variables, "given": given}, image)
  return logits


def embedding(
  variables: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns kernel [p, p, 3, D] and bias [D] (or None) of the embedding."""
  parts = variables["params"]["backbone"]["embedding"]
  kernel = np.asarray(parts["kernel"])
  bias = parts.get("bias")
  return kernel, None if bias is None else np.asarray(bias)


def picture(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
  """Draws patches as one picture to look at.

  The normalisation is undone. What comes out has no natural range, so every
  patch is scaled by itself: its smallest number is black, its largest white.

  Args:
    pixels: normalised, [P, p, p, 3].
    preprocess: that normalised them.

  Returns:
    uint8 [H, W, 3], patches in rows from the upper left.
  """
  shown = preprocess.denormalize(pixels)
  low = shown.min(axis=(1, 2, 3), keepdims=True)
  high = shown.max(axis=(1, 2, 3), keepdims=True)
  shown = np.round(255 * (shown - low) / np.maximum(high - low, 1e-12))
  times = math.ceil(SIDE / pixels.shape[1])
  shown = shown.astype(np.uint8).repeat(times, axis=1).repeat(times, axis=2)
  columns = min(COLUMNS, len(shown))
  rows = math.ceil(len(shown) / columns)
  side = shown.shape[1]
  step = side + GAP
  out = np.full((rows * step - GAP, columns * step - GAP, 3), 255, np.uint8)
  for i, patch in enumerate(shown):
    row, column = divmod(i, columns)
    y = row * step
    x = column * step
    out[y : y + side, x : x + side] = patch
  return out


def export(
  adapter: str,
  image: str,
  folder: str,
  *,
  backbone: str = "",
  threshold: float = 1e-3,
) -> str:
  """Writes `patches.npy` and `patches.png` of an image's inverted prompts.

  Args:
    adapter: file of a run.
    image: file of any size.
    folder: is made.
    backbone: see `predictor.load_adapter`.
    threshold: largest relative residual.

  Returns:
    A text of what was found.

  Raises:
    ValueError: a file that can't be used, or prompts that no pixels give.
  """
  model, variables, meta = predictor.read_model(adapter, backbone)
  subject.check_whole_images(adapter, meta)
  preprocess = predictor.read_preprocess(meta, model)
  decoded = preprocess.read(image)
  precision = meta.config["compute"]["matmul_precision"]
  with jax.default_matmul_precision(precision):
    prepared = preprocess.prepare(decoded[None])
    see = jax.jit(functools.partial(prompted, model))
    seen, prompts = see(variables, prepared)
    kernel, bias = embedding(variables)
    pixels, residual = invert(prompts, kernel, bias)
    check(residual, kernel, threshold)
    with_prompts = jax.jit(model.apply)(variables, prepared)
    apply_unprompted = jax.jit(functools.partial(unprompted, model))
    with_patches = apply_unprompted(variables, seen, pixels)
    difference = np.abs(with_prompts - with_patches).max()
  to = Path(folder)
  to.mkdir(parents=True, exist_ok=True)
  np.save(to / "patches.npy", pixels[0])
  drawn = picture(pixels[0], preprocess)
  Image.fromarray(drawn).save(to / "patches.png")
  return (
    f"{pixels.shape[1]} patches of {len(kernel)} x {len(kernel)} pixels "
    f"in {to}: patches.npy (normalised) and patches.png (each patch\n"
    f"scaled from black to white by itself); largest relative residual "
    f"{residual.max():.2g}, the logits of\nthe backbone alone differ by "
    f"{difference:.2g} at most"
  )


def main(argv: Sequence[str]) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m vpt_jax.inversion", description=__doc__.splitlines()[0]
  )
  parser.add_argument("adapter", help="adapter.npz of a run")
  parser.add_argument("image")
  parser.add_argument("--to", required=True, metavar="FOLDER")
  parser.add_argument(
    "--backbone",
    default="",
    metavar="FILE",
    help="its checkpoint, a file or address, where this machine does not know "
    "it",
  )
  parser.add_argument(
    "--threshold",
    type=float,
    default=1e-3,
    help="largest relative residual (default %(default)s)",
  )
  args = parser.parse_args(argv)

  def work() -> int:
    text = export(
      args.adapter,
      args.image,
      args.to,
      backbone=args.backbone,
      threshold=args.threshold,
    )
    sys.stdout.write(text + "\n")
    return 0

  return command_line.exit_status(work)


if __name__ == "__main__":
  command_line.program(lambda: main(sys.argv[1:]))
