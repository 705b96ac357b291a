"""Checks a folder of tensorflow-datasets before that library sees it.

`features.json` names a Python class for each feature, and the library imports
its module from wherever Python finds one: from the data folder itself, if the
program is started above it. A folder of images must not run code, nor have
files read that are not in it.
"""

from collections.abc import Iterable, Iterator
import contextlib
import json
import os
from pathlib import Path
import re
from typing import Any

from vpt_jax.utils import strange_files

# The library's own features, and the keys at which features name their class
# today and in old files.
OWN_CLASS = re.compile(r"tensorflow_datasets\.core\.features(\.[A-Za-z]\w*)+")
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
# The key at which old files may name a file, or an address, of class names.
PATH_KEY = "names_file"

# Bytes that a file of facts may have, by its ending. The largest data sets have
# some hundred thousand in JSON; in text there are the names of classes.
MOST = {".json": 2**22, ".txt": 2**26}


def check_folder(folder: Path) -> None:
  """Checks what the library reads when it opens a folder.

  Raises:
    ValueError: a class that is not the library's, a path of class names, or a
      file of facts that is no regular file or far too large.
    OSError: a file is missing.
  """
  for entry in os.scandir(folder):
    most = MOST.get(os.path.splitext(entry.name)[1])
    if most is not None:
      strange_files.check(entry.path, most)
  for name in ("dataset_info.json", "features.json"):
    path = folder / name
    for key, value in _entries(strange_files.read_json(path)):
      _check_entry(path, key, value)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
  """Yields (key, value) of all objects in a JSON value, at any depth.

  A text that is JSON itself is looked into, as the library does.
  """
  todo = [value]
  while todo:
    value = todo.pop()
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
      # What is no JSON the library cannot read either.
      with contextlib.suppress(ValueError, RecursionError):
        todo.append(json.loads(value))
    elif isinstance(value, list):
      todo += value
    elif isinstance(value, dict):
      yield from value.items()
      todo += value.values()


def _check_entry(path: Path, key: str, value: Any) -> None:
  """Raises ValueError for a class or a file that a data set may not name."""
  names_class = key in CLASS_KEYS and isinstance(value, str)
  if names_class and not OWN_CLASS.fullmatch(value):
    raise ValueError(
      f"{path} names the class {value!r}, whose module would be run; "
      "expected a feature of tensorflow_datasets.core.features. If you trust "
      "who made it, export its images to a folder and name folder:PATH"
    )
  if key == PATH_KEY and value is not None:
    raise ValueError(
      f"{path} names the file {str(value)[:200]!r} for its classes; expected "
      "their names to be in the data set's folder: prepare it again"
    )


def check_shards(
  folder: Path, split: str, shards: Iterable[os.PathLike], count: int
) -> None:
  """Checks the files of a split before they are opened.

  Args:
    folder: of the data set.
    split: its name, for errors.
    shards: its files, as `dataset_info.json` has them.
    count: examples that they should have together.

  Raises:
    ValueError: a file outside of the folder or that is no regular file, or
      more examples than bytes.
    OSError: a file is missing.
  """
  size = 0
  for shard in shards:
    path = os.path.normpath(shard)
    if os.path.dirname(path) != os.path.normpath(folder):
      raise ValueError(
        f"{folder}: its dataset_info.json has {path} for split {split!r}; "
        "expected files in that folder: prepare it again"
      )
    size += strange_files.check(path)
  if not 0 <= count <= size:
    raise ValueError(
      f"{folder}: its dataset_info.json has {count} examples for split "
      f"{split!r}, in files of {size} bytes; prepare it again"
    )
