"""Remembers the local checkpoints that the user named, by what is in them.

An adapter file says only its backbone's sha256, not where that lies: paths are
nobody else's business, and a stranger's file must not send the program to one.
So each checkpoint that a config or an argument named is noted in the user's own
cache, and found there again.
"""

import contextlib
import json
from pathlib import Path
import re

from vpt_jax.utils import files, strange_files
from vpt_jax.weights import download

_MOST_BYTES = 2**16  # of a note


def remember(path: str | Path, sha256: str) -> None:
  """Notes where a checkpoint is; without a cache that can be written, not."""
  note = _note(sha256)
  if note is None:
    return
  text = json.dumps({"path": str(Path(path).expanduser().absolute())})
  with contextlib.suppress(OSError):
    note.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(note, text.encode())


def find(sha256: str) -> str:
  """Returns where a checkpoint was when it was used; "": not known.

  What is there now may be another one, which its sha256 tells.
  """
  note = _note(sha256)
  if note is None:
    return ""
  try:
    path = strange_files.read_json(note, _MOST_BYTES)["path"]
    is_there = Path(path).exists()
  except (OSError, ValueError, LookupError, TypeError):
    return ""
  return path if is_there else ""


def _note(sha256: str) -> Path | None:
  """Returns the file of a checkpoint's note; None if it is no sha256."""
  if not re.fullmatch("[0-9a-f]{64}", sha256):
    return None
  return download.cache_folder() / "known" / f"{sha256}.json"
