"""Makes records for tests of the report, as `training/records.py` has them."""

import hashlib
import json
import math

from configs import common
from vpt_jax.report import rows, suites
from vpt_jax.training import records as run_records

METHODS = {  # name -> (method, fields that differ, trainable parameters)
  "linear": ("linear", {}, 7690),
  "vpt_shallow": ("vpt", {"vpt.deep": False}, 15370),
  "vpt_deep": ("vpt", {}, 99850),
  "vapt": ("vapt", {}, 63298),
  "full": ("full", {"trainable": ".*"}, 85_806_346),
}
GATED = {"name": "gated", "method": "gated", "backbone": "mae_b16"}
TOTAL = 85_806_346


def config(
  method="vpt", task="eurosat", seed=42, backbone="vit_b16_in21k", **fields
):
  """As `config.resolve` leaves it, in JSON; `vpt__deep=True` sets a field."""
  out = common.get_config()
  out.update(task=task, method=method, seed=seed, trainable="(method|head)/.*")
  out.backbone.name = backbone
  out.update_from_flattened_dict(
    {name.replace("__", "."): value for name, value in fields.items()}
  )
  out = out.to_dict()
  del out["condense"], out["sweep"]
  out.pop("segmentation", None)
  for name in (
    "linear",
    "full",
    "vpt",
    "vapt",
    "gated",
    "adapter",
    "lora",
    "add",
    "pad",
    "below",
    "prepend_pixel",
    "border",
    "pgn",
    "iip",
  ):
    if name != method:
      out.pop(name, None)
  return json.loads(json.dumps(out))


def base(name, method, task, split, seed, backbone, stage, cell, fields):
  """What all stages have."""
  made = config(method, task, seed, backbone, **fields)
  key = json.dumps([name, stage, split, made], sort_keys=True)
  return {
    "schema": 1,
    "id": hashlib.sha256(key.encode()).hexdigest()[:12],
    "stage": stage,
    "name": name,
    "method": method,
    "task": task,
    "split": split,
    "seed": seed,
    "backbone": {"name": backbone, "sha256": "ab" * 32},
    "cell": cell,
    "config": made,
    "device": "1 x NVIDIA H200",
    "seconds": 61.25,
    "versions": {"jax": "0.10.0", "flax": "0.12.3", "numpy": "2.3.1"},
  }


def record(
  name="vpt_deep",
  top1=90.0,
  *,
  task="eurosat",
  seed=42,
  backbone="vit_b16_in21k",
  stage="final",
  split="test",
  method="",
  cell=None,
  trained=None,
  classes=("a", "b"),
  confusion=None,
  epochs=12,
  metric="top1",
  status="done",
  **fields,
):
  """A record of a run; `fields` are those of the config that differ."""
  known = METHODS.get(name, ("vpt", {}, 99850))
  fields = {**known[1], **fields}
  out = base(
    name,
    method or known[0],
    task,
    split,
    seed,
    backbone,
    stage,
    cell or {},
    fields,
  )
  rate = 1.5 + (seed % 7) / 10 + len(name) / 5
  loss = [
    2.3 * math.exp(-rate * epoch / epochs) + 0.05 for epoch in range(epochs)
  ]
  out |= {
    "status": status,
    "trainable_params": trained or known[2],
    "total_params": TOTAL,
    "train_images": 1000,
    "images_per_second": 812.5,
    "group": 4,
    "curve": {
      "loss": loss,
      "train_top1": [100 * (1 - value / 2.4) for value in loss],
      "lr": [0.1] * epochs,
    },
  }
  if status == "done":
    out |= {
      "metric": metric,
      "top1": top1,
      "mean_per_class": top1 - 1,
      "loss": 0.3,
      "count": 100,
      "classes": list(classes),
      "confusion": confusion
      if (confusion or stage == "search")
      else [[0, 0, 45], [0, 1, 5], [1, 0, 15], [1, 1, 35]],
    }
  return out


def of_problem(problem, metric, training_score, value, name="vpt_deep", **more):
  """Returns a record of another problem than classification.

  It has what every problem's records have, and nothing of classification.
  """
  out = record(name, **more)
  out["problem"] = problem
  curve = out["curve"]
  curve[training_score] = curve.pop("train_top1")
  if out["status"] == "done":
    for field in ("top1", "mean_per_class", "confusion"):
      del out[field]
    out["metric"] = metric
    out[metric] = value
  return out


def multi_label(value, average_precision=None, **more):
  """Returns a record of multi-label classification."""
  out = of_problem(
    "multi_label",
    "mean_average_precision",
    "train_label_accuracy",
    value,
    **more,
  )
  if out["status"] == "done":
    out["average_precision"] = average_precision
  return out


def segmentation(
  miou,
  *,
  class_iou=None,
  class_accuracy=None,
  multi_scale=None,
  head_params=7000,
  decoder="pup",
  **more,
):
  """Returns a record of segmentation; `multi_scale` is its mIoU there."""
  more = {"task": "ade20k", "classes": ("wall", "sky", "cat"), **more}
  out = of_problem("segmentation", "miou", "train_aacc", miou, **more)
  out["id"] = hashlib.sha256(f"maps {out['id']}".encode()).hexdigest()[:12]
  out["config"] |= {
    "problem": "segmentation",
    "segmentation": {"decoder": decoder, "test": "slide"},
  }
  if out["status"] != "done":
    return out
  out |= {
    "macc": miou + 8.0,
    "aacc": miou + 30.0,
    "class_iou": class_iou,
    "class_accuracy": class_accuracy,
    "head_params": head_params,
  }
  if multi_scale is not None:
    out["multi_scale"] = {
      "miou": multi_scale,
      "macc": multi_scale + 8.0,
      "aacc": multi_scale + 30.0,
    }
  return out


def search(task="eurosat", name="vpt_deep", extra=None, **more):
  """12 cells, 3 rates x 4 decays; one diverged, two share the best."""
  values = [
    [70.0, 71.0, 72.0, 73.0],
    [80.5, 88.0, 84.0, 79.0],
    [82.0, 88.0, None, 60.0],
  ]
  out = []
  for rate, line in zip((0.25, 1.0, 25.0), values, strict=True):
    for decay, top1 in zip((0.0, 1e-4, 1e-3, 1e-2), line, strict=True):
      cell = {"optim.lr": rate, "optim.weight_decay": decay, **(extra or {})}
      fields = {
        field.replace(".", "__"): value for field, value in cell.items()
      }
      out.append(
        record(
          name,
          top1 or 0.0,
          task=task,
          stage="search",
          split="val",
          cell=cell,
          status="done" if top1 else "diverged",
          **fields,
          **more,
        )
      )
  return out


def condense(task="eurosat", seed=42):
  """A condensation to 50, 30 and 10 %."""
  out = base(
    "vpt_deep", "vpt", task, "test", seed, "vit_b16_in21k", "condense", {}, {}
  )
  shares = (
    (1.0, 120, 91.4, 91.4, 17.76, 52.1),
    (0.5, 60, 90.0, 91.4, 17.66, 51.0),
    (0.3, 36, 88.8, 91.0, 17.62, 50.2),
    (0.1, 12, 75.4, 90.6, 17.58, 49.9),
  )
  return out | {
    "statistic": "elementwise_sample_abs",
    "rows": [
      {
        "share": share,
        "prompts": prompts,
        "per_set": [prompts // 12] * 12,
        "top1_as_is": as_is,
        "top1_tuned": tuned,
        "gmacs": gmacs,
        "milliseconds": ms,
      }
      for share, prompts, as_is, tuned, gmacs, ms in shares
    ],
    "oracle": {"removal": {"magnitude": 0.64, "change": 0.5}},
  }


def many(tasks, seeds=(42, 44, 82), names=tuple(METHODS), classes=None, **more):
  """Several methods x tasks x seeds."""
  out = []
  for i, task in enumerate(tasks):
    for j, name in enumerate(names):
      for k, seed in enumerate(seeds):
        labels = (classes or {}).get(task, ("a", "b"))
        count = len(labels)
        wrong = [
          [a, (a * (3 + j) + k + 1) % count, 2 + a % 7] for a in range(count)
        ]
        right = [[a, a, 10 + (a * 13 + i) % 37] for a in range(count)]
        pairs = {}
        for label, guess, number in wrong + right:
          pairs[label, guess] = pairs.get((label, guess), 0) + number
        out.append(
          record(
            name,
            50.0 + 5 * j + 1.5 * (i % 9) + 0.5 * k,
            task=task,
            seed=seed,
            classes=labels,
            confusion=[
              [*pair, number] for pair, number in sorted(pairs.items())
            ],
            **more,
          )
        )
  return out


# What tests of several modules need.

VTAB = suites.SUITES[0]


NATURAL = (
  "cifar100",
  "caltech101",
  "dtd",
  "oxford_flowers102",
  "oxford_iiit_pet",
  "svhn",
  "sun397",
)


HOSTILE = "</script><img src=x onerror=alert(1)>"


def write(folder, records):
  """A workdir with these records."""
  store = run_records.Store(folder / run_records.FILE)
  for record in records:
    store.add(record)
  return folder


def a_row(records, name="vpt_deep"):
  return next(row for row in rows.collect(records).rows if row.name == name)


def column(key):
  return next(
    one for suite in suites.SUITES for one in suite.columns if one.key == key
  )


def tagged(tags):
  """Three seeds of two methods on a task of tags."""
  out = []
  for name, start in (("linear", 50.0), ("vpt_deep", 60.0)):
    for seed, more in ((42, 0.0), (44, 1.0), (82, 2.0)):
      out.append(tags(start + more, name=name, task="photos", seed=seed))
  return out
