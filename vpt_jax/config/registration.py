"""Adds methods and problems that live outside this package."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from vpt_jax import problems
from vpt_jax.config import sections
from vpt_jax.methods import registry
from vpt_jax.methods.method import Method
from vpt_jax.utils import lookup


def register_method(
  name: str, cls: type[Method], defaults: Mapping[str, Any] | None = None
) -> None:
  """Adds a method that lives outside this package.

  From then on `config.method` may be this name, and the config has a section
  of this name with the options of the class, which the command line can set. A
  config file registers the method by importing the module that does:

    # my_methods.py
    from vpt_jax.methods.method import Method

    class Mine(Method):
      num_tokens: int = 10
      ...

    vpt_jax.register_method("mine", Mine)

    # my_config.py, in the same folder
    import my_methods
    from configs import common

    def get_config():
      config = common.get_config()
      config.method = "mine"
      return config

  Import the module of the method before `load_adapter` reads an adapter of it,
  too.

  Args:
    name: as in `config.method`, and of its section.
    cls: its class, with a default for every option.
    defaults: option -> default in a config, where it is to be another one than
      in the class.

  Raises:
    ValueError: the name is taken or not an identifier, or an option is not
      known.
    TypeError: not a subclass of `Method`, or an option without a default.
  """
  if not isinstance(cls, type) or not issubclass(cls, Method):
    raise TypeError(
      f"method {name!r} is {cls!r}; expected a subclass of "
      "vpt_jax.methods.method.Method"
    )
  if name in registry.BUILT_IN or name in _names_in_configs():
    raise ValueError(
      f"method name {name!r} is taken by vpt_jax; choose another name"
    )
  _check_name("method", name, cls, registry.METHODS)
  options = registry.option_fields(cls)
  for field in options:
    if _has_no_default(field):
      raise TypeError(
        f"option {field.name!r} of method {name!r} has no default; every "
        "option needs one"
      )
  known = [field.name for field in options]
  for option in defaults or {}:
    lookup.choose(option, known, f"option of method {name!r}:")
  registry.METHODS[name] = cls
  registry.DEFAULTS[name] = dict(defaults or {})


def register_problem(name: str, cls: type[problems.Problem]) -> None:
  """Adds a problem that lives outside this package, for `config.problem`.

  A config file registers it by importing the module that does, as for
  `register_method`.

  Raises:
    ValueError: the name is taken or not an identifier.
    TypeError: not a subclass of `Problem`.
  """
  if not isinstance(cls, type) or not issubclass(cls, problems.Problem):
    raise TypeError(
      f"problem {name!r} is {cls!r}; expected a subclass of "
      "vpt_jax.problems.Problem"
    )
  _check_name("problem", name, cls, problems.PROBLEMS)
  problems.PROBLEMS[name] = cls


def _names_in_configs() -> set[str]:
  """Returns the names at the top of every config."""
  general = {field.name for field in sections.fields_of("")}
  return general | sections.SECTIONS.keys()


def _check_name(
  kind: str, name: str, cls: type, known: Mapping[str, type]
) -> None:
  """Raises ValueError for a name that a new class cannot have."""
  if not name.isidentifier():
    raise ValueError(f"{kind} name {name!r}; expected one like `my_{kind}`")
  if name not in known:
    return
  # A module that is imported again makes its classes, and registers, again.
  other = known[name]
  if (other.__module__, other.__qualname__) != (
    cls.__module__,
    cls.__qualname__,
  ):
    raise ValueError(
      f"{kind} name {name!r} is taken by {other.__module__}."
      f"{other.__qualname__}; choose another name"
    )


def _has_no_default(field: dataclasses.Field) -> bool:
  return (
    field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  )
