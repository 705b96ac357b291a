"""Reads the pictures that runs of segmentation leave, for the page.

A folder of results may be a stranger's, and the page is passed on. So no link
is followed, no path is made of a record's texts, and of a picture only its
pixels reach the page: it is decoded, made smaller and written anew.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
import io
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

from PIL import Image

from vpt_jax.data.transforms import decode, png_chunks
from vpt_jax.problems import Segmentation
from vpt_jax.report import record_fields
from vpt_jax.report.record_fields import Record
from vpt_jax.report.rows import Results, Row
from vpt_jax.training.records import Located
from vpt_jax.utils import json_files, strange_files, texts

Json = dict[str, Any]

FOLDER = "gallery"  # in the folder of a run
KINDS = ("best", "typical", "worst")
NAME = re.compile(rf"({'|'.join(KINDS)})_([1-9]\d?)\.png")
MOST_RUNS = 20  # on a page
MOST_PICTURES = 30  # of a run
MOST_BYTES = 2**25  # of a file
MOST_PIXELS = 2**25
TOLD = "gallery.json"  # which images these are, and their scores
MOST_TOLD = 2**20  # bytes of it
MOST_NAME = 200  # characters of an image's name
LONGEST_SIDE = 1400  # of a picture on the page
QUALITY = 85


class Picture(NamedTuple):
  """Is a file of a gallery.

  Attributes:
    kind: one of `KINDS`.
    number: 1 is the first one of its kind.
    path: of the file.
  """

  kind: str
  number: int
  path: Path


def folders_of_runs(located: Sequence[Located]) -> dict[str, Path]:
  """Returns {id of a record: folder of its run}.

  A folder with several records is no run's: whose pictures are there, none of
  them tells.
  """
  counts = Counter(one.folder for one in located)
  return {
    one.record["id"]: one.folder for one in located if counts[one.folder] == 1
  }


def collect(
  found: Results, names: Mapping[int, str], folders: Mapping[str, Path]
) -> Json:
  """Returns the galleries of the page, one for each row and task.

  Args:
    found: the rows.
    names: {id of a row: short name}.
    folders: {id of a record: folder of its run}; a run without one, or without
      pictures, has no gallery.
  """
  runs: list[Json] = []
  left_out = 0
  for row in found.rows:
    for task in row.scores if row.dense else ():
      gallery = _first_gallery(row, task, folders)
      if gallery is None:
        continue
      if len(runs) == MOST_RUNS:
        left_out += 1
        continue
      record, pictures = gallery
      head = {"task": task, "label": names[id(row)], "seed": record["seed"]}
      runs.append(head | _shown(pictures))
  return {"runs": runs, "left_out": left_out}


def _first_gallery(
  row: Row, task: str, folders: Mapping[str, Path]
) -> tuple[Record, list[Picture]] | None:
  """Returns the first seed's that has pictures, and these."""
  for record in row.records_of(task):
    if record["id"] in folders:
      pictures = find(folders[record["id"]])
      if pictures:
        return record, pictures
  return None


def find(folder: Path) -> list[Picture]:
  """Returns the pictures in the folder of a run, the best first."""
  pictures = []
  for folder_entry in _entries(folder):
    is_folder = folder_entry.is_dir(follow_symlinks=False)
    if folder_entry.name != FOLDER or not is_folder:
      continue
    for entry in _entries(Path(folder_entry.path)):
      match = NAME.fullmatch(entry.name)
      if match and entry.is_file(follow_symlinks=False):
        pictures.append(Picture(match[1], int(match[2]), Path(entry.path)))
  pictures.sort(key=lambda one: (KINDS.index(one.kind), one.number))
  return pictures[:MOST_PICTURES]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
  """Returns what is in a folder; nothing if it is not there."""
  try:
    with os.scandir(folder) as entries:
      return list(entries)
  except (FileNotFoundError, NotADirectoryError, PermissionError):
    return []


def _shown(pictures: Sequence[Picture]) -> Json:
  """Returns pictures as the page has them, and what is wrong with others."""
  shown = []
  damaged = []
  facts = told(pictures[0].path.parent)
  for one in pictures:
    title = f"{one.kind} {one.number}"
    try:
      source = embedded(one.path)
    except (OSError, ValueError) as error:
      why = str(error).replace(str(one.path), one.path.name)
      damaged.append(record_fields.printable(f"{one.path.name}: {why}"))
      continue
    text = text_beside(facts.get(one.path.stem))
    shown.append(
      {"kind": one.kind, "title": title, "text": text, "src": source}
    )
  return {"pictures": shown, "damaged": damaged}


def embedded(path: Path) -> str:
  """Returns the address that holds a picture itself.

  Raises:
    ValueError: the file is no sound PNG, or a huge one.
    OSError: it cannot be read.
  """
  data = strange_files.read_bytes(path, MOST_BYTES)
  if not data.startswith(png_chunks.SIGNATURE):
    raise ValueError(f"no PNG: {decode.looks_like(data)}")
  header = png_chunks.header(data)
  if header.width * header.height > MOST_PIXELS:
    raise ValueError(
      f"{header.width} x {header.height} pixels; expected at most {MOST_PIXELS}"
    )
  picture = Image.fromarray(decode.decode_image(data))
  picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
  stream = io.BytesIO()
  picture.save(stream, "JPEG", quality=QUALITY)
  return (
    "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
  )


def told(gallery: Path) -> Json:
  """Returns what a run tells of its pictures, {name without .png: facts}.

  {} where there is no such file, or a damaged one.
  """
  path = gallery / TOLD
  if path.is_symlink():
    return {}
  try:
    facts = strange_files.read_json(path, MOST_TOLD)
  except (OSError, ValueError):
    return {}
  return facts if isinstance(facts, dict) else {}


def text_beside(facts: Any) -> str:
  """Returns the name and the scores of a picture's image, as far as told.

  Args:
    facts: {name, miou, macc, aacc}, or whatever a stranger's file has.
  """
  if not isinstance(facts, dict):
    return ""
  parts = []
  name = facts.get("name")
  if isinstance(name, str):
    parts.append(texts.printable(name)[:MOST_NAME])
  for score in Segmentation.scores:
    value = facts.get(score.name)
    if value is None or not json_files.is_number(value):
      continue
    if 0 <= value <= 100:
      parts.append(f"{score.title} {value:.1f} {score.unit}")
  return ", ".join(parts)
