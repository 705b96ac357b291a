"""Compares sliding windows and several scales of a prompted model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity_report import Report
from tests.reference import Arrays
from vpt_jax.training import sliding

SCALES = 2  # each of them twice, the second time flipped


def compare(
  whole: Any, arrays: Arrays, meta: dict[str, Any], report: Report
) -> None:
  """Compares windows, counts, logits and label maps.

  Args:
    whole: see `segmentation_parity.Whole`, built for the windows' size.
    arrays: of the fixture.
    meta: likewise.
    report: gets the rows.
  """
  crop = tuple(meta["crop"])
  stride = tuple(meta["stride"])
  image = arrays["input/images"][0]
  size = image.shape[:2]
  windows = sliding.windows(size, crop, stride)
  report.add("counts", "windows", windows, arrays["out/crop_boxes_y1x1y2x2"])
  times = sliding.counts(size, crop, stride)
  report.add("counts", "count", times, arrays["out/count"])

  @jax.jit
  def logits_of(images):
    """Returns the main head's logits of windows."""
    params = dict(whole.params)
    head = params.pop("head")
    patches = whole.model.apply(
      {"params": params}, images, method=whole.model.features
    )
    variables = {"params": head, "batch_stats": whole.statistics}
    (logits,) = whole.heads.apply(variables, patches)
    return logits

  views = [image]
  for i in range(SCALES):
    view = arrays[f"input/tta_images/{i}"][0]
    views += [view, view[:, ::-1]]
  slide = sliding.SlidingWindows(logits_of, crop, stride, at_once=4, grain=16)
  whole_image, *canvases = slide(views)
  theirs = arrays["out/logits_nchw"][0].transpose(1, 2, 0)
  report.add("logits", "logits", whole_image.cut(), theirs)
  prediction = sliding.label_map([whole_image], size, grain=16)
  report.add("counts", "prediction", prediction, arrays["out/prediction"])

  stored = tuple(meta["ori_shape"])
  probabilities = []
  for k, canvas in enumerate(canvases):
    logits = sliding.resize_logits(canvas, stored, k % 2 == 1)
    if f"out/tta_logits_chw/{k}" in arrays:
      theirs = arrays[f"out/tta_logits_chw/{k}"].transpose(1, 2, 0)
      report.add("logits", f"logits of view {k}", logits, theirs)
    probabilities.append(jax.nn.softmax(jnp.asarray(logits)))
  mean = np.mean(probabilities, axis=0)
  theirs = arrays["out/tta_mean_softmax_chw"].transpose(1, 2, 0)
  report.add("logits", "mean softmax", mean, theirs)
  merged = sliding.label_map(canvases, stored, flip=True, grain=16)
  report.add("counts", "merged", merged, arrays["out/tta_prediction"][0])
