"""Points of runs, by a field of the config."""

import pytest

from tests.analysis.tiny import record
from vpt_jax.analysis import (
  curves,
)


def test_points_are_means_over_seeds():
  records = [
    record(50, 1, 80.0),
    record(5, 2, 66.0),
    record(5, 1, 60.0),
    record(5, 3, 0.0, stage="search"),
    record(5, 4, 0.0, status="diverged"),
    record(5, 5, 0.0, split="val"),
    record(5, 1, 1.0, task="u", metric="mean_per_class"),
    record(0, 1, 50.0, name="linear", config={"seed": 1}),
  ]
  found = curves.points(records, "vpt.num_tokens")
  assert [*found] == [("vpt", "b", "t"), ("vpt", "b", "u")]
  five, fifty = found["vpt", "b", "t"]
  assert (five.value, fifty.value) == (5, 50)
  assert five.mean == 63 and five.std == pytest.approx(18**0.5)
  assert sorted(five.seeds) == [1, 2]
  assert (fifty.mean, fifty.std) == (80, 0)
  assert found["vpt", "b", "u"][0].mean == -1


def test_points_refuse_what_would_mix():
  with pytest.raises(
    ValueError,
    match=r"(?s)two runs of seed 1 with vpt.*=5.*"
    r"optim.lr: 1.0 -> 2.0",
  ):
    curves.points(
      [record(5, 1, 60.0), record(5, 1, 70.0, lr=2.0)], "vpt.num_tokens"
    )
  with pytest.raises(ValueError, match="did you mean 'vpt.num_tokens'"):
    curves.points([record(5, 1, 60.0)], "vpt.num_token")
  with pytest.raises(ValueError, match="1 records, none of a finished run"):
    curves.points([record(5, 1, 60.0, stage="search")], "vpt.num_tokens")
