"""Runs Prompt Condensation (Kim et al. 2023, arXiv 2305.17223), all its stages.

  1. full/           train with all prompts
  2. scores.npz      score every prompt (`prompt_scores.py`)
     oracle.npz      if asked for, the exact effect of every prompt
  3. keep_30_as_is/  keep the best 30 % of all blocks, without fine-tuning
     keep_30/        the same, and fine-tune only these
  4. condense.json   what each share costs and reaches

The stages 1 and 3 are runs as any other, each in its own folder, so that the
same command resumes the one that was killed. What is fine-tuned starts from
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

from vpt_jax import config as config_lib
from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.condensation import prompt_scores, selection
from vpt_jax.data import datasets, pipeline
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.training import (
  adapter_files,
  evaluation,
  record_checks,
  records,
  run_folder,
  run_results,
)
from vpt_jax.utils import (
  files,
  json_files,
  lookup,
  strange_files,
  text_tables,
  trees,
)
from vpt_jax.utils.logs import log

# What is taken from a condense.json, beside its `rows` and `oracle`.
RESULT = {
  "task": json_files.TEXT,
  "split": json_files.TEXT,
  "method": json_files.TEXT,
  "backbone": json_files.BACKBONE,
  "device": json_files.TEXT,
  "statistic": json_files.TEXT,
}

# main.run(config, workdir, data, start) -> what its result.json holds.
Run = Callable[..., dict[str, Any]]
Arrays = Mapping[str, np.ndarray]


def check(config: ConfigDict) -> None:
  """Raises ValueError for a section `condense` that no run could use."""
  section = config.condense
  options = config.get(config.method, {})
  if "kept" not in options:
    raise ValueError(prompt_scores.refusal(config.method))
  # The sign of this one says which prompts do harm, not which matter.
  rankings = prompt_scores.STATISTICS.keys() - {"taylor_signed"}
  lookup.choose(section.statistic, rankings, "condense.statistic")
  if section.statistic.startswith("taylor") and options.get("deep"):
    raise ValueError(
      f"config.condense.statistic={section.statistic!r} ranks nothing that "
      "matters for prompts that one block sees: LayerNorm removes their scale, "
      "so that sum g p is eps / (var(p) + eps), 0.1 % or less, of the "
      "gradient; use 'elementwise_sample_abs', or prompts that are carried "
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
  """Runs all stages; those that are done are not repeated.

  Args:
    config: resolved, with a section `condense`.
    workdir: gets the folders and files above.
    data: its splits, as `experiment.Data`.
    adapt: trains and evaluates, see `main.run`.

  Returns:
    What condense.json holds: `rows` for the full prompts and each share (see
    `measure`), `statistic`, and if asked for, `oracle` (see `correlations`).
  """
  started = time.monotonic()
  section = config.condense
  base = ConfigDict(config.to_dict())
  del base.condense
  log.info("condense: %s: with all prompts", workdir / "full")
  full = adapt(base, workdir / "full", data)
  files.write_json(workdir / "config.json", config.to_dict())
  fingerprint = (workdir / "full" / "data.json").read_bytes()
  files.write_atomic(workdir / "data.json", fingerprint)

  adapter_path = workdir / "full" / "adapter.npz"
  saved, meta = adapter_files.read_adapter(adapter_path)
  of_full = full.get("run") or {}  # versions before 0.2 do not say it
  run_folder.check_owner(adapter_path, meta.run, of_full)
  identity = {**of_full, **run_folder.identity([config])}
  result = {
    name: full[name]
    for name in ("task", "split", "method", "backbone", "device")
  }
  result["problem"] = problems.of_run(full).name
  result["statistic"] = section.statistic
  log.info("condense: scores of %d training images", len(data.train))
  all_scores = stored(
    workdir / "scores.npz", lambda: score(base, saved, data.train)
  )
  if section.oracle_images:
    log.info(
      "condense: exact removal of each prompt, %d images",
      section.oracle_images,
    )
    exact = stored(
      workdir / "oracle.npz",
      lambda: oracle(base, saved, data.train, section.oracle_images),
    )
    result["oracle"] = correlations(exact)

  chosen = all_scores[section.statistic]
  all_prompts = np.ones_like(chosen, bool)
  rows = [measure(base, data.test, all_prompts, 1.0, full, full)]
  for share in section.shares:
    mask = selection.keep(chosen, share)
    row = adapt_kept(config, workdir, data, adapt, saved, mask, share)
    rows.append(row)
  result["rows"] = rows
  result["run"] = identity
  record = {
    "id": config_lib.digest(config, 12),
    "stage": "condense",
    "name": config.name or config.method,
    "seed": config.seed,
    "cell": {},
    "config": config_lib.plain(config),
    "versions": full["versions"],
    "seconds": time.monotonic() - started,
    **result,
  }
  records.Store(workdir / records.FILE).add(record)
  files.write_json(workdir / "condense.json", result)
  return result


def adapt_kept(
  config: ConfigDict,
  workdir: Path,
  data: Any,
  adapt: Run,
  saved: Arrays,
  mask: np.ndarray,
  share: float,
) -> dict[str, Any]:
  """Evaluates the kept prompts as they are, and fine-tunes them.

  Args:
    config: see `run`.
    workdir: gets a folder for each of the two runs.
    data: see `run`.
    adapt: see `run`.
    saved: the full run's adapter.
    mask: [L, P], True for prompts that are kept.
    share: of them.

  Returns:
    The row of the result, see `measure`.
  """
  section = config.condense
  as_is = ConfigDict(config.to_dict())
  del as_is.condense
  as_is[config.method].kept = selection.indices(mask)
  as_is.epochs = 0
  as_is.optim.warmup_epochs = 0
  tuned = ConfigDict(as_is.to_dict())
  tuned.epochs = section.epochs
  tuned.optim.lr *= section.lr_factor
  start = selection.pack(saved, mask)
  name = f"keep_{100 * share:g}"
  log.info(
    "condense: %s: %d of %d prompts", workdir / name, mask.sum(), mask.size
  )
  as_is_result = adapt(as_is, workdir / f"{name}_as_is", data, start)
  tuned_result = adapt(tuned, workdir / name, data, start)
  return measure(as_is, data.test, mask, share, as_is_result, tuned_result)


def read_result(path: Path, run: Mapping[str, str]) -> dict[str, Any]:
  """Returns a finished condensation's result; see `run_results.read_owned`.

  Args:
    path: of its condense.json.
    run: that it should be of.
  """
  fault_of = record_checks.fault_of_condensation
  return run_results.read_owned(path, RESULT, fault_of, run)


def stored(path: Path, compute: Callable[[], Arrays]) -> Arrays:
  """Returns the arrays of a file; computes and writes them if it is missing.

  Raises:
    ValueError: the file is damaged.
  """
  if not path.exists():
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {**compute()}
    np.savez(buffer, **arrays)
    files.write_atomic(path, buffer.getvalue())
  try:
    return strange_files.read_whole_npz(path)
  except ValueError as error:
    raise ValueError(
      f"{error}; delete this file, the same command makes it again"
    ) from None


def score(config: ConfigDict, saved: Arrays, split: datasets.Split) -> Arrays:
  """Returns all statistics of the full run's prompts on a split.

  Args:
    config: of the full run.
    saved: its adapter.
    split: the images.

  Returns:
    {statistic: [L, P]}, see `prompt_scores.scores`.
  """
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
  """Returns exact changes of the loss, and all statistics of the same images.

  Args:
    config: of the full run.
    saved: its adapter.
    split: from which images are drawn.
    images: how many.

  Returns:
    {statistic: [L, P], "change": [L, P] loss without the prompt minus with}.
  """
  order = np.random.default_rng(config.seed).permutation(len(split))[:images]
  part = dataclasses.replace(
    split, images=split.images[order], labels=split.labels[order]
  )
  model, variables, apply = _restored(config, saved, split.num_classes)
  loss, without = prompt_scores.leave_one_out(
    model,
    variables,
    _batches(config, part),
    apply,
    problem=problems.from_config(config, split.num_classes),
  )
  return {**score(config, saved, part), "change": without - loss}


def correlations(exact: Arrays) -> dict[str, Any]:
  """Returns rank correlations of each statistic with the exact change.

  Args:
    exact: see `oracle`.

  Returns:
    {statistic: {magnitude, change}}, both by Spearman. `magnitude` is that of
    absolute values: does it find the prompts that matter? `change` is that of
    the values: does it tell which ones do harm?
  """
  change = exact["change"]
  out = {}
  for name, values in exact.items():
    if name == "change":
      continue
    out[name] = {
      "magnitude": selection.spearman(np.abs(values), np.abs(change)),
      "change": selection.spearman(values, change),
    }
  return out


def measure(
  config: ConfigDict,
  split: datasets.Split,
  mask: np.ndarray,
  share: float,
  as_is: dict[str, Any],
  tuned: dict[str, Any],
) -> dict[str, Any]:
  """Returns a row of the result.

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
  score_name = problems.from_config(config, split.num_classes).scores[0].name
  model = model_lib.build(config, split.num_classes)
  return {
    "share": share,
    "prompts": int(mask.sum()),
    "per_set": mask.sum(1).tolist(),
    f"{score_name}_as_is": as_is[score_name],
    f"{score_name}_tuned": tuned[score_name],
    "gmacs": model_lib.multiply_adds(model) / 1e9,
    "milliseconds": latency(config, model, split),
  }


def latency(
  config: ConfigDict,
  model: model_lib.Model,
  split: datasets.Split,
  times: int = 10,
) -> float:
  """Returns the median milliseconds in which a batch becomes logits.

  The parameters are random, which takes the same time.

  Args:
    config: of the model.
    model: with `kept` prompts or all.
    split: gives the batch.
    times: how often it is measured.
  """
  rng = jax.random.PRNGKey(0)
  flat = trees.flatten(model_lib.init(model, rng))
  backbone = {
    path: leaf for path, leaf in flat.items() if path.startswith("backbone/")
  }
  flat |= model_lib.store(backbone, config)
  variables = {
    "params": trees.unflatten(flat),
    **model_lib.collections(model, rng),
  }
  mesh = sharding.make_mesh(config.batch_size)
  variables = sharding.replicate(variables, mesh)
  batch = next(_batches(config, split))
  apply = jax.jit(_make_apply(config, model))
  apply(variables, batch["image"]).block_until_ready()  # compiles
  samples = []
  for _ in range(times):
    started = time.perf_counter()
    apply(variables, batch["image"]).block_until_ready()
    samples.append(time.perf_counter() - started)
  return 1e3 * statistics.median(samples)


def table(result: dict[str, Any]) -> str:
  """Returns the result as a few lines of text."""
  backbone = result["backbone"]
  lines = [
    f"{result['task']} {result['split']}, {result['method']} on "
    f"{backbone['name']} (sha256 {backbone['sha256'][:8]}), kept by "
    f"{result['statistic']!r}, {result['device']}",
    _rows_table(result),
  ]
  if "oracle" in result:
    lines.append("rank correlation with exact removal (magnitude, change):")
    lines.append(_oracle_table(result["oracle"]))
  return "\n".join(lines)


def _rows_table(result: dict[str, Any]) -> str:
  score = problems.of_run(result).scores[0]
  heading = (
    "share",
    "prompts",
    f"{score.title} as is",
    "fine-tuned",
    "GMACs/image",
    "ms/batch",
  )
  lines = [heading]
  for row in result["rows"]:
    as_is = row[f"{score.name}_as_is"]
    tuned = row[f"{score.name}_tuned"]
    line = (
      f"{100 * row['share']:g} %",
      f"{row['prompts']}",
      f"{as_is:.2f}",
      f"{tuned:.2f}",
      f"{row['gmacs']:.4g}",
      f"{row['milliseconds']:.1f}",
    )
    lines.append(line)
  return text_tables.align(lines, right=range(len(heading)))


def _oracle_table(oracle_rows: dict[str, Any]) -> str:
  lines = []
  for name, rho in oracle_rows.items():
    magnitude = f"{rho['magnitude']:.3f}"
    change = f"{rho['change']:+.3f}"
    lines.append((f"  {name}", magnitude, change))
  return text_tables.align(lines, right=(1, 2))


def _make_apply(
  config: ConfigDict, model: model_lib.Model
) -> prompt_scores.Apply:
  """Returns apply(variables, uint8 images) -> logits."""
  preprocess = Preprocess.from_config(config, model.method.input_size)
  return evaluation.make_apply(model, preprocess)


def _batches(
  config: ConfigDict, split: datasets.Split
) -> Iterator[pipeline.Batch]:
  """Yields the batches of a split, once, in order."""
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
) -> tuple[model_lib.Model, dict[str, Any], prompt_scores.Apply]:
  """Returns the full run's model, its variables and its `_make_apply`."""
  model = model_lib.build(config, num_classes)
  rng = jax.random.PRNGKey(config.seed)
  fresh_head = ConfigDict(config.to_dict())
  fresh_head.head = "linear"  # the trained one is in `saved`
  params, _ = model_lib.pretrained(model, fresh_head, rng)
  flat = trees.flatten(model_lib.restore(params, saved))
  frozen = {path: leaf for path, leaf in flat.items() if path not in saved}
  flat |= model_lib.store(frozen, fresh_head)
  collections = model_lib.collections(model, rng)
  variables = {
    "params": trees.unflatten(flat),
    **model_lib.restore(collections, saved),
  }
  mesh = sharding.make_mesh(config.batch_size)
  return model, sharding.replicate(variables, mesh), _make_apply(config, model)
