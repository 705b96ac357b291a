"""Tests what the page shows of single runs."""

import pytest

from tests import report_records as made
from vpt_jax.report import (
  class_summaries,
  details,
  page,
  record_fields,
  rows,
)


def test_the_chosen_cell_of_a_search():
  (one,) = details.searches(made.search())
  chosen = [cell for cell in one["cells"] if cell[3]]
  # 88 at rates 1 and 25: the smaller.
  assert [cell[:3] for cell in chosen] == [[1.0, 1e-4, 88.0]]
  assert [cell[:3] for cell in one["cells"] if cell[2] is None] == [
    [25.0, 1e-3, None]
  ]
  assert len(one["cells"]) == 12


def test_further_fields_of_a_search_are_maps_with_one_choice():
  records = made.search(extra={"vpt.num_tokens": 10}) + made.search(
    extra={"vpt.num_tokens": 50}
  )
  records[-1]["top1"] = 99.0
  maps = details.searches(records)
  assert [one["rest"] for one in maps] == [
    "vpt.num_tokens=10",
    "vpt.num_tokens=50",
  ]
  assert [[cell[:2] for cell in one["cells"] if cell[3]] for one in maps] == [
    [],
    [[25.0, 1e-2]],
  ]


def test_runs_that_halving_shortens_are_not_chosen():
  records = (
    made.search(extra={"epochs": 2, "optim.warmup_epochs": 1})
    + made.search()[:6]
  )
  records[0]["top1"] = 99.0
  assert [
    [cell[:3] for cell in one["cells"] if cell[3]]
    for one in details.searches(records)
  ] == [[], [[1.0, 1e-4, 88.0]]]
  assert [
    cell[2]
    for one in details.searches(records[:12])
    for cell in one["cells"]
    if cell[3]
  ] == [99.0]


def test_searches_go_by_the_metric_of_the_task():
  records = [
    made.record(
      top1=top1,
      stage="search",
      split="val",
      seed=42,
      metric="mean_per_class",
      cell={"optim.lr": rate},
    )
    for top1, rate in ((80.0, 1.0), (81.0, 2.0))
  ]
  records[0]["mean_per_class"] = 90.0
  (one,) = details.searches(records)
  assert one["metric"] == "mean per class"
  assert [cell[:3] for cell in one["cells"] if cell[3]] == [[1.0, None, 90.0]]


def test_a_search_of_another_problem(tags):
  records = []
  for value, rate in ((40.0, 1.0), (45.0, 2.0)):
    cell = {"optim.lr": rate}
    records.append(tags(value, stage="search", split="val", cell=cell))
  (one,) = details.searches(records)
  assert (one["metric"], one["unit"]) == ("mean average precision", "%")
  assert [cell[:3] for cell in one["cells"] if cell[3]] == [[2.0, None, 45.0]]


def test_seeds_of_a_cell_are_averaged():
  records = made.search() + made.search(seed=44)
  for record in records[12:]:
    if record["status"] == "done":
      record["top1"] += 1.0
  (one,) = details.searches(records)
  assert max(cell[2] for cell in one["cells"] if cell[2]) == 88.5


def test_confusions_are_summed_over_seeds():
  records = [
    made.record(seed=seed, confusion=[[0, 0, 3], [0, 1, 1], [1, 1, 4]])
    for seed in (42, 44)
  ]
  one = class_summaries.confusions(records)
  assert one["scores"] == [[75.0, 0, 8], [100.0, 1, 8]]
  assert one["wrong"] == [[0, 1, 2, 8]]
  assert one["matrix"] == [[0, 0, 6], [0, 1, 2], [1, 1, 8]]
  assert one["titles"] == {0: "a", 1: "b"}


def test_many_classes_have_no_matrix():
  pairs = [[label, label, label + 1] for label in range(120)] + [[7, 9, 50]]
  one = class_summaries.confusions(
    [made.record(classes=[], confusion=sorted(pairs))]
  )
  assert one["matrix"] == [] and one["wrong"] == [[7, 9, 50, 58]]
  assert one["left_out"] == 70 and len(one["scores"]) == 50
  assert one["titles"][7] == "7"


def test_classes_of_a_multi_label_record():
  """Means over seeds; a class without images has none."""
  records = [
    made.multi_label(60.0, values, seed=seed, classes=("cat", "dog", "owl"))
    for seed, values in (
      (42, [90.0, 40.0, None]),
      (44, [80.0, 50.0, None]),
      (82, None),
    )
  ]
  found = rows.collect(records)
  (one,) = class_summaries.classes(found.rows, page.labels(found.rows))
  assert one["measure"] == "average precision" and one["seeds"] == 2
  assert one["scores"] == [[45.0, 1, None], [85.0, 0, None]]
  assert one["titles"] == {0: "cat", 1: "dog"}
  assert one["matrix"] == one["wrong"] == []
  data = page.data(records, found)
  assert data["curves"][0]["score"] == "training label accuracy, %"
  for damaged in ([90.0, "high"], 90.0, [90.0, float("nan")]):
    with pytest.raises(ValueError, match="'average_precision' is"):
      rows.collect([made.multi_label(60.0, damaged)])


def test_a_condensation_of_another_problem(tags):
  del tags  # makes the problem known
  record = made.condense()
  assert details.condensed([record])[0]["score"] == "top-1, %"
  record |= {"problem": "tags", "metric": "mean_average_precision"}
  for row in record["rows"]:
    row["mean_average_precision_as_is"] = row.pop("top1_as_is")
    row["mean_average_precision_tuned"] = row.pop("top1_tuned")
  rows.collect([record])
  (one,) = details.condensed([record])
  assert one["score"] == "mean average precision, %"
  assert (one["rows"][2]["as_is"], one["rows"][2]["tuned"]) == (88.8, 91.0)
  del record["rows"][1]["mean_average_precision_tuned"]
  with pytest.raises(ValueError, match=r"precision_tuned' is missing"):
    rows.collect([record])


def test_long_curves_are_thinned_and_end_with_the_last_epoch():
  records = [made.record(epochs=1000)]
  found = rows.collect(records)
  run = details.curves(found.rows, page.labels(found.rows))[0]["runs"][0]
  assert len(run["epoch"]) == len(run["loss"]) <= details.MOST_POINTS + 1
  assert run["epoch"][0] == 1 and run["epoch"][-1] == 1000
  assert run["loss"][0] == float(f"{records[0]['curve']['loss'][0]:.4g}")


def test_configs_are_whole_though_stored_once():
  records = made.many(["eurosat"], names=("vpt_deep", "linear"))
  stored = details.runs(records)
  for record, line in zip(records, stored["rows"], strict=True):
    assert stored["common"] | line[14] == record_fields.flat_config(record)
