"""Makes the rows of tables from records: mean and deviation over seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import statistics

from vpt_jax import problems
from vpt_jax.report import record_fields, suites
from vpt_jax.report.record_fields import Record
from vpt_jax.report.suites import Column, Suite
from vpt_jax.training import record_checks

# Fields that make another method, under whatever name.
METHOD_FIELDS = ("method", "trainable", "vpt.deep", "segmentation.decoder")
# Fields that a search picks: these tell rows apart only if nothing else does.
SEARCHED = "optim."


@dataclasses.dataclass(frozen=True)
class TaskScore:
  """What the seeds of a row reach on a task.

  Attributes:
    mean: over the seeds that did not diverge; None if all did.
    std: sample standard deviation over seeds (n - 1); None of fewer than two.
    count: seeds in the mean.
    diverged: seeds that are not in the mean.
    trained: trainable parameters, the mean over seeds.
    percent: these in percent of all parameters, the mean over seeds.
    metric: the score that `mean` and `std` are of.
    usual_metric: the first score of the problem.
    without_head: trained parameters but for the head's, the mean over the seeds
      that train it and tell how many it has; None if none does.
  """

  mean: float | None
  std: float | None
  count: int
  diverged: int
  trained: float
  percent: float
  metric: problems.Score
  usual_metric: problems.Score
  without_head: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
  """A method on a backbone.

  Attributes:
    name: what tables call it, with the fields that tell it from other rows of
      this name.
    backbone: its name.
    records: of all tasks and seeds.
    scores: {task: score}.
    multi_scale: {task: score of the test over several scales}, of label maps.
  """

  name: str
  backbone: str
  records: tuple[Record, ...]
  scores: dict[str, TaskScore]
  multi_scale: dict[str, TaskScore] = dataclasses.field(default_factory=dict)

  @property
  def dense(self) -> bool:
    """Whether its tasks are of label maps, a class for every pixel."""
    return record_fields.is_dense(self.records[0])

  def records_of(self, task: str) -> list[Record]:
    """Returns the records of a task."""
    return [
      record for record in self.records if record_fields.task(record) == task
    ]

  def score(self, column: Column) -> TaskScore | None:
    """Returns the score of a column of one task, if it is there."""
    if column.is_mean:
      return None
    return self._scores_of(column).get(column.tasks[0])

  def _scores_of(self, column: Column) -> dict[str, TaskScore]:
    return self.multi_scale if column.multi_scale else self.scores

  def value(self, column: Column) -> float | None:
    """Returns a column's score or mean; None unless all its tasks are there."""
    means = {}
    for task, score in self._scores_of(column).items():
      if score.mean is not None:
        means[task] = score.mean
    return column.mean(means)


@dataclasses.dataclass(frozen=True)
class Results:
  """What tables show.

  Attributes:
    split: whose scores these are.
    rows: in the order of the records.
    left_out: results on other splits, {split: number of records}.
    diverged: records of the rows that are in no mean.
  """

  split: str
  rows: list[Row]
  left_out: dict[str, int]
  diverged: list[Record]

  @property
  def suites(self) -> list[Suite]:
    """Those with a result; last, one for each task of label maps."""
    tasks: list[str] = []
    with_maps: dict[str, bool] = {}  # {task: is there a test at several scales}
    for row in self.rows:
      if not row.dense:
        tasks += row.scores
        continue
      for task in row.scores:
        is_there = task in row.multi_scale
        with_maps[task] = with_maps.get(task, False) or is_there
    out = suites.find(tasks)
    for task, multi_scale in with_maps.items():
      out.append(suites.of_label_maps(task, multi_scale))
    return out

  def rows_of(self, suite: Suite) -> list[Row]:
    """Returns the rows with a task of a suite."""
    out = []
    for row in self.rows:
      if row.dense == suite.dense and set(row.scores) & set(suite.tasks):
        out.append(row)
    return out


def collect(records: Sequence[Record], split: str = "test") -> Results:
  """Returns rows, one for each (name, backbone), of the runs that are results.

  Rows of one name are told apart by what makes another method
  (`METHOD_FIELDS`), and if a task and seed is there twice, by the fields of the
  configs that differ: by those that a search picks (`optim.*`) only where no
  others differ. Scores of images and of label maps are never in one row.

  Args:
    records: all that there are, searches too.
    split: whose scores are wanted.

  Raises:
    ValueError: a record that is not of the schema, or two of one config.
  """
  record_checks.check(records)
  by_method: dict[tuple[str, str, bool], list[Record]] = {}
  left_out: Counter[str] = Counter()
  for record in records:
    if record["stage"] not in record_checks.RESULT_STAGES:
      continue
    if record["split"] != split:
      left_out[record["split"]] += 1
      continue
    name = record_fields.printable(record["name"]).strip()
    is_dense = record_fields.is_dense(record)
    method = name, record_fields.backbone(record), is_dense
    by_method.setdefault(method, []).append(record)

  rows = []
  for (name, backbone, _), same_name in by_method.items():
    for label, variant in variants(same_name).items():
      title = f"{name} ({label})" if label else name
      rows.append(_row(title, backbone, variant))
  return Results(split, rows, dict(left_out), _diverged(rows))


def _row(title: str, backbone: str, records: Sequence[Record]) -> Row:
  tasks: dict[str, list[Record]] = {}
  for record in records:
    tasks.setdefault(record_fields.task(record), []).append(record)
  scores = {}
  multi_scale = {}
  for task, seeds in tasks.items():
    scores[task] = score(seeds)
    tested = [record for record in seeds if _is_tested_at_scales(record)]
    if tested:
      multi_scale[task] = _multi_scale(tested, scores[task])
  return Row(title, backbone, tuple(records), scores, multi_scale)


def _is_tested_at_scales(record: Record) -> bool:
  """Returns whether a run did not diverge, and has a test at several scales."""
  return record["status"] == "done" and bool(record.get("multi_scale"))


def _multi_scale(tested: Sequence[Record], usual: TaskScore) -> TaskScore:
  """Returns the score of the test over several scales.

  Args:
    tested: seeds of a task with such a test.
    usual: the score of the usual test of all seeds.
  """
  metric = record_fields.metric(tested[0])
  values = [record["multi_scale"][metric.name] for record in tested]
  return dataclasses.replace(
    usual,
    mean=statistics.fmean(values),
    std=_deviation(values),
    count=len(values),
    metric=dataclasses.replace(
      metric,
      name=f"{metric.name}_multi_scale",
      title=f"{metric.title} (MS)",
    ),
  )


def _deviation(values: Sequence[float]) -> float | None:
  """Returns the sample standard deviation; None of fewer than two."""
  return statistics.stdev(values) if len(values) > 1 else None


def _diverged(rows: Sequence[Row]) -> list[Record]:
  out = []
  for row in rows:
    out += [record for record in row.records if record["status"] == "diverged"]
  return out


def score(records: Sequence[Record]) -> TaskScore:
  """Returns the score of the seeds of one task."""
  done = [record for record in records if record["status"] == "done"]
  values = [record_fields.finished_value(record) for record in done]
  # Only a finished run names the score that it is judged by.
  judged = done[0] if done else records[0]
  percents = [
    100 * record["trainable_params"] / record["total_params"]
    for record in records
  ]
  return TaskScore(
    mean=statistics.fmean(values) if values else None,
    std=_deviation(values),
    count=len(values),
    diverged=len(records) - len(values),
    trained=statistics.fmean(record["trainable_params"] for record in records),
    percent=statistics.fmean(percents),
    metric=record_fields.metric(judged),
    usual_metric=problems.of_run(judged).scores[0],
    without_head=_without_head(done),
  )


def _trains_head(record: Record) -> bool:
  """Returns whether the head is among what a run trains, as it mostly is."""
  pattern = str(record["config"].get("trainable"))
  return "head" in pattern or pattern == ".*"


def _without_head(done: Sequence[Record]) -> float | None:
  """Returns trained parameters without the head's, see `TaskScore`."""
  counts = []
  for record in done:
    head = record.get("head_params")
    trained = record["trainable_params"]
    if head is not None and _trains_head(record) and head <= trained:
      counts.append(trained - head)
  return statistics.fmean(counts) if counts else None


def variants(records: Sequence[Record]) -> dict[str, list[Record]]:
  """Returns the methods among records of one name and backbone.

  Returns:
    {what tells them apart: records}; one entry, "", if there is one method.

  Raises:
    ValueError: two records have one config.
  """
  configs = {
    record["id"]: record_fields.flat_config(record) for record in records
  }
  repeated = _same_task_and_seed(records)
  fields = _telling_apart(records, repeated, configs)
  out: dict[str, list[Record]] = {}
  for record in records:
    values = _values(configs[record["id"]], fields)
    pairs = zip(fields, values, strict=True)
    label = ", ".join(f"{field}={value}" for field, value in pairs)
    out.setdefault(record_fields.printable(label), []).append(record)
  return out


def _same_task_and_seed(records: Sequence[Record]) -> list[list[Record]]:
  """Returns the groups of records that share a task and seed."""
  groups: dict[tuple[str, int], list[Record]] = {}
  for record in records:
    groups.setdefault((record["task"], record["seed"]), []).append(record)
  return [group for group in groups.values() if len(group) > 1]


Configs = Mapping[str, Mapping[str, str]]  # {id of a record: flat config}


def _telling_apart(
  records: Sequence[Record],
  repeated: Sequence[Sequence[Record]],
  configs: Configs,
) -> list[str]:
  """Returns the fewest fields that have to be named, see `collect`."""
  all_configs = [configs[record["id"]] for record in records]
  always = {field for field in METHOD_FIELDS if _differs(field, all_configs)}
  differing = _differing_fields(repeated, configs)
  chosen = {field for field in differing if not field.startswith(SEARCHED)}
  for fields in (always | chosen, always | differing):
    names = sorted(fields)
    if _tell_apart(names, repeated, configs):
      return names
  record = repeated[0][0]
  raise ValueError(
    f"two records of {record['name']!r} on {record['task']!r}, seed "
    f"{record['seed']}, have one config (one is {record['id']!r}); expected"
    " one: delete a line, or report these folders one at a time"
  )


def _differing_fields(
  repeated: Sequence[Sequence[Record]], configs: Configs
) -> set[str]:
  """Returns the fields whose values differ within a group of records."""
  out = set()
  for group in repeated:
    of_group = [configs[record["id"]] for record in group]
    known = {field for config in of_group for field in config}
    out |= {field for field in known if _differs(field, of_group)}
  return out


def _differs(field: str, configs: Sequence[Mapping[str, str]]) -> bool:
  return len({config.get(field, "-") for config in configs}) > 1


def _tell_apart(
  fields: Sequence[str],
  repeated: Sequence[Sequence[Record]],
  configs: Configs,
) -> bool:
  """Returns whether no two records of a group agree in all of these fields."""
  for group in repeated:
    distinct = {_values(configs[record["id"]], fields) for record in group}
    if len(distinct) < len(group):
      return False
  return True


def _values(
  config: Mapping[str, str], fields: Sequence[str]
) -> tuple[str, ...]:
  return tuple(config.get(field, "-") for field in fields)
