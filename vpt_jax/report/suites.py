"""Lists the benchmarks' tasks and means, in the order of the papers."""

from collections.abc import Iterable, Mapping
import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table: a task, or a mean over tasks.

    value = mean over parts of (mean over the tasks of a part)

  Attributes:
    key: what `published.json` calls it; of a task of images its name.
    label: heading.
    title: what it is, in words.
    group: heading above the headings of several columns.
    parts: the tasks, in groups that count alike.
    multi_scale: it is of the test over several scales, of label maps.
  """

  key: str
  label: str
  title: str
  group: str
  parts: tuple[tuple[str, ...], ...]
  multi_scale: bool = False

  @property
  def is_mean(self) -> bool:
    """Whether it is over more than one task."""
    return len(self.tasks) > 1

  @property
  def tasks(self) -> tuple[str, ...]:
    """All tasks in it."""
    return tuple(task for part in self.parts for task in part)

  def mean(self, scores: Mapping[str, float]) -> float | None:
    """Returns the value from {task: score}; None unless all tasks are there."""
    if any(task not in scores for task in self.tasks):
      return None
    means = []
    for part in self.parts:
      means.append(statistics.fmean(scores[task] for task in part))
    return statistics.fmean(means)


@dataclasses.dataclass(frozen=True)
class Suite:
  """A benchmark.

  Attributes:
    name: as in the file names of configs and in `data/tasks.py`.
    title: above its table.
    columns: tasks and means, in the papers' order.
    dense: its tasks are of label maps, a class for every pixel.
  """

  name: str
  title: str
  columns: tuple[Column, ...]
  dense: bool = False

  @property
  def tasks(self) -> tuple[str, ...]:
    """Its tasks, in order, each once."""
    tasks: list[str] = []
    for column in self.columns:
      if not column.is_mean:
        tasks += column.tasks
    return tuple(dict.fromkeys(tasks))


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

# Titles of data sets with label maps; others are called as their task.
LABEL_MAPS = {
  "ade20k": "ADE20K",
  "voc2012": "Pascal VOC 2012",
  "voc2012_aug": "Pascal VOC 2012 aug",
  "pascal_context59": "Pascal Context 59",
  "pascal_context60": "Pascal Context 60",
  "cityscapes": "Cityscapes",
}


def _task_columns(labels: Mapping[str, str], group: str) -> list[Column]:
  return [
    Column(task, label, task, group, ((task,),))
    for task, label in labels.items()
  ]


def _vtab() -> Suite:
  """Returns VTAB-1k, with the two means that papers report of it."""
  columns = []
  groups = []
  for group, labels in VTAB.items():
    tasks = tuple(labels)
    groups.append(tasks)
    columns += _task_columns(labels, group)
    columns.append(
      Column(group.lower(), "Mean", f"{group} mean", group, (tasks,))
    )
  means = "VTAB-1k means"
  all_tasks = tuple(task for tasks in groups for task in tasks)
  columns.append(
    Column("vtab_19", "19 tasks", "mean over 19 tasks", means, (all_tasks,))
  )
  columns.append(
    Column(
      "vtab_3", "3 groups", "mean of the 3 group means", means, tuple(groups)
    )
  )
  return Suite("vtab", "VTAB-1k", tuple(columns))


def _one_group(name: str, title: str, labels: Mapping[str, str]) -> Suite:
  """Returns a suite of tasks that all count alike, with their mean."""
  tasks = tuple(labels)
  mean = Column(name, "Mean", f"mean over {len(tasks)} tasks", title, (tasks,))
  return Suite(name, title, (*_task_columns(labels, title), mean))


SUITES = (
  _vtab(),
  _one_group("fgvc", "FGVC", FGVC),
  _one_group("pgn", "The 12 data sets of PGN", PGN),
)


def find(tasks: Iterable[str]) -> list[Suite]:
  """Returns the suites of some tasks, and last the tasks that are in none."""
  tasks = list(dict.fromkeys(tasks))
  found = [suite for suite in SUITES if set(suite.tasks) & set(tasks)]
  known = {task for suite in SUITES for task in suite.tasks}
  rest = {task: task for task in tasks if task not in known}
  if rest:
    title = "Other tasks"
    found.append(Suite("other", title, tuple(_task_columns(rest, title))))
  return found


def of_label_maps(task: str, multi_scale: bool) -> Suite:
  """Returns the suite of one data set with a class for every pixel.

  Args:
    task: its name.
    multi_scale: with a column of the test over several scales.
  """
  group = LABEL_MAPS.get(task, task)
  columns = [
    Column(f"{task}/single", "mIoU (SS)", f"{group}, SS", group, ((task,),))
  ]
  if multi_scale:
    columns.append(
      Column(
        f"{task}/multi",
        "mIoU (MS)",
        f"{group}, MS",
        group,
        ((task,),),
        multi_scale=True,
      )
    )
  return Suite(task, f"Segmentation: {group}", tuple(columns), dense=True)
