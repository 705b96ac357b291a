"""Lines of condensations."""

import pytest

from tests.analysis.tiny import record
from vpt_jax.analysis import (
  condensation_curves,
)


def test_condensed_rows():
  rows = lambda tuned: [
    dict(share=1.0, top1_as_is=90.0, top1_tuned=90.0, gmacs=2.0),
    dict(share=0.1, top1_as_is=50.0, top1_tuned=tuned, gmacs=1.5),
  ]
  made = [
    record(5, seed, 0.0, stage="condense", statistic="s", rows=rows(tuned))
    for seed, tuned in ((1, 80.0), (2, 84.0))
  ]
  lines = condensation_curves.condensed([*made, record(5, 1, 1.0)])
  ((key, line),) = lines.items()
  assert key == ("vpt", "b", "t", "s")
  assert line.score.name == "top1"
  low, full = line.shares
  assert low.share == 0.1
  assert low.tuned == [80, 84]
  assert low.gflops == [3.0, 3.0]
  assert (full.share, len(full.as_is)) == (1, 2)
  with pytest.raises(ValueError, match="none of a condensation"):
    condensation_curves.condensed([record(5, 1, 1.0)])
