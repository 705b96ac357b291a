"""Compares the library with golden fixtures of the published code.

  python -m tests.parity FILE.npz ... [--verbose]

Prints the largest differences of each file, and exits with 1 if any is beyond
its tolerance or a file is no fixture. A fixture of something the library does
not have is reported as unsupported, with the reason.
"""

import argparse
from collections.abc import Iterable, Sequence
import math
from pathlib import Path
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import baselines_vtab, common
from tests import (
  condense_parity,
  options,
  pgn_parity,
  published,
  running,
  segmentation_parity,
)
from tests.options import Unsupported
from tests.parity_report import Report
from tests.reference import (
  Arrays,
  attention_heads,
  below,
  Names,
  read,
  reference_class,
)
from vpt_jax import model as model_lib
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.method import Method
from vpt_jax.training import optim
from vpt_jax.utils import trees
from vpt_jax.weights import file_formats, load, translate

_QUERY = (
  "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
)
# Outputs that are compared apart from tokens and features, or with others.
_APART = ("logits", "loss", "pos_embed_resized", "logits_each_image_alone")
# Logits of a batch and of its images alone may differ by rounding.
_MIXES_IMAGES = 1e-3
# The inverse deviation of few images is large.
_TRAINED_HEAD_FLOOR = 1e-4
# Of gradients that are zero in theory, to the largest gradient.
_NOISE = 1e-6


def compare(path: Path) -> Report:
  """Compares one file.

  Raises:
    Unsupported: a fixture of something that the library does not have.
    ValueError, OSError, ...: an unreadable file, or no fixture.
  """
  arrays, meta = read(path)
  report = Report()
  case = meta.get("case", "")
  with jax.default_matmul_precision("highest"):
    if "embedding/kernel" in arrays:
      _checkpoint(path, report)
    elif below(arrays, "lr/"):
      _schedules(arrays, meta, report)
    elif "file" in meta and case.startswith("ckpt_"):
      published.compare(path, arrays, meta, report)
    elif case.startswith(("seg_", "traj_seg_")):
      segmentation_parity.compare(arrays, meta, report)
    elif case.startswith("pgn_"):
      pgn_parity.compare(path, arrays, meta, report)
    elif "statistics" in meta:
      condense_parity.compare(path, arrays, meta, report)
    elif "source_npz" in meta:
      _resized(path.parent / meta["source_npz"], arrays, meta, report)
    else:
      _model(arrays, meta, report)
  return report


def _model(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares one pass of a model, or a training."""
  params = below(arrays, "param/")
  options.check_supported(meta, set(params))
  if not params or "out/loss" not in arrays:
    raise ValueError("no fixture: it has no param/ or no out/loss")
  if "solver" in meta:
    _trajectory(arrays, meta, report)
  else:
    _forward(arrays, meta, report)


def _intermediates(report: Report, arrays: Arrays, ours: running.Pass) -> None:
  """Compares every `out/` that is a sequence of tokens, or a feature.

  Names may end with `first20` (only the first tokens are there) and hold `_LND`
  (axes are [N, B, D]).
  """
  partly = []
  is_swin = "stage_out/1" in ours.seen
  for name, theirs in below(arrays, "out/").items():
    first = re.search(r"[/_]first(\d+)", name)
    kind = name.replace("_LND", "")
    if "_LND" in name:
      theirs = theirs.swapaxes(0, 1)
    if first:
      kind = kind.replace(first[0], "")
    if kind == "norm_out":  # of all tokens, or of their mean
      kind = "encoded" if theirs.ndim == 3 else "pooled"
    if kind not in ours.seen:
      if name not in _APART:
        report.notes.append(f"not compared: out/{name}")
      continue
    tokens = ours.seen[kind]
    keep = np.ones(theirs.shape[1], bool)
    if kind in ours.thrown:
      start = 0 if is_swin else 1  # Swin has no class token
      keep[start : start + len(ours.thrown[kind])] = False
      partly.append(f"out/{name}")
    if first:
      tokens = tokens[:, : keep.sum()]
    report.add("intermediates", name, tokens, theirs[:, keep])
  if partly:
    report.notes.append(
      "not compared: the rows of forgotten prompts, which "
      "are never computed, in " + ", ".join(partly)
    )


def _default_pattern(meta: dict[str, Any], model: model_lib.Model) -> str:
  """Returns the library's `config.trainable` of a transfer type, or ""."""
  kind = str(meta.get("transfer_type"))
  own = model.method.trainable
  patterns = {
    "prompt": own,
    "linear": own,
    "adapter": own,
    "tinytl-bias": common.BIAS,
    "prompt+bias": baselines_vtab.PROMPT_BIAS,
  }
  # The reference's MoCo v3 leaves out the norm, by a slip.
  partial = re.fullmatch(r"partial-(\d+)", kind)
  if partial and "moco" not in reference_class(meta):
    depth = model.backbone.spec.depth
    return baselines_vtab.last_blocks(int(partial[1]), depth)
  return patterns.get(kind, "")


def _split(
  flat: trees.Flat,
  built: options.Built,
  trained: Iterable[str],
  meta: dict[str, Any],
) -> tuple[trees.Flat, trees.Flat]:
  """Returns (trainable, frozen) as the reference has it.

  Raises:
    ValueError: `config.trainable`'s default is another set.
  """
  paths = built.names.paths(trained)
  pattern = _default_pattern(meta, built.model)
  if pattern:
    default = {path for path in flat if re.fullmatch(pattern, path)}
    if default != paths:
      raise ValueError(
        f"r'{pattern}' and the reference differ in what is "
        f"trained: {sorted(default ^ paths)}"
      )
  trainable = {}
  frozen = {}
  for path, leaf in flat.items():
    part = trainable if path in paths else frozen
    part[path] = jnp.asarray(leaf)
  return trainable, frozen


def _trained_names(meta: dict[str, Any], grads: Arrays) -> set[str]:
  """Returns the reference's trained parameters that have a gradient.

  Raises:
    ValueError: the fixture holds too few gradients.
  """
  trained = set(meta.get("trainable", grads))
  trained -= set(meta.get("trainable_without_grad", ()))
  missing = trained - grads.keys()
  if missing and "gradients_saved_only_for_tensors_up_to" not in meta:
    raise ValueError(f"grad/{min(missing)} is missing")
  return trained


def _forward(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares one pass over a batch: values, gradients, changed state."""
  images = arrays["input/images"]
  labels = arrays["input/labels"]
  state = below(arrays, "state_after/")
  grads = below(arrays, "grad/")
  train_head = any(key.endswith("running_mean") for key in state)
  built, flat = options.build(
    meta, below(arrays, "param/"), images.shape[1:3], train_head
  )
  trained = _trained_names(meta, grads)
  train, frozen = _split(flat, built, trained, meta)
  ours = running.run(train, frozen, built.model, images, labels)

  logits = arrays["out/logits"]
  alone = arrays.get("out/logits_each_image_alone", logits)
  floor = _TRAINED_HEAD_FLOOR if train_head else 0.0
  report.add("logits", "logits", ours.logits, alone, floor)
  mixed = np.max(np.abs(alone - logits))
  if mixed > _MIXES_IMAGES:
    report.notes.append(
      "the reference mixes the images of a batch, so logits are compared "
      "with those of each image alone, and nothing else is; its batch is "
      f"{mixed:.1e} away"
    )
    return
  report.add("loss", "loss", ours.loss, arrays["out/loss"], floor)
  _intermediates(report, arrays, ours)
  for key, *pair in built.names.pairs(ours.changed, state):
    report.add("intermediates", f"state_after/{key}", *pair)
  _gradients(report, built.names, ours.grads, grads)
  if built.slip:
    _notes_of_slip(report, built, flat, images, labels, logits)


def _gradients(
  report: Report, names: Names, ours: trees.Flat, theirs: Arrays
) -> None:
  """Compares gradients; those of tensors that are never read are zero.

  Gradients that are zero in theory hold rounding noise, whose size is that of
  the terms that cancel.
  """
  largest = 0.0
  for grad in theirs.values():
    largest = max(largest, float(np.max(np.abs(grad), initial=0.0)))
  for key, *pair in names.pairs(ours, theirs):
    floor = _NOISE * largest if names.cancels(key) else 0.0
    report.add("gradients", key, *pair, floor)
  for key, grad in theirs.items():
    if not names.places(key):
      report.add("gradients", key, np.zeros_like(grad), grad)


def _notes_of_slip(
  report: Report,
  built: options.Built,
  flat: trees.Flat,
  images: np.ndarray,
  labels: np.ndarray,
  logits: np.ndarray,
) -> None:
  """Says what was imitated, and how far the library itself is away."""
  report.notes.append(f"the reference slips, imitated here: {built.slip}")
  if built.faithful is None:
    report.notes.append("the library refuses this combination")
    return
  own = running.run({}, flat, built.faithful, images, labels).logits
  apart = np.max(np.abs(np.asarray(own) - logits))
  report.notes.append(f"the library's own logits are {apart:.1e} away")


def _trajectory(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares a training over the same batches in every epoch."""
  params = below(arrays, "param/")
  trained = []
  for group in meta["param_groups"]:
    trained += group["names"]
  batches = []
  for i in range(meta["batches_per_epoch"]):
    batches.append((arrays[f"input/images/{i}"], arrays[f"input/labels/{i}"]))
  image_size = batches[0][0].shape[1:3]
  built, flat = options.build(meta, params, image_size)
  train, frozen = _split(flat, built, trained, meta)
  optimizer, rate = options.optimizer(meta, trained, list(train))

  steps = meta.get("steps", len(arrays["out/loss"]))
  done = running.train(train, frozen, built.model, optimizer, batches, steps)
  # What perturbed weights change in the reference itself.
  floor = meta.get("sensitivity_to_relative_1e_minus_6_weight_noise", {})
  for prefix, ours in (("mid/", done.mid), ("final/", done.final)):
    theirs = _constrained(below(arrays, prefix), built)
    _trained_parameters(
      report, prefix, ours, theirs, params, built, meta, floor
    )
  report.add(
    "losses",
    "loss",
    done.losses,
    arrays["out/loss"],
    floor.get("max_loss", 0.0),
  )
  rates = [rate(step) for step in range(steps)]
  report.add("rates", "lr", rates, arrays["out/lr"])
  report.add(
    "gradient norms", "grad_norm", done.grad_norms, arrays["out/grad_norm"]
  )
  report.add(
    "final logits",
    "final_logits_batch0",
    done.final_logits,
    arrays["out/final_logits_batch0"],
    floor.get("max_logit", 0.0),
  )


def _trained_parameters(
  report: Report,
  prefix: str,
  ours: trees.Flat,
  theirs: Arrays,
  initial: Arrays,
  built: options.Built,
  meta: dict[str, Any],
  floor: dict[str, float],
) -> None:
  """Compares parameters after some steps.

  Args:
    report: gets the rows.
    prefix: of the rows' names, `mid/` or `final/`.
    ours: trained here.
    theirs: trained by the reference, as `_constrained` gives them.
    initial: the reference's before the training.
    built: the model and its names.
    meta: of the fixture.
    floor: of its differences.
  """
  solver = meta["solver"]
  # Adam takes steps of full size even along rounding noise.
  chaotic = solver["OPTIMIZER"] == "adam" and not solver["WEIGHT_DECAY"]
  names = built.names
  for key, *pair in names.pairs(ours, theirs):
    if chaotic and names.cancels(key):
      report.notes.append(
        f"not compared: {prefix}{key}, whose gradient is zero in theory"
      )
      continue
    report.add("parameters", prefix + key, *pair, floor.get("max_param", 0.0))
  for key, array in theirs.items():
    if not names.places(key):  # never read, so never changed
      report.add("parameters", prefix + key, initial[key], array)


def _constrained(theirs: Arrays, built: options.Built) -> Arrays:
  """Returns the reference's parameters as they are when it runs next.

  It clamps temperatures at the start of a pass, the library after an update.
  """
  out = dict(theirs)
  for key, array in theirs.items():
    for place in built.names.places(key):
      if place.path == "method/temperature":
        clamped = built.model.method.constrain({"temperature": array})
        out[key] = np.asarray(clamped["temperature"])
  return out


def _schedules(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares the factors of learning rates per epoch."""
  for name, theirs in below(arrays, "lr/").items():
    found = re.fullmatch(r"(\w+)/warmup(\d+)_total(\d+)", name)
    if not found:
      raise ValueError(f"lr/{name}: expected lr/NAME/warmupW_totalT")
    schedule, warmup, total = found.groups()
    factors = optim.epoch_factors(
      schedule, int(total), int(warmup), length=len(theirs)
    )
    report.add("factors", name, meta.get("base_lr", 1.0) * factors, theirs)


def _restore(
  source: Path, image_size: tuple[int, int] | None = None
) -> tuple[ViT, Arrays]:
  """Loads a checkpoint by the library, for its own or another image size.

  Returns:
    (backbone, its parameters).
  """
  flat = translate.translate(file_formats.read(source)).arrays
  if image_size is None:
    # With the class token's: 1 + n n positions.
    side = math.isqrt(flat["pos_embedding"].shape[1])
    pixels = side * len(flat["embedding/kernel"])
    image_size = (pixels, pixels)
  heads = flat[_QUERY].shape[1]
  vit = options.architecture(flat, image_size, heads, gelu="exact")
  template = options.template(model_lib.Model(vit, Method(vit.spec), 1))
  params, _ = load.fit(
    flat, below(template, "backbone/"), str(source), vit.spec
  )
  return vit, params


def _checkpoint(path: Path, report: Report) -> None:
  """Compares a file in the first public layout with the weights in torch's."""
  _, ours = _restore(path)
  beside = path.with_name(path.stem.removesuffix("_google_layout") + ".npz")
  if beside == path or not beside.exists():
    report.notes.append("loaded; no file beside it to compare the weights with")
    return
  arrays, meta = read(beside)
  params = below(arrays, "param/")
  names = Names(attention_heads(params, meta))
  theirs = below(names.parameters(params), "backbone/")
  if ours.keys() != theirs.keys():
    raise ValueError(
      f"other parameters than in {beside.name}: "
      f"{sorted(ours.keys() ^ theirs.keys())}"
    )
  for name, array in ours.items():
    report.add("weights", name, array, theirs[name])


def _resized(
  source: Path, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """Compares a checkpoint that is loaded for another image size."""
  options.check_supported(meta, set())
  images = arrays["input/images"]
  vit, backbone = _restore(source, images.shape[1:3])
  head = Names(vit.num_heads).parameters(below(arrays, "param/"))
  model = model_lib.Model(vit, Method(vit.spec), len(head["head/bias"]))
  flat = dict(head)
  for name, leaf in backbone.items():
    flat[f"backbone/{name}"] = leaf
  position = arrays["out/pos_embed_resized"]
  report.add(
    "weights", "pos_embedding", backbone["pos_embedding"], position[:, 1:]
  )
  cls = file_formats.read(source)["cls"] + position[:, :1]
  report.add("weights", "cls", backbone["cls"], cls)
  labels = np.zeros(len(images), np.int32)  # they do not matter
  ours = running.run({}, flat, model, images, labels)
  report.add("logits", "logits", ours.logits, arrays["out/logits"])
  _intermediates(report, arrays, ours)


def main(argv: Sequence[str] | None = None) -> int:
  """Compares the files of a command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m tests.parity", description=__doc__.splitlines()[0]
  )
  parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
  parser.add_argument(
    "--verbose",
    action="store_true",
    help="print every comparison, not only the worst",
  )
  args = parser.parse_args(argv)
  passed = 0
  failed = 0
  unsupported = 0
  for path in args.files:
    try:
      report = compare(path)
    except Unsupported as reason:
      unsupported += 1
      print(f"unsupported: {reason}  {path.name}")
      continue
    # One broken file must not hide the results of the others.
    except Exception as error:  # pylint: disable=broad-except
      failed += 1
      print(f"ERROR  {path.name}: {type(error).__name__}: {error}")
      continue
    if report.failed:
      failed += 1
    else:
      passed += 1
    print("FAIL " if report.failed else "PASS ", path.name)
    print("\n".join(report.lines(args.verbose)))
  print(f"{passed} passed, {failed} failed, {unsupported} unsupported")
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main())
