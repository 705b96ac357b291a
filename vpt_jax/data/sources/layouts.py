"""Tells what the folders of a data set mean: classes, or parts above classes.

Names decide, as little else does: `seg_train` and `seg_test` are parts, `cat`
and `dog` classes. Where names and contents leave it open nothing is guessed:
the error says what was seen, and the user says what is meant.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import re
from typing import NamedTuple

from vpt_jax.data.sources.image_files import SUFFIXES
from vpt_jax.data.sources.parts import NAMES
from vpt_jax.utils import texts

# Values of `config.data.layout`.
LAYOUTS = ("auto", "classes", "parts")

# The part of images that have no classes, and are only to be predicted.
UNLABELLED = "unlabelled"
_UNLABELLED_WORDS = frozenset(
  {
    "inference",
    "pred",
    "predict",
    "prediction",
    "predictions",
    "unlabeled",
    "unlabelled",
  }
)
# What stands beside a part's name and says nothing: `training_set`, `Test 2`.
_FILL_WORDS = frozenset(
  {
    "all",
    "data",
    "dataset",
    "folder",
    "image",
    "images",
    "img",
    "imgs",
    "photos",
    "pictures",
    "samples",
    "set",
    "split",
    "v",
  }
)
# Folders beside each other that no set has for its classes.
_KINDS_OF_FILES = frozenset(
  {
    "annotation",
    "annotations",
    "gt",
    "image",
    "images",
    "imgs",
    "label",
    "labels",
    "mask",
    "masks",
    "segmentation",
    "trimaps",
  }
)


# Folders that share the images of a set among them: `fold_1`, `images_002`.
_SHARES = frozenset(
  {"batch", "chunk", "fold", "kfold", "part", "shard", "subset"}
)
# How many folders with nothing beside them are looked through.
_DEEPEST = 4


@dataclasses.dataclass(frozen=True)
class Top:
  """A folder that may be a class or a part.

  Attributes:
    path: of it.
    images: how many lie directly in it.
    folders: the names of its folders, sorted.
  """

  path: Path
  images: int
  folders: tuple[str, ...]

  @property
  def name(self) -> str:
    """Its name."""
    return self.path.name


def look_into(path: Path) -> Top:
  """Returns what is directly in a folder."""
  images = 0
  folders = []
  for entry in os.scandir(path):
    if is_hidden(entry.name):
      continue
    if _is_folder(entry):
      folders.append(entry.name)
    elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
      images += 1
  return Top(path, images, tuple(sorted(folders)))


def is_hidden(name: str) -> bool:
  """Returns whether a file or folder is no part of a data set."""
  return name.startswith((".", "__MACOSX"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
  """Returns whether it is a folder, or a link to one."""
  try:
    return entry.is_dir()
  except OSError:  # a link to itself
    return False


class Role(NamedTuple):
  """What the name of a folder says.

  Attributes:
    part: train, val, test or `UNLABELLED`; "" if it names none.
    rest: its other words, such as `seg` of `seg_train`.
  """

  part: str
  rest: tuple[str, ...]


def role_of(name: str) -> Role:
  """Returns the part that a folder's name says, in any case and style.

  `Training`, `train_images`, `valid2017`, `asl_alphabet_test` and `TestSet` all
  name one.
  """
  words = _words_of(name)
  parts = []
  rest = []
  for word in words:
    part = _part_of_word(word)
    if part:
      parts.append(part)
    elif word not in _FILL_WORDS:
      rest.append(word)
  if set(parts) == {"train", "val"}:  # train_val: val is yet to be taken out
    parts = ["train"]
  if len(set(parts)) != 1:
    return Role("", tuple(words))
  return Role(parts[0], tuple(rest))


def _words_of(name: str) -> list[str]:
  """Returns the words of a name in lower case, without numbers."""
  spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
  return re.findall(r"[^\W\d_]+", spaced.lower())


def _part_of_word(word: str) -> str:
  """Returns the part that a word in lower case names, or ""."""
  if word in _UNLABELLED_WORDS:
    return UNLABELLED
  if word == "trainval":
    return "train"
  if word in NAMES:
    return NAMES[word]
  stem = re.sub("(set|data|images|imgs)$", "", word)
  return NAMES.get(stem, "")


def find_parts(root: Path, tops: Sequence[Top], layout: str) -> dict[str, Top]:
  """Returns the folders that are parts; {} if all of them are classes.

  Args:
    root: the folder above.
    tops: its folders.
    layout: `classes`, `parts`, or `auto`: names decide.

  Raises:
    ValueError: it is not clear which of both, or there is no part to train on.
  """
  if layout == "classes":
    return {}
  roles = {top.name: role_of(top.name) for top in tops}
  named = [top for top in tops if roles[top.name].part]
  if layout == "auto":
    if not _speak_of_parts(roles):
      return {}
    _check_all_are_parts(root, tops, roles)
  parts: dict[str, Top] = {}
  for top in named:
    part = roles[top.name].part
    if part in parts:
      raise refusal(
        root,
        f"has two folders for {part}, {parts[part].name!r} and {top.name!r}",
        tops,
      )
    parts[part] = top
  if "train" not in parts:
    raise refusal(root, "has no folder for training", tops)
  return parts


def _speak_of_parts(roles: Mapping[str, Role]) -> bool:
  """Returns whether some folder's name is the name of a part.

  A word for a part within a longer name, `test_tube`, is none unless another
  part has the same rest: `seg_train` and `seg_test`.
  """
  parts_of_rest: dict[tuple[str, ...], set[str]] = {}
  for role in roles.values():
    if role.part:
      parts_of_rest.setdefault(role.rest, set()).add(role.part)
  return any(not rest or len(parts_of_rest[rest]) > 1 for rest in parts_of_rest)


def _check_all_are_parts(
  root: Path, tops: Sequence[Top], roles: Mapping[str, Role]
) -> None:
  """Raises ValueError if some folders are parts and others are not."""
  strangers = [name for name, role in roles.items() if not role.part]
  if strangers:
    parts = [name for name, role in roles.items() if role.part]
    raise refusal(
      root,
      f"has folders named like parts ({texts.shortened(parts)}) beside others "
      f"({texts.shortened(strangers)})",
      tops,
    )
  rests = {role.rest for role in roles.values()}
  if len(rests) > 1:
    raise refusal(root, "has folders of parts of different names", tops)


def check_classes(root: Path, tops: Sequence[Top]) -> None:
  """Raises ValueError if folders that are taken for classes may be none.

  Args:
    root: the folder above.
    tops: its folders.
  """
  roles = {top.name: role_of(top.name) for top in tops}
  parts = {role.part for role in roles.values()}
  if len(parts) > 1 and "" not in parts and _speak_of_parts(roles):
    raise refusal(root, "has folders for parts, where classes should be", tops)
  names = {top.name for top in tops}
  kinds = {name.lower() for name in names}
  if len(kinds) > 1 and kinds <= _KINDS_OF_FILES:
    raise refusal(
      root, "has folders for kinds of files, where classes should be", tops
    )
  for top in tops:
    again = names & {*top.folders}
    if not top.images and len(again) > 1:
      raise refusal(
        root, f"has the folder {top.name!r}, which holds it once more", tops
      )
  above = []
  for top in tops:
    inner = _first_fork(top)
    if inner.folders and not inner.images:
      above.append(inner)
  shared = _shared_names(above)
  if len(shared) > 1:
    raise refusal(
      root,
      f"has {len(above)} folders without images of their own, in which there "
      f"are the same folders, {texts.shortened(shared)}; either may be the "
      "classes",
      tops,
    )
  if _share_one_set(names):
    raise refusal(
      root, "has folders that share one set, where classes should be", tops
    )


def _share_one_set(names: Collection[str]) -> bool:
  """Returns whether folders are numbered shares, by their names.

  Such as `fold_1` and `fold_2`, or `images_001` and `images_002`.
  """
  words = {tuple(_words_of(name)) for name in names}
  if len(names) < 2 or len(words) != 1:
    return False
  (same,) = words
  is_share = bool(_SHARES & {*same})
  return bool(same) and (is_share or {*same} <= _FILL_WORDS)


def _first_fork(top: Top) -> Top:
  """Returns the first folder below one that has more than one folder in it."""
  for _ in range(_DEEPEST):
    if top.images or len(top.folders) != 1:
      break
    top = look_into(top.path / top.folders[0])
  return top


def _shared_names(tops: Sequence[Top]) -> list[str]:
  """Returns names of folders that are in half of these at least, and in two."""
  counts: dict[str, int] = {}
  for top in tops:
    for name in top.folders:
      counts[name] = counts.get(name, 0) + 1
  least = max(2, len(tops) / 2)
  return sorted(name for name, count in counts.items() if count >= least)


def check_depths(root: Path, rows: Sequence[tuple[str, str]]) -> None:
  """Raises ValueError if images of one class lie at different depths.

  Args:
    root: the folder that the images' paths begin at.
    rows: (path, class) of the images.
  """
  first: dict[str, str] = {}
  for name, class_name in rows:
    other = first.setdefault(class_name, name)
    if name.count("/") != other.count("/"):
      raise refusal(
        root,
        f"has images of class {class_name!r} at different depths, such as "
        f"{other!r} and {name!r}",
      )


def is_wrapper(top: Top) -> bool:
  """Returns whether all that a part's folder holds is one folder around it.

  As in `seg_train/seg_train/CLASS`, or `test/images/IMAGE`.
  """
  if top.images or len(top.folders) != 1:
    return False
  (inner,) = top.folders
  if inner.lower() == top.name.lower():
    return True
  role = role_of(inner)
  if role.part:
    return role.part in (role_of(top.name).part, UNLABELLED)
  words = set(role.rest)
  return bool(words) and words <= _FILL_WORDS


def refusal(root: Path, why: str, tops: Sequence[Top] = ()) -> ValueError:
  """Returns the error for folders that may mean several things."""
  what = f"{root} {why}."
  if tops:
    what += f" Seen: {texts.shortened([_described(top) for top in tops])}."
  return ValueError(
    f"{texts.printable(what)} Say what is meant: config.data.layout="
    "classes (each folder is a class, with all images below it), "
    "config.data.layout=parts (train, val and test are above the classes, "
    "other folders are left out), or name a table of the images, "
    "config.data.source=csv:FILE with columns path,label,split"
  )


def _described(top: Top) -> str:
  """Returns a folder and what is directly in it."""
  inside = []
  if top.images:
    inside.append(f"{top.images:,} images")
  if top.folders:
    inside.append(f"folders {texts.shortened(top.folders, most=4)}")
  return f"{top.name} ({'; '.join(inside) or 'nothing that is read'})"
