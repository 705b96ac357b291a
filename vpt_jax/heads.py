"""What the head starts from: new, the checkpoint's own, or texts.

All three are one dense layer `head/{kernel [D, K], bias [K]}`, so that each may
be trained or kept (`config.trainable`).
"""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import tree
from vpt_jax.backbones import clip, load
from vpt_jax.backbones.table import Entry

HEADS = ("linear", "pretrained", "zero_shot")

Arrays = Mapping[str, np.ndarray]


def groups(config: ConfigDict, num_classes: int) -> tuple[tuple[int, ...], ...]:
  """`config.head_groups` as a tuple, () if the head's classes are the task's.

  Raises:
    ValueError: not one non-empty group for every class.
  """
  found = tuple(tuple(int(row) for row in group)
                for group in config.head_groups)
  if found and (config.head != "pretrained" or len(found) != num_classes
                or not all(found) or min(map(min, found)) < 0):
    raise ValueError(
        f"config.head_groups has {len(found)} groups of the checkpoint's "
        f"classes, the task {num_classes} classes; expected one group with at "
        "least one class for each, and config.head='pretrained'")
  return found


def initial(config: ConfigDict, entry: Entry, extras: Arrays,
            fresh: dict[str, Any], class_names: Sequence[str]
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
  return fresh


def _own(config: ConfigDict, extras: Arrays, fresh: dict[str, Any]
         ) -> dict[str, Any]:
  kernel, bias = extras.get("head/kernel"), extras.get("head/bias")
  if kernel is None or bias is None:
    raise ValueError("the checkpoint has no classification head; use "
                     "config.head=linear for a new one")
  rows = [row for group in groups(config, len(config.head_groups))
          for row in group]
  if rows and max(rows) >= len(bias):
    raise ValueError(f"config.head_groups names class {max(rows)}, the "
                     f"checkpoint's head has {len(bias)} classes")
  if rows:
    kernel, bias = kernel[:, rows], bias[rows]
  want = fresh["kernel"].shape
  if kernel.shape != want:
    raise ValueError(
        f"the checkpoint's own head maps {kernel.shape[0]} features to "
        f"{kernel.shape[1]} classes, here are {want[0]} features and {want[1]} "
        "classes; use config.head=linear for a new head, or name the classes "
        "in config.head_groups")
  return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}


def _from_text(config: ConfigDict, entry: Entry, extras: Arrays,
               fresh: dict[str, Any], class_names: Sequence[str]
               ) -> dict[str, Any]:
  """exp(logit_scale) times the texts' features: CLIP, section 3.1.2."""
  text = {name.removeprefix("text/"): array for name, array in extras.items()
          if name.startswith("text/")}
  if entry.text is None or not text or "logit_scale" not in extras:
    raise ValueError("head='zero_shot' needs CLIP's text tower beside the "
                     f"backbone; {config.backbone.name!r} has none here")
  names = tuple(config.clip.class_names) or tuple(class_names)
  if len(names) != fresh["bias"].shape[0]:
    raise ValueError(
        f"head='zero_shot' has {len(names)} class names for "
        f"{fresh['bias'].shape[0]} classes; set config.clip.class_names")
  tower = clip.TextTower(**entry.text)
  template = tree.flatten(jax.eval_shape(
      tower.init, jax.random.key(0),
      jnp.zeros((1, tower.context_length), jnp.int32))["params"])
  params = jax.device_put(tree.unflatten(
      load.restore(text, template, "text tower")))
  apply = jax.jit(lambda params, ids: tower.apply({"params": params}, ids))
  tokenizer = clip.Tokenizer(config.clip.merges or None)
  kernel = clip.zero_shot(functools.partial(apply, params), tokenizer.encode,
                          names, tuple(config.clip.templates))
  kernel = kernel * np.exp(extras["logit_scale"]).reshape(())
  return {"kernel": jnp.asarray(kernel), "bias": jnp.zeros_like(fresh["bias"])}
