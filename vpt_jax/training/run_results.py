"""Makes what a run leaves: its result, record, adapter and predictions."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Any, TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from vpt_jax import config as config_lib
from vpt_jax import problems
from vpt_jax.data import tasks
from vpt_jax.problems import Problem
from vpt_jax.training import (
  adapter_files,
  record_checks,
  records,
  run_folder,
)
from vpt_jax.training.evaluation import Evaluated
from vpt_jax.utils import files, json_files, trees

if TYPE_CHECKING:
  from vpt_jax.training.experiment import Experiment

REMEDY = (
  "delete this file, the same command makes it again from what the run has left"
)
# What is taken from a result.json, beside the scores of its problem.
RESULT = {
  "task": json_files.TEXT,
  "split": json_files.TEXT,
  "method": json_files.TEXT,
  "backbone": json_files.BACKBONE,
  "device": json_files.TEXT,
  "versions": json_files.TEXTS,
  "trainable_params": json_files.WHOLE,
  "trainable_percent": json_files.NUMBER,
  "count": json_files.WHOLE,
  "seconds": json_files.NUMBER,
  "images_per_second": json_files.or_null(json_files.NUMBER),
}

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
# What a record has of the `facts` of a run.
FACTS_OF_RECORDS = (
  "problem",
  "method",
  "task",
  "split",
  "backbone",
  "trainable_params",
  "total_params",
  "train_images",
  "device",
  "versions",
)


def facts(job: "Experiment") -> dict[str, Any]:
  """Returns what results say of a run, whatever its outcome, as JSON values."""
  config = job.config
  trained = trees.count(job.start.trainable)
  total = trained + trees.count(job.start.frozen)
  return {
    "problem": job.problem.name,
    "task": config.task,
    "split": config.data.test_split,
    "method": config.method,
    "backbone": job.backbone,
    "trainable_params": trained,
    "total_params": total,
    "trainable_percent": 100 * trained / total,
    "train_images": len(job.data.train),
    "skipped": {
      "train": job.data.train.skipped,
      "test": job.data.test.skipped,
    },
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
  }


def curve_names(problem: Problem) -> tuple[str, str, str]:
  """Returns what a record's `curve` has of each epoch."""
  return "loss", problem.training_score.name, "lr"


def record(
  job: "Experiment",
  config: ConfigDict,
  stage: str,
  curve: Sequence[Mapping[str, float]],
  evaluated: Evaluated | None,
  *,
  seconds: float,
  speed: float | None,
  cell: Mapping[str, Any] | None = None,
  group: int = 1,
) -> records.Record:
  """Returns the record of a run, as JSON values.

  Args:
    job: that it was trained as, or with.
    config: its own.
    stage: see `records.RunRecord`.
    curve: its metrics, a mapping for each epoch.
    evaluated: what it reached; None: it diverged.
    seconds: see `records.RunRecord`.
    speed: its `images_per_second`.
    cell: see there.
    group: see there.
  """
  outcome = None
  if evaluated is not None:
    outcome = _outcome(job, config, evaluated)
    if stage == "search":  # of which there are many
      outcome = dataclasses.replace(outcome, kept=dict.fromkeys(outcome.kept))
  columns: dict[str, list[float]] = {}
  for name in curve_names(job.problem):
    columns[name] = [epoch[name] for epoch in curve]
  about = facts(job)
  run_record = records.RunRecord(
    id=config_lib.digest(config, 12),
    stage=stage,
    name=config.name or config.method,
    seed=config.seed,
    cell=dict(cell or {}),
    config=config_lib.plain(config),
    seconds=seconds,
    images_per_second=speed,
    group=group,
    curve=columns,
    outcome=outcome,
    **{name: about[name] for name in FACTS_OF_RECORDS},
  )
  return run_record.to_json()


def read_result(path: Path, run: Mapping[str, str]) -> dict[str, Any]:
  """Returns a finished run's result; see `read_owned`.

  Args:
    path: of its result.json.
    run: that it should be of.
  """
  return read_owned(path, RESULT, _fault_of_scores, run)


def _fault_of_scores(result: Mapping[str, Any]) -> str:
  """Returns what is wrong with the scores of a result; "": nothing."""
  scores = [score.name for score in problems.of_run(result).scores]
  return json_files.fault(result, dict.fromkeys(scores, json_files.NUMBER))


def read_owned(
  path: Path,
  fields: json_files.Fields,
  fault_of: Callable[[dict[str, Any]], str],
  run: Mapping[str, str],
) -> dict[str, Any]:
  """Returns what a finished run or condensation has left, checked.

  Args:
    path: of the JSON file.
    fields: that it has.
    fault_of: returns what else is wrong with it; "": nothing.
    run: that it should be of, as far as known, see `run_folder.identity`.

  Raises:
    ValueError: the file is damaged, or of another run.
  """
  result = json_files.read(path, fields, REMEDY)
  wrong = record_checks.fault_of_problem(result) or fault_of(result)
  if not wrong and "run" in result:
    wrong = json_files.fault(result, {"run": json_files.TEXTS})
  if wrong:
    raise ValueError(f"{path}: {wrong}; {REMEDY}")
  run_folder.check_owner(path, result.get("run"), run)
  return result


def _outcome(
  job: "Experiment", config: ConfigDict, evaluated: Evaluated
) -> records.Outcome:
  """Returns what a finished run reached on the test images."""
  scores = {
    score.name: evaluated.scores[score.name] for score in job.problem.scores
  }
  metric = job.problem.scores[0].name
  task = tasks.TASKS.get(config.task)
  if task is not None and task.metric in scores:
    metric = task.metric
  return records.Outcome(
    metric=metric,
    scores=scores,
    loss=evaluated.scores["loss"],
    count=len(job.data.test),
    classes=tuple(map(str, job.data.train.class_names)),
    kept=evaluated.kept,
  )


def save(
  folder: Path,
  job: "Experiment",
  config: ConfigDict,
  trainable: trees.Flat,
  collections: Mapping[str, Any],
  evaluated: Evaluated,
  run: Mapping[str, str],
) -> None:
  """Writes adapter.npz and predictions.csv of a run.

  The adapter holds everything but the backbone's frozen part, so that nothing
  is left to guess.

  Args:
    folder: where they go.
    job: that it was trained as, or with.
    config: its own.
    trainable: flat trained parameters.
    collections: the model's mutable variables.
    evaluated: on the test images.
    run: that they are of, see `run_folder.identity`.
  """
  palette = job.data.test.palette if job.problem.dense else None
  values = trees.flatten(collections)
  for path, leaf in job.start.frozen.items():
    if not path.startswith("backbone/"):
      values[path] = leaf
  values.update(trainable)
  adapter_files.save_adapter(
    folder / "adapter.npz",
    values,
    adapter_files.AdapterMeta(
      backbone=job.backbone,
      config=config_lib.public(config),
      num_classes=job.data.train.num_classes,
      versions=facts(job)["versions"],
      preprocess=job.preprocess.to_json(),
      class_names=job.data.train.class_names,
      run=run,
      palette=palette,
    ),
  )
  files.write_atomic(folder / "predictions.csv", evaluated.table.encode())
