"""Training: one run from a resolved config to a result and an adapter."""

from collections.abc import Callable
import dataclasses
import importlib.metadata
import json
import os
from pathlib import Path
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax

from vpt_jax import checkpoint, config as configs, evaluate, optim, report
from vpt_jax import model as models
from vpt_jax import shard, tree
from vpt_jax.data import pipeline, preprocess, sources

log = report.log


class TrainState(flax.struct.PyTreeNode):
  """All that changes while training, hence all that a checkpoint holds.

  Attributes:
    step: updates done, int32.
    trainable: flat trainable tree.
    opt_state: of the optimizer, over `trainable` alone.
    collections: mutable variables of the model (batch statistics), or {}.
    rng: raw key; step i draws from `fold_in(rng, i)`.
  """

  step: jax.Array
  trainable: tree.Flat
  opt_state: optax.OptState
  collections: dict[str, Any]
  rng: jax.Array


class Diverged(ValueError):
  """The loss is NaN or infinite."""


def make_train_step(model: models.Model, tx: optax.GradientTransformation, *,
                    normalize: str, augment: str, on_features: bool = False
                    ) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """`step(state, frozen, batch) -> (state, metrics)`, jitted, state donated.

  Gradients are taken with respect to `state.trainable` alone.

  Args:
    model: classifier.
    tx: optimizer over the flat trainable tree.
    normalize: see `preprocess.prepare`.
    augment: see `preprocess.augment`.
    on_features: batches hold cached features [B, D] instead of images.
  """
  size = model.backbone.layout.image_size

  def logits_of(variables, image, rng, mutable):
    if on_features:
      return model.apply(variables, image, method=model.classify), {}
    augment_rng, dropout_rng = jax.random.split(rng)
    image = preprocess.prepare(image, size, normalize)
    image = preprocess.augment(image, augment, augment_rng)
    return model.apply(variables, image, train=True, mutable=mutable,
                       rngs={"dropout": dropout_rng})

  def loss_of(trainable, frozen, collections, batch, rng):
    variables = {"params": tree.merge(trainable, frozen), **collections}
    logits, updated = logits_of(variables, batch["image"], rng,
                                list(collections))
    mask = batch["mask"]
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch["label"])
    hits = (logits.argmax(-1) == batch["label"]) * mask
    return (loss * mask).sum() / mask.sum(), (hits.sum(), updated)

  def constrained(trainable):
    nested = tree.unflatten(trainable)
    if "method" not in nested:
      return trainable
    nested["method"] = model.method.constrain(nested["method"])
    return tree.flatten(nested)

  def step(state, frozen, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    (loss, (hits, collections)), grads = jax.value_and_grad(
        loss_of, has_aux=True)(state.trainable, frozen, state.collections,
                               batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable = constrained(optax.apply_updates(state.trainable, updates))
    metrics = {"loss": loss, "hits": hits, "images": batch["mask"].sum(),
               "grad_norm": optax.global_norm(grads)}
    return TrainState(state.step + 1, trainable, opt_state,
                      {**state.collections, **collections}, state.rng), metrics

  return jax.jit(step, donate_argnums=0)


@dataclasses.dataclass(frozen=True)
class Data:
  """The two splits of a run."""

  train: sources.Split
  test: sources.Split


def load_data(config: ConfigDict) -> Data:
  """The splits that a config names."""
  size = (config.image_size,) * 2
  read = lambda split: sources.load(
      config.task, split, folder=config.data.dir, image_size=size,
      on_error=config.data.on_error)
  return Data(read(config.data.train_split), read(config.data.test_split))


def run(config: ConfigDict, workdir: str | os.PathLike,
        data: Data | None = None) -> dict[str, Any]:
  """Adapts, evaluates and saves; goes on where an earlier call was killed.

  Args:
    config: see `configs/common.py`.
    workdir: gets config.json, metrics.jsonl, tensorboard/, checkpoints/,
      adapter.npz and, last, result.json.
    data: splits in memory; default: those that `config.task` names.

  Returns:
    What result.json holds.

  Raises:
    ValueError: a config, file or folder that can't be used, saying why.
    Diverged: the loss is NaN or infinite.
  """
  config = configs.resolve(config)
  workdir = Path(workdir)
  claim(workdir, config)
  finished = workdir / "result.json"
  if finished.exists():
    log.info("%s is finished; another --workdir runs it again", workdir)
    return json.loads(finished.read_text())
  with jax.default_matmul_precision(config.compute.matmul_precision):
    return _run(config, workdir, data or load_data(config))


def claim(workdir: Path, config: ConfigDict) -> None:
  """Writes config.json, or checks the one that is there.

  Raises:
    ValueError: the folder belongs to a run with another config.
  """
  path = workdir / "config.json"
  if path.exists():
    lines = configs.difference(json.loads(path.read_text()),
                               configs.plain(config))
    if lines:
      raise ValueError(
          f"{workdir} holds a run with another config; use another --workdir, "
          "or delete it. Its value -> yours:\n  " + "\n  ".join(lines))
  checkpoint.write_json(path, configs.plain(config))


def _run(config: ConfigDict, workdir: Path, data: Data) -> dict[str, Any]:
  started = time.monotonic()
  mesh = shard.make_mesh(config.batch_size)
  num_classes = data.train.num_classes
  model = models.build(config, num_classes)
  root = jax.random.PRNGKey(config.seed)
  params, sha256 = models.pretrained(model, config, root)
  backbone = {"name": config.backbone.name, "sha256": sha256}
  check_workdir(workdir, backbone)
  trainable, frozen = tree.split(params, config.trainable)
  log.info("%s", report.split_table(trainable, frozen, config.trainable))
  log.info("%d training and %d test images, %d classes", len(data.train),
           len(data.test), num_classes)

  feed = lambda split: pipeline.Feed(split, config.batch_size, mesh,
                                     config.data.device_gb * 2**30)
  train, test = feed(data.train), feed(data.test)
  # Nothing before the head changes: its inputs are computed once.
  on_features = (config.data.augment == "none"
                 and all(path.startswith("head/") for path in trainable))
  if on_features:
    cached = lambda part: feed(evaluate.cache_features(
        model, params, part, config.data.normalize))
    train, test = cached(train), cached(test)

  tx, rate = optim.optimizer_from_config(
      config.optim, trainable, batch_size=config.batch_size,
      epochs=config.epochs, steps_per_epoch=len(train))
  frozen = shard.replicate({
      path: leaf.astype(config.backbone.frozen_dtype)
      for path, leaf in frozen.items()}, mesh)
  state = shard.replicate(TrainState(
      jnp.int32(0), trainable, tx.init(trainable), {}, jax.random.fold_in(
          root, 1)), mesh)
  step_fn = make_train_step(model, tx, normalize=config.data.normalize,
                            augment=config.data.augment,
                            on_features=on_features)
  state, speed = fit(config, workdir, state, frozen, train, step_fn, rate)

  if on_features:
    apply = lambda variables, feature: model.apply(
        variables, feature, method=model.classify)
  else:
    apply = evaluate.make_apply(model, config.data.normalize)
  scores = evaluate.evaluate(evaluate.make_eval_step(apply), state.trainable,
                             frozen, state.collections, test)
  trained, total = tree.count(trainable), tree.count(tree.flatten(params))
  result = {
      "task": config.task, "split": config.data.test_split,
      "method": config.method, "backbone": backbone, **scores,
      "trainable_params": trained, "total_params": total,
      "trainable_percent": 100 * trained / total,
      "train_images": len(data.train),
      "skipped": {"train": data.train.skipped, "test": data.test.skipped},
      "seconds": time.monotonic() - started, "images_per_second": speed,
      "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "versions": versions()}
  checkpoint.save_adapter(workdir / "adapter.npz", state.trainable, {
      "backbone": backbone, "config": configs.plain(config),
      "num_classes": num_classes, "versions": result["versions"]})
  checkpoint.write_json(workdir / "result.json", result)
  return result


def check_workdir(workdir: Path, backbone: dict[str, str]) -> None:
  """Refuses to go on with another backbone than the one started with."""
  path = workdir / "backbone.json"
  if path.exists():
    models.check_backbone(str(workdir), json.loads(path.read_text()),
                          backbone["name"], backbone["sha256"])
  checkpoint.write_json(path, backbone)


def fit(config: ConfigDict, workdir: Path, state: TrainState,
        frozen: tree.Flat, train: pipeline.Feed, step_fn: Callable[..., Any],
        rate: optim.Rate) -> tuple[TrainState, float]:
  """The epochs that are left, from the newest checkpoint on.

  Returns:
    (final state, training images per second).
  """
  per_epoch = len(train)
  checkpoints = checkpoint.Checkpoints(workdir / "checkpoints",
                                       config.checkpoint.keep)
  start = 0
  if checkpoints.latest is not None:
    state = checkpoints.restore(checkpoints.latest, state)
    start = checkpoints.latest // per_epoch
    log.info("goes on after epoch %d", start)
  metrics = report.Metrics(workdir, start * per_epoch)
  progress = report.Progress(config.epochs * per_epoch, start * per_epoch,
                             config.batch_size)
  try:
    for epoch in range(start, config.epochs):
      records = []
      order = pipeline.order(len(train.split), config.seed, epoch)
      for batch in train.batches(order):
        state, record = step_fn(state, frozen, batch)
        records.append(record)
        progress.advance()
      values = summarise(jax.device_get(records), epoch, per_epoch,
                         float(rate(epoch * per_epoch)), workdir)
      metrics.write(values, images_per_second=progress.images_per_second())
      progress.epoch(epoch, config.epochs, values)
      if (epoch + 1) % config.checkpoint.every_epochs == 0 or (
          epoch + 1 == config.epochs):
        checkpoints.save((epoch + 1) * per_epoch, state)
  finally:
    progress.close()
    metrics.close()
    checkpoints.close()
  return state, progress.images_per_second()


def summarise(records: list[dict[str, np.ndarray]], epoch: int, per_epoch: int,
              lr: float, workdir: Path) -> dict[str, float]:
  """Means over an epoch.

  Raises:
    Diverged: a loss of it is NaN or infinite.
  """
  losses = np.array([record["loss"] for record in records], np.float64)
  bad = np.flatnonzero(~np.isfinite(losses))
  if len(bad):
    raise Diverged(
        f"loss is {losses[bad[0]]} at step {epoch * per_epoch + bad[0]} (epoch "
        f"{epoch}, lr {lr:.4g}); nothing was saved since. Look at grad_norm in "
        f"{workdir}/metrics.jsonl, and lower config.optim.lr")
  images = np.array([record["images"] for record in records], np.float64)
  hits = sum(float(record["hits"]) for record in records)
  return {
      "step": (epoch + 1) * per_epoch, "epoch": epoch, "lr": lr,
      "loss": float((losses * images).sum() / images.sum()),
      "train_top1": 100 * hits / float(images.sum()),
      "grad_norm": float(np.mean([record["grad_norm"] for record in records]))}


def versions() -> dict[str, str]:
  """Of the packages that decide the numbers."""
  return {name: importlib.metadata.version(name)
          for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
