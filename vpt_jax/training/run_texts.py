"""Writes what a run says on the terminal: its parameters and its result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpt_jax import problems
from vpt_jax.training import metrics, records
from vpt_jax.utils import text_tables, trees

MOST_NAMED_LEAVES = 100  # of more trainable leaves only the parts are listed


def split_table(trainable: trees.Flat, frozen: trees.Flat, pattern: str) -> str:
  """Returns a table of the parameters that are trained and those that are not.

  Args:
    trainable: flat tree.
    frozen: flat tree.
    pattern: `config.trainable`.

  Returns:
    Lines with a group of parameters, its leaves and its scalars.
  """
  is_short = len(trainable) < MOST_NAMED_LEAVES
  rows = [
    ("parameters", "pattern", "leaves", "scalars"),
    ("trainable", pattern, *_sizes(trainable)),
    *_group_rows(trainable, depth=2 if is_short else 1),
    ("frozen", "the rest", *_sizes(frozen)),
    *_group_rows(frozen, depth=1),
  ]
  return text_tables.align(rows, right=(2, 3))


def _group_rows(flat: trees.Flat, depth: int) -> list[tuple[str, ...]]:
  """Returns a row for all parameters with the same first `depth` names."""
  groups: dict[str, trees.Flat] = {}
  for path, leaf in flat.items():
    group = "/".join(path.split("/")[:depth])
    groups.setdefault(group, {})[path] = leaf
  return [("", group, *_sizes(groups[group])) for group in sorted(groups)]


def _sizes(flat: trees.Flat) -> tuple[str, str]:
  return str(len(flat)), f"{trees.count(flat):,}"


def result_text(result: Mapping[str, Any]) -> str:
  """Returns the result of a run in a few lines.

  Args:
    result: what result.json holds.
  """
  scores = _scores_text(result, "")
  backbone = result["backbone"]
  share = f"{result['trainable_percent']:.3f} %"
  without_head = result["trainable_params"] - result.get("head_params", 0)
  if result.get("head_params") and without_head >= 0:  # a head may be frozen
    share += f"; {without_head:,} without the head"
  lines = [
    f"{result['task']} {result['split']}: {scores} ({result['count']} images)",
    f"{result['method']} on {backbone['name']} (sha256 "
    f"{backbone['sha256'][:8]}): {result['trainable_params']:,} trainable "
    f"parameters ({share}), {result['seconds']:.1f} s",
  ]
  if result["images_per_second"]:
    lines[-1] += f", {result['images_per_second']:.0f} images/s"
  if result.get("multi_scale"):
    lines.append(f"at several scales: {_scores_text(result, 'multi_scale')}")
  return "\n".join(lines)


def _scores_text(result: Mapping[str, Any], part: str) -> str:
  """Returns the scores of a result, or of a part of it, in words."""
  values = result[part] if part else result
  scores = problems.of_run(result).scores
  return ", ".join(
    f"{score.title} {values[score.name]:.2f} {score.unit}" for score in scores
  )


def saved_text(workdir: Path) -> str:
  """Returns what a workdir holds for the same command to go on from; "": none.

  Of a run, a sweep or a condensation, at any moment, also while it is written.

  Args:
    workdir: need not be there.
  """
  parts = []
  count = len(records.Store(workdir / records.FILE).read())
  count += len([*workdir.glob("*/result.json")])  # of a condensation
  if count:
    parts.append(f"{count} finished {'run' if count == 1 else 'runs'}")
  newest = None
  for pattern in ("checkpoints", "*/checkpoints", "groups/*/checkpoints"):
    for folder in workdir.glob(pattern):
      steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
      if steps and (newest is None or _changed(folder) > _changed(newest[0])):
        newest = (folder, max(steps))
  if newest is not None:
    parts.append(_training_text(*newest))
  return ", ".join(parts)


def _changed(folder: Path) -> float:
  return folder.stat().st_mtime


def _training_text(checkpoints: Path, step: int) -> str:
  """Returns how far the training of a run or group is saved."""
  epoch = 0
  last_step = 0
  for line in metrics.read_metrics(checkpoints.parent / metrics.FILE):
    if line["step"] <= step:
      epoch = line["epoch"] + 1
      last_step = line["step"]
  until = f"step {step}"
  if epoch:
    until = f"epoch {epoch}"
    if step > last_step:
      until += f" and {step - last_step} steps"
  return f"training up to {until} in {checkpoints}"
