"""Lists the prompt methods by name: a new one is one file and one line here.

Methods that live outside this package are added by `vpt_jax.register_method`.
"""

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
BUILT_IN = frozenset(METHODS)

# Of registered methods: options whose defaults are not those of the class.
DEFAULTS: dict[str, dict[str, Any]] = {}

# Fields of every module that are not options: the backbone's spec, Flax's own.
_NOT_OPTIONS = ("spec", "parent", "name")


def get(name: str) -> type[Method]:
  """Returns the class of a method.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return METHODS[lookup.choose(name, METHODS, "method")]


def option_fields(cls: type[Method]) -> tuple[dataclasses.Field, ...]:
  """Returns the options of a method: the fields of its section in a config."""
  return tuple(
    field for field in dataclasses.fields(cls) if field.name not in _NOT_OPTIONS
  )


def build(name: str, options: Mapping[str, Any], spec: Spec) -> Method:
  """Returns method `name` with its options, for a backbone's spec.

  Raises:
    ValueError: unknown name or option.
  """
  cls = get(name)
  known = [field.name for field in option_fields(cls)]
  values = {}
  for option, value in options.items():
    lookup.choose(option, known, f"option of method {name!r}:")
    values[option] = _as_tuples(value)
  return cls(spec=spec, **values)


def _as_tuples(value: Any) -> Any:
  """Returns lists, as JSON has them, as tuples: modules are hashed."""
  if isinstance(value, (list, tuple)):
    return tuple(_as_tuples(item) for item in value)
  return value
