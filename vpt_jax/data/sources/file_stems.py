"""Finds files by their stems: in folders, and in lists.

A stem is a path below a folder without what the file's name ends in. That is
how images and their masks are told to belong together.
"""

from collections.abc import Iterable, Mapping, Sequence
import os
from pathlib import Path

from vpt_jax.data.sources import layouts
from vpt_jax.utils import strange_files, texts

# Bytes of a list that is read: a million stems have a tenth of that.
_MOST_LIST = 2**28


def refusal(text: str) -> ValueError:
  """Returns an error whose text can be printed, whatever names it has."""
  return ValueError(texts.printable(text))


def files_below(folder: Path) -> list[str]:
  """Returns the paths of all files below a folder, sorted, none hidden.

  Links are followed.

  Raises:
    ValueError: there is no such folder, or links lead to one of its folders a
      second time: nobody could say which of both is meant.
    OSError: a folder cannot be read.
  """
  if not folder.is_dir():
    raise refusal(f"{folder} is missing; expected a folder")
  found = []
  entered: dict[tuple[int, int], str] = {}
  todo = [""]
  while todo:
    below = todo.pop()
    where = folder / below
    stat = where.stat()
    first = entered.setdefault((stat.st_dev, stat.st_ino), below)
    if first != below:
      raise refusal(
        f"{folder}: a link leads from {below} to a folder that is read "
        f"already, {first or '.'}; remove the link"
      )
    for name in sorted(os.listdir(where)):
      path = os.path.join(below, name)
      if layouts.is_hidden(name):
        continue
      if (folder / path).is_dir():
        todo.append(path)
      else:
        found.append(path)
  return sorted(found)


def with_suffix(folder: Path, suffixes: Iterable[str]) -> dict[str, str]:
  """Returns the files of some kinds below a folder: stem -> path.

  Args:
    folder: that is looked through.
    suffixes: of the files, in lower case, such as `.png`.

  Raises:
    ValueError: see `files_below`; two files have one stem, or one is no file.
  """
  wanted = frozenset(suffixes)
  found: dict[str, str] = {}
  for path in files_below(folder):
    stem, suffix = os.path.splitext(path)
    if suffix.lower() not in wanted:
      continue
    _check_is_file(folder / path)
    if stem in found:
      raise refusal(
        f"{folder}: {found[stem]} and {path} have the same stem; keep one of "
        "them"
      )
    found[stem] = path
  return found


def with_ending(folder: Path, ending: str) -> list[str]:
  """Returns the stems of files below a folder whose names end so, sorted.

  Args:
    folder: that is looked through.
    ending: of the files' names, such as `_leftImg8bit.png`.

  Raises:
    ValueError: see `files_below`; or one is no file.
  """
  found = []
  for path in files_below(folder):
    if path.endswith(ending):
      _check_is_file(folder / path)
      found.append(path.removesuffix(ending))
  return found


def _check_is_file(path: Path) -> None:
  """Raises ValueError for a link to nothing, a pipe or a device."""
  if not path.is_file():
    raise refusal(
      f"{path} is no regular file, nor a link to one; mend or remove it"
    )


def check_partners(
  images: Mapping[str, object] | Sequence[str],
  masks: Mapping[str, object] | Sequence[str],
  image_folder: Path,
  mask_folder: Path,
  hint: str,
) -> None:
  """Raises ValueError if images and masks do not have the same stems.

  Args:
    images: stems of the images.
    masks: stems of the masks.
    image_folder: of the images, for the error.
    mask_folder: of the masks, for the error.
    hint: what to do about it.
  """
  without_mask = sorted(set(images) - set(masks))
  without_image = sorted(set(masks) - set(images))
  found = []
  if without_mask:
    found.append(
      f"{len(without_mask):,} images of {image_folder} have no mask in "
      f"{mask_folder}: {texts.shortened(without_mask)}"
    )
  if without_image:
    found.append(
      f"{len(without_image):,} masks of {mask_folder} have no image in "
      f"{image_folder}: {texts.shortened(without_image)}"
    )
  if found:
    raise refusal(f"{'; '.join(found)}. {hint}")


def read_list(path: Path) -> dict[str, int]:
  """Returns what a list names, one a line: path -> number of its line.

  Raises:
    ValueError: the list is missing, no text, empty, names a thing twice or
      something outside of its folder.
  """
  try:
    data = strange_files.read_bytes(path, _MOST_LIST)
  except FileNotFoundError:
    raise refusal(f"the list {path} is missing") from None
  if b"\0" in data:
    raise refusal(f"the list {path} is no text in UTF-8; save it as UTF-8")
  # Bytes that are no UTF-8 are kept: names of files may have them.
  text = data.decode("utf-8-sig", errors="surrogateescape")
  found: dict[str, int] = {}
  # Not by `splitlines`: names of files may have what Unicode ends lines with.
  for number, line in enumerate(text.split("\n"), start=1):
    if not line.strip():
      continue
    name = os.path.normpath(line.strip())
    if os.path.isabs(name) or name.split(os.sep)[0] in ("..", "."):
      raise refusal(
        f"{path}:{number}: {line.strip()} is no path below the folder of the "
        "images; expected one stem a line, such as a or train/a"
      )
    if name in found:
      raise refusal(
        f"{path}:{number}: {name} is in line {found[name]} already; keep one "
        "of them"
      )
    found[name] = number
  if not found:
    raise refusal(f"the list {path} is empty; expected one stem a line")
  return found
