"""Compares the library with golden fixtures of the published code.

  python -m tests.parity FILE.npz ... [--verbose]

Prints the largest differences of each file, and exits with 1 if any is beyond
its tolerance or a file is no fixture. A fixture of something the library does
not have is reported as unsupported, with the reason.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import math
from pathlib import Path
import re
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import options
from tests.options import Unsupported
from tests.reference import Arrays, Names, below, read
from vpt_jax import model as models
from vpt_jax import optim, tree
from vpt_jax.backbones import load
from vpt_jax.backbones.vit import ViT
from vpt_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class Tolerance:
  """`relative` times the tensor's largest entry, but at least `absolute`."""

  absolute: float
  relative: float = 0.0

  def limit(self, theirs: np.ndarray) -> float:
    return max(self.absolute,
               self.relative * float(np.max(np.abs(theirs), initial=0.0)))


TOLERANCES = {
    "logits": Tolerance(2e-5),
    "loss": Tolerance(2e-5),
    "intermediates": Tolerance(1e-4),
    # The floor is for gradients that are zero in theory: the reference holds
    # rounding noise there (key biases, for example).
    "gradients": Tolerance(1e-7, 1e-4),
    "weights": Tolerance(1e-7),
    "factors": Tolerance(1e-9),
    "rates": Tolerance(0.0, 1e-6),  # the optimizer's own are float32
    "losses": Tolerance(1e-4),
    "gradient norms": Tolerance(0.0, 1e-4),
    "parameters": Tolerance(1e-6, 1e-4),
    "final logits": Tolerance(1e-4),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison: the largest difference, and what is allowed."""

  group: str
  name: str
  diff: float
  limit: float

  @property
  def failed(self) -> bool:
    return not self.diff <= self.limit  # NaN fails

  @property
  def share(self) -> float:
    """Of the limit; what rows of a group are ranked by."""
    return math.inf if math.isnan(self.diff) else self.diff / self.limit

  def __str__(self) -> str:
    return (f"{self.diff:.1e} of {self.limit:.1e}  {self.name}"
            + ("  BEYOND" if self.failed else ""))


class Report:
  """Rows of one file, and notes on what else to know."""

  def __init__(self):
    self.rows: list[Row] = []
    self.notes: list[str] = []

  def add(self, group: str, name: str, ours: Any, theirs: np.ndarray) -> None:
    """Compares two arrays of the same shape."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    limit = TOLERANCES[group].limit(theirs)
    if ours.shape != theirs.shape:
      self.notes.append(f"{name}: shape {ours.shape} here, {theirs.shape} there")
      diff = math.inf
    else:
      diff = float(np.max(np.abs(ours - theirs), initial=0.0))
    self.rows.append(Row(group, name, diff, limit))

  @property
  def failed(self) -> bool:
    return any(row.failed for row in self.rows)

  def lines(self, verbose: bool) -> list[str]:
    """Per group the worst rows (of gradients three), or all of them."""
    out = []
    for group in dict.fromkeys(row.group for row in self.rows):
      rows = sorted((row for row in self.rows if row.group == group),
                    key=lambda row: -row.share)
      shown = 3 if group in ("gradients", "parameters") else 1
      shown = max(shown, sum(row.failed for row in rows))
      for i, row in enumerate(rows if verbose else rows[:shown]):
        label = f"{group} ({len(rows)})" if not i else ""
        out.append(f"  {label:<20} {row}")
    return out + [f"  note: {note}" for note in self.notes]


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


def _loss(train: tree.Flat, frozen: tree.Flat, model: models.Model,
          images: jax.Array, labels: jax.Array):
  logits, state = model.apply({"params": tree.merge(train, frozen)}, images,
                              mutable=["intermediates"])
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss, (logits, state["intermediates"]["pooled"][0])


# The model is static, so files of one architecture share a compilation.
value_and_grad = jax.jit(jax.value_and_grad(_loss, has_aux=True),
                         static_argnums=2)


@functools.partial(jax.jit, static_argnums=0)
def trace(model: models.Model, params: Any, images: jax.Array):
  """All tokens on their way, in the reference's order.

  The model runs as it is, but for its last block, which is asked for all rows
  (and so carries its prompts).

  Returns:
    {name of a fixture's `out/`: [B, N, D]}, {name: prompts P whose rows the
    blocks do not compute}.
  """
  seen, thrown = {}, {}
  last = model.backbone.layout.depth - 1

  def spy(call, args, kwargs, context):
    if not isinstance(context.module, ViT) or context.method_name != "block":
      return call(*args, **kwargs)
    i, tokens = args
    prompt = kwargs["context"]
    whole = tokens if prompt is None else tokens.with_prompt(prompt)
    seen[f"block_in/{i}"], seen[f"prompts_in/{i}"] = whole.x, whole.prompt
    if i == last:
      tokens, kwargs = whole, {**kwargs, "context": None, "pool": None}
    elif prompt is not None:
      thrown[f"block_out/{i}"] = prompt[0, :, 0]  # its length is what counts
    out = call(i, tokens, **kwargs)
    seen[f"block_out/{i}"] = out.x
    if i == last:
      seen["encoded"] = context.module.norm(out.x)
    return out

  with nn.intercept_methods(spy):
    model.clone(pool="img").apply({"params": params}, images)
  return seen, thrown


def _intermediates(report: Report, arrays: Arrays, model: models.Model,
                   params: Any, images: jax.Array) -> None:
  """Compares every `out/` that is a sequence of tokens."""
  seen, thrown = trace(model, params, images)
  partly = []
  for name, theirs in below(arrays, "out/").items():
    found = re.fullmatch(r"(.*?)(?:[/_]first(\d+))?", name)
    if found[1] not in seen:
      if name not in ("logits", "loss", "pooled", "pos_embed_resized"):
        report.notes.append(f"not compared: out/{name}")
      continue
    ours = np.asarray(seen[found[1]])
    keep = np.ones(theirs.shape[1], bool)
    if found[1] in thrown:
      # Prompts that the block forgets: their output is never computed.
      keep[1:1 + len(thrown[found[1]])] = False
      partly.append(name)
    if found[2] and int(found[2]) == theirs.shape[1]:
      ours = ours[:, :keep.sum()]
    report.add("intermediates", name, ours, theirs[:, keep])
  if partly:
    report.notes.append("not compared: the rows of forgotten prompts in "
                        + ", ".join(f"out/{name}" for name in partly))


def _forward(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  images = jnp.asarray(arrays["input/images"])
  labels = jnp.asarray(arrays["input/labels"])
  built, flat = options.build(meta, below(arrays, "param/"), images.shape[1:3])
  model, names, theirs = built.model, built.names, below(arrays, "grad/")
  trained = set(meta.get("trainable", theirs)) - set(
      meta.get("trainable_without_grad", ()))
  if trained - theirs.keys() and (
      "gradients_saved_only_for_tensors_up_to" not in meta):
    raise ValueError(f"grad/{min(trained - theirs.keys())} is missing")
  train, frozen = _split(flat, names.paths(trained))

  (loss, (logits, pooled)), grads = value_and_grad(
      train, frozen, model, images, labels)
  report.add("logits", "logits", logits, arrays["out/logits"])
  report.add("loss", "loss", loss, arrays["out/loss"])
  if "out/pooled" in arrays:
    report.add("intermediates", "pooled", pooled, arrays["out/pooled"])
  _intermediates(report, arrays, model, tree.unflatten(flat), images)
  for row in names.pairs(grads, theirs):
    report.add("gradients", *row)
  for key in theirs:
    if not names.places(key):
      report.add("gradients", key, np.zeros_like(theirs[key]), theirs[key])

  if built.slip:
    report.notes.append("the reference slips, imitated here: " + built.slip)
    if built.faithful is None:
      report.notes.append("the library refuses this combination")
    else:
      logits = built.faithful.apply({"params": tree.unflatten(flat)}, images)
      apart = np.max(np.abs(np.asarray(logits) - arrays["out/logits"]))
      report.notes.append(f"the library's own logits are {apart:.1e} away")


def _split(flat: tree.Flat, paths: set[str]) -> tuple[tree.Flat, tree.Flat]:
  """(trainable, frozen) of flat parameters, as jax arrays."""
  flat = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
  return ({path: leaf for path, leaf in flat.items() if path in paths},
          {path: leaf for path, leaf in flat.items() if path not in paths})


def _optimizer(solver: dict[str, Any], rate: optim.Rate, paths: Sequence[str]
               ) -> optax.GradientTransformation:
  """The library's optimizer for the reference's `SOLVER` options."""
  name, decay = solver["OPTIMIZER"], solver["WEIGHT_DECAY"]
  if name == "adamw" and decay > 0:
    raise Unsupported("optimizer: the reference's own AdamW (decay 0.01 fixed, "
                      "eps 1e-6 before the bias correction)")
  name = "adam" if name == "adam" else "sgd"  # its fallback for other names
  factor = solver["BIAS_MULTIPLIER"]
  if name == "adam" and not decay:
    factor = 1.0  # the reference forgets it on this branch
  policies = [(r"head/bias", {"weight_decay": 0.0}),
              (r".*bias", {"lr": factor}), (r".*", {})]
  # A rule without a parameter is an error in the library.
  left, used = list(paths), []
  for pattern, policy in policies:
    if any(re.fullmatch(pattern, path) for path in left):
      used.append((pattern, policy))
    left = [path for path in left if not re.fullmatch(pattern, path)]
  return optim.make_optimizer(name, rate, paths, weight_decay=decay,
                              momentum=solver["MOMENTUM"], policies=used)


def _trajectory(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  solver, params = meta["solver"], below(arrays, "param/")
  per_epoch, steps = meta["batches_per_epoch"], meta["steps"]
  trained = [name for group in meta["param_groups"] for name in group["names"]]
  for name in trained:
    if name.endswith(("embeddings.cls_token", "position_embeddings")):
      raise Unsupported("training of the class token and its position apart "
                        "(one parameter here, their sum)")
  tree.choose(solver["SCHEDULER"], optim.SCHEDULES, "schedule")
  batches = [(jnp.asarray(arrays[f"input/images/{i}"]),
              jnp.asarray(arrays[f"input/labels/{i}"]))
             for i in range(per_epoch)]
  built, flat = options.build(meta, params, batches[0][0].shape[1:3])
  model, names = built.model, built.names
  train, frozen = _split(flat, names.paths(trained))
  rate = optim.per_epoch(solver["BASE_LR"] * optim.epoch_factors(
      solver["SCHEDULER"], solver["TOTAL_EPOCH"], solver["WARMUP_EPOCH"],
      length=meta["epochs"]), per_epoch)
  optimizer = _optimizer(solver, rate, list(train))

  @jax.jit
  def update(train, state, images, labels):
    (loss, _), grads = jax.value_and_grad(_loss, has_aux=True)(
        train, frozen, model, images, labels)
    updates, state = optimizer.update(grads, state, train)
    return (optax.apply_updates(train, updates), state, loss,
            optax.global_norm(grads))

  def parameters(prefix, train):
    theirs = below(arrays, prefix)
    for key, *pair in names.pairs(train, theirs):
      report.add("parameters", prefix + key, *pair)
    for key in theirs:
      if not names.places(key):  # never read, so never changed
        report.add("parameters", prefix + key, params[key], theirs[key])

  state, losses, norms = optimizer.init(train), [], []
  for step in range(steps):
    if step == steps // 2:
      parameters("mid/", train)
    train, state, loss, norm = update(train, state,
                                      *batches[step % per_epoch])
    losses.append(loss)
    norms.append(norm)
  parameters("final/", train)
  rates = [rate(step) for step in range(steps)]
  report.add("losses", "loss", np.array(losses), arrays["out/loss"])
  report.add("rates", "lr", np.array(rates), arrays["out/lr"])
  report.add("gradient norms", "grad_norm", np.array(norms),
             arrays["out/grad_norm"])
  _, (logits, _) = _loss(train, frozen, model, *batches[0])
  report.add("final logits", "final_logits_batch0", logits,
             arrays["out/final_logits_batch0"])


def _schedules(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  for name, theirs in below(arrays, "lr/").items():
    found = re.fullmatch(r"(\w+)/warmup(\d+)_total(\d+)", name)
    if not found:
      raise ValueError(f"lr/{name}: expected lr/NAME/warmupW_totalT")
    factors = optim.epoch_factors(found[1], int(found[3]), int(found[2]),
                                  length=len(theirs))
    report.add("factors", name, meta.get("base_lr", 1.0) * factors, theirs)


def _restore(source: Path, image_size: tuple[int, int] | None = None
             ) -> tuple[ViT, Arrays]:
  """A checkpoint loaded by the library, for its own or another image size."""
  flat = load.to_big_vision(load.read(source))
  if image_size is None:
    side = math.isqrt(flat["pos_embedding"].shape[1])
    image_size = (side * len(flat["embedding/kernel"]),) * 2
  vit = options.architecture(flat, image_size)
  template = options.template(models.Model(vit, Method(vit.layout), 1))
  return vit, load.restore(flat, below(template, "backbone/"), str(source),
                           vit.layout.grid)


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
    raise ValueError(f"other parameters than in {beside.name}: "
                     f"{sorted(ours.keys() ^ theirs.keys())}")
  for name in ours:
    report.add("weights", name, ours[name], theirs[name])


def _resized(source: Path, arrays: Arrays, meta: dict[str, Any],
             report: Report) -> None:
  """A checkpoint loaded for another image size."""
  options.check_supported(meta, set())
  images = jnp.asarray(arrays["input/images"])
  vit, backbone = _restore(source, images.shape[1:3])
  head = Names(vit.num_heads).parameters(below(arrays, "param/"))
  model = models.Model(vit, Method(vit.layout), len(head["head/bias"]))
  params = tree.unflatten({**head, **{f"backbone/{name}": leaf for name, leaf
                                      in backbone.items()}})
  position = arrays["out/pos_embed_resized"]
  report.add("weights", "pos_embedding", backbone["pos_embedding"],
             position[:, 1:])
  report.add("weights", "cls", backbone["cls"],
             load.read(source)["cls"] + position[:, :1])
  report.add("logits", "logits", model.apply({"params": params}, images),
             arrays["out/logits"])
  _intermediates(report, arrays, model, params, images)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m tests.parity",
                                   description=__doc__.splitlines()[0])
  parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
  parser.add_argument("--verbose", action="store_true",
                      help="print every comparison, not only the worst")
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
