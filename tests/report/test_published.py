"""Tests the published numbers, and what they stand beside."""

import json
import re

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
from vpt_jax.backbones import factory as backbones
from vpt_jax.methods import registry as methods
from vpt_jax.report import (
  export,
  page,
  published,
  result_tables,
  rows,
  suites,
)
from vpt_jax.utils import trees


def test_published_numbers_name_what_there_is():
  table, known = (
    published.table(),
    {
      name.replace("/", ".")
      for name in trees.flatten(common.get_config().to_dict())
    },
  )
  every_suite = (*suites.SUITES, suites.of_label_maps("ade20k", True))
  keys = {one.key for suite in every_suite for one in suite.columns}
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
    assert set(table.get(group.get("like"), {})) <= known
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
  row = made.a_row([made.record(top1=47.0, task="dmlab")])
  paper, demo = published.compare(row, made.VTAB)
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
  part = [made.record(task=task, top1=80.0) for task in made.NATURAL[:6]]

  def keys(records):
    return {
      one.column.key
      for one in published.compare(made.a_row(records), made.VTAB)
    }

  assert "natural" not in keys(part)
  assert "natural" in keys([*part, made.record(task="sun397", top1=80.0)])


def test_doubts_are_told():
  row = made.a_row([made.record("linear", 60.0, task="cifar100")], "linear")
  assert "64.4" in published.compare(row, made.VTAB)[0].published.source
  row = made.a_row([made.record(task="smallnorb_elevation")])
  assert "37.7" in published.compare(row, made.VTAB)[0].published.source


def test_numbers_of_third_hands_are_never_the_papers():
  records = [
    made.record("vapt", 60.0, task=task, backbone="mae_b16")
    for task in made.NATURAL
  ]
  compared = published.compare(made.a_row(records, "vapt"), made.VTAB)
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
        is_hearsay = any(
          mark in number.source for mark in ("quoted by third", "from memory")
        )
        assert number.weak == is_hearsay


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
