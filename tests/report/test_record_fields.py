"""Tests that damaged records are refused."""

import pytest

from vpt_jax.report import (
  rows,
)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"problem": "tagz"}, r"'problem' is 'tagz', expected one of classif"),
    ({"problem": ["tags"]}, r"field 'problem' is \['tags'\]"),
    ({"metric": "top1"}, r"'top1', expected one of mean_average_precision"),
    ({"metric": "distance"}, r"field 'distance' is missing"),
    ({"mean_average_precision": None}, r"is None, expected a finite number"),
  ],
)
def test_damaged_records_of_another_problem(tags, change, message):
  with pytest.raises(ValueError, match=message):
    rows.collect([tags(50.0) | change])
