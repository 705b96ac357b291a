"""Builds what a run is made of: data, model, parameters, feeds, optimizer."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import optax

from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.data import class_names, datasets, masked_datasets, pipeline
from vpt_jax.data.examples import MaskedSplit
from vpt_jax.data.mask_feed import MaskFeed
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.data.transforms.segmentation import TrainView
from vpt_jax.distributed import sharding
from vpt_jax.training import (
  dense_evaluation,
  evaluation,
  labelling,
  optim,
  other_sizes,
)
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees
from vpt_jax.weights import load


@dataclasses.dataclass(frozen=True)
class Data:
  """The two splits of a run.

  Attributes:
    train: images that are trained on, a `Split` or `MaskedSplit`.
    test: images that are scored at the end, likewise.
  """

  train: Any
  test: Any

  def aligned(self) -> "Data":
    """Returns both splits with the same numbers for the same classes.

    Arrays whose labels are other numbers than 0 .. K - 1 have classes by name,
    and the test images need not have all of them.

    Raises:
      ValueError: test images of a class that the training images do not have.
    """
    train, test = self.train, self.test
    if isinstance(train, MaskedSplit):
      return self  # label maps have numbers
    if train.class_names == test.class_names:
      return self
    if not test.class_names and not class_names.are_numbers(train.class_names):
      return self  # labels are the numbers of the named classes
    if not train.class_names and not class_names.are_numbers(test.class_names):
      return self
    test = test.with_classes(train.classes, "the training images' classes")
    test = dataclasses.replace(test, class_names=train.class_names)
    return Data(train, test)


def load_data(config: ConfigDict) -> Data:
  """Returns the splits that a resolved config names."""
  data = config.data
  if problems.of_run(config).dense:
    return _load_masked(config)
  # What the method puts around or below an image is not part of it; how many
  # classes there are does not matter here.
  num_classes = len(config.head_groups) or 1
  image_size = model_lib.build(config, num_classes).method.input_size
  preprocess = Preprocess.from_config(config, image_size)
  multi_label = problems.of_run(config).multi_label

  def load_split(split: str, preprocess: Preprocess, train: bool):
    return datasets.load(
      config.task,
      split,
      preprocess,
      train=train,
      on_error=data.on_error,
      cache_dir=data.cache or None,
      **datasets.reading_options(data, multi_label),
    )

  train = load_split(data.train_split, preprocess, train=True)
  # 16-bit grey has one range, which the training images decide.
  decoded_by = cast(Preprocess, train.preprocess)  # not arrays in memory
  preprocess = dataclasses.replace(preprocess, grey_range=decoded_by.grey_range)
  test = load_split(data.test_split, preprocess, train=False)
  if data.get("train_share", 1) < 1:
    train = train.share(data.train_share, data.seed)
  return Data(train, test)


def _load_masked(config: ConfigDict) -> Data:
  """Returns the splits of images with label maps."""
  parts = []
  for split in (config.data.train_split, config.data.test_split):
    parts.append(
      masked_datasets.load(config.task, split, config.data, config.segmentation)
    )
  train, test = parts
  return Data(train, test)


class Start(NamedTuple):
  """Where a run starts from.

  Attributes:
    trainable: flat tree.
    frozen: flat tree.
    collections: mutable variables of the model, or {}.
  """

  trainable: trees.Flat
  frozen: trees.Flat
  collections: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A run, ready for its first step.

  Attributes:
    config: resolved.
    data: its splits.
    problem: what is learned.
    model: backbone, method and head.
    mesh: of all devices.
    checkpoint: the backbone's, see `model.load_backbone`.
    start: on all devices.
    apply: (variables, what the test feed gives) -> outputs of the head.
    train: feed of images, of cached features [B, D], or of views with label
      maps.
    test: feed of images, or of cached features; None: the problem is dense,
      and sees test images one by one.
    on_features: the feeds give features.
  """

  config: ConfigDict
  data: Data
  problem: problems.Problem
  model: model_lib.Model
  mesh: Mesh
  checkpoint: load.Loaded | None
  start: Start
  apply: evaluation.Apply
  train: pipeline.BaseFeed
  test: pipeline.Feed | None
  on_features: bool

  @property
  def preprocess(self) -> Preprocess:
    """What happens to an image before the model sees it, in evaluation."""
    image_size = self.model.method.input_size
    preprocess = Preprocess.from_config(self.config, image_size)
    if self.problem.dense:
      grey_range = self.data.test.grey_range
      return dataclasses.replace(preprocess, grey_range=grey_range)
    return preprocess.of_split(self.data.test)

  @property
  def backbone(self) -> dict[str, str]:
    """Its name and the sha256 of its checkpoint."""
    sha256 = "random" if self.checkpoint is None else self.checkpoint.sha256
    return {"name": self.config.backbone.name, "sha256": sha256}

  def optimizer(
    self,
    rate: optim.Rate,
    weight_decay: float | jax.Array,
    rate_of: optim.RateOf | None = None,
  ) -> optax.GradientTransformation:
    """Returns the optimizer, see `optim.from_config`."""
    trainable, frozen, _ = self.start
    return optim.from_config(
      self.config.optim,
      rate,
      weight_decay,
      trainable,
      [*trainable, *frozen],
      rate_of,
    )

  def step(
    self, model: model_lib.Model, optimizer: optax.GradientTransformation
  ) -> step_lib.Step:
    """Returns a training step, not jitted; see `step.train_step`.

    Args:
      model: this one, or with other options of its method.
      optimizer: see `optimizer`.
    """
    data = self.config.data
    return step_lib.train_step(
      model,
      optimizer,
      problem=self.problem,
      preprocess=self.preprocess,
      augment=data.augment,
      min_scale=data.min_scale,
      on_features=self.on_features,
      shards=self.mesh.shape["data"],
    )

  def evaluate(
    self, state: step_lib.TrainState, folder: Path
  ) -> evaluation.Evaluated:
    """Scores the test images.

    Args:
      state: after the last step.
      folder: gets pictures of what is predicted, where a problem makes some.
    """
    if self.test is None:
      return dense_evaluation.evaluate(
        self.labeller(),
        trees.merge(state.trainable, self.start.frozen),
        state.collections,
        self.data.test,
        folder,
        self.config.segmentation.save_maps,
      )
    sums, predictions = evaluation.collect(
      evaluation.make_eval_step(self.apply, self.problem, self.mesh),
      state.trainable,
      self.start.frozen,
      state.collections,
      self.test,
    )
    return evaluation.evaluated(
      self.problem,
      sums,
      predictions,
      self.data.test,
      self.data.train.class_names,
    )

  def labeller(self) -> labelling.Labeller:
    """Returns what labels every pixel of images, with a dense model."""
    return labelling.Labeller(
      self.model,
      cast(problems.Segmentation, self.problem),
      labelling.Seen.from_config(self.config),
      self.mesh,
    )


def build(
  config: ConfigDict, data: Data, saved: trees.Flat | None = None
) -> Experiment:
  """Builds everything that a resolved config names.

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
  _check_data(problem, data)
  model = model_lib.build(config, num_classes)
  checkpoint = model_lib.load_backbone(model, config)
  first = _on_devices(
    config, mesh, start(config, model, checkpoint, data, saved)
  )
  preprocess = Preprocess.from_config(config, model.method.input_size)
  if isinstance(problem, problems.Segmentation):
    problem = dataclasses.replace(problem, ops=model.backbone.ops)
  job = functools.partial(
    Experiment,
    config=config,
    data=data,
    problem=problem,
    model=model,
    mesh=mesh,
    checkpoint=checkpoint,
    start=first,
  )
  if problem.dense:
    if labelling.Seen.from_config(config).crop is None:
      other_sizes.check(model)  # test images may have any size
    return job(
      apply=evaluation.make_apply(model, preprocess),
      train=mask_feed_of(config, data.train, mesh),
      test=None,
      on_features=False,
    )

  def make_feed(split: datasets.Split) -> pipeline.Feed:
    return pipeline.Feed(
      split,
      config.batch_size,
      mesh,
      config.data.device_gb * 2**30 or None,
      config.image_size,
      config.steps_per_epoch,
    )

  train = make_feed(data.train)
  test = make_feed(data.test)
  apply = evaluation.make_apply(model, preprocess)
  on_features = _only_head_changes(config, data.train, first)
  if on_features:
    params = trees.merge(first.trainable, first.frozen)
    train = make_feed(
      evaluation.cache_features(model, params, train, preprocess)
    )
    test = make_feed(evaluation.cache_features(model, params, test, preprocess))
    apply = _on_cached(model)
  return job(apply=apply, train=train, test=test, on_features=on_features)


def _check_data(problem: problems.Problem, data: Data) -> None:
  """Raises ValueError for labels that the problem cannot use.

  Label maps are checked one by one, as they are decoded.
  """
  are_masks = isinstance(data.train, MaskedSplit)
  if problem.dense != are_masks:
    found = "images with label maps" if are_masks else "images with classes"
    raise ValueError(
      f"the data are {found}, which problem {problem.name!r} cannot use; set "
      "config.problem=segmentation for label maps, and leave it for classes"
    )
  if are_masks:
    return
  problem.check_labels(data.train.labels, "training images")
  problem.check_labels(data.test.labels, "test images")


def mask_feed_of(
  config: ConfigDict, split: MaskedSplit, mesh: Mesh
) -> MaskFeed:
  """Returns the feed of random views that a section `segmentation` asks for."""
  section = config.segmentation
  view = TrainView(
    crop=(config.image_size, config.image_size),
    scale=tuple(section.scale),
    factors=tuple(section.factors),
    most_of_one_class=section.most_of_one_class,
    flip=section.flip,
    distort=section.distort,
  )
  return MaskFeed(
    split,
    config.batch_size,
    mesh,
    view,
    config.steps_per_epoch,
    section.workers,
  )


def start(
  config: ConfigDict,
  model: model_lib.Model,
  checkpoint: load.Loaded | None,
  data: Data,
  saved: trees.Flat | None = None,
) -> Start:
  """Returns the values that a config's seed and options give a run.

  Args:
    config: resolved.
    model: of this config.
    checkpoint: the backbone's, see `model.load_backbone`.
    data: its splits.
    saved: values of an adapter file that take the place of these.
  """
  saved = saved or {}
  rng = jax.random.PRNGKey(config.seed)
  params, _ = model_lib.pretrained(
    model, config, rng, data.train.class_names, checkpoint
  )
  params, collections = model_lib.start_method(
    model, params, model_lib.collections(model, rng)
  )
  params = model_lib.restore(params, saved)
  collections = model_lib.restore(collections, saved)
  trainable, frozen = trees.split(params, config.trainable)
  return Start(trainable, frozen, collections)


def _on_devices(config: ConfigDict, mesh: Mesh, first: Start) -> Start:
  """Returns the values on all devices, those that are frozen maybe in parts.

  These may be stored in fewer bits, too.
  """
  return Start(
    sharding.replicate(first.trainable, mesh),
    sharding.distribute(
      model_lib.store(first.frozen, config), mesh, config.shard.strategy
    ),
    sharding.replicate(first.collections, mesh),
  )


def _only_head_changes(
  config: ConfigDict, train: datasets.Split, first: Start
) -> bool:
  """Returns whether what comes before the head is the same in every epoch.

  Then the head's inputs are computed once.
  """
  if config.epochs == 0:
    return False
  augments = config.data.augment != "none" or config.data.min_scale != 1
  if augments or train.strips is not None:
    return False
  has_method = any(
    path.startswith("method/") for path in [*first.trainable, *first.frozen]
  )
  if has_method:
    return False
  return all(path.startswith("head/") for path in first.trainable)


def _on_cached(model: model_lib.Model) -> evaluation.Apply:
  """Returns `apply` for cached features."""

  def apply(variables, feature):
    return model.apply(variables, feature, method=model.classify)

  return apply


def train_state(
  config: ConfigDict, first: Start, optimizer: optax.GradientTransformation
) -> step_lib.TrainState:
  """Returns the state before the first step."""
  return step_lib.TrainState(
    step=jnp.int32(0),
    trainable=first.trainable,
    opt_state=optimizer.init(first.trainable),
    collections=first.collections,
    rng=jax.random.fold_in(jax.random.PRNGKey(config.seed), 1),
  )
