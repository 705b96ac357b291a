"""Checks the fields of records, before anything is taken from them.

The fields and what they mean: `records.py`. A record comes from a file of
anyone's.
"""

from collections.abc import Sequence
from typing import Any

from vpt_jax import problems
from vpt_jax.training import records as run_records
from vpt_jax.training.records import Record
from vpt_jax.utils import json_files
from vpt_jax.utils.json_files import (
  BACKBONE,
  Fields,
  is_number,
  is_whole,
  Kind,
  LIST,
  NUMBER,
  OBJECT,
  one_of,
  POSITIVE,
  TEXT,
  WHOLE,
)

RESULT_STAGES = ("final", "single")  # whose scores the tables show
STAGES = (*RESULT_STAGES, "search", "condense")
STATUSES = ("done", "diverged")
MOST_CLASSES = 100_000  # so that a damaged label does not ask for a huge table
MOST_DENSE_CLASSES = 255  # label maps are bytes, and 255 is no class


def _is_curve(value: Any) -> bool:
  return isinstance(value, dict) and all(map(_is_numbers, value.values()))


def _is_numbers(value: Any) -> bool:
  """Returns whether a value is a list of numbers, null where one is missing."""
  return isinstance(value, list) and all(
    number is None or is_number(number) for number in value
  )


def _is_confusion(value: Any) -> bool:
  return value is None or (
    isinstance(value, list) and all(map(_is_confused_pair, value))
  )


def _is_confused_pair(value: Any) -> bool:
  """Returns whether a value is [label, prediction, images]."""
  if not isinstance(value, list) or len(value) != 3:
    return False
  if not all(is_whole(part) and 0 <= part < 2**31 for part in value):
    return False
  label, prediction, _ = value
  return max(label, prediction) < MOST_CLASSES


def _is_class_scores(value: Any) -> bool:
  return value is None or (_is_numbers(value) and len(value) <= MOST_CLASSES)


def _is_class_percents(value: Any) -> bool:
  """Returns whether a value is a list of percents, null where there is none."""
  if value is None:
    return True
  if not _is_numbers(value) or len(value) > MOST_DENSE_CLASSES:
    return False
  return all(percent is None or 0 <= percent <= 100 for percent in value)


CURVE = Kind("an object of lists, a value for each epoch", _is_curve)
CONFUSION = Kind("[[label, prediction, images], ...]", _is_confusion)
CLASS_SCORES = Kind(
  "a list of numbers, null for a class without images", _is_class_scores
)
CLASS_PERCENTS = Kind(
  f"a list of at most {MOST_DENSE_CLASSES} numbers 0..100, null for a class "
  "without pixels",
  _is_class_percents,
)
COUNT = Kind(
  "a whole number of at least 0", lambda value: is_whole(value) and value >= 0
)

EVERY_RECORD: Fields = {
  "id": TEXT,
  "stage": one_of(STAGES),
  "name": TEXT,
  "method": TEXT,
  "task": TEXT,
  "split": TEXT,
  "seed": WHOLE,
  "backbone": BACKBONE,
  "cell": OBJECT,
  "config": OBJECT,
  "device": TEXT,
  "versions": OBJECT,
  "seconds": NUMBER,
}
# Of all stages but `condense`.
RUN: Fields = {
  "status": one_of(STATUSES),
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
# What problems keep of their predictions, null in searches; and `classes`.
OPTIONAL: Fields = {
  "classes": LIST,
  "confusion": CONFUSION,
  "average_precision": CLASS_SCORES,
  "class_iou": CLASS_PERCENTS,
  "class_accuracy": CLASS_PERCENTS,
  "head_params": json_files.or_null(COUNT),
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
# Of each statistic in `oracle`, where that was asked for.
CORRELATIONS: Fields = {"magnitude": NUMBER, "change": NUMBER}


def check(records: Sequence[Record]) -> None:
  """Raises ValueError for a record without what its stage must have."""
  for record in records:
    wrong = fault(record)
    if wrong:
      raise ValueError(
        f"record {str(record.get('id'))!r:.40}: {wrong}; delete its line from "
        f"{run_records.FILE}, the run can be made again"
      )


def fault(record: Record) -> str:
  """Returns what is wrong with a record; "" if nothing is."""
  wrong = json_files.fault(record, EVERY_RECORD) or fault_of_problem(record)
  if wrong:
    return wrong
  if record["stage"] == "condense":
    return fault_of_condensation(record)
  return _fault_of_run(record)


def fault_of_problem(facts: Record) -> str:
  """Returns what is wrong with the problem of a record or a result, or ""."""
  name = facts.get("problem", problems.DEFAULT)
  known = one_of(sorted(problems.PROBLEMS))
  return json_files.fault({"problem": name}, {"problem": known})


def _fault_of_run(record: Record) -> str:
  """Returns what is wrong with a run's record, see `fault`."""
  wrong = json_files.fault(record, {**RUN, **_optional_fields(record)})
  wrong = wrong or _fault_of_classes(record)
  if wrong or record["status"] != "done":
    return wrong
  scores = [score.name for score in problems.of_run(record).scores]
  wrong = json_files.fault(record, {"metric": one_of(scores)})
  if wrong:
    return wrong
  return json_files.fault(record, {**FINISHED_RUN, record["metric"]: NUMBER})


def _optional_fields(record: Record) -> Fields:
  """Returns those of `OPTIONAL` that a record has; and its second test."""
  scores = [score.name for score in problems.of_run(record).scores]
  of_scores = json_files.object_of(dict.fromkeys(scores, NUMBER))
  known = {**OPTIONAL, "multi_scale": json_files.or_null(of_scores)}
  return {name: kind for name, kind in known.items() if name in record}


def _fault_of_classes(record: Record) -> str:
  """Returns whether the lists of a segmentation's classes differ in length."""
  ious = record.get("class_iou")
  accuracies = record.get("class_accuracy")
  if ious is None or accuracies is None or len(ious) == len(accuracies):
    return ""
  return (
    f"field 'class_accuracy' has {len(accuracies)} classes, expected the "
    f"{len(ious)} of 'class_iou'"
  )


def fault_of_condensation(record: Record) -> str:
  """Returns what is wrong with the results of a condensation; "" if nothing.

  Args:
    record: of it, or what condense.json holds; its `problem` is known.
  """
  wrong = json_files.fault(record, CONDENSATION)
  if wrong:
    return wrong
  scores = dict.fromkeys(share_scores(record), NUMBER)
  for share in record["rows"]:
    wrong = wrong or json_files.fault(share, {**CONDENSED_SHARE, **scores})
  if "oracle" in record:
    wrong = wrong or json_files.fault(record, {"oracle": OBJECT})
  if wrong:
    return wrong
  for correlations in record.get("oracle", {}).values():
    wrong = wrong or json_files.fault(correlations, CORRELATIONS)
  return wrong


def share_scores(record: Record) -> tuple[str, str]:
  """Returns the fields of a condensed share's scores.

  The first is that of the prompts as they are kept, the second that after
  fine-tuning: both of the first score of the problem.
  """
  name = problems.of_run(record).scores[0].name
  return f"{name}_as_is", f"{name}_tuned"
