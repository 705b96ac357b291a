"""The comparison of segmentation's fixtures sees a difference of any kind."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import parity
from tests.options import Unsupported
from tests.reference import read

GOLDEN = Path(__file__).parent / "golden"
HEAD = "seg_setr_head_pup_trainbn"
METRICS = "seg_metrics"
TRAJECTORY = "traj_seg_vpt_shallow"


def edited(tmp_path, name, edit):
  """A copy of a fixture after `edit(arrays, meta)`."""
  arrays, meta = read(GOLDEN / f"{name}.npz")
  edit(arrays, meta)
  path = tmp_path / f"{name}.npz"
  np.savez(path, meta=json.dumps(meta), **arrays)
  return path


@pytest.mark.parametrize(
  "name, key, by",
  [
    (HEAD, "out/logits_nchw", 1e-4),
    (HEAD, "out/loss", 1e-4),
    (HEAD, "grad/conv_0.weight", 1e-3),
    (HEAD, "grad/conv_0.bias", 1e-3),
    (HEAD, "grad/input_tokens", 1e-3),
    (HEAD, "state_after/syncbn_fc_3.running_var", 1e-2),
    (HEAD, "param/conv_4.bias", 1e-2),
    (METRICS, "out/intersect/1", 1),
    (METRICS, "out/IoU", 1e-4),
    (METRICS, "out/summary_percent/mAcc", 0.01),
    (METRICS, "input/prediction/2", 1),
    ("seg_schedules", "out/lr/setr_ade", 1e-9),
    ("seg_schedules", "out/lr_mmcv0/setr_ade", 1e-9),
    ("seg_pipeline", "out/resized_hw/square_512", 1),
    ("seg_pipeline", "out/multiscale_hw_from_2048x512", 1),
    ("seg_pipeline", "out/random_resize_hw_in_out", 9),
    ("seg_pipeline", "out/image_resized/1", 2),
    ("seg_pipeline", "out/label_resized/3", 1),
    ("seg_pipeline", "out/crop_box_y1y2x1x2", 1),
    ("seg_pipeline", "out/photo_bgr/4", 1),
    ("seg_pipeline", "out/preprocessed_nchw", 1e-5),
    (TRAJECTORY, "out/losses", 1e-3),
    (TRAJECTORY, "param_after/decode_head.up_convs.0.0.conv.weight", 1e-2),
    (TRAJECTORY, "param_after/enc.prompt_embeddings", 1e-2),
  ],
)
def test_a_difference_fails(tmp_path, name, key, by):
  def edit(arrays, meta):
    del meta
    array = np.array(arrays[key])
    array.flat[0] += array.dtype.type(by)
    arrays[key] = array

  report = parity.compare(edited(tmp_path, name, edit))
  assert report.failed


@pytest.mark.parametrize(
  "key", ["grad/norm.bias", "state_after/syncbn_fc_0.running_mean"]
)
def test_what_a_fixture_lacks_is_no_agreement(tmp_path, key):
  """A gradient or all statistics that are missing."""

  def edit(arrays, meta):
    del meta
    prefix = key if key.startswith("grad/") else "state_after/"
    for name in list(arrays):
      if name.startswith(prefix):
        del arrays[name]

  with pytest.raises(ValueError, match="gradients of|bn_mode"):
    parity.compare(edited(tmp_path, HEAD, edit))


def test_cases_that_are_not_compared_say_so(tmp_path):
  def edit(arrays, meta):
    del arrays
    meta["case"] = "seg_instances"

  with pytest.raises(Unsupported, match="seg_instances"):
    parity.compare(edited(tmp_path, METRICS, edit))
