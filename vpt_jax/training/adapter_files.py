"""Saves and reads adapters: npz files of a run's trained parameters."""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vpt_jax.utils import files, json_files, strange_files, trees

REMEDY = "take the file from the run that it is of, or train it again"
# Fields of the meta that every version has written, and those that came later.
NEEDED = {
  "backbone": json_files.BACKBONE,
  "config": json_files.OBJECT,
  "num_classes": json_files.POSITIVE,
}
MOST_COLOURS = 255  # 255 itself is no class in a label map
LATER = {
  "versions": json_files.TEXTS,
  "preprocess": json_files.or_null(json_files.OBJECT),
  "class_names": json_files.or_null(json_files.LIST),
  "palette": json_files.or_null(json_files.LIST),
  "run": json_files.or_null(json_files.TEXTS),
}


@dataclasses.dataclass(frozen=True)
class AdapterMeta:
  """What an adapter file says of its run.

  Attributes:
    backbone: {name, sha256} of the one that it was trained on.
    config: of the run, as JSON.
    num_classes: K.
    versions: of the libraries; {} if not known.
    preprocess: what happens to an image before the model sees it, see
      `Preprocess.to_json`; None: a file of a version before 0.2, which does not
      say it.
    class_names: K, or () if they are the numbers from 0 on; None: a file of a
      version before 0.2, in which names of classes were sorted as text.
    run: that it is of, see `run_folder.identity`; None: a file of a version
      before 0.2, which does not say it.
    palette: red, green and blue of the classes, in which label maps are drawn,
      K or more, or (): as Pascal VOC numbers them; None: classes are of whole
      images.
  """

  backbone: Mapping[str, str]
  config: Mapping[str, Any]
  num_classes: int
  versions: Mapping[str, str]
  preprocess: Mapping[str, Any] | None = None
  class_names: Sequence[str] | None = None
  run: Mapping[str, str] | None = None
  palette: Sequence[Sequence[int]] | None = None

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes, K; their numbers where they are not known."""
    numbers = tuple(map(str, range(self.num_classes)))
    return tuple(self.class_names or numbers)

  def to_json(self) -> dict[str, Any]:
    """Returns the fields; those that may not be known only if they are."""
    meta = {
      "backbone": dict(self.backbone),
      "config": dict(self.config),
      "num_classes": self.num_classes,
      "versions": dict(self.versions),
    }
    if self.preprocess is not None:
      meta["preprocess"] = dict(self.preprocess)
    if self.class_names is not None:
      meta["class_names"] = list(self.class_names)
    if self.run is not None:
      meta["run"] = dict(self.run)
    if self.palette is not None:
      meta["palette"] = [list(colour) for colour in self.palette]
    return meta

  @classmethod
  def from_json(cls, meta: Mapping[str, Any]) -> "AdapterMeta":
    """Returns the meta of a file, also of one of an older version.

    Raises:
      ValueError: a field is missing, or is no such thing.
    """
    missing = [name for name in NEEDED if name not in meta]
    if missing:
      raise ValueError(f"its meta has no {', '.join(missing)}")
    there = {name: kind for name, kind in LATER.items() if name in meta}
    wrong = json_files.fault(meta, {**NEEDED, **there})
    if wrong:
      raise ValueError(f"its meta: {wrong}")
    _check_class_names(meta)
    _check_palette(meta)
    return cls(
      backbone=meta["backbone"],
      config=meta["config"],
      num_classes=meta["num_classes"],
      versions=meta.get("versions", {}),
      preprocess=meta.get("preprocess"),
      class_names=meta.get("class_names"),
      run=meta.get("run"),
      palette=meta.get("palette"),
    )


def _check_class_names(meta: Mapping[str, Any]) -> None:
  """Raises ValueError unless there is a name of each class, or none."""
  names = meta.get("class_names") or ()
  are_texts = all(isinstance(name, str) for name in names)
  if not are_texts or len(names) not in (0, meta["num_classes"]):
    raise ValueError(
      f"its meta: field 'class_names' is {names!r:.40}, expected "
      f"{meta['num_classes']} texts, or none"
    )


def _check_palette(meta: Mapping[str, Any]) -> None:
  """Raises ValueError unless there is a colour of each class, or none."""
  palette = meta.get("palette") or ()
  is_whole = not palette or meta["num_classes"] <= len(palette) <= MOST_COLOURS
  if not is_whole or not all(map(_is_colour, palette)):
    raise ValueError(
      f"its meta: field 'palette' is {palette!r:.40}, expected [red, green, "
      f"blue], 0 to 255, of {meta['num_classes']} classes or more, at most "
      f"{MOST_COLOURS}; or none"
    )


def _is_colour(value: Any) -> bool:
  """Returns whether a value of JSON is [red, green, blue]."""
  if not isinstance(value, list) or len(value) != 3:
    return False
  return all(type(part) is int and 0 <= part <= 255 for part in value)


def save_adapter(path: Path, flat: trees.Flat, meta: AdapterMeta) -> None:
  """Writes one file with parameters and what they belong to.

  Args:
    path: of the npz.
    flat: flat tree; stored as float32.
    meta: what the file says of the run.
  """
  buffer = io.BytesIO()
  arrays: dict[str, Any] = {}
  for name, leaf in flat.items():
    arrays[name] = np.asarray(leaf, np.float32)
  np.savez(buffer, meta=json.dumps(meta.to_json()), **arrays)
  files.write_atomic(path, buffer.getvalue())


def read_adapter(path: str | os.PathLike) -> tuple[trees.Flat, AdapterMeta]:
  """Reads an adapter file; nothing in it is unpickled.

  Returns:
    (trained parameters, meta).

  Raises:
    ValueError: the file is missing, damaged or no adapter.
  """
  if not os.path.exists(path):
    raise ValueError(f"no adapter at {path}")
  try:
    arrays = strange_files.read_whole_npz(path)
    if "meta" not in arrays:
      raise ValueError("it has no array 'meta'")
    text = str(arrays.pop("meta")).encode()
    meta = AdapterMeta.from_json(json_files.parse(text, "its meta", {}, REMEDY))
    _check_arrays(arrays)
  except ValueError as error:
    raise ValueError(
      f"{path} is not an adapter file of vpt_jax: {error}"
    ) from None
  broken = [
    name
    for name, array in arrays.items()
    if array.dtype.kind == "f" and not np.isfinite(array).all()
  ]
  if broken:
    raise ValueError(
      f"adapter {path} holds NaN or infinite numbers in "
      f"{', '.join(sorted(broken)[:4])}; it is damaged, or its training "
      "diverged: take another one"
    )
  # How attention was computed is not part of the model: any machine reads it.
  compute = meta.config.get("compute")
  if isinstance(compute, dict):
    compute["attention"] = "ours"
  return arrays, meta


def _check_arrays(arrays: trees.Flat) -> None:
  """Raises ValueError for an array that no run saves."""
  for name, array in arrays.items():
    if array.dtype != np.float32:
      raise ValueError(f"array {name!r} is {array.dtype}, expected float32")


def check_backbone(
  path: str | os.PathLike,
  trained_on: Mapping[str, str],
  built: Mapping[str, str],
) -> None:
  """Raises ValueError unless a saved file fits the backbone of a config.

  Args:
    path: of the saved file, for the error.
    trained_on: {name, sha256} of the backbone that it was trained on.
    built: the same of the backbone at hand.
  """
  if trained_on != built:
    raise ValueError(
      f"checkpoint {path} was trained on backbone {trained_on['name']} "
      f"(sha256 {trained_on['sha256'][:8]}..), this config builds "
      f"{built['name']} (sha256 {built['sha256'][:8]}..)"
    )
