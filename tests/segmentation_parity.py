"""Compares fixtures of segmentation: heads, models, scores, schedules, data."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests import (
  dense_head_parity,
  mmsegmentation_vit,
  options,
  pipeline_parity,
  sliding_parity,
)
from tests.options import Unsupported
from tests.parity_report import Report
from tests.reference import Arrays, below, Names, reference_class
from vpt_jax import model as model_lib
from vpt_jax.methods.gated import Gated
from vpt_jax.methods.method import Method
from vpt_jax.methods.vpt import VPT
from vpt_jax.nn import dense_heads
from vpt_jax.nn.tokens import Reads
from vpt_jax.problems import semantic_segmentation
from vpt_jax.problems.semantic_segmentation import Segmentation
from vpt_jax.training import optim
from vpt_jax.utils import trees


def compare(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares all that a fixture of segmentation shows.

  Raises:
    Unsupported: a fixture of something that is not compared here.
  """
  case = str(meta["case"])
  if case.startswith("seg_slide_tta"):
    rows, columns = meta["crop"]
    whole = build(arrays, meta, (rows, columns))
    sliding_parity.compare(whole, arrays, meta, report)
  elif case.startswith(("seg_head_", "seg_setr_head_")):
    dense_head_parity.compare(arrays, meta, report)
  elif case.startswith(("seg_vpt_", "seg_gated_")):
    _whole(arrays, meta, report)
  elif case.startswith("traj_seg_"):
    _trajectory(arrays, meta, report)
  elif case.startswith("seg_mmvit_"):
    mmsegmentation_vit.compare(arrays, meta, report)
  elif case.startswith("seg_metrics"):
    _scores(arrays, meta, report)
  elif case.startswith("seg_schedules"):
    _schedules(arrays, meta, report)
  elif case.startswith("seg_pipeline"):
    pipeline_parity.compare(arrays, meta, report)
  else:
    raise Unsupported(f"segmentation's {case!r}")


# Whole models.


class Whole(NamedTuple):
  """A fixture's model: backbone and method, and the heads.

  Attributes:
    model: whose patches the heads read.
    heads: main and auxiliary.
    problem: gives the loss.
    names: of the backbone's and the method's parameters.
    params: nested {backbone, method, head}.
    statistics: of the heads.
    train: batch statistics are taken.
  """

  model: model_lib.Model
  heads: dense_heads.DeepSupervision
  problem: Segmentation
  names: Names
  params: dict[str, Any]
  statistics: dict[str, Any]
  train: bool


def _head_names(count: int) -> dict[str, str]:
  """Returns {our name: prefix in the reference} of so many heads."""
  names = {"main": "decode_head."}
  for i in range(count - 1):
    names[f"auxiliary_{i}"] = f"auxiliary_head.{i}."
  return names


def _method_of(meta: dict[str, Any], spec: Any) -> Method:
  """Returns the method of a fixture."""
  num_tokens = meta["sizes"]["tokens"]
  if "gated" in reference_class(meta):
    return Gated(spec, num_tokens, num_gates=spec.depth - 1)
  return VPT(spec, num_tokens, deep=meta.get("deep", False))


def build(
  arrays: Arrays, meta: dict[str, Any], image_size: tuple[int, int]
) -> Whole:
  """Returns the model that a fixture's `meta` and parameters describe."""
  params = below(arrays, "param/")
  sizes = meta["sizes"]
  encoder = below(params, "enc.")
  is_moco = "moco" in reference_class(meta) or "moco" in meta["case"]
  own = re.compile(r".*prompt_embeddings|gate_logit|temp")
  of_backbone = {
    key: array for key, array in encoder.items() if not own.fullmatch(key)
  }
  names = Names(sizes["heads"])
  backbone_flat = below(names.parameters(of_backbone), "backbone/")
  more = {} if is_moco else {"pool": "imgprompt", "norm_order": "after"}
  backbone = options.architecture(
    backbone_flat, image_size, sizes["heads"], gelu="exact", **more
  )
  method = _method_of(meta, backbone.spec)
  # At test time there are no auxiliary heads.
  numbers = {key.split(".")[1] for key in params if key.startswith("auxil")}
  *others, last = meta["out_indices"]
  blocks = (*others[: len(numbers)], last)
  reads = Reads(blocks, final_norm=False)
  num_classes, channels, _, _ = params["decode_head.conv_seg.weight"].shape
  model = model_lib.Model(backbone, method, num_classes, reads=reads)
  names = names.of(method)
  nested = trees.unflatten(names.parameters(encoder))
  nested["method"] = method.constrain(nested["method"])

  prefixes = _head_names(len(reads.blocks))
  nested["head"] = {}
  statistics = {}
  for name, prefix in prefixes.items():
    variables = dense_head_parity.variables_of(below(params, prefix))
    nested["head"][name] = variables["params"]
    statistics[name] = variables["batch_stats"]
  auxiliary = "aux2x4"
  if "auxiliary_head.0.up_convs.1.0.conv.weight" not in params:
    auxiliary = "aux1x4"
  grids = [backbone.spec.grids[i] for i in reads.blocks]
  heads = dense_heads.setr(
    num_classes, grids, auxiliary=auxiliary, width=channels
  )
  train = meta["bn_mode"].startswith("train")
  problem = Segmentation(num_classes)
  params_of_all = jax.tree.map(jnp.asarray, nested)
  return Whole(model, heads, problem, names, params_of_all, statistics, train)


def _split(whole: Whole, trained: set[str]) -> tuple[trees.Flat, trees.Flat]:
  """Returns (trainable, frozen); the heads are always trained.

  Args:
    whole: see there.
    trained: our paths of what is trained of backbone and method.
  """
  trainable = {}
  frozen = {}
  for path, leaf in trees.flatten(whole.params).items():
    is_trained = path in trained or path.startswith("head/")
    part = trainable if is_trained else frozen
    part[path] = leaf
  return trainable, frozen


def _loss(whole: Whole, trainable, frozen, statistics, images, labels):
  """Returns (loss, (patches of blocks, logits of heads, statistics))."""
  params = trees.merge(trainable, frozen)
  of_heads = params.pop("head")
  patches = whole.model.apply(
    {"params": params}, images, method=whole.model.features
  )
  outputs, changed = whole.heads.apply(
    {"params": of_heads, "batch_stats": statistics},
    patches,
    whole.train,
    with_auxiliary=True,
    mutable=["batch_stats"],
  )
  loss = whole.problem.loss(outputs, labels).mean()
  return loss, (patches, outputs, changed["batch_stats"])


def _losses(
  whole: Whole, outputs: tuple[jax.Array, ...], labels: jax.Array
) -> list[jax.Array]:
  """Returns the losses of the heads, those of auxiliary ones weighted."""
  losses = []
  for i, logits in enumerate(outputs):
    weight = whole.problem.auxiliary_weight if i else 1.0
    losses.append(weight * whole.problem.loss(logits, labels).mean())
  return losses


def _whole(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares a prompted model with its heads, and all gradients."""
  images = jnp.asarray(arrays["input/images"])
  labels = jnp.asarray(arrays["input/labels"])
  whole = build(arrays, meta, images.shape[1:3])
  grads = below(arrays, "grad/")
  of_encoder = below(grads, "enc.")
  trained = whole.names.paths(of_encoder)
  trainable, frozen = _split(whole, trained)

  def loss(trainable, images, labels):
    """Returns what is differentiated."""
    return _loss(whole, trainable, frozen, whole.statistics, images, labels)

  differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, (patches, outputs, statistics)), ours = differentiate(
    trainable, images, labels
  )
  report.add("loss", "loss", value, arrays["out/loss"][0])
  for i, feature in enumerate(patches):
    theirs = dense_head_parity.flat(arrays[f"out/feature_nchw/{i}"])
    report.add("intermediates", f"feature/{i}", feature, theirs)
  _logits(report, arrays, outputs)
  titles = ["decode"] + [f"aux_{i}" for i in range(len(outputs) - 1)]
  losses = _losses(whole, outputs, labels)
  for title, of_head, logits in zip(titles, losses, outputs, strict=True):
    theirs = arrays[f"out/{title}/loss_ce"][0]
    report.add("loss", f"{title}/loss_ce", of_head, theirs)
    accuracy = dense_head_parity.accuracy(whole.problem, logits, labels)
    theirs = arrays[f"out/{title}/acc_seg"][0]
    report.add("percent", f"{title}/acc_seg", accuracy, theirs)

  for key, *pair in whole.names.pairs(ours, of_encoder):
    report.add("gradients", f"enc.{key}", *pair)
  if trained != {path for path in ours if not path.startswith("head/")}:
    raise ValueError(f"trained: {sorted(trained)}; there: {sorted(of_encoder)}")
  grads_of_heads = trees.unflatten(ours)["head"]
  state = below(arrays, "state_after/")
  if bool(state) != whole.train:
    raise ValueError(f"bn_mode {meta['bn_mode']!r}, state {sorted(state)}")
  for name, prefix in _head_names(len(outputs)).items():
    theirs = below(grads, prefix)
    own = grads_of_heads[name]
    dense_head_parity.gradients(
      report, own, theirs, "conv_seg", whole.train, prefix
    )
  _statistics(report, statistics, state)


def _logits(
  report: Report, arrays: Arrays, outputs: tuple[jax.Array, ...]
) -> None:
  """Compares the logits that a fixture keeps of the heads."""
  main = dense_head_parity.nchw(outputs[0])
  if "out/logits_nchw" in arrays:
    report.add("logits", "logits", main, arrays["out/logits_nchw"])
  else:
    theirs = arrays["out/logits_item0_nchw"]
    report.add("logits", "logits of item 0", main[:1], theirs)
  for i, logits in enumerate(outputs[1:]):
    kept = dense_head_parity.nchw(logits)[:1, :, ::2, ::2]
    theirs = arrays[f"out/aux_logits_item0_stride2_nchw/{i}"]
    report.add("logits", f"auxiliary logits {i}", kept, theirs)


def _statistics(report: Report, ours: dict[str, Any], theirs: Arrays) -> None:
  """Compares running statistics of all heads."""
  for name, prefix in _head_names(len(ours)).items():
    dense_head_parity.compare_named(
      report,
      "intermediates",
      f"state_after/{prefix}",
      ours[name],
      below(theirs, prefix),
      "conv_seg",
      dense_head_parity.no_floor,
    )


def _trajectory(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares a training by SGD, poly schedule, and the head's own rate."""
  solver = meta["optimizer"]
  steps = meta["steps"]
  if not re.match("PolyLR eta_min 1e-4 power 0.9 per", meta["schedule"]):
    raise Unsupported(f"schedule {meta['schedule']!r}")
  batches = []
  for i in range(2):
    images = jnp.asarray(arrays[f"input/images/{i}"])
    batches.append((images, jnp.asarray(arrays[f"input/labels/{i}"])))
  whole = build(arrays, meta, batches[0][0].shape[1:3])
  trained = set()
  for key in meta["initial_lr"]:
    if key.startswith("enc."):
      trained |= whole.names.paths([key.removeprefix("enc.")])
  trainable, frozen = _split(whole, trained)
  rate_of = optim.poly_rate_of(
    solver["lr"], steps, form="mmengine", power=0.9, lr_min=1e-4
  )
  optimizer = optim.make_optimizer(
    "sgd",
    rate_of(1.0),
    trainable,
    weight_decay=solver["weight_decay"],
    momentum=solver["momentum"],
    policies=optim.head_policies(),
    rate_of=rate_of,
  )

  @jax.jit
  def update(trainable, statistics, state, images, labels):
    """Returns all after a step, and its losses."""

    def loss(trainable):
      return _loss(whole, trainable, frozen, statistics, images, labels)

    differentiate = jax.value_and_grad(loss, has_aux=True)
    (total, (_, outputs, statistics_after)), grads = differentiate(trainable)
    updates, state = optimizer.update(grads, state, trainable)
    trainable = jax.tree.map(jnp.add, trainable, updates)
    nested = trees.unflatten(trainable)
    nested["method"] = whole.model.method.constrain(nested["method"])
    losses = jnp.stack([total, *_losses(whole, outputs, labels)])
    return trees.flatten(nested), statistics_after, state, losses

  state = optimizer.init(trainable)
  statistics = whole.statistics
  losses = []
  for step in range(steps):
    images, labels = batches[step % 2]
    trainable, statistics, state, of_step = update(
      trainable, statistics, state, images, labels
    )
    losses.append(of_step)
  report.add("losses", "losses", jnp.stack(losses), arrays["out/losses"])
  after = below(arrays, "param_after/")
  of_encoder = below(after, "enc.")
  for key, *pair in whole.names.pairs(trainable, of_encoder):
    report.add("parameters", f"enc.{key}", *pair)
  heads = trees.unflatten(trainable)["head"]
  for name, prefix in _head_names(len(heads)).items():
    dense_head_parity.compare_named(
      report,
      "parameters",
      prefix,
      heads[name],
      below(after, prefix),
      "conv_seg",
      dense_head_parity.no_floor,
    )
  for name, prefix in _head_names(len(heads)).items():
    dense_head_parity.compare_named(
      report,
      "parameters",
      f"state_after/{prefix}",
      statistics[name],
      below(arrays, f"state_after/{prefix}"),
      "conv_seg",
      dense_head_parity.no_floor,
    )


# Scores and schedules.


def _scores(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares the sums of every image, and the scores of all."""
  problem = Segmentation(meta["num_classes"], ignore=meta["ignore_index"])
  names = {
    "intersect": "intersect",
    "predicted": "pred_area",
    "label": "label_area",
  }
  total = dict.fromkeys(names, 0)
  images = [key for key in arrays if key.startswith("input/label/")]
  for i in range(len(images)):
    label = jnp.asarray(arrays[f"input/label/{i}"])[None]
    prediction = jnp.asarray(arrays[f"input/prediction/{i}"])[None]
    sums = problem.pixel_sums(prediction, label, jnp.ones(1))
    for name, theirs in names.items():
      area = np.asarray(sums[name], np.float64)
      report.add("counts", f"{theirs}/{i}", area, arrays[f"out/{theirs}/{i}"])
      total[name] = total[name] + area
  found = semantic_segmentation.of_classes(total)
  for name, theirs in (("iou", "IoU"), ("accuracy", "Acc")):
    want = 100 * arrays[f"out/{theirs}"]
    values = found[name]
    is_nan = np.isnan(want)
    left_out = np.isnan(values).astype(int)
    report.add("counts", f"{theirs} is NaN", left_out, is_nan.astype(int))
    report.add("percent", theirs, values[~is_nan], want[~is_nan])
  scores = problem.measure(total, {}, np.zeros(0))
  for name, theirs in (("miou", "mIoU"), ("macc", "mAcc"), ("aacc", "aAcc")):
    want = arrays[f"out/summary_percent/{theirs}"]
    report.add("percent", theirs, np.round(scores[name], 2), want)
  report.notes.append(
    "not compared: Dice, F-score, precision, recall, which are not reported, "
    "and how label files are read"
  )


def _schedules(arrays: Arrays, meta: dict[str, Any], report: Report) -> None:
  """Compares the rates of every step and group of parameters."""
  for prefix, form in (("out/lr/", "mmengine"), ("out/lr_mmcv0/", "mmcv")):
    for name, theirs in below(arrays, prefix).items():
      config = meta["configs"][name]
      for group, lr in enumerate(config["base"]):
        rates = optim.poly_rates(
          lr,
          config["T"],
          form=form,
          power=config["power"],
          lr_min=config["eta"],
          warmup_steps=config["warm"],
        )
        label = f"{form} {name} group {group}"
        report.add("step rates", label, rates, theirs[:, group])
