"""Prompt Condensation (Kim et al. 2023, arXiv 2305.17223), all its stages.

  1. full/           train with all prompts
  2. scores.npz      score every prompt (`scores.py`)
  3. keep_30/        keep the best 30 % of all blocks, and fine-tune only these
     keep_30_as_is/  the same without fine-tuning
  4. condense.json   what each share costs and reaches

The stages 1 and 3 are runs as any other, each in its own folder, so that the
same command goes on in the one that was killed. What is fine-tuned starts from
the kept prompts and the head of the full run.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import io
from pathlib import Path
import statistics
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import config as configs
from vpt_jax import model as models
from vpt_jax import problems
from vpt_jax.condensation import prompt_scores
from vpt_jax.data import datasets, pipeline
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.training import checkpoints, evaluation, metrics, records
from vpt_jax.utils import files, lookup, trees

# main.run(config, workdir, data, start) -> what its result.json holds.
Run = Callable[..., dict[str, Any]]
Arrays = Mapping[str, np.ndarray]


def check(config: ConfigDict) -> None:
  """Raises ValueError for a section `condense` that no run could use."""
  section, options = config.condense, config.get(config.method, {})
  if "kept" not in options:
    raise ValueError(prompt_scores.refusal(config.method))
  # The sign of this one says which prompts do harm, not which matter.
  lookup.choose(
    section.statistic,
    prompt_scores.STATISTICS.keys() - {"taylor_signed"},
    "condense.statistic",
  )
  if section.statistic.startswith("taylor") and options.get("deep"):
    raise ValueError(
      f"config.condense.statistic={section.statistic!r} is zero up to "
      "rounding for prompts that one block sees, as LayerNorm removes their "
      "scale; use 'elementwise_sample_abs', or prompts that are carried "
      "(vpt.deep=False)"
    )
  if options.kept:
    raise ValueError(
      f"config.{config.method}.kept is what condensation chooses; leave it ()"
    )
  for share in section.shares:
    if not 0 < share < 1:
      raise ValueError(
        f"config.condense.shares={tuple(section.shares)}; "
        "expected numbers between 0 and 1"
      )
  for name in ("epochs", "lr_factor", "oracle_images"):
    if section[name] < 0:
      raise ValueError(
        f"config.condense.{name}={section[name]}; expected at least 0"
      )


def run(
  config: ConfigDict, workdir: Path, data: Any, adapt: Run
) -> dict[str, Any]:
  """All stages; those that are done are not repeated.

  Args:
    config: resolved, with a section `condense`.
    workdir: gets the folders and files above.
    data: its splits, as `job.Data`.
    adapt: trains and evaluates, see `main.run`.

  Returns:
    What condense.json holds: `rows` for the full prompts and each share (see
    `measure`), `statistic`, and if asked for, `oracle` (see `correlations`).
  """
  started = time.monotonic()
  section, base = config.condense, ConfigDict(config.to_dict())
  del base.condense
  log = lambda stage: metrics.log.info("condense: %s", stage)
  log(f"{workdir / 'full'}: with all prompts")
  whole = adapt(base, workdir / "full", data)
  files.write_json(workdir / "config.json", config.to_dict())
  files.write_atomic(
    workdir / "data.json", (workdir / "full" / "data.json").read_bytes()
  )
  saved, _ = checkpoints.read_adapter(workdir / "full" / "adapter.npz")

  log(f"scores of {len(data.train)} training images")
  found = stored(workdir / "scores.npz", lambda: score(base, saved, data.train))
  result = {
    name: whole[name]
    for name in ("task", "split", "method", "backbone", "device")
  }
  result["problem"] = problems.of_run(whole).name
  result["statistic"] = section.statistic
  if section.oracle_images:
    log(f"exact removal of each prompt, {section.oracle_images} images")
    exact = stored(
      workdir / "oracle.npz",
      lambda: oracle(base, saved, data.train, section.oracle_images),
    )
    result["oracle"] = correlations(exact)

  chosen = found[section.statistic]
  rows = [
    measure(base, data.test, np.ones_like(chosen, bool), 1.0, whole, whole)
  ]
  for share in section.shares:
    mask = prompt_scores.keep(chosen, share)
    as_is = ConfigDict(base.to_dict())
    as_is[base.method].kept = prompt_scores.indices(mask)
    as_is.optim.warmup_epochs = as_is.epochs = 0
    tuned = ConfigDict(as_is.to_dict())
    tuned.epochs = section.epochs
    tuned.optim.lr *= section.lr_factor
    start = prompt_scores.pack(saved, mask)
    folder = workdir / f"keep_{100 * share:g}"
    log(f"{folder}: {mask.sum()} of {mask.size} prompts")
    rows.append(
      measure(
        as_is,
        data.test,
        mask,
        share,
        adapt(as_is, folder.with_name(f"{folder.name}_as_is"), data, start),
        adapt(tuned, folder, data, start),
      )
    )
  result["rows"] = rows
  records.Store(workdir / records.FILE).add(
    {
      "id": configs.digest(config, 12),
      "stage": "condense",
      "name": config.name or config.method,
      "seed": config.seed,
      "cell": {},
      "config": configs.plain(config),
      "versions": whole["versions"],
      "seconds": time.monotonic() - started,
      **result,
    }
  )
  files.write_json(workdir / "condense.json", result)
  return result


def stored(path: Path, compute: Callable[[], Arrays]) -> Arrays:
  """Arrays of a file; computed, and written atomically, if it is not there."""
  if not path.exists():
    buffer = io.BytesIO()
    np.savez(buffer, **compute())
    files.write_atomic(path, buffer.getvalue())
  with np.load(path, allow_pickle=False) as file:
    return {name: file[name] for name in file.files}


def score(config: ConfigDict, saved: Arrays, split: datasets.Split) -> Arrays:
  """All statistics of the full run's prompts on a split, see `scores.scores`."""
  model, variables, apply = _restored(config, saved, split.num_classes)
  return prompt_scores.scores(
    model,
    variables,
    _batches(config, split),
    apply=apply,
    problem=problems.from_config(config, split.num_classes),
  )


def oracle(
  config: ConfigDict, saved: Arrays, split: datasets.Split, images: int
) -> Arrays:
  """The same on a few random images, and there the exact changes of the loss.

  Returns:
    {statistic: [L, P], "change": [L, P] loss without the prompt minus with}.
  """
  order = np.random.default_rng(config.seed).permutation(len(split))[:images]
  part = dataclasses.replace(
    split, images=split.images[order], labels=split.labels[order]
  )
  model, variables, apply = _restored(config, saved, split.num_classes)
  problem = problems.from_config(config, split.num_classes)
  loss, without = prompt_scores.leave_one_out(
    model, variables, _batches(config, part), apply, problem=problem
  )
  return {
    **prompt_scores.scores(
      model, variables, _batches(config, part), apply=apply, problem=problem
    ),
    "change": without - loss,
  }


def correlations(exact: Arrays) -> dict[str, Any]:
  """Spearman's rank correlation of each statistic with the exact change.

  `magnitude` is that of absolute values: does it find the prompts that matter?
  `change` is that of the values: does it tell which ones do harm?
  """
  change = exact["change"]
  return {
    name: {
      "magnitude": prompt_scores.spearman(np.abs(score), np.abs(change)),
      "change": prompt_scores.spearman(score, change),
    }
    for name, score in exact.items()
    if name != "change"
  }


def measure(
  config: ConfigDict,
  split: datasets.Split,
  mask: np.ndarray,
  share: float,
  as_is: dict[str, Any],
  tuned: dict[str, Any],
) -> dict[str, Any]:
  """A row of the result.

  Args:
    config: of a run with these prompts.
    split: gives the batch that is timed.
    mask: [L, P] of the prompts that are kept.
    share: of them.
    as_is: result before fine-tuning.
    tuned: and after.

  Returns:
    share; prompts, all that are kept; per_set, how many in each block; the
    problem's first score before and after fine-tuning (top1_as_is, top1_tuned
    of classification); gmacs, 10^9 multiply-adds of an image alone;
    milliseconds, median for a batch of `config.batch_size`.
  """
  score = problems.from_config(config, split.num_classes).scores[0].name
  model = models.build(config, split.num_classes)
  return {
    "share": share,
    "prompts": int(mask.sum()),
    "per_set": mask.sum(1).tolist(),
    f"{score}_as_is": as_is[score],
    f"{score}_tuned": tuned[score],
    "gmacs": models.multiply_adds(model) / 1e9,
    "milliseconds": latency(config, model, split),
  }


def latency(
  config: ConfigDict,
  model: models.Model,
  split: datasets.Split,
  times: int = 10,
) -> float:
  """Median milliseconds in which a batch of images becomes logits.

  The parameters are random, which takes the same time.
  """
  rng, mesh = jax.random.PRNGKey(0), sharding.make_mesh(config.batch_size)
  flat = trees.flatten(models.init(model, rng))
  flat |= models.store(
    {path: leaf for path, leaf in flat.items() if path.startswith("backbone/")},
    config,
  )
  variables = sharding.replicate(
    {"params": trees.unflatten(flat), **models.collections(model, rng)}, mesh
  )
  batch = next(_batches(config, split))
  apply, taken = jax.jit(_apply(config, model)), []
  apply(variables, batch["image"]).block_until_ready()  # compiles
  for _ in range(times):
    started = time.perf_counter()
    apply(variables, batch["image"]).block_until_ready()
    taken.append(time.perf_counter() - started)
  return 1e3 * statistics.median(taken)


def table(result: dict[str, Any]) -> str:
  """The result in a few lines."""
  score = problems.of_run(result).scores[0]
  rows = [
    (
      "share",
      "prompts",
      f"{score.title} as is",
      "fine-tuned",
      "GMACs/image",
      "ms/batch",
    )
  ]
  for row in result["rows"]:
    rows.append(
      (
        f"{100 * row['share']:g} %",
        f"{row['prompts']}",
        f"{row[f'{score.name}_as_is']:.2f}",
        f"{row[f'{score.name}_tuned']:.2f}",
        f"{row['gmacs']:.4g}",
        f"{row['milliseconds']:.1f}",
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = [
    "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths))
    for row in rows
  ]
  if "oracle" in result:
    lines.append("rank correlation with exact removal (magnitude, change):")
    width = max(map(len, result["oracle"]))
    lines += [
      f"  {name:<{width}}  {rho['magnitude']:.3f}  {rho['change']:+.3f}"
      for name, rho in result["oracle"].items()
    ]
  backbone = result["backbone"]
  return "\n".join(
    [
      f"{result['task']} {result['split']}, {result['method']} on "
      f"{backbone['name']} (sha256 {backbone['sha256'][:8]}), kept by "
      f"{result['statistic']!r}, {result['device']}",
      *lines,
    ]
  )


def _apply(config: ConfigDict, model: models.Model) -> prompt_scores.Apply:
  """(variables, uint8 images) -> logits."""
  preprocess = Preprocess.from_config(config, model.method.input_size)
  return evaluation.make_apply(model, preprocess)


def _batches(
  config: ConfigDict, split: datasets.Split
) -> Iterator[pipeline.Batch]:
  """A split once, in order."""
  feed = pipeline.Feed(
    split,
    config.batch_size,
    sharding.make_mesh(config.batch_size),
    config.data.device_gb * 2**30 or None,
    config.image_size,
  )
  return feed.batches(np.arange(len(split)))


def _restored(
  config: ConfigDict, saved: Arrays, num_classes: int
) -> tuple[models.Model, dict[str, Any], prompt_scores.Apply]:
  """The full run's model, its variables and what feeds it."""
  model = models.build(config, num_classes)
  rng = jax.random.PRNGKey(config.seed)
  config = ConfigDict(config.to_dict())
  config.head = "linear"  # the trained one is in `saved`
  params, _ = models.pretrained(model, config, rng)
  flat = trees.flatten(models.restore(params, saved))
  flat |= models.store(
    {path: leaf for path, leaf in flat.items() if path not in saved}, config
  )
  variables = {
    "params": trees.unflatten(flat),
    **models.restore(models.collections(model, rng), saved),
  }
  return (
    model,
    sharding.replicate(variables, sharding.make_mesh(config.batch_size)),
    _apply(config, model),
  )
