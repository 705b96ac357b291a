"""The main job: `python -m vpt_jax.main --config=FILE[:TASK]`."""

from collections.abc import Sequence
import dataclasses
import importlib.metadata
import json
import logging
import os
from pathlib import Path
import sys
import time
from typing import Any
import zlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import checkpoint, condense, config as configs, evaluate, files
from vpt_jax import model as models
from vpt_jax import logs, optim, shard, train, tree
from vpt_jax.data import pipeline, sources

log = logs.log

# Bytes of images that tell two data sets apart.
LOOKED_AT = 2**29


@dataclasses.dataclass(frozen=True)
class Data:
  """The two splits of a run."""

  train: sources.Split
  test: sources.Split


def run(config: ConfigDict, workdir: str | os.PathLike,
        data: Data | None = None, start: tree.Flat | None = None
        ) -> dict[str, Any]:
  """Adapts, evaluates and saves; goes on where an earlier call was killed.

  Args:
    config: see `configs/common.py`.
    workdir: gets config.json, metrics.jsonl, tensorboard/, checkpoints/,
      adapter.npz and, last, result.json.
    data: splits in memory; default: those that `config.task` names.
    start: values of an adapter file that the run starts from.

  Returns:
    What result.json holds, or condense.json (see `condense.py`).

  Raises:
    ValueError: a config, file or folder that can't be used, saying why.
    train.Diverged: the loss is NaN or infinite.
  """
  config = configs.resolve(config, named_task=data is None)
  workdir = Path(workdir).expanduser()
  staged = "condense" in config
  if staged:
    condense.check(config)
  finished = workdir / ("condense.json" if staged else "result.json")
  with files.lock(workdir):
    check_unchanged(workdir / "config.json", configs.plain(config))
    if data is not None:
      check_unchanged(workdir / "data.json", fingerprint(data))
    if finished.exists():
      log.info("%s is finished; another --workdir runs it again", workdir)
      return json.loads(finished.read_text())
    with jax.default_matmul_precision(config.compute.matmul_precision):
      data = data or load_data(config)
      if staged:
        return condense.run(config, workdir, data, run)
      return _run(config, workdir, data, start or {})


def load_data(config: ConfigDict) -> Data:
  """The splits that a config names."""
  data = config.data
  # What the method puts around or below an image is not part of it; how many
  # classes there are does not matter here.
  size = models.build(
      config, len(config.head_groups) or 1).method.input_size
  read = lambda split, train: sources.load(
      config.task, split, folder=data.dir, image_size=size,
      on_error=data.on_error, source=data.source, seed=data.seed,
      family=data.preprocess, train=train, cache_dir=data.cache or None)
  return Data(read(data.train_split, True), read(data.test_split, False))


def fingerprint(data: Data) -> dict[str, dict[str, int]]:
  """What tells two data sets apart; of large ones a part of the images."""

  def crc32(part: sources.Split) -> int:
    step = -(-part.images.nbytes // LOOKED_AT)
    return zlib.crc32(part.labels, zlib.crc32(
        np.ascontiguousarray(part.images[::step])))

  return {name: {"images": len(part), "classes": part.num_classes,
                 "crc32": crc32(part)}
          for name, part in (("train", data.train), ("test", data.test))}


def check_unchanged(path: Path, value: dict[str, Any]) -> None:
  """Raises ValueError if the file is there and says something else."""
  if path.exists():
    lines = configs.difference(json.loads(path.read_text()), value)
    if lines:
      raise ValueError(
          f"{path.parent} holds a run with another {path.stem}; use another "
          "--workdir, or delete it. Its value -> yours:\n  "
          + "\n  ".join(lines))


def claim(workdir: Path, config: ConfigDict, backbone: dict[str, str],
          data: Data) -> None:
  """Writes what the folder's run is made of, before its first step.

  Raises:
    ValueError: it was started with another backbone file or other data.
  """
  path = workdir / "backbone.json"
  if path.exists():
    models.check_backbone(str(workdir), json.loads(path.read_text()), backbone)
  check_unchanged(workdir / "data.json", fingerprint(data))
  files.write_json(path, backbone)
  files.write_json(workdir / "data.json", fingerprint(data))
  files.write_json(workdir / "config.json", configs.plain(config))


def _run(config: ConfigDict, workdir: Path, data: Data, start: tree.Flat
         ) -> dict[str, Any]:
  started = time.monotonic()
  mesh = shard.make_mesh(config.batch_size)
  num_classes = data.train.num_classes
  if data.test.labels.max() >= num_classes:
    raise ValueError(
        f"label {data.test.labels.max()} of the test images is out of range "
        f"0..{num_classes - 1} of the training images")
  model = models.build(config, num_classes)
  rng = jax.random.PRNGKey(config.seed)
  params, sha256 = models.pretrained(model, config, rng,
                                     data.train.class_names)
  params, collections = models.start_method(
      model, params, models.collections(model, rng))
  params = models.restore(params, start)
  collections = models.restore(collections, start)
  backbone = {"name": config.backbone.name, "sha256": sha256}
  has_prompts = bool(params["method"])
  trainable, frozen = tree.split(params, config.trainable)
  del params  # `frozen` may be stored in fewer bits
  frozen = shard.replicate(models.store(frozen, config), mesh)
  trainable = shard.replicate(trainable, mesh)
  log.info("%s", logs.split_table(trainable, frozen, config.trainable))
  log.info("%d training and %d test images, %d classes", len(data.train),
           len(data.test), num_classes)

  feed = lambda split: pipeline.Feed(
      split, config.batch_size, mesh, config.data.device_gb * 2**30 or None,
      config.image_size)
  train_feed, test_feed = feed(data.train), feed(data.test)
  apply = evaluate.make_apply(model, config.data.normalize)
  # If nothing before the head changes, its inputs are computed once.
  on_features = (
      config.epochs > 0 and config.data.augment == "none" and not has_prompts
      and config.data.min_scale == 1
      and data.train.strips is None
      and all(path.startswith("head/") for path in trainable))
  if on_features:
    cache = lambda part: feed(evaluate.cache_features(
        model, tree.merge(trainable, frozen), part, config.data.normalize))
    train_feed, test_feed = cache(train_feed), cache(test_feed)
    apply = lambda variables, feature: model.apply(
        variables, feature, method=model.classify)

  tx, rate = optim.from_config(
      config.optim, trainable, [*trainable, *frozen],
      batch_size=config.batch_size, epochs=config.epochs,
      steps_per_epoch=len(train_feed))
  state = shard.replicate(train.TrainState(
      jnp.int32(0), trainable, tx.init(trainable), collections,
      jax.random.fold_in(rng, 1)), mesh)
  step = train.make_train_step(
      model, tx, normalize=config.data.normalize, augment=config.data.augment,
      min_scale=config.data.min_scale, on_features=on_features)
  claim(workdir, config, backbone, data)
  state, speed = train.fit(config, workdir, state, frozen, train_feed, step,
                           rate)

  scores, predictions = evaluate.evaluate(
      evaluate.make_eval_step(apply), state.trainable, frozen,
      state.collections, test_feed)
  trained, total = tree.count(state.trainable), tree.count(
      {**state.trainable, **frozen})
  result = {
      "task": config.task, "split": config.data.test_split,
      "method": config.method, "backbone": backbone, **scores,
      "trainable_params": trained, "total_params": total,
      "trainable_percent": 100 * trained / total,
      "train_images": len(data.train),
      "skipped": {"train": data.train.skipped, "test": data.test.skipped},
      "seconds": time.monotonic() - started, "images_per_second": speed,
      "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "versions": {name: importlib.metadata.version(name) for name in
                   ("jax", "jaxlib", "flax", "optax", "numpy")}}
  # All but the backbone's frozen part, so that nothing is left to guess.
  own = {path: leaf for path, leaf in frozen.items()
         if not path.startswith("backbone/")}
  own |= tree.flatten(state.collections)
  checkpoint.save_adapter(workdir / "adapter.npz", {**own, **state.trainable}, {
      "backbone": backbone, "config": configs.plain(config),
      "num_classes": num_classes, "versions": result["versions"]})
  files.write_atomic(
      workdir / "predictions.csv",
      evaluate.predictions_csv(data.test, predictions).encode())
  files.write_json(workdir / "result.json", result)
  return result


EMBEDDED = """\
no task named: takes the embedded data (scikit-learn's digits) and backbone \
%s; name a real task as in --config=%s:eurosat, with ViT-B/16 IN-21k"""


def main(argv: Sequence[str]) -> int:
  """Runs; returns the exit status. What the user can mend is told clearly."""
  if {"--help", "-h"} & {*argv}:
    sys.stdout.write(configs.USAGE + "\n")
    return 0
  log.addHandler(logging.StreamHandler(sys.stdout))
  log.setLevel(logging.INFO)
  log.propagate = False  # absl would print each line again
  try:
    config, path, workdir = configs.parse(argv)
    if config.task == "digits" and ":" not in path:
      log.info(EMBEDDED, config.backbone.name, path)
    config = configs.resolve(config)
    workdir = workdir or os.path.join(
        "runs", f"{config.task}-{config.method}-{configs.digest(config)}")
    log.info("workdir %s", workdir)
    result = run(config, workdir)
  except (ValueError, OSError) as error:
    sys.stderr.write(f"error: {error}\n")
    return 1
  except KeyboardInterrupt:
    sys.stderr.write("interrupted; the same command goes on\n")
    return 130
  text, files = ((condense.table(result), "condense.json and all runs")
                 if "condense" in config else
                 (logs.result_text(result), "result.json and adapter.npz"))
  log.info("%s\n%s in %s", text, files, workdir)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
