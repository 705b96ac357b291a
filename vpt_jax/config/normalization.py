"""Chooses how pixels are normalised, and says where that is not the backbone's.

A backbone that sees other means than it was trained with works, only worse: by
30 points for a small ViT. The papers' code shows ImageNet's to every backbone
all the same, and tables of theirs are reproduced so.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np

from vpt_jax.backbones import factory as backbones
from vpt_jax.data import own_sources, tasks
from vpt_jax.data.transforms import views
from vpt_jax.weights import facts, load

_TOLERANCE = 1e-3  # of means and deviations, which others round


def choose(config: ConfigDict, named_task: bool) -> None:
  """Fills in `data.normalize` where the config leaves it open.

  Args:
    config: everything else is resolved.
    named_task: False if the caller brings the data.

  Raises:
    ValueError: the backbone was trained with means that have no name.
  """
  data = config.data
  if not data.normalize:
    is_own = _is_own(config, named_task)
    data.normalize = "backbone" if is_own else "imagenet"
  if data.normalize == "backbone":
    data.normalize = trained_with(config)


def warning(config: ConfigDict, named_task: bool) -> str:
  """Returns what to tell of a resolved config's normalisation; "": nothing.

  A published protocol's own choice is not told.

  Args:
    config: resolved.
    named_task: see `choose`.
  """
  chosen = config.data.normalize
  try:
    of_backbone = trained_with(config)
  except ValueError as error:
    return str(error)
  is_random = config.backbone.checkpoint == "random"
  if chosen == of_backbone or is_random:
    return ""
  if not _is_own(config, named_task):
    suite = tasks.get(config.task).suite
    published = {"pgn": "clip"}.get(suite, "imagenet")
    if suite and chosen == published:
      return ""
  return (
    f"images are normalised by {chosen!r}, but {config.backbone.name!r} was "
    f"trained with {of_backbone!r}, and is often much worse so: set "
    "config.data.normalize=backbone unless this is meant"
  )


def _is_own(config: ConfigDict, named_task: bool) -> bool:
  """Returns whether the images are the user's own, of no known task."""
  if not named_task:
    return True
  is_own_source = own_sources.is_own(config.data.source)
  return is_own_source and not config.data.get("own_copy", False)


def trained_with(config: ConfigDict) -> str:
  """Returns the name of the mean and deviation that a backbone learned with.

  The config beside the user's own checkpoint goes before the model zoo.

  Raises:
    ValueError: they have no name.
  """
  entry = backbones.get(config.backbone.name)
  path = config.backbone.checkpoint
  if path in ("", "random") or not load.is_local(path):
    return entry.normalize
  known = facts.of(Path(path).expanduser())
  if not known.mean or not known.std:
    return entry.normalize
  for name, (mean, std) in views.NORMALIZE.items():
    if _alike(known.mean, mean) and _alike(known.std, std):
      return name
  raise ValueError(
    f"{known.source} says that the backbone was trained with mean {known.mean} "
    f"and deviation {known.std}, which have no name here; choose one of "
    f"{', '.join(views.NORMALIZE)} in config.data.normalize"
  )


def _alike(first: Sequence[float], second: Sequence[float]) -> bool:
  return np.allclose(first, second, rtol=0, atol=_TOLERANCE)
