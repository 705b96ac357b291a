"""Reads what users bring, each kind by its reader."""

from collections.abc import Callable
import dataclasses
from pathlib import Path

from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import (
  arrays,
  class_folders,
  csv_tables,
  image_files,
  layouts,
  mask_folders,
  masked_arrays,
  parts,
)
from vpt_jax.utils import texts


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a source of the user's own is read, see `open_split`."""

  seed: int
  multi_label: bool
  layout: str
  as_text: bool
  columns: str


def _read_folder(path: Path, split: str, reading: Reading) -> Examples:
  if reading.multi_label:
    raise ValueError(
      f"{path}: folders give every image one class; for images of several "
      "classes name a csv:PATH with labels a|b|c, a json:PATH with lists, or "
      "an npz:PATH with zeros and ones [N, K]"
    )
  if reading.layout == "auto" and mask_folders.has_masks(path):
    raise ValueError(_with_masks(path))
  try:
    return class_folders.folder(
      path, split, reading.seed, layout=reading.layout, as_text=reading.as_text
    )
  except parts.NoImages:
    raise
  except ValueError as error:
    if not csv_tables.has_metadata(path):
      raise
    raise ValueError(
      f"{error}. There is a {csv_tables.METADATA}: to read the labels from it, "
      f"name config.data.source=csv:{path}"
    ) from None


def _with_masks(path: Path) -> str:
  """Says that a folder has images and masks, and what to do."""
  refusal = layouts.refusal(
    path,
    f"has folders for kinds of files, {mask_folders.IMAGES} and "
    f"{mask_folders.MASKS}, where classes should be",
  )
  return (
    f"{refusal}. To learn the class of every pixel: "
    "config.problem=segmentation and "
    f"config.data.source=segfolder:{texts.printable(str(path))}"
  )


def _read_csv(path: Path, split: str, reading: Reading) -> Examples:
  return csv_tables.read_csv(
    path,
    split,
    reading.seed,
    reading.multi_label,
    reading.as_text,
    reading.columns,
  )


def _read_json(path: Path, split: str, reading: Reading) -> Examples:
  return image_files.json_splits(
    path,
    split,
    0,
    reading.seed,
    multi_label=reading.multi_label,
    as_text=reading.as_text,
  )


def _read_npz(path: Path, split: str, reading: Reading) -> Examples:
  try:
    return arrays.npz(
      path, split, reading.seed, reading.multi_label, reading.as_text
    )
  except ValueError as error:
    if not masked_arrays.has_masks(path):
      raise
    raise ValueError(
      f"{error}. It has masks: to learn the class of every pixel say "
      "config.problem=segmentation"
    ) from None


# What the user brings: kind -> reader(path, split, reading).
USER: dict[str, Callable[[Path, str, Reading], Examples]] = {
  "folder": _read_folder,
  "csv": _read_csv,
  "json": _read_json,
  "npz": _read_npz,
}
