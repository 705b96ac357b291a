"""Checks the fields of records, and reads the ones that have a default.

The fields and what they mean: `vpt_jax/training/records.py`. A record comes
from a file of anyone's, so nothing is taken from it before `check`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from vpt_jax import problems
from vpt_jax.training import records as run_records
from vpt_jax.utils import trees

Record = run_records.Record

RESULT_STAGES = ("final", "single")  # whose scores the tables show
STAGES = (*RESULT_STAGES, "search", "condense")
STATUSES = ("done", "diverged")
MOST_CLASSES = 100_000  # so that a damaged label does not ask for a huge table


@dataclasses.dataclass(frozen=True)
class Kind:
  """What the value of a field has to be.

  Attributes:
    expected: is said in the error for any other value.
    accepts: returns whether a value is of this kind.
  """

  expected: str
  accepts: Callable[[Any], bool]


def _of_type(expected: str, kind: type) -> Kind:
  return Kind(expected, lambda value: isinstance(value, kind))


def _one_of(choices: Sequence[str]) -> Kind:
  # A list, as in JSON, cannot be looked up in a set.
  return Kind(f"one of {', '.join(choices)}", lambda value: value in choices)


def _is_whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_curve(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(epochs, list) for epochs in value.values()
  )


def _is_confusion(value: Any) -> bool:
  return value is None or (
    isinstance(value, list) and all(map(_is_confused_pair, value))
  )


def _is_confused_pair(value: Any) -> bool:
  """Returns whether a value is [label, prediction, images]."""
  if not isinstance(value, list) or len(value) != 3:
    return False
  if not all(_is_whole(part) and 0 <= part < 2**31 for part in value):
    return False
  label, prediction, _ = value
  return max(label, prediction) < MOST_CLASSES


def _is_class_scores(value: Any) -> bool:
  return value is None or (
    isinstance(value, list)
    and len(value) <= MOST_CLASSES
    and all(score is None or _is_number(score) for score in value)
  )


TEXT = _of_type("a text", str)
LIST = _of_type("a list", list)
OBJECT = _of_type("an object {...}", dict)
WHOLE = Kind("a whole number", _is_whole)
POSITIVE = Kind(
  "a whole number of at least 1", lambda value: _is_whole(value) and value >= 1
)
NUMBER = Kind("a finite number", _is_number)
CURVE = Kind("an object of lists, a value for each epoch", _is_curve)
CONFUSION = Kind("[[label, prediction, images], ...]", _is_confusion)
CLASS_SCORES = Kind(
  "a list of numbers, null for a class without images", _is_class_scores
)

Fields = Mapping[str, Kind]

EVERY_RECORD: Fields = {
  "id": TEXT,
  "stage": _one_of(STAGES),
  "name": TEXT,
  "method": TEXT,
  "task": TEXT,
  "split": TEXT,
  "seed": WHOLE,
  "backbone": OBJECT,
  "cell": OBJECT,
  "config": OBJECT,
  "device": TEXT,
  "versions": OBJECT,
  "seconds": NUMBER,
}
# Of all stages but `condense`.
RUN: Fields = {
  "status": _one_of(STATUSES),
  "trainable_params": WHOLE,
  "total_params": POSITIVE,
  "train_images": WHOLE,
  "group": WHOLE,
  "curve": CURVE,
}
# Beside these a finished run has the score that `metric` names.
FINISHED_RUN: Fields = {
  "loss": NUMBER,
  "count": WHOLE,
  "classes": LIST,
}
# What problems keep of their predictions; null in searches.
OPTIONAL: Fields = {
  "confusion": CONFUSION,
  "average_precision": CLASS_SCORES,
}
CONDENSATION: Fields = {
  "statistic": TEXT,
  "rows": LIST,
}
# Beside these a share has its two scores, see `share_scores`.
CONDENSED_SHARE: Fields = {
  "share": NUMBER,
  "prompts": WHOLE,
  "per_set": LIST,
  "gmacs": NUMBER,
  "milliseconds": NUMBER,
}


def check(records: Sequence[Record]) -> None:
  """Raises ValueError for a record without what its stage must have."""
  for record in records:
    _check_fields(record, EVERY_RECORD, record)
    _check_problem(record)
    if record["stage"] == "condense":
      _check_condensation(record)
    else:
      _check_run(record)


def _check_problem(record: Record) -> None:
  name = record.get("problem", problems.DEFAULT)
  known = _one_of(sorted(problems.PROBLEMS))
  if not known.accepts(name):
    raise _fault(record, "problem", known.expected, record)


def _check_run(record: Record) -> None:
  _check_fields(record, RUN, record)
  if record["status"] != "done":
    return
  scores = [score.name for score in problems.of_run(record).scores]
  _check_fields(record, {"metric": _one_of(scores)}, record)
  _check_fields(record, {**FINISHED_RUN, record["metric"]: NUMBER}, record)
  there = {name: kind for name, kind in OPTIONAL.items() if name in record}
  _check_fields(record, there, record)


def _check_condensation(record: Record) -> None:
  _check_fields(record, CONDENSATION, record)
  scores = dict.fromkeys(share_scores(record), NUMBER)
  for share in record["rows"]:
    _check_fields(share, {**CONDENSED_SHARE, **scores}, record)


def _check_fields(part: Any, fields: Fields, record: Record) -> None:
  """Checks a record or a part of it."""
  for name, kind in fields.items():
    if not isinstance(part, dict) or name not in part:
      raise _fault(part, name, kind.expected, record)
    if not kind.accepts(part[name]):
      raise _fault(part, name, kind.expected, record)


def _fault(part: Any, name: str, expected: str, record: Record) -> ValueError:
  """Returns the error for a field of a record or of a part of it."""
  found = "is missing"
  if isinstance(part, dict) and name in part:
    found = f"is {part[name]!r:.40}"
  return ValueError(
    f"record {str(record.get('id'))!r:.40}: field {name!r} {found}, expected "
    f"{expected}; delete its line from {run_records.FILE}, the run can be made "
    "again"
  )


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


def share_scores(record: Record) -> tuple[str, str]:
  """Returns the fields of a condensed share's scores.

  The first is that of the prompts as they are kept, the second that after
  fine-tuning: both of the first score of the problem.
  """
  name = problems.of_run(record).scores[0].name
  return f"{name}_as_is", f"{name}_tuned"


def flat_config(record: Record) -> dict[str, str]:
  """Returns {"vpt.num_tokens": "10"}: the config and the backbone's checksum.

  The values are as JSON has them, but texts without their quotes.
  """
  out = {}
  for path, leaf in trees.flatten(record["config"]).items():
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
