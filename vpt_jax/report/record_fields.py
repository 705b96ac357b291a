"""Reads the fields of records that have a default, and texts for people."""

import json

from vpt_jax import config as config_lib
from vpt_jax import problems
from vpt_jax.training.records import Record as Record
from vpt_jax.utils import trees


def is_dense(record: Record) -> bool:
  """Returns whether a record is of label maps, a class for every pixel."""
  return problems.of_run(record).dense


def metric(record: Record) -> problems.Score:
  """Returns the score that a record is judged by.

  It is the one that the record names. A run that diverged has none and names
  none: then the first score of its problem.
  """
  scores = problems.of_run(record).scores
  named = record.get("metric")
  for score in scores:
    if score.name == named:
      return score
  return scores[0]


def value(record: Record) -> float | None:
  """Returns the value of the record's `metric`; None if it diverged."""
  if record["status"] != "done":
    return None
  return finished_value(record)


def finished_value(record: Record) -> float:
  """Returns the value of the `metric` of a run that did not diverge."""
  return record[record["metric"]]


def flat_config(record: Record) -> dict[str, str]:
  """Returns {"vpt.num_tokens": "10"}: the config and the backbone's checksum.

  The values are as JSON has them, but texts without their quotes.
  """
  out = {}
  # A report is passed on.
  config = config_lib.without_folders(record["config"])
  for path, leaf in trees.flatten(config).items():
    out[path.replace("/", ".")] = json.dumps(leaf).strip('"')
  out["backbone.sha256"] = str(record["backbone"].get("sha256"))[:8]
  return out


def backbone(record: Record) -> str:
  """Returns the name of a record's backbone."""
  return printable(str(record["backbone"].get("name")))


def task(record: Record) -> str:
  """Returns the name of a record's task."""
  return printable(record["task"])


def printable(text: str) -> str:
  """Returns a text of a stranger's without what would steer a terminal."""
  return "".join(char if char.isprintable() else "?" for char in text)
