"""Saves and reads adapters: npz files of a run's trained parameters."""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vpt_jax.utils import files, trees


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
  """

  backbone: Mapping[str, str]
  config: Mapping[str, Any]
  num_classes: int
  versions: Mapping[str, str]
  preprocess: Mapping[str, Any] | None = None
  class_names: Sequence[str] | None = None

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
    return meta

  @classmethod
  def from_json(cls, meta: Mapping[str, Any]) -> "AdapterMeta":
    """Returns the meta of a file, also of one of an older version.

    Raises:
      ValueError: fields are missing.
    """
    needed = ("backbone", "config", "num_classes")
    missing = [name for name in needed if name not in meta]
    if missing:
      raise ValueError(f"its meta has no {', '.join(missing)}")
    return cls(
      backbone=meta["backbone"],
      config=meta["config"],
      num_classes=meta["num_classes"],
      versions=meta.get("versions", {}),
      preprocess=meta.get("preprocess"),
      class_names=meta.get("class_names"),
    )


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
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
    meta = AdapterMeta.from_json(json.loads(str(arrays.pop("meta"))))
  except FileNotFoundError:
    raise ValueError(f"no adapter at {path}") from None
  except Exception as error:  # numpy and zipfile have many errors
    raise ValueError(
      f"{path} is not an adapter file of vpt_jax: {error!r}"
    ) from None
  # How attention was computed is not part of the model: any machine reads it.
  if "compute" in meta.config:
    meta.config["compute"]["attention"] = "ours"
  return arrays, meta


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
