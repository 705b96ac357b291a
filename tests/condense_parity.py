"""Compares prompt condensation with fixtures `condense_vpt_*`.

There is no published code of it: the fixtures hold scores by torch's autograd
on the published VPT model.
"""

from pathlib import Path
import re
from typing import Any

import jax
import numpy as np

from tests import options, running
from tests.parity_report import Report
from tests.reference import Arrays, below
from vpt_jax.condensation import prompt_scores, selection
from vpt_jax.utils import trees


def compare(
  path: Path, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """Compares one fixture.

  Args:
    path: of it; the case is its name.
    arrays: what it holds.
    meta: what it says of itself.
    report: gets the rows.
  """
  batches = [
    {"image": arrays[f"input/images/{i}"], "label": arrays[f"input/labels/{i}"]}
    for i in range(meta["batches"])
  ]
  deep = "deep" in meta.get("case", path.stem)
  built, flat = options.build(
    {
      **meta,
      "prompt_cfg": {"NUM_TOKENS": meta["sizes"]["tokens"], "DEEP": deep},
    },
    below(arrays, "param/"),
    batches[0]["image"].shape[1:3],
  )
  model, variables = built.model, {"params": trees.unflatten(flat)}

  theirs = below(arrays, "out/score/")
  ours = prompt_scores.scores(model, variables, batches, tuple(theirs))
  # Behind a LayerNorm sum_d g p is its eps alone, beside terms of this size.
  terms = np.max(theirs["elementwise_abs"])
  for name, score in theirs.items():
    if meta["degenerate"] and name.startswith("taylor_"):
      report.add(
        "scores",
        f"{name} (next to zero)",
        ours[name],
        np.zeros_like(score),
        1e-4 * terms,
      )
      continue
    report.add("scores", name, ours[name], score)
  for key, selected in below(arrays, "out/ranking/").items():
    report.add(
      "selection", f"ranking/{key}", selection.ranking(ours[key]), selected
    )
  for key, selected in arrays.items():
    found = re.fullmatch(r"out/keep_(\d+)/(\w+)", key)
    if found:
      report.add(
        "selection",
        key,
        selection.keep(ours[found[2]], int(found[1]) / 100).astype(int),
        selected,
      )

  prompts = {
    key: value for key, value in flat.items() if key.startswith("method/")
  }
  rest = {key: value for key, value in flat.items() if key not in prompts}
  grads = [
    running.run(prompts, rest, model, batch["image"], batch["label"]).grads
    for batch in batches
  ]
  mean = jax.tree.map(lambda *g: np.mean(g, axis=0), *grads)
  for name, *pair in built.names.pairs(mean, below(arrays, "grad_mean/")):
    report.add("gradients", name, *pair)

  image = batches[0]["image"]
  report.add(
    "logits",
    "full",
    jax.jit(model.apply)(variables, image),
    arrays["out/logits_full_batch0"],
  )
  score = str(arrays["out/logits_condensed_score"])
  smaller, less = selection.condensed(
    model, variables, selection.keep(ours[score], 0.5)
  )
  report.add(
    "logits",
    f"half of them, by {score}",
    jax.jit(smaller.apply)(less, image),
    arrays["out/logits_condensed_50_batch0"],
  )
