"""Divides images with masks into parts: by names alone, without classes."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from vpt_jax.data.sources import parts
from vpt_jax.utils import texts
from vpt_jax.utils.logs import log

Item = TypeVar("Item")


def divide(
  found: Mapping[str, Sequence[str]], origin: str, seed: int, tells: bool
) -> dict[str, list[str]]:
  """Returns names by part, with val and test taken out of the others.

  Args:
    found: names by part; what "" holds is divided 80/10/10 % into train, val
      and test, and so is train alone; where only val is missing, it is a tenth
      of train.
    origin: what the names are from, for the log and errors.
    seed: of the division.
    tells: logs what is divided.

  Raises:
    ValueError: nothing is for training.
  """
  divided = {part: list(names) for part, names in found.items()}
  if divided.keys() == {"train"}:
    divided = {"": divided["train"]}
  taken: tuple[str, ...]
  if "" in divided:
    source, taken = "", ("val", "test")
  elif "train" not in divided:
    raise ValueError(
      f"{origin} has {', '.join(sorted(divided))}, but nothing for training"
    )
  elif "val" not in divided:
    source, taken = "train", ("val",)
  else:
    return divided
  # All are of one class here: names alone decide.
  rows: list[tuple[str, parts.Label]] = []
  for name in divided.pop(source):
    rows.append((name, 0))
  for part, carved in parts.carve(rows, seed, taken).items():
    divided[part] = [name for name, _ in carved]
  if tells:
    log.info(
      "%s: divided with seed %d: a tenth for %s; %d images stay for training",
      texts.printable(origin),
      seed,
      " and for ".join(taken),
      len(divided["train"]),
    )
  return divided


def select(
  found: Mapping[str, Sequence[Item]], split: str, origin: str
) -> list[Item]:
  """Returns what is of a split.

  Args:
    found: items by part.
    split: train, val, trainval or test.
    origin: where they are from, for the error.

  Raises:
    NoImages: there are none.
  """
  chosen: list[Item] = []
  for part in parts.of(split):
    chosen += found.get(part, [])
  if not chosen:
    there = [part for part in found if found[part]]
    raise parts.NoImages(
      f"{origin} has no images for {split}, only for {', '.join(there)}; "
      "config.data.train_split and config.data.test_split name the parts that "
      "are used, such as train and val"
    )
  return chosen
