"""Finds the files that a table names: ids without endings, other folders.

Many tables come with `train.csv` beside a folder `train/`, name images by their
number alone, or were written on Windows. A name is taken for another file only
where no row is as it stands, or no other file can be meant.
"""

from collections.abc import Iterator, Sequence
import functools
import os
from pathlib import Path
import unicodedata

from vpt_jax.data.sources.image_files import SUFFIXES
from vpt_jax.data.sources.table_texts import LATIN

# Folders above each other that are looked into, such as `images/train`.
DEEPEST = 2


class Finder:
  """Finds files by what rows of a table call them.

  Attributes:
    base: the folder that names are relative to.
  """

  def __init__(self, base: Path):
    self.base = base
    # Images of a folder by name without ending, listed once.
    self._by_stem = functools.cache(self._list)

  def exists(self, name: str) -> bool:
    """Returns whether a name, as it stands or without ending, is an image."""
    stored = self._as_stored(name)
    return self._is_there(stored) or self._complete(stored) != stored

  def all(self, names: Sequence[str]) -> list[str]:
    """Returns the paths, relative to the base, of what rows are called.

    What is not found stays as it is, and is an error when it is read.

    Raises:
      ValueError: it may be one of several files or folders.
    """
    stored = [self._as_stored(name) for name in names]
    completed = [self._complete(name) for name in stored]
    if any(self._is_there(name) for name in completed):
      return completed
    folders = list(self._folders_with(stored))
    if len(folders) > 1:
      raise ValueError(
        f"its images are not below {self.base} as they are named, such as "
        f"{names[0]!r}, but both in {folders[0]} and in {folders[1]}; write "
        "the folder before the names"
      )
    if not folders:
      return completed
    inside = [os.path.join(folders[0], name) for name in stored]
    return [self._complete(name) for name in inside]

  def _is_there(self, name: str) -> bool:
    # A link whose target is gone is there, too, and told of when it is read.
    return "\0" not in name and os.path.lexists(self.base / name)

  def _as_stored(self, name: str) -> str:
    """Returns a name with this system's separators and this disk's accents.

    Windows writes a backslash, and macOS accents as letters of their own.
    """
    if self._is_there(name):
      return name
    slashed = name.replace("\\", "/")
    for form in ("NFC", "NFD") if not slashed.isascii() else ():
      normal = unicodedata.normalize(form, slashed)
      if self._is_there(normal):
        return normal
    return slashed

  def _complete(self, name: str) -> str:
    """Returns a name with the ending of the one image that has this stem.

    Raises:
      ValueError: there are several.
    """
    folder, stem = os.path.split(name)
    ending = os.path.splitext(stem)[1].lower()
    if not stem or ending in SUFFIXES or self._is_there(name):
      return name
    there = self._by_stem(folder).get(stem, [])
    if len(there) > 1:
      raise ValueError(
        f"{name!r} may be {' or '.join(there)} in {self.base / folder}; write "
        "the file's ending, too"
      )
    return os.path.join(folder, there[0]) if there else name

  def _list(self, folder: str) -> dict[str, list[str]]:
    """Returns {stem: names} of the images in a folder."""
    listed: dict[str, list[str]] = {}
    try:
      names = sorted(os.listdir(self.base / folder))
    except (OSError, ValueError):
      return listed
    for name in names:
      stem, ending = os.path.splitext(name)
      if ending.lower() in SUFFIXES and not name.startswith("."):
        listed.setdefault(stem, []).append(name)
    return listed

  def _folders_with(self, names: Sequence[str]) -> Iterator[str]:
    """Yields the folders below the base in which all names are images."""
    if not names or any(os.path.isabs(name) for name in names):
      return
    for top, folders, _ in os.walk(self.base):
      folder = os.path.relpath(top, self.base)
      is_deep = folder.count(os.sep) + 1 >= DEEPEST
      shown = sorted(name for name in folders if name[0] != ".")
      folders[:] = [] if is_deep else shown
      inside = (os.path.join(folder, name) for name in names)
      if folder != "." and all(self._names_image(name) for name in inside):
        yield folder

  def _names_image(self, name: str) -> bool:
    return self._is_there(name) or self._complete(name) != name


def undo_guess(base: Path, name: str) -> str:
  """Returns the name of a file whose table was read in a guessed encoding.

  Args:
    base: the folder that names are relative to.
    name: of the file; its letters are sure only if it is there.

  Raises:
    ValueError: it is not there.
  """
  if name.isascii() or os.path.lexists(base / name):
    return name
  as_stored = os.fsdecode(name.encode(LATIN))  # the same bytes
  if os.path.lexists(base / as_stored):
    return as_stored
  raise ValueError(
    f"it is no UTF-8; read as {LATIN} (Latin-1) it names {name!r}, which is "
    "not there. Save the table as UTF-8"
  )
