"""Tests how records become rows."""

import pytest

from tests import report_records as made
from vpt_jax.report import (
  result_tables,
  rows,
)


def test_mean_and_sample_deviation_over_seeds():
  values = {42: 90.0, 44: 91.0, 82: 95.0}
  row = made.a_row(
    [made.record(top1=top1, seed=seed) for seed, top1 in values.items()]
  )
  score = row.scores["eurosat"]
  # Deviations -2, -1, 3 from 92: sqrt((4 + 1 + 9) / 2).
  assert score.mean == pytest.approx(92.0)
  assert score.std == pytest.approx(7**0.5)
  assert (score.count, score.diverged) == (3, 0)
  assert score.percent == pytest.approx(100 * 99850 / made.TOTAL)
  assert result_tables.cell(row, made.column("eurosat")) == "92.00 \u00b1 2.65"


def test_one_seed_has_no_deviation():
  row = made.a_row([made.record(top1=90.123)])
  assert row.scores["eurosat"].std is None
  assert result_tables.cell(row, made.column("eurosat")) == "90.12"


def test_the_score_is_the_metric_that_the_record_names():
  row = made.a_row([made.record(top1=90.0, metric="mean_per_class")])
  assert row.scores["eurosat"].mean == 89.0
  text = result_tables.terminal(
    [made.record(top1=90.0, metric="mean_per_class")]
  )
  assert "Mean per class instead of top-1: eurosat." in text


def test_diverged_runs_are_counted_and_marked():
  records = [
    made.record(top1=90.0),
    made.record(seed=44, status="diverged"),
    made.record(task="dtd", status="diverged"),
  ]
  found = rows.collect(records)
  row = found.rows[0]
  assert (
    result_tables.cell(row, made.column("eurosat"))
    == "90.00" + result_tables.MARK
  )
  assert result_tables.cell(row, made.column("dtd")) == "diverged"
  assert [record["seed"] for record in found.diverged] == [44, 42]
  text = result_tables.terminal(records)
  assert (
    "2 runs diverged: vpt_deep on vit_b16_in21k, eurosat, seed 44; "
    "vpt_deep on vit_b16_in21k, dtd, seed 42." in text
  )
  assert f"{result_tables.MARK} without the seeds that diverged." in text
  # A task that only diverged is not in a mean.
  others = [made.record(task=task) for task in made.NATURAL if task != "dtd"]
  assert made.a_row(records + others).value(made.column("natural")) is None


def test_splits_are_not_mixed():
  records = [
    made.record(top1=90.0),
    made.record(top1=70.0, split="val"),
    *made.search(),
  ]
  found = rows.collect(records)
  assert found.rows[0].scores["eurosat"].mean == 90.0
  assert found.left_out == {"val": 1}  # searches are no results
  assert (
    "Left out, as they are not on the split test: 1 record on val."
    in result_tables.terminal(records)
  )
  assert rows.collect(records, "val").rows[0].scores["eurosat"].mean == 70.0
  assert "no results on the split 'train'" in result_tables.terminal(
    records, "train"
  )


def test_two_configs_of_a_seed_are_two_rows():
  records = [
    made.record(top1=top1, seed=seed, vpt__num_tokens=count, optim__lr=rate)
    for seed in (42, 44)
    for count, top1, rate in ((10, 80.0, 1.0), (50, 90.0, 2.5))
  ]
  found = rows.collect(records)
  # Rates differ, too, but prompts suffice to tell them apart.
  assert {row.name: row.scores["eurosat"].mean for row in found.rows} == {
    "vpt_deep (vpt.num_tokens=10)": 80.0,
    "vpt_deep (vpt.num_tokens=50)": 90.0,
  }
  assert {row.scores["eurosat"].count for row in found.rows} == {2}
  rates = [made.record(optim__lr=rate) for rate in (1.0, 2.5)]
  assert [row.name for row in rows.collect(rates).rows] == [
    "vpt_deep (optim.lr=1.0)",
    "vpt_deep (optim.lr=2.5)",
  ]


def test_methods_of_one_name_are_never_one_row():
  records = [
    made.record("mine", task="dtd"),
    made.record("mine", task="eurosat", vpt__deep=False),
  ]
  assert [
    (row.name, list(row.scores)) for row in rows.collect(records).rows
  ] == [
    ("mine (vpt.deep=true)", ["dtd"]),
    ("mine (vpt.deep=false)", ["eurosat"]),
  ]


def test_rates_that_differ_between_tasks_are_one_row():
  records = [
    made.record(task="eurosat", optim__lr=1.0),
    made.record(task="dtd", optim__lr=5.0),
  ]
  assert [row.name for row in rows.collect(records).rows] == ["vpt_deep"]


def test_two_records_of_one_config_are_refused():
  record = made.record()
  with pytest.raises(
    ValueError,
    match="two records of 'vpt_deep' on 'eurosat', seed 42, have one config",
  ):
    rows.collect([record, record | {"id": "another"}])
