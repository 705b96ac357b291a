"""Understands `config.data.source`: whose images, their kind and their name."""

import os
from pathlib import Path

from vpt_jax.utils import lookup, texts

# What the user brings, as KIND:PATH; `own_readers.USER` has the readers, and
# `masked_datasets` those of images with masks.
KINDS = ("folder", "csv", "json", "npz", "segfolder")
# Those of images with masks; npz may have either.
MASKED = ("npz", "segfolder")

_KIND_OF_SUFFIX = {".csv": "csv", ".tsv": "csv", ".npz": "npz"}
_LISTS = ("train.json", "val.json", "test.json")


def is_own(source: str) -> bool:
  """Returns whether a source, as `canonical` gives it, is the user's own."""
  return ":" in source


def canonical(source: str) -> str:
  """Returns a source as KIND:PATH, also where the kind was left out.

  `~/photos` becomes `folder:~/photos`, `labels.csv` becomes `csv:labels.csv`.
  Names of a task's own sources (pack, tfds ...) stay as they are.

  Raises:
    ValueError: an unknown kind, no path, or a path whose kind is not clear.
  """
  kind, colon, path = source.partition(":")
  if colon and kind in KINDS:
    if not path:
      raise ValueError(
        f"config.data.source={source!r} has no path; expected {kind}:PATH, "
        "with a path"
      )
    return source
  if _is_path(source):
    return _with_kind(source)
  if colon:
    lookup.choose(kind, KINDS, "data.source")
  return source


def _is_path(source: str) -> bool:
  """Returns whether a source without a kind is a path."""
  kind, _, _ = source.partition(":")
  if os.sep in kind or kind.startswith(("~", ".")):
    return True
  has_suffix = Path(source).suffix.lower() in _KIND_OF_SUFFIX
  return bool(source) and (has_suffix or os.path.exists(source))


def _with_kind(source: str) -> str:
  """Returns KIND:PATH of a path."""
  path = Path(source).expanduser()
  suffix = path.suffix.lower()
  if path.name in _LISTS and not path.is_dir():
    return f"json:{os.path.dirname(source) or '.'}"
  if path.is_dir():
    if (path / "train.json").is_file() and (path / "test.json").is_file():
      raise ValueError(
        f"config.data.source={source!r} holds train.json and test.json; say "
        f"what is meant: json:{source} (these lists), or folder:{source} (the "
        "folders are the classes)"
      )
    return f"folder:{source}"
  if suffix in _KIND_OF_SUFFIX:
    return f"{_KIND_OF_SUFFIX[suffix]}:{source}"
  if path.exists():
    raise ValueError(
      f"config.data.source={source!r} is a file of no known kind; expected a "
      f"folder, a .csv or .npz file, or {', '.join(_LISTS)}; or name its kind, "
      f"{':PATH, '.join(KINDS)}:PATH"
    )
  return f"folder:{source}"


def name_of(source: str) -> str:
  """Returns what a source of the user's own is called: as its file or folder.

  Args:
    source: KIND:PATH.
  """
  _, _, path = source.partition(":")
  whole = os.path.abspath(Path(path).expanduser())
  return texts.printable(Path(whole).stem) or "images"
