"""What a run is made of: data, model, parameters, feeds and optimizer."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import importlib.metadata
import json
from pathlib import Path
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np
import optax

from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax import problems
from vpt_jax.data import datasets, pipeline, tasks
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.training import adapter_files, evaluation, optim, records
from vpt_jax.training import loop as train
from vpt_jax.utils import files, trees

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
LOOKED_AT = 2**29  # bytes of images that tell two data sets apart


@dataclasses.dataclass(frozen=True)
class Data:
  """The two splits of a run."""

  train: datasets.Split
  test: datasets.Split


def load_data(config: ConfigDict) -> Data:
  """The splits that a config names."""
  data = config.data
  # What the method puts around or below an image is not part of it; how many
  # classes there are does not matter here.
  size = models.build(config, len(config.head_groups) or 1).method.input_size
  preprocess = Preprocess.from_config(config, size)
  load = functools.partial(
    datasets.load,
    config.task,
    folder=data.dir,
    on_error=data.on_error,
    source=data.source,
    seed=data.seed,
    cache_dir=data.cache or None,
    multi_label=problems.of_run(config).multi_label,
  )
  train = load(data.train_split, preprocess, train=True)
  # 16-bit grey has one range, which the training images decide.
  grey_range = train.preprocess.grey_range
  preprocess = dataclasses.replace(preprocess, grey_range=grey_range)
  test = load(data.test_split, preprocess)
  if data.get("train_share", 1) < 1:
    train = train.share(data.train_share, data.seed)
  return Data(train, test)


def fingerprint(data: Data) -> dict[str, dict[str, int]]:
  """What tells two data sets apart; of large ones a part of the images."""

  def crc32(part: datasets.Split) -> int:
    step = -(-part.images.nbytes // LOOKED_AT)
    return zlib.crc32(
      part.labels, zlib.crc32(np.ascontiguousarray(part.images[::step]))
    )

  return {
    name: {
      "images": len(part),
      "classes": part.num_classes,
      "crc32": crc32(part),
    }
    for name, part in (("train", data.train), ("test", data.test))
  }


def check_unchanged(path: Path, value: dict[str, Any]) -> None:
  """Raises ValueError if the file is there and says something else."""
  if path.exists():
    lines = configs.difference(json.loads(path.read_text()), value)
    if lines:
      raise ValueError(
        f"{path.parent} holds a run with another {path.stem}; use another "
        "--workdir, or delete it. Its value -> yours:\n  " + "\n  ".join(lines)
      )


def claim(
  workdir: Path,
  config: ConfigDict,
  backbone: dict[str, str],
  data: dict[str, Any],
) -> None:
  """Writes what the folder's run is made of, before its first step.

  Data are told by their `fingerprint`.

  Raises:
    ValueError: it was started with another backbone file or other data.
  """
  path = workdir / "backbone.json"
  if path.exists():
    adapter_files.check_backbone(
      workdir, json.loads(path.read_text()), backbone
    )
  check_unchanged(workdir / "data.json", data)
  files.write_json(path, backbone)
  files.write_json(workdir / "data.json", data)
  files.write_json(workdir / "config.json", configs.plain(config))


class Start(NamedTuple):
  """Where a run starts from."""

  trainable: trees.Flat
  frozen: trees.Flat
  collections: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
  """A run, ready for its first step.

  Attributes:
    config: resolved.
    data: its splits.
    problem: what is learned.
    model: backbone, method and head.
    mesh: of all devices.
    checkpoint: the backbone's, see `models.load_backbone`.
    start: on all devices.
    apply: (variables, what the test feed gives) -> logits.
    train, test: feeds of images, or of cached features [B, D].
    on_features: the feeds give features.
  """

  config: ConfigDict
  data: Data
  problem: problems.Problem
  model: models.Model
  mesh: Mesh
  checkpoint: Any
  start: Start
  apply: evaluation.Apply
  train: pipeline.Feed
  test: pipeline.Feed
  on_features: bool

  @property
  def preprocess(self) -> Preprocess:
    """What happens to an image before the model sees it, in evaluation."""
    size = self.model.method.input_size
    return Preprocess.from_config(self.config, size).of_split(self.data.test)

  @property
  def backbone(self) -> dict[str, str]:
    """Its name and the sha256 of its checkpoint."""
    sha256 = "random" if self.checkpoint is None else self.checkpoint.sha256
    return {"name": self.config.backbone.name, "sha256": sha256}

  def optimizer(
    self, rate: optim.Rate, weight_decay: float | jax.Array
  ) -> optax.GradientTransformation:
    """See `optim.from_config`."""
    trainable, frozen, _ = self.start
    return optim.from_config(
      self.config.optim, rate, weight_decay, trainable, [*trainable, *frozen]
    )

  def step(
    self, model: models.Model, tx: optax.GradientTransformation
  ) -> train.Step:
    """A training step, not jitted; see `train.train_step`."""
    data, shards = self.config.data, self.mesh.shape["data"]
    return train.train_step(
      model,
      tx,
      problem=self.problem,
      preprocess=self.preprocess,
      augment=data.augment,
      min_scale=data.min_scale,
      on_features=self.on_features,
      shards=shards,
    )


def build(
  config: ConfigDict, data: Data, saved: trees.Flat | None = None
) -> Job:
  """Everything that a resolved config names.

  Args:
    config: resolved.
    data: its splits.
    saved: values of an adapter file to start from.

  Raises:
    ValueError: parts that do not fit.
  """
  mesh = sharding.make_mesh(config.batch_size, config.shard.model)
  num_classes = data.train.num_classes
  problem = problems.from_config(config, num_classes)
  problem.check_labels(data.train.labels, "training images")
  problem.check_labels(data.test.labels, "test images")
  model = models.build(config, num_classes)
  loaded = models.load_backbone(model, config)
  first = start(config, model, loaded, data, saved)
  # `frozen` may be stored in fewer bits.
  first = Start(
    sharding.replicate(first.trainable, mesh),
    sharding.distribute(
      models.store(first.frozen, config), mesh, config.shard.strategy
    ),
    sharding.replicate(first.collections, mesh),
  )
  feed = lambda split: pipeline.Feed(
    split,
    config.batch_size,
    mesh,
    config.data.device_gb * 2**30 or None,
    config.image_size,
  )
  feeds = [feed(data.train), feed(data.test)]
  preprocess = Preprocess.from_config(config, model.method.input_size)
  apply = evaluation.make_apply(model, preprocess)
  # If nothing before the head changes, its inputs are computed once.
  on_features = (
    config.epochs > 0
    and config.data.augment == "none"
    and config.data.min_scale == 1
    and data.train.strips is None
    and not any(
      path.startswith("method/") for path in [*first.trainable, *first.frozen]
    )
    and all(path.startswith("head/") for path in first.trainable)
  )
  if on_features:
    params = trees.merge(first.trainable, first.frozen)
    feeds = [
      feed(evaluation.cache_features(model, params, part, preprocess))
      for part in feeds
    ]
    apply = lambda variables, feature: model.apply(
      variables, feature, method=model.classify
    )
  return Job(
    config,
    data,
    problem,
    model,
    mesh,
    loaded,
    first,
    apply,
    *feeds,
    on_features,
  )


def start(
  config: ConfigDict,
  model: models.Model,
  loaded: Any,
  data: Data,
  saved: trees.Flat | None = None,
) -> Start:
  """The values that a config's seed and options give a run.

  Args:
    config: resolved.
    model: of this config.
    loaded: the backbone's checkpoint, see `models.load_backbone`.
    data: its splits.
    saved: values of an adapter file that take the place of these.
  """
  rng = jax.random.PRNGKey(config.seed)
  params, _ = models.pretrained(
    model, config, rng, data.train.class_names, loaded
  )
  params, collections = models.start_method(
    model, params, models.collections(model, rng)
  )
  params = models.restore(params, saved or {})
  collections = models.restore(collections, saved or {})
  return Start(*trees.split(params, config.trainable), collections)


def train_state(
  config: ConfigDict, first: Start, tx: optax.GradientTransformation
) -> train.TrainState:
  """The state before the first step."""
  return train.TrainState(
    jnp.int32(0),
    first.trainable,
    tx.init(first.trainable),
    first.collections,
    jax.random.fold_in(jax.random.PRNGKey(config.seed), 1),
  )


def facts(job: Job) -> dict[str, Any]:
  """What results tell of a job, whatever its outcome."""
  trained = trees.count(job.start.trainable)
  total = trained + trees.count(job.start.frozen)
  config, data = job.config, job.data
  return {
    "problem": job.problem.name,
    "task": config.task,
    "split": config.data.test_split,
    "method": config.method,
    "backbone": job.backbone,
    "trainable_params": trained,
    "total_params": total,
    "trainable_percent": 100 * trained / total,
    "train_images": len(data.train),
    "skipped": {"train": data.train.skipped, "test": data.test.skipped},
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "versions": {
      name: importlib.metadata.version(name)
      for name in ("jax", "jaxlib", "flax", "optax", "numpy")
    },
  }


def record(
  job: Job,
  config: ConfigDict,
  stage: str,
  curve: Sequence[Mapping],
  total: evaluation.Sums | None,
  predictions: Mapping[str, np.ndarray] | None,
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
    total: see `evaluation.collect`; None: it diverged.
    predictions: likewise.
    seconds: see `records.RunRecord`.
    speed: its `images_per_second`.
    cell: see there.
    group: see there.
  """
  about = facts(job)
  outcome = None
  if total is not None:
    outcome = _outcome(job, config, total, predictions)
    if stage == "search":  # there are many
      nothing = dict.fromkeys(outcome.kept)
      outcome = dataclasses.replace(outcome, kept=nothing)
  run_record = records.RunRecord(
    id=configs.digest(config, 12),
    stage=stage,
    name=config.name or config.method,
    seed=config.seed,
    cell=dict(cell or {}),
    config=configs.plain(config),
    seconds=seconds,
    images_per_second=speed,
    group=group,
    curve={
      name: [line[name] for line in curve] for name in curve_names(job.problem)
    },
    outcome=outcome,
    **{name: about[name] for name in FACTS_OF_RECORDS},
  )
  return run_record.to_json()


def _outcome(
  job: Job,
  config: ConfigDict,
  total: evaluation.Sums,
  predictions: Mapping[str, np.ndarray],
) -> records.Outcome:
  """Returns what a finished run reached on the test images."""
  problem = job.problem
  labels = job.data.test.labels
  measured = evaluation.scores(problem, total, predictions, labels)
  scores = {score.name: measured[score.name] for score in problem.scores}
  task = tasks.TASKS.get(config.task)
  metric = problem.scores[0].name
  if task is not None and task.metric in scores:
    metric = task.metric
  return records.Outcome(
    metric=metric,
    scores=scores,
    loss=measured["loss"],
    count=measured["count"],
    classes=tuple(map(str, job.data.train.class_names)),
    kept=problem.record(labels, predictions),
  )


def curve_names(problem: problems.Problem) -> tuple[str, str, str]:
  """What a record's `curve` has of each epoch."""
  return "loss", problem.training_score.name, "lr"


def save(
  folder: Path,
  job: Job,
  config: ConfigDict,
  trainable: trees.Flat,
  collections: Mapping[str, Any],
  predictions: Mapping[str, np.ndarray],
) -> None:
  """Writes adapter.npz and predictions.csv of a run.

  The adapter holds everything but the backbone's frozen part, so that nothing
  is left to guess.
  """
  own = trees.flatten(collections) | {
    path: leaf
    for path, leaf in job.start.frozen.items()
    if not path.startswith("backbone/")
  }
  adapter_files.save_adapter(
    folder / "adapter.npz",
    {**own, **trainable},
    {
      "backbone": job.backbone,
      "config": configs.plain(config),
      "num_classes": job.data.train.num_classes,
      "preprocess": job.preprocess.to_json(),
      "versions": facts(job)["versions"],
    },
  )
  test = job.data.test
  # Images without a name are called by their index.
  names = list(test.names) or [str(i) for i in range(len(test))]
  text = job.problem.write_predictions(
    names, test.labels, predictions, test.class_names
  )
  files.write_atomic(folder / "predictions.csv", text.encode())
