"""Lets a run start from what another one has learned: `--start=ADAPTER`.

Its optimizer, schedule and epochs begin anew; its parameters are those of the
adapter. The config holds a digest of the file (`config.start`), so that such a
run is another one than the run that starts at random.
"""

from collections.abc import Mapping, Sequence
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from vpt_jax.training import adapter_files
from vpt_jax.training.adapter_files import AdapterMeta
from vpt_jax.utils import strange_files, trees

MOST_BYTES = 2**36  # of an adapter's file: it may hold a whole backbone
SHOWN = 4  # names of arrays in an error


class Origin(NamedTuple):
  """What a run starts from.

  Attributes:
    path: of the adapter's file.
    values: its arrays.
    meta: what it says of its run.
  """

  path: str
  values: trees.Flat
  meta: AdapterMeta


def read(path: str | os.PathLike) -> Origin:
  """Reads the adapter that a run starts from.

  Raises:
    ValueError: the file is missing, damaged or no adapter.
  """
  path = os.path.expanduser(path)
  values, meta = adapter_files.read_adapter(path)
  return Origin(str(path), values, meta)


def digest(path: str | os.PathLike) -> str:
  """Returns the value of `config.start` for a file.

  Raises:
    ValueError: the file is missing, or none.
  """
  path = Path(path).expanduser()
  if not path.exists():
    raise ValueError(f"no adapter at {path}")
  data = strange_files.read_bytes(path, MOST_BYTES)
  return hashlib.sha256(data).hexdigest()[:16]


def note(config: ConfigDict, path: str | os.PathLike) -> ConfigDict:
  """Returns the config of a run that starts from a file.

  Raises:
    ValueError: the file is missing, or is not the one that the config names.
  """
  found = digest(path)
  if config.start not in ("", found):
    raise ValueError(
      f"config.start={config.start!r}, but {path} is {found}; leave the field "
      "out: --start=ADAPTER sets it"
    )
  config = ConfigDict(config.to_dict())
  config.start = found
  return config


def check(
  origin: Origin,
  known: Sequence[str],
  backbone: Mapping[str, str],
  class_names: Sequence[str],
  seed: int,
) -> None:
  """Checks that a run may start from an adapter.

  Args:
    origin: the adapter.
    known: paths of all arrays of the run's model.
    backbone: {name, sha256} of the run.
    class_names: of the run, () if they are numbers.
    seed: of the run.

  Raises:
    ValueError: it was trained on another backbone or on other classes, or holds
      arrays that the run's model does not have.
  """
  path = origin.path
  adapter_files.check_backbone(path, origin.meta.backbone, backbone)
  _check_random_backbone(origin, known, seed)
  names = origin.meta.class_names
  if names is not None and tuple(names) != tuple(class_names):
    raise ValueError(
      f"--start={path} was trained on the classes {list(names)!r:.80}, these "
      f"data have {list(class_names)!r:.80}; expected the same, in that order"
    )
  unknown = sorted(origin.values.keys() - set(known))
  if unknown:
    more = "" if len(unknown) <= SHOWN else f" and {len(unknown) - SHOWN} more"
    raise ValueError(
      f"--start={path} holds {', '.join(unknown[:SHOWN])}{more}, which this "
      "config's model does not have; it is of config.method="
      f"{origin.meta.config.get('method')!r}. Expected an adapter of the same "
      "method"
    )


def _check_random_backbone(
  origin: Origin, known: Sequence[str], seed: int
) -> None:
  """Raises ValueError if a random backbone is not the adapter's.

  Its numbers follow from the run's seed.
  """
  of_backbone = {name for name in known if name.startswith("backbone/")}
  is_held = of_backbone <= origin.values.keys()
  trained_with = origin.meta.config.get("seed")
  is_random = origin.meta.backbone["sha256"] == "random"
  if is_random and not is_held and trained_with != seed:
    raise ValueError(
      f"--start={origin.path} was trained on a random backbone of seed "
      f"{trained_with}, this run's is of seed {seed}; set "
      f"config.seed={trained_with}"
    )
