"""What the head starts from: new, the checkpoint's own, texts or prototypes.

Each is one dense layer `head/{kernel [D, K], bias [K]}`, to be trained or
kept (`config.trainable`).
"""

from collections.abc import Mapping, Sequence
import functools
import random
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import problems
from vpt_jax.backbones import clip
from vpt_jax.backbones.model_zoo import Entry
from vpt_jax.backbones.vit import DinoHead, ViT
from vpt_jax.problems import zero_shot
from vpt_jax.utils import trees
from vpt_jax.weights import load

HEADS = ("linear", "pretrained", "zero_shot", "prototypes")

Arrays = Mapping[str, np.ndarray]


def groups(config: ConfigDict, num_classes: int) -> tuple[tuple[int, ...], ...]:
  """`config.head_groups` as a tuple, () if the head's classes are the task's.

  Raises:
    ValueError: not one non-empty group for every class.
  """
  found = tuple(
    tuple(int(row) for row in group) for group in config.head_groups
  )
  if found and problems.of_run(config).multi_label:
    raise ValueError(
      "config.head_groups adds probabilities of classes that exclude each "
      f"other; those of problem {config.problem!r} do not. Leave it ()"
    )
  if found and (
    config.head != "pretrained"
    or len(found) != num_classes
    or not all(found)
    or min(map(min, found)) < 0
  ):
    raise ValueError(
      f"config.head_groups has {len(found)} groups of the checkpoint's "
      f"classes, the task {num_classes} classes; expected one group with at "
      "least one class for each, and config.head='pretrained'"
    )
  return found


def initial(
  config: ConfigDict,
  entry: Entry,
  extras: Arrays,
  fresh: dict[str, Any],
  class_names: Sequence[str],
) -> dict[str, Any]:
  """The head's parameters at the start.

  Args:
    config: `head` says which.
    entry: of the backbone.
    extras: of its checkpoint, see `load.Loaded`.
    fresh: newly initialised ones.
    class_names: of the task.

  Raises:
    ValueError: the checkpoint has no such head, or one of another size.
  """
  if config.head == "pretrained":
    return _own(config, extras, fresh)
  if config.head == "zero_shot":
    return _from_text(config, entry, extras, fresh, class_names)
  if config.head == "prototypes":
    return _prototypes(config, extras, fresh)
  return fresh


def _own(
  config: ConfigDict, extras: Arrays, fresh: dict[str, Any]
) -> dict[str, Any]:
  kernel, bias = extras.get("head/kernel"), extras.get("head/bias")
  if kernel is None or bias is None:
    raise ValueError(
      "the checkpoint has no classification head; use "
      "config.head=linear for a new one"
    )
  rows = [
    row for group in groups(config, len(config.head_groups)) for row in group
  ]
  if rows and max(rows) >= len(bias):
    raise ValueError(
      f"config.head_groups names class {max(rows)}, the "
      f"checkpoint's head has {len(bias)} classes"
    )
  if rows:
    kernel, bias = kernel[:, rows], bias[rows]
  want = fresh["kernel"].shape
  if kernel.shape != want:
    raise ValueError(
      f"the checkpoint's own head maps {kernel.shape[0]} features to "
      f"{kernel.shape[1]} classes, here are {want[0]} features and {want[1]} "
      "classes; use config.head=linear for a new head, or name the classes "
      "in config.head_groups"
    )
  return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}


def _from_text(
  config: ConfigDict,
  entry: Entry,
  extras: Arrays,
  fresh: dict[str, Any],
  class_names: Sequence[str],
) -> dict[str, Any]:
  """exp(logit_scale) times the texts' features: CLIP, section 3.1.2."""
  if config.clip.text_features:
    kernel = _read_texts(config.clip.text_features, fresh["kernel"].shape)
    if "logit_scale" not in extras:
      raise ValueError(
        "head='zero_shot' needs CLIP's logit_scale; the "
        f"checkpoint of {config.backbone.name!r} has none"
      )
  else:
    kernel = _encode_names(config, entry, extras, fresh, class_names)
  kernel = kernel * np.exp(extras["logit_scale"]).reshape(())
  return {"kernel": jnp.asarray(kernel), "bias": jnp.zeros_like(fresh["bias"])}


def _encode_names(
  config: ConfigDict,
  entry: Entry,
  extras: Arrays,
  fresh: dict[str, Any],
  class_names: Sequence[str],
) -> np.ndarray:
  """The classes' unit features [D, K] by CLIP's text tower."""
  text = {
    name.removeprefix("text/"): array
    for name, array in extras.items()
    if name.startswith("text/")
  }
  if entry.text is None or not text or "logit_scale" not in extras:
    raise ValueError(
      "head='zero_shot' needs CLIP's text tower beside the "
      f"backbone; {config.backbone.name!r} has none here"
    )
  names = tuple(config.clip.class_names) or tuple(class_names)
  if len(names) != fresh["bias"].shape[0]:
    raise ValueError(
      f"head='zero_shot' has {len(names)} class names for "
      f"{fresh['bias'].shape[0]} classes; set config.clip.class_names"
    )
  tower = clip.TextTower(**entry.text)
  template = trees.flatten(
    jax.eval_shape(
      tower.init,
      jax.random.key(0),
      jnp.zeros((1, tower.context_length), jnp.int32),
    )["params"]
  )
  params = jax.device_put(
    trees.unflatten(load.restore(text, template, "text tower"))
  )
  apply = jax.jit(lambda params, ids: tower.apply({"params": params}, ids))
  tokenizer = zero_shot.Tokenizer(config.clip.merges or None)
  return zero_shot.zero_shot(
    functools.partial(apply, params),
    tokenizer.encode,
    names,
    tuple(config.clip.templates),
  )


def _read_texts(path: str, shape: tuple[int, int]) -> np.ndarray:
  """Unit features [D, K] from a file of one array [K, D], of any length.

  Raises:
    ValueError: the file can't be read, or holds something else.
  """
  where = f"config.clip.text_features={path!r}"
  want = (
    f"expected a npy file, or npz of one array, of floats {shape[::-1]}: "
    "a row for each class, as wide as the projected features"
  )
  try:
    with open(path, "rb") as file:
      loaded = np.load(file, allow_pickle=False)
      if isinstance(loaded, np.lib.npyio.NpzFile):
        (loaded,) = (loaded[name] for name in loaded.files)
  # A file of anyone's: numpy and zipfile have many errors.
  except Exception as error:
    raise ValueError(f"{where} can't be read ({error}); {want}") from error
  if loaded.shape != shape[::-1] or loaded.dtype.kind != "f":
    raise ValueError(f"{where} holds {loaded.dtype} {loaded.shape}; {want}")
  loaded = loaded.astype(np.float32)
  norm = np.linalg.norm(loaded, axis=1, keepdims=True)
  if not (np.isfinite(norm) & (norm > 0)).all():
    raise ValueError(f"{where} has rows that are zero or not finite; {want}")
  return (loaded / norm).T


def without_prototypes(backbone: ViT) -> ViT:
  """DINO's backbone with its projection up to the unit sphere.

  Raises:
    ValueError: the backbone has no such projection.
  """
  projection = getattr(backbone, "projection", None)
  if not isinstance(projection, DinoHead):
    raise ValueError(
      "head='prototypes' needs DINO's projection head; choose a "
      "config.backbone.name that begins with dino_ and set "
      "config.backbone.projection=True"
    )
  return backbone.clone(projection=projection.clone(prototypes=0))


def _prototypes(
  config: ConfigDict, extras: Arrays, fresh: dict[str, Any]
) -> dict[str, Any]:
  """A random prototype of DINO for every class, as PGN's code does."""
  width, classes = fresh["kernel"].shape
  kernel = extras.get("projection/prototypes/kernel")
  if kernel is None or len(kernel) != width or kernel.shape[1] < classes:
    raise ValueError(
      f"head='prototypes' needs {classes} or more prototypes of width "
      f"{width} in the checkpoint; DINO's are in the file named "
      "..._full_checkpoint.pth only"
    )
  # Python's generator: with the same seed these are the published code's rows.
  rows = random.Random(config.seed).sample(range(kernel.shape[1]), classes)
  return {
    "kernel": jnp.asarray(kernel[:, rows]),
    "bias": jnp.zeros_like(fresh["bias"]),
  }
