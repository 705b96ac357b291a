"""Makes the rows of tables from records: mean and deviation over seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import statistics

from vpt_jax import problems
from vpt_jax.report import record_fields
from vpt_jax.report.record_fields import Record
from vpt_jax.report.suites import Column
from vpt_jax.training import record_checks

# Fields that make another method, under whatever name.
METHOD_FIELDS = ("method", "trainable", "vpt.deep")
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
  """

  mean: float | None
  std: float | None
  count: int
  diverged: int
  trained: float
  percent: float
  metric: problems.Score
  usual_metric: problems.Score


@dataclasses.dataclass(frozen=True)
class Row:
  """A method on a backbone.

  Attributes:
    name: what tables call it, with the fields that tell it from other rows of
      this name.
    backbone: its name.
    records: of all tasks and seeds.
    scores: {task: score}.
  """

  name: str
  backbone: str
  records: tuple[Record, ...]
  scores: dict[str, TaskScore]

  def records_of(self, task: str) -> list[Record]:
    """Returns the records of a task."""
    return [
      record for record in self.records if record_fields.task(record) == task
    ]

  def value(self, column: Column) -> float | None:
    """Returns a column's score or mean; None unless all its tasks are there."""
    means = {}
    for task, score in self.scores.items():
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
  def tasks(self) -> list[str]:
    """All tasks of the rows, in their order."""
    return list(dict.fromkeys(task for row in self.rows for task in row.scores))


def collect(records: Sequence[Record], split: str = "test") -> Results:
  """Returns rows, one for each (name, backbone), of the runs that are results.

  Rows of one name are told apart by what makes another method
  (`METHOD_FIELDS`), and if a task and seed is there twice, by the fields of the
  configs that differ: by those that a search picks (`optim.*`) only where no
  others differ.

  Args:
    records: all that there are, searches too.
    split: whose scores are wanted.

  Raises:
    ValueError: a record that is not of the schema, or two of one config.
  """
  record_checks.check(records)
  by_method: dict[tuple[str, str], list[Record]] = {}
  left_out: Counter[str] = Counter()
  for record in records:
    if record["stage"] not in record_checks.RESULT_STAGES:
      continue
    if record["split"] != split:
      left_out[record["split"]] += 1
      continue
    name = record_fields.printable(record["name"]).strip()
    method = name, record_fields.backbone(record)
    by_method.setdefault(method, []).append(record)

  rows = []
  for (name, backbone), same_name in by_method.items():
    for label, variant in variants(same_name).items():
      title = f"{name} ({label})" if label else name
      rows.append(Row(title, backbone, tuple(variant), _by_task(variant)))
  return Results(split, rows, dict(left_out), _diverged(rows))


def _by_task(records: Sequence[Record]) -> dict[str, TaskScore]:
  tasks: dict[str, list[Record]] = {}
  for record in records:
    tasks.setdefault(record_fields.task(record), []).append(record)
  return {task: score(seeds) for task, seeds in tasks.items()}


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
    std=statistics.stdev(values) if len(values) > 1 else None,
    count=len(values),
    diverged=len(records) - len(values),
    trained=statistics.fmean(record["trainable_params"] for record in records),
    percent=statistics.fmean(percents),
    metric=record_fields.metric(judged),
    usual_metric=problems.of_run(judged).scores[0],
  )


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
