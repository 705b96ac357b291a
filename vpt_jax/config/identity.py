"""Compares configs and names runs by what is in them."""

from collections.abc import Mapping
import hashlib
import json
import re
from typing import Any

from ml_collections import ConfigDict

from vpt_jax.config import sections
from vpt_jax.utils import trees

MISSING = "(no such field)"

# Values that version 0.1 wrote in another way: (field, now) -> then.
_OLDER_VALUES = {(("data", "normalize"), ""): "imagenet"}

# A path that begins at the root, at home or at a drive, maybe after `KIND:`.
_ABSOLUTE = re.compile(r"(?P<kind>\w{2,}:)?(?:/|~|[A-Za-z]:[\\/]).*", re.DOTALL)


def plain(config: ConfigDict) -> dict[str, Any]:
  """Returns the config as JSON values."""
  return json.loads(json.dumps(config.to_dict()))


def public(config: ConfigDict) -> dict[str, Any]:
  """Returns the config as JSON values, for files that are passed on.

  Of absolute paths only the last part is left, of addresses all but a user's
  name and password.
  """
  values: dict[str, Any] = without_folders(plain(config))
  return values


def without_folders(value: Any) -> Any:
  """Returns a JSON value without what is of this machine alone.

  See `public`.
  """
  if isinstance(value, dict):
    return {key: without_folders(item) for key, item in value.items()}
  if isinstance(value, list):
    return [without_folders(item) for item in value]
  if isinstance(value, str):
    return _without_folder(value)
  return value


def _without_folder(text: str) -> str:
  """Returns a text, of an absolute path the last part alone."""
  if "://" in text:
    return re.sub(r"(?<=://)[^/@]*@", "", text)
  found = _ABSOLUTE.fullmatch(text)
  if not found:
    return text
  last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
  return (found["kind"] or "") + last


def digest(config: ConfigDict, digits: int = 8) -> str:
  """Returns hex digits that change with any field.

  Fields that were added after version 0.1 are left out while they have their
  defaults, so that a run keeps its name.
  """
  values = plain(config)
  for path, default in _defaults_of_later().items():
    _remove_default(values, path, default)
  for section in sections.LATER:
    if not values.get(section, True):
      del values[section]
  _write_as_older(values)
  text = json.dumps(values, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _write_as_older(values: dict[str, Any]) -> None:
  """Gives values the form that they had in version 0.1, in place."""
  for ((section, field), now), then in _OLDER_VALUES.items():
    part = values.get(section)
    if isinstance(part, dict) and part.get(field) == now:
      part[field] = then


def _flat_as_older(config: Mapping[str, Any]) -> trees.Flat:
  """Returns {path: value} with values as version 0.1 wrote them."""
  values = json.loads(json.dumps(dict(config)))
  _write_as_older(values)
  return trees.flatten(values)


def _defaults_of_later() -> dict[tuple[str, ...], Any]:
  """Returns `sections.added_later` as JSON values: a tuple is a list there."""
  return {
    path: json.loads(json.dumps(default))
    for path, default in sections.added_later().items()
  }


def _remove_default(
  values: dict[str, Any], path: tuple[str, ...], default: Any
) -> None:
  *sections_above, name = path
  for section in sections_above:
    values = values.get(section, {})
  if name in values and values[name] == default:
    del values[name]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns a line `field: old -> new` for every field that differs.

  A field that was added after version 0.1 has its default where it is missing.
  """
  old_values = _flat_as_older(old)
  new_values = _flat_as_older(new)
  defaults = {
    "/".join(path): default for path, default in _defaults_of_later().items()
  }
  lines = []
  for name in sorted(old_values.keys() | new_values.keys()):
    if_missing = defaults.get(name, MISSING)
    before = old_values.get(name, if_missing)
    after = new_values.get(name, if_missing)
    if before != after:
      lines.append(f"{name.replace('/', '.')}: {before!r} -> {after!r}")
  return lines
