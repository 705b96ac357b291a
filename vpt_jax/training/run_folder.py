"""Keeps a folder to one run: another config, backbone or data are refused.

Every file that a run leaves also says whose it is (`identity`), and is checked
when it is read back: a folder may have been deleted under a run, and taken by
another one, before the first has written its last file.
"""

from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING
import zlib

from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as config_lib
from vpt_jax.data.examples import MaskedSplit, Split
from vpt_jax.training import adapter_files
from vpt_jax.utils import files, json_files

if TYPE_CHECKING:
  from vpt_jax.training.experiment import Data

# Bytes of images from which two data sets are told apart.
BYTES_COMPARED = 2**29

REMEDY = (
  "if its folder is of the run that you ask for, delete this file (it is "
  "written again), else use another --workdir"
)


def fingerprint(data: "Data") -> dict[str, dict[str, int]]:
  """Returns what tells two data sets apart.

  Returns:
    {train, test: {images, classes, crc32}}; the checksum is of the labels and
    of the images, of many images a part. Of images with label maps it is of
    what identifies their files.
  """
  return {"train": _of_split(data.train), "test": _of_split(data.test)}


def identity(
  configs: Sequence[ConfigDict],
  backbone: Mapping[str, str] | None = None,
  data: Mapping[str, Any] | None = None,
) -> dict[str, str]:
  """Returns what the files of a run say of whose they are.

  Args:
    configs: of the run, resolved; of all runs, where some train together.
    backbone: {name, sha256}; None: not known yet.
    data: their `fingerprint`; None: not known yet.

  Returns:
    {config, backbone, data} as far as known: 12 hex digits each. That of one
    config is the `id` of the run's record.
  """
  ids = [config_lib.digest(config, 12) for config in configs]
  known = {"config": ids[0] if len(ids) == 1 else _digest(ids)}
  if backbone is not None:
    known["backbone"] = _digest(dict(backbone))
  if data is not None:
    known["data"] = _digest(dict(data))
  return known


def difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
  """Returns what two identities differ in; "" if in nothing that both know."""
  for name in sorted(found.keys() & wanted.keys()):
    if found[name] != wanted[name]:
      return f"another {name} ({found[name]}, this one has {wanted[name]})"
  return ""


def check_owner(
  path: Path, found: Mapping[str, str] | None, wanted: Mapping[str, str]
) -> None:
  """Raises ValueError if a file says that it is of another run.

  Args:
    path: of the file.
    found: the identity in it; None: of a version before 0.2, which has none.
    wanted: that it should have.
  """
  differs = difference(found or {}, wanted)
  if differs:
    raise ValueError(
      f"{path} is of a run with {differs}: another process has used this "
      "folder at the same time. Delete the file, then the same command makes "
      "it again; or use another --workdir"
    )


def _digest(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _of_split(split: Split | MaskedSplit) -> dict[str, int]:
  if isinstance(split, MaskedSplit):
    return {
      "images": len(split),
      "classes": split.num_classes,
      "crc32": zlib.crc32(split.examples.identity.encode()),
    }
  step = -(-split.images.nbytes // BYTES_COMPARED)  # rounded up
  images = np.ascontiguousarray(split.images[::step])
  return {
    "images": len(split),
    "classes": split.num_classes,
    "crc32": zlib.crc32(split.labels.data, zlib.crc32(images.data)),
  }


def check_unchanged(path: Path, value: Mapping[str, Any]) -> None:
  """Raises ValueError if the file is there and says something else.

  Args:
    path: of a JSON file in the folder of a run.
    value: that it should hold.
  """
  if not path.exists():
    return
  lines = config_lib.difference(json_files.read(path, {}, REMEDY), value)
  if lines:
    raise ValueError(
      f"{path.parent} holds a run with another {path.stem}; use another "
      "--workdir, or delete it. Its value -> yours:\n  "
      + "\n  ".join(lines)
      + _way_on(path.parent, lines)
    )


def _way_on(workdir: Path, lines: Sequence[str]) -> str:
  """Returns how a finished run is trained for more epochs; "" for others."""
  adapter = workdir / "adapter.npz"
  asks_for_more = any(line.startswith("epochs:") for line in lines)
  if not asks_for_more or not adapter.exists():
    return ""
  return (
    "\nThe schedule of that run is over. To train on from what it has learned, "
    f"with a schedule of its own: another --workdir and --start={adapter}"
  )


def claim_backbone(workdir: Path, backbone: Mapping[str, str]) -> None:
  """Writes backbone.json of a folder.

  Args:
    workdir: the folder, of a run or of a sweep.
    backbone: {name, sha256}.

  Raises:
    ValueError: the folder is of another backbone file.
  """
  path = workdir / "backbone.json"
  if path.exists():
    fields = {"name": json_files.TEXT, "sha256": json_files.TEXT}
    trained_on = json_files.read(path, fields, REMEDY)
    adapter_files.check_backbone(workdir, trained_on, backbone)
  files.write_json(path, backbone)


def claim(
  workdir: Path,
  config: ConfigDict,
  backbone: Mapping[str, str],
  data: Mapping[str, Any],
) -> None:
  """Writes what the folder's run is made of, before its first step.

  Args:
    workdir: the folder.
    config: resolved.
    backbone: {name, sha256}.
    data: their `fingerprint`.

  Raises:
    ValueError: it was started with another backbone file or other data.
  """
  claim_backbone(workdir, backbone)
  check_unchanged(workdir / "data.json", data)
  files.write_json(workdir / "data.json", data)
  files.write_json(workdir / "config.json", config_lib.plain(config))
