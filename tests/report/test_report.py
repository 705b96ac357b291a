"""Tests the tables, the published numbers, and the page in a real browser."""

import base64
import configparser
import csv
import hashlib
import html
import io
import json
from pathlib import Path
import re
import shutil
import subprocess

import pytest

from configs import (
  baselines_vtab,
  clip_zero_shot,
  common,
  gated_vtab,
  linear_vtab,
  vapt_vtab,
  vpt_vtab,
)
from configs import pgn as pgn_config
from tests import report_records as made
from vpt_jax import config as configs
from vpt_jax import main, problems
from vpt_jax.backbones import factory as backbones
from vpt_jax.data import tasks
from vpt_jax.methods import registry as methods
from vpt_jax.report import __main__ as command
from vpt_jax.report import (
  details,
  export,
  page,
  published,
  record_fields,
  result_tables,
  rows,
  suites,
)
from vpt_jax.training import records as run_records
from vpt_jax.utils import trees

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


# What tables are made of.


def test_suites_are_those_of_the_tasks():
  for suite in suites.SUITES:
    assert set(suite.tasks) == {
      name for name, task in tasks.TASKS.items() if task.suite == suite.name
    }
  for group, labels in suites.VTAB.items():
    assert set(labels) == {
      name for name, task in tasks.TASKS.items() if task.group == group.lower()
    }
  assert [len(group) for group in suites.VTAB.values()] == [7, 4, 8]
  assert len(column("vtab_19").tasks) == 19
  assert [len(part) for part in column("vtab_3").parts] == [7, 4, 8]


def test_the_two_means_of_vtab():
  scores = dict.fromkeys(NATURAL, 90.0)
  scores |= dict.fromkeys(suites.VTAB["Specialized"], 60.0)
  assert column("vtab_19").mean(scores) is None
  scores |= dict.fromkeys(suites.VTAB["Structured"], 30.0)
  # (7 * 90 + 4 * 60 + 8 * 30) / 19 and (90 + 60 + 30) / 3
  assert column("vtab_19").mean(scores) == pytest.approx(1110 / 19)
  assert column("vtab_3").mean(scores) == pytest.approx(60.0)


def test_mean_and_sample_deviation_over_seeds():
  values = {42: 90.0, 44: 91.0, 82: 95.0}
  row = a_row(
    [made.record(top1=top1, seed=seed) for seed, top1 in values.items()]
  )
  score = row.scores["eurosat"]
  # Deviations -2, -1, 3 from 92: sqrt((4 + 1 + 9) / 2).
  assert score.mean == pytest.approx(92.0)
  assert score.std == pytest.approx(7**0.5)
  assert (score.count, score.diverged) == (3, 0)
  assert score.percent == pytest.approx(100 * 99850 / made.TOTAL)
  assert result_tables.cell(row, column("eurosat")) == "92.00 \u00b1 2.65"


def test_one_seed_has_no_deviation():
  row = a_row([made.record(top1=90.123)])
  assert row.scores["eurosat"].std is None
  assert result_tables.cell(row, column("eurosat")) == "90.12"


def test_the_score_is_the_metric_that_the_record_names():
  row = a_row([made.record(top1=90.0, metric="mean_per_class")])
  assert row.scores["eurosat"].mean == 89.0
  text = result_tables.terminal(
    [made.record(top1=90.0, metric="mean_per_class")]
  )
  assert "Mean per class instead of top-1: eurosat." in text


def test_a_mean_without_all_of_its_tasks_is_no_number():
  row = a_row([made.record(task=task) for task in NATURAL[:3]])
  assert row.value(column("natural")) is None
  assert result_tables.cell(row, column("natural")) == "3 of 7"
  assert result_tables.cell(row, column("specialized")) == ""
  whole = a_row(
    [made.record(task=task, top1=80.0 + i) for i, task in enumerate(NATURAL)]
  )
  assert result_tables.cell(whole, column("natural")) == "83.00"
  assert result_tables.cell(whole, column("vtab_19")) == "7 of 19"


def test_diverged_runs_are_counted_and_marked():
  records = [
    made.record(top1=90.0),
    made.record(seed=44, status="diverged"),
    made.record(task="dtd", status="diverged"),
  ]
  found = rows.collect(records)
  row = found.rows[0]
  assert (
    result_tables.cell(row, column("eurosat")) == "90.00" + result_tables.MARK
  )
  assert result_tables.cell(row, column("dtd")) == "diverged"
  assert [record["seed"] for record in found.diverged] == [44, 42]
  text = result_tables.terminal(records)
  assert (
    "2 runs diverged: vpt_deep on vit_b16_in21k, eurosat, seed 44; "
    "vpt_deep on vit_b16_in21k, dtd, seed 42." in text
  )
  assert f"{result_tables.MARK} without the seeds that diverged." in text
  # A task that only diverged is not in a mean.
  others = [made.record(task=task) for task in NATURAL if task != "dtd"]
  assert a_row(records + others).value(column("natural")) is None


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


# Published numbers.


def test_published_numbers_name_what_there_is():
  table, known = (
    published.table(),
    {
      name.replace("/", ".")
      for name in trees.flatten(common.get_config().to_dict())
    },
  )
  keys = {one.key for suite in suites.SUITES for one in suite.columns}
  for names in table["columns"].values():
    assert set(names) <= keys
  for kind in table["kinds"]:
    where = published.conditions(kind)
    if where is not None:
      assert where["method"] in methods.METHODS
      assert set(where) <= known, kind
  for fields in table["protocol"].values():
    assert set(fields) <= known
  for group in table["tables"]:
    assert set(group["backbones"]) <= backbones.BACKBONES.keys()
    assert group["tag"] in table["tags"] and group["paper"] in table["papers"]
    for line in group["rows"]:
      assert len(line["values"]) == len(table["columns"][group["columns"]])
      assert set(line.get("where", {})) <= known
      assert all(
        0 < value < 100 for value in line["values"] if value is not None
      )


def test_published_means_follow_from_published_tasks():
  """Slips of copying: a digit or a column."""
  table, checked = published.table(), 0
  by_kind = {}
  for group in table["tables"]:
    for line in group["rows"]:
      scores = dict(
        zip(table["columns"][group["columns"]], line["values"], strict=True)
      )
      # One source of a method and backbone at a time; third hands quote [S].
      tag = group["tag"].replace("N", "S")
      source = json.dumps(
        [
          group["paper"],
          tag,
          group["backbones"],
          line["kind"],
          line.get("prompts"),
        ]
      )
      by_kind.setdefault(source, {}).update(
        {key: value for key, value in scores.items() if value}
      )
  for source, scores in by_kind.items():
    for suite in suites.SUITES:
      for one in suite.columns:
        mean = one.mean(scores)
        if one.is_mean and mean is not None and one.key in scores:
          assert scores[one.key] == pytest.approx(mean, abs=0.06), source
          checked += 1
    if {"natural", "specialized", "structured", "vtab_19"} <= scores.keys():
      mean = (
        7 * scores["natural"]
        + 4 * scores["specialized"]
        + 8 * scores["structured"]
      ) / 19
      assert scores["vtab_19"] == pytest.approx(mean, abs=0.02), source
      checked += 1
  assert checked > 40


@pytest.mark.parametrize(
  "config,kind",
  [
    (vpt_vtab.get_config("eurosat"), "vpt_deep"),
    (vapt_vtab.get_config("eurosat"), "vapt"),
    (linear_vtab.get_config("eurosat"), "linear"),
    (gated_vtab.get_config("eurosat"), "gated"),
    (pgn_config.get_config("clip,pgn_eurosat"), "pgn"),
    (clip_zero_shot.get_config("pgn_eurosat"), "zero_shot"),
    *(
      (baselines_vtab.get_config(f"{name},eurosat"), kind)
      for name, kind in (
        ("full", "full"),
        ("adapter", "adapter"),
        ("lora", "lora"),
        ("bias", "bias"),
        ("partial1", None),
        ("mlp3", None),
        ("prompt_bias", None),
        ("pad", None),
      )
    ),
  ],
)
def test_what_configs_of_ours_are_compared_with(config, kind):
  resolved = configs.plain(configs.resolve(config))
  fitting = [
    name
    for name in published.table()["kinds"]
    if published.conditions(name) is not None
    and published.fits({"config": resolved}, published.conditions(name))
  ]
  assert fitting == ([kind] if kind else [])


def test_ablations_are_not_compared_with_the_method():
  def known(**fields):
    return published.numbers("vit_b16_in21k", [made.record(**fields)])

  assert known()["dmlab"][0].value == 46.5
  assert known(vpt__deep=False)["dmlab"][0].value == 40.5
  assert known(vpt__shared=True) == known(vpt__kept=((0,), ())) == {}
  assert known(pool="img") == {}


def test_differences_to_published_numbers():
  row = a_row([made.record(top1=47.0, task="dmlab")])
  paper, demo = published.compare(row, VTAB)
  assert (paper.published.value, paper.published.std) == (46.5, None)
  assert paper.difference == pytest.approx(0.5)
  assert "[S]" in paper.published.source
  assert (demo.published.value, demo.published.std) == (46.62, 0.47)
  assert demo.difference == pytest.approx(0.38)
  assert "[A]" in demo.published.source
  text = result_tables.terminal([made.record(top1=47.0, task="dmlab")])
  assert re.search(r"published +46\.5 \[1\]\n +difference +\+0\.50\n", text)
  assert "[1] VPT (Jia et al. 2022), as quoted by another paper [S]" in text


def test_group_means_are_compared_only_when_whole():
  part = [made.record(task=task, top1=80.0) for task in NATURAL[:6]]

  def keys(records):
    return {one.column.key for one in published.compare(a_row(records), VTAB)}

  assert "natural" not in keys(part)
  assert "natural" in keys([*part, made.record(task="sun397", top1=80.0)])


def test_doubts_are_told():
  row = a_row([made.record("linear", 60.0, task="cifar100")], "linear")
  assert "64.4" in published.compare(row, VTAB)[0].published.source
  row = a_row([made.record(task="smallnorb_elevation")])
  assert "37.7" in published.compare(row, VTAB)[0].published.source


def test_numbers_of_third_hands_are_never_the_papers():
  records = [
    made.record("vapt", 60.0, task=task, backbone="mae_b16") for task in NATURAL
  ]
  compared = published.compare(a_row(records, "vapt"), VTAB)
  assert [one.published.value for one in compared] == [59.23]
  assert compared[0].published.weak and compared[0].difference is None
  found = rows.collect(records)
  (sheet,) = result_tables.suite_tables(found)
  assert len(sheet.lines) == 1  # neither published nor difference
  assert "59.23" not in result_tables.terminal(records) + export.latex(found)
  for text in (export.markdown(found), export.table_csv(found)):
    lines = [line for line in text.splitlines() if "59.23" in line]
    assert len(lines) == 1 and "quoted by third hands" in lines[0]
  assert "| (59.23) | - |" in export.markdown(found)
  data = page.data(records, found)
  assert not any(
    "published" in cell
    for suite in data["suites"]
    for line in suite["rows"]
    for cell in line["cells"]
  )
  assert [line[4:7] for line in data["compared"]] == [[59.23, "(59.23)", None]]
  for backbone in backbones.BACKBONES:
    for numbers in published.numbers(backbone).values():
      for number in numbers:
        assert number.weak == ("third hands" in number.source)


def test_other_backbones_have_no_published_numbers():
  text = result_tables.terminal([made.record(backbone="vit_ti16")])
  assert "published " not in text.replace("No published", "")
  assert "No published numbers to compare with: vpt_deep on vit_ti16." in text


def test_what_leaves_the_published_protocol_is_said():
  text = result_tables.terminal(
    [made.record(epochs=10), made.record("linear", image_size=96)]
  )
  assert (
    "linear on vit_b16_in21k leaves the published protocol: "
    "image_size=96 (published: 224)." in text
  )
  assert "vpt_deep on vit_b16_in21k leaves" not in text


# Formats.


def test_terminal_shows_columns_that_have_something():
  text = result_tables.terminal(
    [made.record(task="eurosat"), made.record("linear", 80.0, task="dtd")]
  )
  head = text.splitlines()[1].split()
  assert head == [
    "method",
    "backbone",
    "seeds",
    "tuned/total",
    "%",
    "DTD",
    "EuroSAT",
  ]
  wide = result_tables.terminal(made.many(VTAB.tasks))
  assert (
    max(map(len, wide.split("Top-1")[0].splitlines())) <= result_tables.WIDTH
  )
  assert all(result_tables.heading(one) in wide for one in VTAB.columns)
  assert "mean over 19 tasks" in wide and "mean of the 3 group means" in wide


def test_a_strange_name_does_not_steer_the_terminal():
  assert "\x1b" not in result_tables.terminal([made.record("a\x1b[31m\nb")])


def test_markdown_has_all_columns_of_a_suite():
  text = export.markdown(rows.collect([made.record(), made.record("a|b*")]))
  head = next(line for line in text.splitlines() if "CIFAR-100" in line)
  count = head.count("|")
  assert count == 1 + 4 + len(VTAB.columns)
  line = next(line for line in text.splitlines() if "a\\|b\\*" in line)
  assert line.replace("\\|", "").count("|") == count


def test_latex_is_escaped_and_balanced():
  found = rows.collect(
    [
      made.record("a_b & 50% #1 {x} $y ~^\\ [z]"),
      made.record(seed=44),
      made.record(top1=91.0),
    ]
  )
  text = export.latex(found)
  assert (
    r"a\_b \& 50\% \#1 \{x\} \$y \textasciitilde{}\textasciicircum{}"
    r"\textbackslash{} {[}z{]} &"
  ) in text
  assert r"vit\_b16\_in21k" in text
  assert r"90.50{\scriptsize$\pm$0.71}" in text
  bare = re.sub(r"\\[{}]", "", text)
  assert bare.count("{") == bare.count("}")
  assert text.count(r"\begin{") == text.count(r"\end{")
  body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
  counts = {
    len(re.findall(r"(?<!\\)&", line))
    for line in body.splitlines()
    if line.endswith(r"\\")
  }
  assert counts == {3 + len(VTAB.columns)}


def test_csv_parses_back():
  records = [
    made.record(top1=top1, seed=seed) for seed, top1 in ((42, 90.0), (44, 92.0))
  ] + [made.record('a,"b"', 50.0, task="digits")]
  lines = list(
    csv.DictReader(io.StringIO(export.table_csv(rows.collect(records))))
  )
  ours = [line for line in lines if line["column"] == "eurosat"]
  assert [line["published"] for line in ours] == ["96.1", "96.15"]
  assert {(line["mean"], line["std"], line["seeds"]) for line in ours} == {
    ("91.0", "1.414214", "2")
  }
  assert [float(line["difference"]) for line in ours] == [-5.1, -5.15]
  other = lines[-1]
  assert (other["method"], other["suite"], other["published"]) == (
    'a,"b"',
    "other",
    "",
  )


# The command.


def test_command_reads_two_workdirs_and_writes_all_files(tmp_path, capsys):
  one = write(tmp_path / "one", [made.record(top1=90.0)])
  two = write(
    tmp_path / "two" / "below",
    [made.record(top1=90.0), made.record(top1=92.0, seed=44)],
  )
  out = tmp_path / "out"
  assert (
    command.main(["", str(one), str(tmp_path / "two"), "--out", str(out)]) == 0
  )
  text = capsys.readouterr().out
  assert "91.00 \u00b1 1.41" in text  # the same record counts once
  assert sorted(path.name for path in out.iterdir()) == [
    "report.html",
    "table.csv",
    "table.md",
    "table.tex",
  ]
  assert two.exists()


@pytest.mark.parametrize(
  "change,message",
  [
    (lambda line: line[:-9] + "\n", "not JSON"),
    (lambda line: line.replace('"schema": 1', '"schema": 7'), "schema 1"),
    (lambda line: line.replace('"top1"', '"top2"', 1), "metric|'top1'"),
    (lambda line: line.replace('"top1": 90.0', '"top1": "90"'), "is '90'"),
    (lambda line: line.replace('"top1": 90.0', '"top1": NaN'), "finite"),
    (lambda line: line.replace('"final"', '"last"'), "final, single"),
    (
      lambda line: line.replace(
        '"total_params": 85806346', '"total_params": 0'
      ),
      "total_params",
    ),
    (lambda line: line.replace("[[0, 0, 45]", "[[0, 0]"), "confusion"),
    (
      lambda line: line.replace("[[0, 0, 45]", "[[0, 999999999, 45]"),
      "confusion",
    ),
  ],
)
def test_damaged_records_are_told(tmp_path, capsys, change, message):
  folder = write(tmp_path, [made.record()])
  path = folder / run_records.FILE
  path.write_text(change(path.read_text()))
  assert command.main(["", str(folder)]) == 1
  error = capsys.readouterr().err
  assert error.startswith("error: ") and re.search(message, error)
  assert "Traceback" not in error


def test_a_real_run_is_reported(config, tmp_path, capsys):
  result = main.run(config, tmp_path / "run")
  assert command.main(["", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
  line = next(
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith("vapt")
  )
  assert line.split() == [
    "vapt",
    "vit_test",
    "1",
    f"{result['trainable_percent']:.3g}",
    f"{result['top1']:.2f}",
  ]


def test_a_folder_without_records_is_told(tmp_path, capsys):
  assert command.main(["", str(tmp_path)]) == 1
  assert f"no records.jsonl in or below {tmp_path}" in capsys.readouterr().err


def test_assets_are_packaged():
  parser = configparser.ConfigParser()
  parser.read(Path(__file__).resolve().parents[2] / "setup.cfg")
  assert parser["options.package_data"]["vpt_jax.report"] == "assets/*"
  assert {path.name for path in published.ASSETS.iterdir()} >= {
    "page.html",
    "page.css",
    "charts.js",
    "page.js",
    "runs.js",
    "published.json",
  }


# Other problems than classification.


class Tags(problems.Problem):
  """Made up: what the report reads of a problem that it knows nothing about."""

  name = "tags"
  scores = (
    problems.Score("mean_average_precision", "mean average precision"),
    problems.Score("distance", "distance", "mm"),
  )
  training_score = problems.Score("train_precision", "training precision")


@pytest.fixture(name="tags")
def _tags(monkeypatch):
  """Makes records of the problem above."""
  monkeypatch.setitem(problems.PROBLEMS, "tags", Tags)

  def make(value, metric="mean_average_precision", **more):
    return made.of_problem("tags", metric, "train_precision", value, **more)

  return make


def tagged(tags):
  """Three seeds of two methods on a task of tags."""
  out = []
  for name, start in (("linear", 50.0), ("vpt_deep", 60.0)):
    for seed, more in ((42, 0.0), (44, 1.0), (82, 2.0)):
      out.append(tags(start + more, name=name, task="photos", seed=seed))
  return out


def test_scores_of_any_problem_make_rows_and_columns(tags):
  records = tagged(tags)
  row = a_row(records)
  assert row.scores["photos"].mean == pytest.approx(61.0)
  assert row.scores["photos"].metric.name == "mean_average_precision"
  text = result_tables.terminal(records)
  assert "Mean average precision on the test images in percent" in text
  assert "op-1" not in text
  line = next(line for line in text.splitlines() if line.startswith("vpt_deep"))
  assert line.endswith("61.00 \u00b1 1.00")

  found = rows.collect(records)
  markdown = export.markdown(found)
  assert (
    "Mean average precision" in markdown and "61.00 \u00b1 1.00" in markdown
  )
  latex = export.latex(found)
  assert "Mean average precision" in latex and r"$\pm$1.00" in latex
  lines = list(csv.DictReader(io.StringIO(export.table_csv(found))))
  assert [
    (line["column"], line["metric"], float(line["mean"])) for line in lines
  ] == [
    ("photos", "mean_average_precision", 51.0),
    ("photos", "mean_average_precision", 61.0),
  ]


def test_problems_in_one_report_are_told_apart(tags):
  records = [
    made.record(task="digits"),
    *tagged(tags),
    tags(3.25, metric="distance", task="arm"),
  ]
  text = result_tables.terminal(records)
  assert "Top-1 on the test images in percent" in text
  assert "Mean average precision instead of top-1: photos." in text
  assert "Distance (in mm) instead of top-1: arm." in text
  data = page.data(records, rows.collect(records))
  (suite,) = data["suites"]
  assert [column["score"] for column in suite["columns"]] == [
    "top-1, %",
    "mean average precision, %",
    "distance, mm",
  ]
  # What is classification's is shown of classification alone.
  assert [one["task"] for one in data["classes"]] == ["digits"]
  assert {one["task"]: one["score"] for one in data["curves"]} == {
    "digits": "training top-1, %",
    "photos": "training precision, %",
    "arm": "training precision, %",
  }
  assert all(run["score"][0] for one in data["curves"] for run in one["runs"])


def test_a_search_of_another_problem(tags):
  records = []
  for value, rate in ((40.0, 1.0), (45.0, 2.0)):
    cell = {"optim.lr": rate}
    records.append(tags(value, stage="search", split="val", cell=cell))
  (one,) = details.searches(records)
  assert (one["metric"], one["unit"]) == ("mean average precision", "%")
  assert [cell[:3] for cell in one["cells"] if cell[3]] == [[2.0, None, 45.0]]


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


def test_a_diverged_task_is_of_its_problem(tags):
  records = [tags(50.0, task="photos", status="diverged")]
  text = result_tables.terminal(records)
  assert "Mean average precision on the test images" in text
  assert "diverged" in text


# What the page is made of.


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
  one = details.confusions(records)
  assert one["accuracy"] == [[75.0, 0, 8], [100.0, 1, 8]]
  assert one["wrong"] == [[0, 1, 2, 8]]
  assert one["matrix"] == [[0, 0, 6], [0, 1, 2], [1, 1, 8]]
  assert one["titles"] == {0: "a", 1: "b"}


def test_many_classes_have_no_matrix():
  pairs = [[label, label, label + 1] for label in range(120)] + [[7, 9, 50]]
  one = details.confusions([made.record(classes=[], confusion=sorted(pairs))])
  assert one["matrix"] == [] and one["wrong"] == [[7, 9, 50, 58]]
  assert one["left_out"] == 70 and len(one["accuracy"]) == 50
  assert one["titles"][7] == "7"


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


def test_two_thousand_records_are_a_small_page():
  records = made.many(VTAB.tasks, seeds=range(10), epochs=100)
  records += [
    record
    for task in VTAB.tasks
    for name in made.METHODS
    for record in made.search(task, name, epochs=100)
  ]
  assert len(records) > 2000
  text = page.render(records, rows.collect(records))
  assert len(text) < 5e6
  assert len(page.embed(details.searches(records))) < 3e5


# The page.


def everything():
  """Records of every section, with texts of a stranger."""
  classes = {"eurosat": ["AnnualCrop", HOSTILE, "\u2028&amp;'\"", "Sea"]}
  records = made.many(["eurosat", "dtd"], classes=classes)
  records += [*made.search(), made.condense()]
  records += [
    made.record("vapt", task="dtd", seed=100, status="diverged"),
    made.record(HOSTILE, 10.0, task="eurosat", backbone=HOSTILE),
  ]
  return records


@pytest.fixture(scope="module", name="text")
def _text():
  records = everything()
  return page.render(records, rows.collect(records))


def test_strange_texts_stay_texts(text):
  assert "<img" not in text
  assert text.count("<script") == text.count("</script>") == 2
  stored = text.split('id="data">')[1].split("</script>")[0]
  assert HOSTILE in json.loads(stored)["classes"][0]["titles"].values()


def test_the_page_loads_nothing(text):
  code = re.sub(r'(?s)<script type="application/json".*?</script>', "", text)
  addresses = set(re.findall(r"https?://[^\s\"'<>)]*", code))
  assert addresses == {"http://www.w3.org/2000/svg"}  # a name, never loaded
  assert not re.search(r"(?i)\b(src|srcset|action|data)\s*=\s*[\"']", code)
  assert not re.search(r"(?i)url\(|@import|<link|<iframe|<object", code)
  assert not re.search(
    r"\b(fetch|import|XMLHttpRequest|WebSocket|eval)\s*\(", code
  )
  assert not re.search(
    r"innerHTML|outerHTML|insertAdjacent|document\.write", code
  )
  policy = re.search(r'(?s)Security-Policy" content="(.*?)"', text).group(1)
  code = text.rsplit("<script>", 1)[1].split("</script>")[0]
  digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
  assert "default-src 'none'" in policy
  assert f"script-src 'sha256-{digest}'" in policy


PROBE = """
window.faults = [];
addEventListener("error", (event) => faults.push(event.message));
addEventListener("securitypolicyviolation", (event) =>
  faults.push("policy " + event.violatedDirective));
addEventListener("load", () => setTimeout(() => {
  const out = {}, all = (query) => [...document.querySelectorAll(query)];
  const texts = (query) => all(query).map((node) => node.textContent);
  const click = (label) => all("#results-0 th button").find((node) =>
    node.textContent === label).click();
  out.first = texts("#results-0 tbody .first");
  click("EuroSAT");
  out.down = texts("#results-0 tbody .first");
  out.sort = all("#results-0 th[aria-sort]").map((node) =>
    node.textContent + node.getAttribute("aria-sort"));
  click("EuroSAT");
  out.up = texts("#results-0 tbody .first");
  click("method");
  out.named = texts("#results-0 tbody .first");
  out.means = texts("#results-0 td.mean");
  out.sections = all("section").map((node) => node.id);
  out.svgs = Object.fromEntries(all("section").map((node) => [node.id,
    node.querySelectorAll("figure svg").length]));
  out.chosen = texts("#search .chosen").length;
  out.lost = texts("#search .lost").length;
  out.cells = texts("#search rect.cell").length;
  out.bars = texts("#classes rect.bar").length;
  const select = document.querySelector("#curves select[aria-label^=method]");
  select.value = 1;
  select.dispatchEvent(new Event("change"));
  const curves = () => texts("#curves figure:first-child path").length;
  const fold = document.querySelector("#runs details");
  fold.open = true;
  setTimeout(() => {
    out.curves = curves();
    out.runs = texts("#runs tbody tr").length;
    document.querySelector("#runs tbody tr").click();
    out.config = document.querySelector("#runs pre").textContent;
    out.hostile = texts("#classes text").concat(texts("#results-0 td"));
    out.images = all("img").length;
    out.wide = document.documentElement.scrollWidth - innerWidth;
    out.faults = faults;
    document.body.dataset.seen = JSON.stringify(out);
  }, 400);
}, 400));
"""


def browser():
  for name in ("chromium", "chromium-browser", "google-chrome"):
    if shutil.which(name):
      return shutil.which(name)
  return pytest.skip("no chromium, chromium-browser or google-chrome on PATH")


SECTIONS = """
addEventListener("load", () => document.body.dataset.seen = JSON.stringify(
  [...document.querySelectorAll("section")].map((node) => node.id)));
"""


def opened(text, folder, width=1280, probe=PROBE):
  """What a script sees in the page, and what the browser logs."""
  digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
  text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
  text = text.replace("<title>", f"<script>{probe}</script><title>", 1)
  path = folder / "page.html"
  path.write_text(text, encoding="utf-8")
  done = subprocess.run(
    [
      browser(),
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--dump-dom",
      "--virtual-time-budget=8000",
      "--enable-logging=stderr",
      "--v=0",
      f"--window-size={width},900",
      f"--user-data-dir={folder / 'profile'}",
      path.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  seen = re.search(r'data-seen="(.*?)"', done.stdout)
  assert seen, done.stderr[-2000:]
  return json.loads(html.unescape(seen.group(1))), done.stderr


@pytest.fixture(scope="module", name="seen")
def _seen(text, tmp_path_factory):
  return opened(text, tmp_path_factory.mktemp("page"))


def test_the_page_runs_without_errors(seen):
  out, log = seen
  assert out["faults"] == []
  assert "Uncaught" not in log and "Content Security Policy" not in log


def test_all_sections_and_figures_are_there(seen):
  out, _ = seen
  assert out["sections"] == [
    "overview",
    "results-0",
    "published",
    "parameters",
    "curves",
    "search",
    "classes",
    "condensation",
    "runs",
  ]
  assert out["svgs"] == {
    "overview": 0,
    "results-0": 0,
    "published": 0,
    "parameters": 1,
    "curves": 2,
    "search": 1,
    "classes": 2,
    "condensation": 3,
    "runs": 0,
  }
  assert (out["chosen"], out["lost"], out["cells"]) == (1, 1, 11)
  assert out["bars"] == 4
  assert out["curves"] == 4  # three seeds and their mean
  assert out["runs"] == len(everything())
  assert "vpt.num_tokens = " in out["config"] or "optim.lr" in out["config"]


def test_tables_sort_by_a_click(seen):
  out, _ = seen
  names = list(made.METHODS)  # made with rising scores
  assert out["first"] == [*names, HOSTILE]
  assert out["down"] == [*reversed(names), HOSTILE]
  assert out["sort"] == ["EuroSATdescending"]
  assert out["up"] == [HOSTILE, *names]
  assert out["named"] == sorted([*names, HOSTILE])
  assert set(out["means"]) <= {"1 of 4", "1 of 7", "2 of 19", "1 of 19", "-"}


def test_strange_texts_are_shown_as_they_are(seen):
  out, _ = seen
  assert out["images"] == 0
  assert HOSTILE in out["hostile"]
  # A class's name, cut to its place.
  assert any(
    re.fullmatch(r"</script><img.*\u2026", one) for one in out["hostile"]
  )


def test_a_narrow_page_does_not_scroll_sideways(text, tmp_path):
  out, _ = opened(text, tmp_path, width=500)
  assert out["faults"] == [] and out["wide"] <= 0


def test_a_page_of_little_has_few_sections(tmp_path):
  records = [made.record(confusion=[[0, 0, 1]], classes=[], epochs=0)]
  text = page.render(records, rows.collect(records))
  out, log = opened(text, tmp_path, probe=SECTIONS)
  assert out == ["overview", "results-0", "published", "classes", "runs"]
  assert "Uncaught" not in log


TITLES = """
addEventListener("load", () => setTimeout(() => {
  const texts = (query) => [...document.querySelectorAll(query)].map(
    (node) => node.textContent);
  document.body.dataset.seen = JSON.stringify({
    sections: texts("section > h2"), curves: texts("#curves svg text"),
    scatter: texts("#parameters svg text")});
}, 400));
"""


def test_a_page_of_another_problem(tags, tmp_path):
  records = tagged(tags)
  text = page.render(records, rows.collect(records))
  assert "top-1" not in text.split('id="data">')[1].split("</script>")[0]
  out, log = opened(text, tmp_path, probe=TITLES)
  assert "Uncaught" not in log
  assert out["sections"] == [
    "Overview",
    "Other tasks",
    "Parameters and scores",
    "Learning curves",
    "Runs",
  ]
  assert "training precision, %" in out["curves"]
  assert "mean average precision, %" in out["scatter"]


def test_a_page_of_searches_alone(tmp_path):
  records = made.search()
  text = page.render(records, rows.collect(records))
  out, log = opened(text, tmp_path, probe=SECTIONS)
  assert out == ["overview", "search", "runs"] and "Uncaught" not in log
