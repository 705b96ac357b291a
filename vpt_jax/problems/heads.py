"""Sets what a head starts from: new, a checkpoint's own, texts or prototypes.

Each is one dense layer `head/{kernel [D, K], bias [K]}`, to be trained or
kept (`config.trainable`):

| `config.head` | kernel | bias |
| --- | --- | --- |
| `linear` | new values | new values |
| `pretrained` | the checkpoint's own, maybe some of its classes | likewise |
| `zero_shot` | exp(logit_scale) times unit features of texts (CLIP) | 0 |
| `prototypes` | K random prototypes of DINO (PGN) | 0 |
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
from vpt_jax.backbones import clip, factory
from vpt_jax.backbones.model_zoo import Entry
from vpt_jax.backbones.swin import Swin
from vpt_jax.backbones.vit import DinoHead, ViT
from vpt_jax.problems import zero_shot
from vpt_jax.utils import strange_files, trees
from vpt_jax.weights import load

HEADS = ("linear", "pretrained", "zero_shot", "prototypes")

Arrays = Mapping[str, np.ndarray]
HeadParams = dict[str, Any]  # {"kernel": [D, K], "bias": [K]}


def groups(config: ConfigDict, num_classes: int) -> tuple[tuple[int, ...], ...]:
  """Returns `config.head_groups` as a tuple.

  Returns:
    For each class of the task the classes of the checkpoint's head that belong
    to it; () if they are the task's own.

  Raises:
    ValueError: not one non-empty group for every class, or groups where
      classes do not exclude each other.
  """
  found = tuple(tuple(map(int, group)) for group in config.head_groups)
  if not found:
    return ()
  if problems.of_run(config).multi_label:
    raise ValueError(
      "config.head_groups adds probabilities of classes that exclude each "
      f"other; those of problem {config.problem!r} do not. Leave it ()"
    )
  is_usable = (
    config.head == "pretrained"
    and len(found) == num_classes
    and all(found)
    and min(map(min, found)) >= 0
  )
  if not is_usable:
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
  fresh: HeadParams,
  class_names: Sequence[str],
) -> HeadParams:
  """Returns the head's parameters at the start.

  Args:
    config: `head` says which.
    entry: of the backbone in the model zoo.
    extras: of its checkpoint, see `load.Loaded`.
    fresh: newly initialised ones.
    class_names: of the task.

  Raises:
    ValueError: the checkpoint has no such head, or one of another size.
  """
  match config.head:
    case "pretrained":
      return _pretrained(config, extras, fresh)
    case "zero_shot":
      return _zero_shot(config, entry, extras, fresh, class_names)
    case "prototypes":
      return _prototypes(config, extras, fresh)
    case _:
      return fresh


def _pretrained(
  config: ConfigDict, extras: Arrays, fresh: HeadParams
) -> HeadParams:
  """Returns the checkpoint's own head, or its classes of the groups."""
  kernel = extras.get("head/kernel")
  bias = extras.get("head/bias")
  if kernel is None or bias is None:
    raise ValueError(
      "the checkpoint has no classification head; use "
      "config.head=linear for a new one"
    )
  rows: list[int] = []
  for group in groups(config, len(config.head_groups)):
    rows.extend(group)
  if rows and max(rows) >= len(bias):
    raise ValueError(
      f"config.head_groups names class {max(rows)}, the "
      f"checkpoint's head has {len(bias)} classes"
    )
  if rows:
    kernel = kernel[:, rows]
    bias = bias[rows]
  wanted = fresh["kernel"].shape
  if kernel.shape != wanted:
    raise ValueError(
      f"the checkpoint's own head maps {kernel.shape[0]} features to "
      f"{kernel.shape[1]} classes, here are {wanted[0]} features and "
      f"{wanted[1]} classes; use config.head=linear for a new head, or name "
      "the classes in config.head_groups"
    )
  return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}


def _zero_shot(
  config: ConfigDict,
  entry: Entry,
  extras: Arrays,
  fresh: HeadParams,
  class_names: Sequence[str],
) -> HeadParams:
  """Returns exp(logit_scale) times the texts' features.

  Source: CLIP (Radford et al. 2021, arXiv 2103.00020), section 3.1.2.
  """
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
  fresh: HeadParams,
  class_names: Sequence[str],
) -> np.ndarray:
  """Returns the classes' unit features [D, K] by CLIP's text tower."""
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
  num_classes = fresh["bias"].shape[0]
  if len(names) != num_classes:
    raise ValueError(
      f"head='zero_shot' has {len(names)} class names for "
      f"{num_classes} classes; set config.clip.class_names"
    )
  sizes: Mapping[str, Any] = entry.text
  # Both towers of a CLIP have the same activation.
  tower = clip.TextTower(**sizes, gelu=factory.gelu_of(config.backbone))
  ids = jnp.zeros((1, tower.context_length), jnp.int32)
  shapes = jax.eval_shape(tower.init, jax.random.key(0), ids)["params"]
  flat = load.restore(text, trees.flatten(shapes), "text tower")
  params = jax.device_put(trees.unflatten(flat))

  @jax.jit
  def encode(params, ids):
    return tower.apply({"params": params}, ids)

  tokenizer = zero_shot.Tokenizer(config.clip.merges or None)
  return zero_shot.zero_shot(
    functools.partial(encode, params),
    tokenizer.encode,
    names,
    tuple(config.clip.templates),
  )


def _read_texts(path: str, shape: tuple[int, int]) -> np.ndarray:
  """Reads a file of texts' features, one array [K, D] of any length.

  Args:
    path: npy file, or npz of one array.
    shape: (D, K).

  Returns:
    [D, K], of unit length.

  Raises:
    ValueError: the file cannot be read, or holds something else.
  """
  where = f"config.clip.text_features={path!r}"
  wanted = shape[::-1]
  expected = (
    f"expected a npy file, or npz of one array, of floats {wanted}: "
    "a row for each class, as wide as the projected features"
  )
  try:
    with strange_files.open_regular(path) as file:
      features = np.load(file, allow_pickle=False)
      if isinstance(features, np.lib.npyio.NpzFile):
        (name,) = features.files
        features = features[name]
  # A file of anyone's: numpy and zipfile have many errors.
  except Exception as error:
    raise ValueError(f"{where} can't be read ({error}); {expected}") from error
  if features.shape != wanted or features.dtype.kind != "f":
    raise ValueError(
      f"{where} holds {features.dtype} {features.shape}; {expected}"
    )
  features = features.astype(np.float32)
  norm = np.linalg.norm(features, axis=1, keepdims=True)
  if not (np.isfinite(norm) & (norm > 0)).all():
    raise ValueError(
      f"{where} has rows that are zero or not finite; {expected}"
    )
  return (features / norm).T


def without_prototypes(backbone: ViT | Swin) -> ViT | Swin:
  """Returns DINO's backbone with its projection up to the unit sphere.

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
  config: ConfigDict, extras: Arrays, fresh: HeadParams
) -> HeadParams:
  """Returns a random prototype of DINO for every class, as PGN's code does."""
  width, num_classes = fresh["kernel"].shape
  kernel = extras.get("projection/prototypes/kernel")
  if kernel is None or len(kernel) != width or kernel.shape[1] < num_classes:
    raise ValueError(
      f"head='prototypes' needs {num_classes} or more prototypes of width "
      f"{width} in the checkpoint; DINO's are in the file named "
      "..._full_checkpoint.pth only"
    )
  # Python's generator: with the same seed these are the published code's rows.
  generator = random.Random(config.seed)
  rows = generator.sample(range(kernel.shape[1]), num_classes)
  return {
    "kernel": jnp.asarray(kernel[:, rows]),
    "bias": jnp.zeros_like(fresh["bias"]),
  }
