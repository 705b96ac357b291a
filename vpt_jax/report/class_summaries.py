"""Prepares what the page shows of classes: how well each is recognised."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import statistics
from typing import Any

from vpt_jax import problems
from vpt_jax.report.record_fields import Record
from vpt_jax.report.rows import Row
from vpt_jax.utils import json_files

Json = dict[str, Any]

MOST_IN_MATRIX = 100  # classes of a confusion matrix
MOST_PAIRS = 20  # of classes that are confused
SHOWN_CLASSES = 25  # with the lowest and highest accuracy, if there are more


def classes(found: Sequence[Row], names: Mapping[int, str]) -> list[Json]:
  """Returns how well the classes of each row and task are recognised.

  They are of all seeds together, and of records that have it: confusions of
  classification, average precisions of multi-label classification, IoUs of
  segmentation.

  Args:
    found: rows.
    names: {id of a row: short name}.
  """
  out = []
  for row in found:
    for task in row.scores:
      records = row.records_of(task)
      for field, summary in CLASS_SUMMARIES.items():
        kept = [record for record in records if record.get(field)]
        if kept:
          head = {
            "task": task,
            "label": names[id(row)],
            "seeds": len(kept),
          }
          out.append(head | summary(kept))
  return out


@dataclasses.dataclass(frozen=True)
class ClassScore:
  """How well a class is recognised.

  Attributes:
    label: of the class.
    percent: its accuracy, average precision or IoU, to 4 digits.
    images: of the class; None if that is not known.
  """

  label: int
  percent: float
  images: int | None


def confusions(records: Sequence[Record]) -> Json:
  """Returns the sums over the records of one task, as the page shows them.

  Of many classes only those are shown that have the lowest and the highest
  accuracy and those that are confused most, without the matrix.
  """
  pairs = _summed_pairs(records)
  class_names = _longest_names(records)
  count = max(len(class_names), 1 + max(map(max, pairs)))
  totals = [0] * count
  for (label, _), images in pairs.items():
    totals[label] += images

  accuracies, left_out = _extremes(_accuracies(pairs, totals))
  wrong = _most_confused(pairs, totals)
  shown: Iterable[int] = range(count)
  matrix = [[*pair, images] for pair, images in sorted(pairs.items()) if images]
  if count > MOST_IN_MATRIX:
    matrix = []
    shown = {accuracy.label for accuracy in accuracies}
    for label, guess, *_ in wrong:
      shown |= {label, guess}
  return {
    "measure": "accuracy",
    "count": count,
    "totals": totals if matrix else [],
    "scores": _score_lists(accuracies),
    "left_out": left_out,
    "wrong": wrong,
    "matrix": matrix,
    "titles": {label: _class_title(class_names, label) for label in shown},
  }


Pairs = Mapping[tuple[int, int], int]  # {(label, prediction): images}


def _summed_pairs(records: Sequence[Record]) -> Pairs:
  out: dict[tuple[int, int], int] = {}
  for record in records:
    for label, guess, images in record["confusion"]:
      out[label, guess] = out.get((label, guess), 0) + images
  return out


def _accuracies(pairs: Pairs, totals: Sequence[int]) -> list[ClassScore]:
  """Returns the accuracy of each class that has images."""
  out = []
  for label, images in enumerate(totals):
    if images:
      percent = _four_digits(100 * pairs.get((label, label), 0) / images)
      out.append(ClassScore(label, percent, images))
  return out


def _extremes(scores: Sequence[ClassScore]) -> tuple[list[ClassScore], int]:
  """Returns the lowest and the highest, sorted, and how many are left out."""
  ordered = sorted(scores, key=lambda score: (score.percent, score.label))
  left_out = max(0, len(ordered) - 2 * SHOWN_CLASSES)
  if left_out:
    ordered = ordered[:SHOWN_CLASSES] + ordered[-SHOWN_CLASSES:]
  return ordered, left_out


def _score_lists(scores: Sequence[ClassScore]) -> list[list[Any]]:
  return [[score.percent, score.label, score.images] for score in scores]


def _most_confused(pairs: Pairs, totals: Sequence[int]) -> list[list[int]]:
  """Returns [label, prediction, images, images of the class], most first."""
  wrong = []
  for (label, guess), images in pairs.items():
    if label != guess:
      wrong.append([label, guess, images, totals[label]])
  wrong.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
  return wrong[:MOST_PAIRS]


def _class_title(class_names: Sequence[Any], label: int) -> str:
  return str(class_names[label] if label < len(class_names) else label)


def average_precisions(records: Sequence[Record]) -> Json:
  """Returns the mean over the records of one task, as `confusions` does.

  A class that no record has images of has no average precision.
  """
  class_names = _longest_names(records)
  values: dict[int, list[float]] = {}
  for record in records:
    for label, value in enumerate(record["average_precision"]):
      if value is not None:
        values.setdefault(label, []).append(value)
  scores = []
  for label, of_seeds in values.items():
    percent = _four_digits(statistics.fmean(of_seeds))
    scores.append(ClassScore(label, percent, None))
  shown, left_out = _extremes(scores)
  titles = {}
  for score in shown:
    titles[score.label] = _class_title(class_names, score.label)
  return {
    "measure": "average precision",
    "count": len(scores),
    "totals": [],
    "scores": _score_lists(shown),
    "left_out": left_out,
    "wrong": [],
    "matrix": [],
    "titles": titles,
  }


def ious(records: Sequence[Record]) -> Json:
  """Returns the mean over the records of one task, as `confusions` does.

  In place of a matrix, `table` has [class, IoU, standard deviation over seeds,
  accuracy] of all classes. What a class does not have is null: its IoU where it
  is in neither labels nor predictions, its accuracy where it is in no label.
  `overall` has [title, mean] of the problem's scores.
  """
  class_names = _longest_names(records)
  by_class = _of_each_class(records, "class_iou")
  accuracies = _of_each_class(records, "class_accuracy")
  scores = []
  table = []
  titles = {}
  for label, of_seeds in by_class.items():
    titles[label] = _class_title(class_names, label)
    mean = _mean(of_seeds)
    deviation = None
    if len(of_seeds) > 1:
      deviation = _four_digits(statistics.stdev(of_seeds))
    if mean is not None:
      scores.append(ClassScore(label, mean, None))
    accuracy = _mean(accuracies.get(label, []))
    table.append([titles[label], mean, deviation, accuracy])
  shown, left_out = _extremes(scores)
  # The lowest first; those that do not occur last.
  table.sort(key=lambda line: (line[1] is None, line[1] or 0.0, line[0]))
  return {
    "measure": "IoU",
    "count": len(by_class),
    "totals": [],
    "scores": _score_lists(shown),
    "left_out": left_out,
    "wrong": [],
    "matrix": [],
    "table": table,
    "overall": _overall(records),
    "titles": titles,
  }


def _overall(records: Sequence[Record]) -> list[tuple[str, float]]:
  """Returns (title, mean over the records) of scores that all of them have."""
  out = []
  for score in problems.of_run(records[0]).scores:
    numbers: list[float] = []
    for record in records:
      value = record.get(score.name)
      if value is not None and json_files.is_number(value):
        numbers.append(value)
    if len(numbers) == len(records):
      out.append((score.title, round(statistics.fmean(numbers), 2)))
  return out


def _of_each_class(
  records: Sequence[Record], field: str
) -> dict[int, list[float]]:
  """Returns {class: values of the records that have one}, of all classes."""
  out: dict[int, list[float]] = {}
  for record in records:
    for label, value in enumerate(record.get(field) or ()):
      of_seeds = out.setdefault(label, [])
      if value is not None:
        of_seeds.append(value)
  return out


def _mean(values: Sequence[float]) -> float | None:
  return _four_digits(statistics.fmean(values)) if values else None


def _longest_names(records: Sequence[Record]) -> Sequence[Any]:
  """Returns the names of classes; a record of few classes may lack some."""
  return max((record.get("classes", []) for record in records), key=len)


def _four_digits(value: float) -> float:
  """Returns a finite number to 4 significant digits."""
  return float(f"{value:.4g}")


# {field of a record: what sums it up over seeds}
CLASS_SUMMARIES = {
  "confusion": confusions,
  "average_precision": average_precisions,
  "class_iou": ious,
}
