"""Prompt methods by name: a new method is one file and one line here."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from vpt_jax.methods.gated import Gated
from vpt_jax.methods.inside import Adapter, LoRA
from vpt_jax.methods.method import Full, Method
from vpt_jax.methods.pgn import IIP, PGN
from vpt_jax.methods.pixel import Add, Below, Border, Pad, PrependPixel
from vpt_jax.methods.vapt import VAPT
from vpt_jax.methods.vpt import VPT
from vpt_jax.nn.tokens import Spec
from vpt_jax.utils import lookup

METHODS: dict[str, type[Method]] = {
  "linear": Method,
  "full": Full,
  "vpt": VPT,
  "vapt": VAPT,
  "gated": Gated,
  "adapter": Adapter,
  "lora": LoRA,
  "add": Add,
  "pad": Pad,
  "below": Below,
  "prepend_pixel": PrependPixel,
  "border": Border,
  "pgn": PGN,
  "iip": IIP,
}


def get(name: str) -> type[Method]:
  """Class of a method.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return METHODS[lookup.choose(name, METHODS, "method")]


def build(name: str, options: Mapping[str, Any], spec: Spec) -> Method:
  """Method `name` with its section of the config, for a backbone's spec.

  Raises:
    ValueError: unknown name or option.
  """
  cls = get(name)
  known = [
    field.name
    for field in dataclasses.fields(cls)
    if field.name not in ("spec", "parent", "name")
  ]
  for option in options:
    lookup.choose(option, known, f"option of method {name!r}:")
  return cls(
    spec=spec, **{key: _fixed(value) for key, value in options.items()}
  )


def _fixed(value: Any) -> Any:
  """Lists, which JSON makes of tuples, as tuples: modules are hashed."""
  if isinstance(value, (list, tuple)):
    return tuple(map(_fixed, value))
  return value
