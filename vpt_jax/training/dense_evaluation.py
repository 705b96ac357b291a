"""Scores label maps of test images, writes them, and pictures of some."""

from collections.abc import Iterator, Mapping, Sequence
import functools
import io
from pathlib import Path
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vpt_jax.data import mask_pictures
from vpt_jax.data.examples import MaskedSplit
from vpt_jax.problems import semantic_segmentation
from vpt_jax.training.evaluation import Evaluated
from vpt_jax.training.labelling import Labeller, Variables
from vpt_jax.training.sliding import Canvas
from vpt_jax.utils import files, texts, trees

MAPS = "predictions"  # folder of the label maps
GALLERY = "gallery"  # folder of pictures of some
_SHOWN = 3  # pictures of each kind
_THREADS = 4  # that decode images
_AHEAD = 8  # images that are decoded ahead
_COUNTS = ("intersect", "predicted", "label")

Sums = Mapping[str, Any]  # of an image, or of a split


def evaluate(
  labeller: Labeller,
  params: Any,
  collections: Mapping[str, Any],
  split: MaskedSplit,
  folder: Path,
  save_maps: bool = True,
) -> Evaluated:
  """Scores a dense model on a whole split, every pixel exactly once.

  Args:
    labeller: labels images.
    params: nested parameters of its model.
    collections: the model's mutable variables.
    split: images and label maps.
    folder: gets the label maps of all images as PNG in the classes' colours,
      `predictions/`, and pictures of good, typical and bad ones, `gallery/`.
    save_maps: keep the label maps.

  Raises:
    ValueError: the loss is NaN or infinite, or an image or label map is
      damaged.
  """
  variables = {"params": params, **collections}
  names = map_names(split.names)
  problem = labeller.problem
  loss = 0.0
  total = dict.fromkeys(_COUNTS, np.zeros(problem.num_classes, np.int64))
  by_image = []
  for i, canvas, label in _labelled(labeller, variables, split, False):
    sums, prediction = _score(problem, canvas, label)
    loss += float(sums["loss"])
    total = {name: total[name] + sums[name] for name in _COUNTS}
    by_image.append({name: sums[name] for name in _COUNTS})
    if save_maps:
      png = mask_pictures.palette_png(prediction, split.palette)
      files.write_atomic(folder / MAPS / f"{names[i]}.png", png)
  loss /= len(split)
  if not np.isfinite(loss):
    raise ValueError(f"loss of the {len(split)} test images is {loss}")
  kept: dict[str, Any] = {
    **semantic_segmentation.kept_of(total),
    "head_params": trees.count(trees.flatten(params["head"])),
  }
  if labeller.seen.multi_scale:
    kept["multi_scale"] = _at_several_scales(labeller, variables, split)
  _write_gallery(labeller, variables, split, by_image, folder)
  return Evaluated(
    scores={
      **semantic_segmentation.measured(total),
      "loss": loss,
      "count": len(split),
    },
    kept=kept,
    table=semantic_segmentation.table(split.names, by_image),
    told={**kept, "programs": len(labeller.programs)},
  )


def _labelled(
  labeller: Labeller,
  variables: Variables,
  split: MaskedSplit,
  multi_scale: bool,
) -> Iterator[tuple[int, Canvas, np.ndarray]]:
  """Yields (number, scores, labels) of each image, decoded ahead in threads."""
  import grain  # slow to import

  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  source = grain.MapDataset.source(range(len(split))).map(split.decoded)
  labels: list[np.ndarray] = []  # of images whose windows are computed

  def images() -> Iterator[np.ndarray]:
    for image, label in source.to_iter_dataset(options):
      labels.append(label)
      yield image

  canvases = labeller(variables, images(), multi_scale)
  for i, canvas in enumerate(canvases):
    yield i, canvas, labels.pop(0)


def _score(
  problem: semantic_segmentation.Segmentation,
  canvas: Canvas,
  label: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Returns an image's sums and its label map, uint8 [H, W].

  The sums are `loss`, a mean over the image's pixels, and those of
  `Segmentation.evaluation_sums`.
  """
  height, width = canvas.size
  outer = canvas.logits.shape[:2]
  filled = np.full(outer, problem.ignore, np.int32)
  filled[:height, :width] = label
  sums, prediction = jax.device_get(
    _sums_on_device(problem, canvas.logits, filled)
  )
  pixels = label.size
  if problem.average == "labelled":
    pixels = max(1, int(sums["label"].sum()))
  sums = {**sums, "loss": sums["loss"] / pixels}
  return sums, prediction[:height, :width].astype(np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def _sums_on_device(
  problem: semantic_segmentation.Segmentation,
  scores: jax.Array,
  label: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Returns sums over an image's pixels and its label map, [h, w]."""
  prediction = problem.ops.argmax(scores)
  sums = problem.pixel_sums(prediction[None], label[None], jnp.ones(1))
  is_labelled = label != problem.ignore
  known = jnp.where(is_labelled, label, 0)
  of_pixels = -jnp.take_along_axis(
    jax.nn.log_softmax(scores), known[..., None], axis=-1
  )
  loss = jnp.where(is_labelled, of_pixels[..., 0], 0.0).sum()
  return {**sums, "loss": loss}, prediction


def _at_several_scales(
  labeller: Labeller, variables: Variables, split: MaskedSplit
) -> dict[str, float]:
  """Returns the scores at several scales."""
  problem = labeller.problem
  total = dict.fromkeys(_COUNTS, np.zeros(problem.num_classes, np.int64))
  for _, canvas, label in _labelled(labeller, variables, split, True):
    sums, _ = _score(problem, canvas, label)
    total = {name: total[name] + sums[name] for name in _COUNTS}
  return semantic_segmentation.measured(total)


def map_names(names: Sequence[str]) -> list[str]:
  """Returns a file's name, without suffix, for the label map of each image.

  Names are those of the images where these are all different, else with the
  image's number before; whatever a file system may not like is replaced.
  """
  stems = []
  for name in names:
    stem = Path(name).name.rsplit(".", 1)[0]
    stems.append(re.sub(r"[^\w.-]+", "_", stem).strip(".")[:100] or "image")
  if len({stem.lower() for stem in stems}) == len(stems):
    return stems
  return [f"{i:06d}_{stem}" for i, stem in enumerate(stems)]


def _write_gallery(
  labeller: Labeller,
  variables: Variables,
  split: MaskedSplit,
  by_image: Sequence[Sums],
  folder: Path,
) -> None:
  """Writes pictures of the best, the worst and typical images.

  Each is the image, its labels and what is predicted; gallery.json says which
  image a picture is of, and its scores.
  """
  scores = [_scores_of(sums) for sums in by_image]
  chosen = chosen_images([found.get("miou") for found in scores])
  numbers = list(chosen.values())
  decoded = [split.decoded(i) for i in numbers]
  canvases = labeller(variables, (image for image, _ in decoded))
  told = {}
  for (title, i), (image, label), canvas in zip(
    chosen.items(), decoded, canvases, strict=True
  ):
    prediction = canvas.label_map().astype(np.uint8)
    panel = mask_pictures.panel(image, label, prediction, split.palette)
    buffer = io.BytesIO()
    Image.fromarray(panel).save(buffer, "PNG")
    files.write_atomic(folder / GALLERY / f"{title}.png", buffer.getvalue())
    name = texts.printable(split.names[i])
    told[title] = {"name": name, **scores[i]}
  files.write_json(folder / GALLERY / "gallery.json", told)


def _scores_of(sums: Sums) -> dict[str, float]:
  """Returns the scores of one image; {} if no pixel has a class."""
  if not sums["label"].any():
    return {}
  return semantic_segmentation.measured(sums)


def chosen_images(mious: Sequence[float | None]) -> dict[str, int]:
  """Returns title -> number of the images that are shown.

  Args:
    mious: of each image; None: it has no labels.
  """
  known = [i for i, miou in enumerate(mious) if miou is not None]
  order = sorted(known, key=lambda i: (-(mious[i] or 0.0), i))
  count = len(order)
  shown = min(_SHOWN, count // 3) or min(1, count)
  middle = (count - shown) // 2
  kinds = {
    "best": order[:shown],
    "typical": order[middle : middle + shown],
    "worst": order[count - shown :],
  }
  chosen = {}
  for kind, numbers in kinds.items():
    for place, i in enumerate(numbers, 1):
      chosen[f"{kind}_{place}"] = i
  return chosen
