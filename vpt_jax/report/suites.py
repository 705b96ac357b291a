"""The benchmarks' tasks and means, in the order in which papers print them."""

from collections.abc import Iterable, Mapping
import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Column:
  """A task, or a mean over tasks.

  Attributes:
    key: the task's name; of a mean, what `published.json` calls it.
    label: heading.
    title: what it is, in words.
    group: heading above headings.
    parts: tasks; the value is the mean over parts of the mean over tasks.
  """

  key: str
  label: str
  title: str
  group: str
  parts: tuple[tuple[str, ...], ...]

  @property
  def is_mean(self) -> bool:
    """Whether it is over more than one task."""
    return len(self.tasks) > 1

  @property
  def tasks(self) -> tuple[str, ...]:
    """All tasks in it."""
    return tuple(task for part in self.parts for task in part)

  def mean(self, scores: Mapping[str, float]) -> float | None:
    """The value from a score per task; None unless all tasks are there."""
    if any(task not in scores for task in self.tasks):
      return None
    return statistics.fmean(
      statistics.fmean(scores[task] for task in part) for part in self.parts
    )


@dataclasses.dataclass(frozen=True)
class Suite:
  """A benchmark."""

  name: str
  title: str
  columns: tuple[Column, ...]

  @property
  def tasks(self) -> tuple[str, ...]:
    """Its tasks, in order."""
    return tuple(column.key for column in self.columns if not column.is_mean)


# Heading of each task, in the papers' order.
VTAB = {
  "Natural": {
    "cifar100": "CIFAR-100",
    "caltech101": "Caltech101",
    "dtd": "DTD",
    "oxford_flowers102": "Flowers102",
    "oxford_iiit_pet": "Pets",
    "svhn": "SVHN",
    "sun397": "Sun397",
  },
  "Specialized": {
    "patch_camelyon": "Camelyon",
    "eurosat": "EuroSAT",
    "resisc45": "Resisc45",
    "diabetic_retinopathy": "Retinopathy",
  },
  "Structured": {
    "clevr_count": "Clevr-Count",
    "clevr_distance": "Clevr-Dist",
    "dmlab": "DMLab",
    "kitti": "KITTI-Dist",
    "dsprites_location": "dSpr-Loc",
    "dsprites_orientation": "dSpr-Ori",
    "smallnorb_azimuth": "sNORB-Azim",
    "smallnorb_elevation": "sNORB-Elev",
  },
}
FGVC = {
  "fgvc_cub": "CUB",
  "fgvc_nabirds": "NABirds",
  "fgvc_flowers": "Flowers",
  "fgvc_dogs": "Dogs",
  "fgvc_cars": "Cars",
}
PGN = {
  "pgn_cifar100": "CIFAR-100",
  "pgn_cifar10": "CIFAR-10",
  "pgn_flowers": "Flowers",
  "pgn_food101": "Food101",
  "pgn_eurosat": "EuroSAT",
  "pgn_sun397": "SUN397",
  "pgn_ucf101": "UCF101",
  "pgn_svhn": "SVHN",
  "pgn_pets": "Pets",
  "pgn_dtd": "DTD",
  "pgn_resisc45": "RESISC45",
  "pgn_clevr": "CLEVR",
}


def _tasks(labels: Mapping[str, str], group: str) -> list[Column]:
  return [
    Column(task, label, task, group, ((task,),))
    for task, label in labels.items()
  ]


def _vtab() -> Suite:
  columns, parts = [], []
  for group, labels in VTAB.items():
    parts.append(tuple(labels))
    columns += _tasks(labels, group)
    columns.append(
      Column(group.lower(), "Mean", f"{group} mean", group, (tuple(labels),))
    )
  every = tuple(task for part in parts for task in part)
  columns += [
    Column(
      "vtab_19", "19 tasks", "mean over 19 tasks", "VTAB-1k means", (every,)
    ),
    Column(
      "vtab_3",
      "3 groups",
      "mean of the 3 group means",
      "VTAB-1k means",
      tuple(parts),
    ),
  ]
  return Suite("vtab", "VTAB-1k", tuple(columns))


def _flat(name: str, title: str, labels: Mapping[str, str]) -> Suite:
  return Suite(
    name,
    title,
    (
      *_tasks(labels, title),
      Column(
        name, "Mean", f"mean over {len(labels)} tasks", title, (tuple(labels),)
      ),
    ),
  )


SUITES = (
  _vtab(),
  _flat("fgvc", "FGVC", FGVC),
  _flat("pgn", "The 12 data sets of PGN", PGN),
)


def find(tasks: Iterable[str]) -> list[Suite]:
  """The suites of some tasks, last one of the tasks that are in none."""
  tasks = list(dict.fromkeys(tasks))
  found = [suite for suite in SUITES if set(suite.tasks) & set(tasks)]
  known = {task for suite in SUITES for task in suite.tasks}
  rest = {task: task for task in tasks if task not in known}
  if rest:
    found.append(
      Suite("other", "Other tasks", tuple(_tasks(rest, "Other tasks")))
    )
  return found
