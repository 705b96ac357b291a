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
from tests import condense_parity, options, pgn_parity, published, running
from tests.options import Unsupported
from tests.parity_report import Report
from tests.reference import Arrays, below, Names, read
from vpt_jax import model as models
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.method import Method
from vpt_jax.training import optim
from vpt_jax.utils import trees
from vpt_jax.weights import file_formats, load, translate


def compare(path: Path) -> Report:
  """Compares one file.

  Raises:
    Unsupported: a fixture of something that the library does not have.
    ValueError, OSError, ...: an unreadable file, or no fixture.
  """
  arrays, meta = read(path)
  report = Report()
  with jax.default_matmul_precision("highest"):
    if "embedding/kernel" in arrays:
      _checkpoint(path, report)
    elif below(arrays, "lr/"):
      _schedules(arrays, meta, report)
    elif "file" in meta and meta.get("case", "").startswith("ckpt_"):
      published.compare(path, arrays, meta, report)
    elif meta.get("case", "").startswith("pgn_"):
      pgn_parity.compare(path, arrays, meta, report)
    elif "statistics" in meta:
      condense_parity.compare(path, arrays, meta, report)
    elif "source_npz" in meta:
      _resized(path.parent / meta["source_npz"], arrays, meta, report)
    else:
      options.check_supported(meta, set(below(arrays, "param/")))
      if not below(arrays, "param/") or "out/loss" not in arrays:
        raise ValueError("no fixture: it has no param/ or no out/loss")
      if "solver" in meta:
        _trajectory(arrays, meta, report)
      else:
        _forward(arrays, meta, report)
  return report


def _intermediates(report: Report, arrays: Arrays, ours: running.Pass) -> None:
  """Compares every `out/` that is a sequence of tokens, or a feature."""
  partly, swin = [], "stage_out/1" in ours.seen
  for name, theirs in below(arrays, "out/").items():
    found = re.search(r"[/_]first(\d+)", name)
    kind = name.replace(found[0], "") if found else name
    if kind == "norm_out":  # of all tokens, or of their mean
      kind = "encoded" if theirs.ndim == 3 else "pooled"
    if kind not in ours.seen:
      if name not in (
        "logits",
        "loss",
        "pos_embed_resized",
        "logits_each_image_alone",
      ):
        report.notes.append(f"not compared: out/{name}")
      continue
    tokens, keep = ours.seen[kind], np.ones(theirs.shape[1], bool)
    if kind in ours.thrown:
      first = 1 - swin  # Swin has no class token
      keep[first : first + len(ours.thrown[kind])] = False
      partly.append(f"out/{name}")
    if found:
      tokens = tokens[:, : keep.sum()]
    report.add("intermediates", name, tokens, theirs[:, keep])
  if partly:
    report.notes.append(
      "not compared: the rows of forgotten prompts, which "
      "are never computed, in " + ", ".join(partly)
    )


def _split(
  flat: trees.Flat,
  built: options.Built,
  trained: Iterable[str],
  meta: dict[str, Any],
) -> tuple[trees.Flat, trees.Flat]:
  """(trainable, frozen) as the reference has it; checks the library's default.

  Raises:
    ValueError: `config.trainable`'s default is another set.
  """
  paths = built.names.paths(trained)
  kind, own = str(meta.get("transfer_type")), built.model.method.trainable
  pattern = {
    "prompt": own,
    "linear": own,
    "adapter": own,
    "tinytl-bias": common.BIAS,
    "prompt+bias": baselines_vtab.PROMPT_BIAS,
  }.get(kind)
  # The reference's MoCo v3 leaves out the norm, by a slip.
  if kind.startswith("partial-") and "moco" not in meta["reference_class"]:
    pattern = baselines_vtab.last_blocks(
      int(kind[-1]), built.model.backbone.spec.depth
    )
  if pattern:
    default = {path for path in flat if re.fullmatch(pattern, path)}
    if default != paths:
      raise ValueError(
        f"r'{pattern}' and the reference differ in what is "
        f"trained: {sorted(default ^ paths)}"
      )
  flat = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
  return (
    {path: leaf for path, leaf in flat.items() if path in paths},
    {path: leaf for path, leaf in flat.items() if path not in paths},
  )


def _forward(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  images, labels = arrays["input/images"], arrays["input/labels"]
  state = below(arrays, "state_after/")
  train_head = any(key.endswith("running_mean") for key in state)
  built, flat = options.build(
    meta, below(arrays, "param/"), images.shape[1:3], train_head
  )
  names, theirs = built.names, below(arrays, "grad/")
  trained = set(meta.get("trainable", theirs)) - set(
    meta.get("trainable_without_grad", ())
  )
  missing = trained - theirs.keys()
  if missing and "gradients_saved_only_for_tensors_up_to" not in meta:
    raise ValueError(f"grad/{min(missing)} is missing")
  train, frozen = _split(flat, built, trained, meta)

  ours = running.run(train, frozen, built.model, images, labels)
  alone = arrays.get("out/logits_each_image_alone", arrays["out/logits"])
  # The inverse deviation of few images is large.
  floor = 1e-4 if train_head else 0.0
  report.add("logits", "logits", ours.logits, alone, floor)
  if np.max(np.abs(alone - arrays["out/logits"])) > 1e-3:
    report.notes.append(
      "the reference mixes the images of a batch, so logits are compared "
      "with those of each image alone, and nothing else is; its batch is "
      f"{np.max(np.abs(alone - arrays['out/logits'])):.1e} away"
    )
    return
  report.add("loss", "loss", ours.loss, arrays["out/loss"], floor)
  _intermediates(report, arrays, ours)
  for key, *pair in names.pairs(ours.changed, state):
    report.add("intermediates", f"state_after/{key}", *pair)
  # Gradients that are zero in theory hold rounding noise, whose size is that
  # of the terms that cancel.
  noise = (
    1e-6 * max(np.max(np.abs(grad), initial=0.0) for grad in theirs.values())
    if theirs
    else 0.0
  )
  for key, *pair in names.pairs(ours.grads, theirs):
    report.add("gradients", key, *pair, noise * names.cancels(key))
  for key in theirs:
    if not names.places(key):  # never read
      report.add("gradients", key, np.zeros_like(theirs[key]), theirs[key])

  if built.slip:
    report.notes.append(f"the reference slips, imitated here: {built.slip}")
    apart = "the library refuses this combination"
    if built.faithful is not None:
      own = running.run({}, flat, built.faithful, images, labels).logits
      apart = np.max(np.abs(np.asarray(own) - arrays["out/logits"]))
      apart = f"the library's own logits are {apart:.1e} away"
    report.notes.append(apart)


def _trajectory(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  params, per_epoch = below(arrays, "param/"), meta["batches_per_epoch"]
  trained = [name for group in meta["param_groups"] for name in group["names"]]
  batches = [
    (arrays[f"input/images/{i}"], arrays[f"input/labels/{i}"])
    for i in range(per_epoch)
  ]
  built, flat = options.build(meta, params, batches[0][0].shape[1:3])
  names, floor = (
    built.names,
    meta.get("sensitivity_to_relative_1e_minus_6_weight_noise", {}),
  )
  train, frozen = _split(flat, built, trained, meta)
  optimizer, rate = options.optimizer(meta, trained, list(train))

  done = running.train(
    train, frozen, built.model, optimizer, batches, meta["steps"]
  )
  # Adam takes steps of full size even along rounding noise.
  chaotic = (
    meta["solver"]["OPTIMIZER"] == "adam" and not meta["solver"]["WEIGHT_DECAY"]
  )
  for prefix, ours in (("mid/", done.mid), ("final/", done.final)):
    theirs = _constrained(below(arrays, prefix), built)
    for key, *pair in names.pairs(ours, theirs):
      if chaotic and names.cancels(key):
        report.notes.append(
          f"not compared: {prefix}{key}, whose gradient is zero in theory"
        )
        continue
      report.add("parameters", prefix + key, *pair, floor.get("max_param", 0.0))
    for key in theirs:
      if not names.places(key):  # never read, so never changed
        report.add("parameters", prefix + key, params[key], theirs[key])
  report.add(
    "losses",
    "loss",
    done.losses,
    arrays["out/loss"],
    floor.get("max_loss", 0.0),
  )
  report.add(
    "rates",
    "lr",
    [rate(step) for step in range(meta["steps"])],
    arrays["out/lr"],
  )
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


def _constrained(theirs: Arrays, built: options.Built) -> Arrays:
  """The reference's parameters as they are when it runs next.

  It clamps temperatures at the start of a pass, the library after an update.
  """
  out = dict(theirs)
  for key, array in theirs.items():
    for place in built.names.places(key):
      if place.path == "method/temperature":
        out[key] = np.asarray(
          built.model.method.constrain({"temperature": array})["temperature"]
        )
  return out


def _schedules(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  for name, theirs in below(arrays, "lr/").items():
    found = re.fullmatch(r"(\w+)/warmup(\d+)_total(\d+)", name)
    if not found:
      raise ValueError(f"lr/{name}: expected lr/NAME/warmupW_totalT")
    factors = optim.epoch_factors(
      found[1], int(found[3]), int(found[2]), length=len(theirs)
    )
    report.add("factors", name, meta.get("base_lr", 1.0) * factors, theirs)


def _restore(
  source: Path, image_size: tuple[int, int] | None = None
) -> tuple[ViT, Arrays]:
  """A checkpoint loaded by the library, for its own or another image size."""
  flat = translate.translate(file_formats.read(source)).arrays
  if image_size is None:
    # With the class token's: 1 + n n positions.
    side = math.isqrt(flat["pos_embedding"].shape[1])
    image_size = (side * len(flat["embedding/kernel"]),) * 2
  heads = flat[
    "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"
  ].shape[1]
  vit = options.architecture(flat, image_size, heads, gelu="exact")
  return vit, load.fit(
    flat,
    below(
      options.template(models.Model(vit, Method(vit.spec), 1)), "backbone/"
    ),
    str(source),
    vit.spec,
  )[0]


def _checkpoint(path: Path, report: Report) -> None:
  """A file in the first public layout, beside the same weights in torch's."""
  _, ours = _restore(path)
  beside = path.with_name(path.stem.removesuffix("_google_layout") + ".npz")
  if beside == path or not beside.exists():
    report.notes.append("loaded; no file beside it to compare the weights with")
    return
  arrays, meta = read(beside)
  theirs = Names(meta["sizes"]["heads"]).parameters(below(arrays, "param/"))
  theirs = below(theirs, "backbone/")
  if ours.keys() != theirs.keys():
    raise ValueError(
      f"other parameters than in {beside.name}: "
      f"{sorted(ours.keys() ^ theirs.keys())}"
    )
  for name in ours:
    report.add("weights", name, ours[name], theirs[name])


def _resized(
  source: Path, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """A checkpoint loaded for another image size."""
  options.check_supported(meta, set())
  images = arrays["input/images"]
  vit, backbone = _restore(source, images.shape[1:3])
  head = Names(vit.num_heads).parameters(below(arrays, "param/"))
  model = models.Model(vit, Method(vit.spec), len(head["head/bias"]))
  flat = {
    **head,
    **{f"backbone/{name}": leaf for name, leaf in backbone.items()},
  }
  position = arrays["out/pos_embed_resized"]
  report.add(
    "weights", "pos_embedding", backbone["pos_embedding"], position[:, 1:]
  )
  report.add(
    "weights",
    "cls",
    backbone["cls"],
    file_formats.read(source)["cls"] + position[:, :1],
  )
  ours = running.run(
    {}, flat, model, images, np.zeros(len(images), np.int32)
  )  # labels do not matter
  report.add("logits", "logits", ours.logits, arrays["out/logits"])
  _intermediates(report, arrays, ours)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
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
  passed = failed = unsupported = 0
  for path in args.files:
    try:
      report = compare(path)
    except Unsupported as reason:
      unsupported += 1
      print(f"unsupported: {reason}  {path.name}")
    # One broken file must not hide the results of the others.
    except Exception as error:  # pylint: disable=broad-except
      failed += 1
      print(f"ERROR  {path.name}: {type(error).__name__}: {error}")
    else:
      failed += report.failed
      passed += not report.failed
      print("FAIL " if report.failed else "PASS ", path.name)
      print("\n".join(report.lines(args.verbose)))
  print(f"{passed} passed, {failed} failed, {unsupported} unsupported")
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main())
