"""Tests the report of segmentation: tables, classes and pictures."""

import base64
import csv
import io
import json
import re

import numpy as np
from PIL import Image
import pytest

from configs import gated_ade20k, linear_ade20k, vpt_ade20k
from tests import report_records as made
from tests.report import test_page
from vpt_jax import config as configs
from vpt_jax.report import (
  __main__ as command,
)
from vpt_jax.report import (
  class_summaries,
  export,
  galleries,
  page,
  published,
  result_tables,
  rows,
)
from vpt_jax.training import records as run_records

SEEDS = (42, 44, 82)


def of_seeds(values, multi_scale=(), **more):
  """A record for each value, the first ones with a second test."""
  out = []
  for i, (seed, value) in enumerate(zip(SEEDS, values, strict=False)):
    at_scales = multi_scale[i] if i < len(multi_scale) else None
    out.append(
      made.segmentation(value, seed=seed, multi_scale=at_scales, **more)
    )
  return out


def gated(*args, **more):
  """Seeds of Gated Prompt Tuning as its paper has it."""
  fields = {"gated__num_tokens": 100, "trained": 4_100_000}
  more = {**made.GATED, **fields, "head_params": 4_000_000, **more}
  return of_seeds(*args, **more)


def lines_of(table):
  return {line.head[0].strip(): line for line in table.lines}


def test_a_table_of_its_own_beside_published_numbers():
  """Unit: means, both tests, parameters, and images never with pixels."""
  records = gated((38.0, 39.0, 40.0), (39.0, 40.0, 41.0))
  records += of_seeds((30.0, 31.0), name="vpt_deep")
  # The same name, backbone, task and seeds, but one class an image.
  others = [
    made.record("gated", 90.0, task="ade20k", seed=seed, **fields)
    for seed in SEEDS
    for fields in [{"method": "gated", "backbone": "mae_b16"}]
  ]
  found = rows.collect([*records, *others])
  of_images, of_pixels = result_tables.suite_tables(found)
  assert of_images.head == result_tables.HEAD
  assert [line.cells for line in of_images.lines] == [("90.00 ± 0.00",)]
  assert of_pixels.suite.title == "Segmentation: ADE20K"
  assert [one.label for one in of_pixels.columns] == ["mIoU (SS)", "mIoU (MS)"]
  assert of_pixels.head[-2:] == ("params", "without head")
  lines = lines_of(of_pixels)
  assert lines["gated"].head == (
    "gated",
    "mae_b16",
    "3",
    "4.78",
    "4.10M",
    "100.00k",
  )
  assert lines["gated"].cells == ("39.00 ± 1.00", "40.00 ± 1.00")
  assert lines["vpt_deep"].cells == ("30.50 ± 0.71", "")
  assert lines["published"].cells == ("38.44 [1]", "39.81 [1]")
  assert lines["difference"].cells == ("+0.56", "+0.19")
  assert any("table 3" in note for note in of_pixels.notes)
  text = result_tables.terminal([*records, *others])
  assert "Segmentation: ADE20K" in text and "mIoU (MS)" in text
  assert "mIoU on the test images in percent" in text
  for line in export.markdown(found).splitlines():
    if line.startswith("| gated"):
      assert not ("90.00" in line and "39.00" in line)
  (single, multi) = [
    line
    for line in csv.DictReader(io.StringIO(export.table_csv(found)))
    if line["suite"] == "ade20k" and line["method"] == "gated"
  ]
  assert (single["metric"], multi["metric"]) == ("miou", "miou_multi_scale")
  assert (single["mean"], multi["mean"]) == ("39.0", "40.0")
  assert multi["trainable_params_without_head"] == "100000.0"
  latex = export.latex(found)
  assert r"\begin{tabular}{llrrrrrr}" in latex
  assert r"\multicolumn{6}{c}{}" in latex


def test_seeds_without_a_test_at_several_scales_are_told():
  """Unit: no column where none has it; a note where some do not."""
  (table,) = result_tables.suite_tables(rows.collect(gated((38.0, 39.0))))
  assert [one.label for one in table.columns] == ["mIoU (SS)"]
  known = page.known(rows.collect(gated((38.0, 39.0))))
  assert [39.81, "39.81"] in [line[4:6] for line in known]
  records = gated((38.0, 39.0, 40.0), (39.5,))
  records[2] = made.segmentation(
    0.0, status="diverged", seed=82, gated__num_tokens=100, **made.GATED
  )
  (table,) = result_tables.suite_tables(rows.collect(records))
  assert lines_of(table)["gated"].cells == ("38.50 ± 0.71†", "39.50†")
  assert "gated on mae_b16: MS of 1 of 2 seeds." in table.notes


def test_heads_are_never_in_one_mean():
  """Unit: as methods are not, also where no seed is there twice."""
  records = [
    made.segmentation(30.0, decoder="linear", seed=42),
    made.segmentation(40.0, decoder="pup", seed=44),
  ]
  assert {
    row.name: row.scores["ade20k"].mean for row in rows.collect(records).rows
  } == {
    "vpt_deep (segmentation.decoder=linear)": 30.0,
    "vpt_deep (segmentation.decoder=pup)": 40.0,
  }


def test_parameters_without_the_head():
  """Unit: no number where it is not known, or where the head is frozen."""
  (record,) = gated((38.0,))

  def cells(**change):
    (table,) = result_tables.suite_tables(rows.collect([record | change]))
    return table.lines[0].head[-2:]

  assert cells() == ("4.10M", "100.00k")
  assert cells(head_params=None) == ("4.10M", "-")
  assert cells(head_params=5_000_000) == ("4.10M", "-")
  frozen = record["config"] | {"trainable": "method/.*"}
  assert cells(config=frozen) == ("4.10M", "-")


def test_what_is_compared_with_which_published_number():
  """Unit: marks and sources of FACTS; other decoders have no number."""

  def known(decoder="pup", **more):
    record = made.segmentation(30.0, decoder=decoder, **more)
    found = published.numbers(record["backbone"]["name"], [record])
    return {key: found[key] for key in found if key.startswith("ade20k")}

  deep = {"name": "vpt_deep", "backbone": "mae_b16"}
  for decoder in ("pup", "setr_pup"):
    by_key = known(decoder, vpt__num_tokens=2, **deep)
    assert {key: one.value for key, (one,) in by_key.items()} == {
      "ade20k/single": 37.03,
      "ade20k/multi": 38.25,
    }
  assert known("linear", vpt__num_tokens=2, **deep) == {}
  assert known(vpt__num_tokens=3, **deep) == {}
  large = {"backbone": "vit_l16_in21k"}
  (number,) = known(name="linear", **large)["ade20k/single"]
  assert (number.value, number.label, number.weak) == (35.12, "Head only", True)
  assert "[M]" in number.source and "37.46" in number.source
  strong, weak = known(name="full", **large)["ade20k/multi"]
  assert (strong.label, strong.value, strong.weak) == ("SETR-PUP", 50.09, False)
  assert (weak.value, weak.weak) == (50.07, True)
  records = of_seeds((42.0,), (44.0,), name="vpt_deep", **large)
  text = result_tables.terminal(records)
  assert "42.11" not in text and "by third hands or from memory" in text
  markdown = export.markdown(rows.collect(records))
  assert "| (42.11) | - |" in markdown and "| (44.06) | - |" in markdown


def test_what_configs_of_ours_are_compared_with():
  """Unit: the published configs fit the lines that they are of."""
  wanted = (
    (gated_ade20k, "mae", 38.44, False),
    (gated_ade20k, "mocov3", 36.81, False),
    (vpt_ade20k, "mae,deep", 37.76, False),
    (vpt_ade20k, "mae,deep24", 37.03, False),
    (vpt_ade20k, "mocov3,shallow24", 34.75, False),
    (vpt_ade20k, "large,full", 48.62, False),
    (vpt_ade20k, "large,deep", 42.11, True),
    (vpt_ade20k, "large,head", 35.12, True),
    (vpt_ade20k, "large,prompt_bias", 44.04, True),
  )
  protocol = published.table()["protocol"]["ade20k"]
  for module, argument, value, weak in wanted:
    config = configs.plain(configs.resolve(module.get_config(argument)))
    record = {"config": config}
    assert published.fits(record, protocol), argument
    found = published.numbers(config["backbone"]["name"], [record])
    number = found["ade20k/single"][0]
    assert (number.value, number.weak) == (value, weak), argument
  config = configs.plain(configs.resolve(linear_ade20k.get_config("mae")))
  found = published.numbers("mae_b16", [{"config": config}])
  assert "ade20k/single" not in found


@pytest.mark.parametrize(
  "change,message",
  [
    ({"class_iou": [50.0, "x", None]}, "'class_iou' is"),
    ({"class_iou": [50.0, 1e9, None]}, "'class_iou' is"),
    ({"class_iou": [0.5] * 256}, "'class_iou' is"),
    ({"class_accuracy": [1.0]}, "'class_accuracy' has 1 classes, expected"),
    ({"multi_scale": {"macc": 1.0, "aacc": 1.0}}, "'multi_scale' is"),
    ({"multi_scale": {"miou": "9", "macc": 1, "aacc": 1}}, "'multi_scale' is"),
    ({"multi_scale": 40.0}, "'multi_scale' is"),
    ({"head_params": -1}, "'head_params' is"),
    ({"head_params": 1.5}, "'head_params' is"),
    ({"metric": "top1"}, "'metric'|such score"),
  ],
)
def test_a_damaged_record_is_told_with_file_and_line(
  tmp_path, capsys, change, message
):
  """Error: what is wrong, where, and what to do."""
  good = made.segmentation(40.0, class_iou=[50.0, 30.0, None])
  bad = made.segmentation(
    41.0, seed=44, class_iou=[50.0, 30.0, None], class_accuracy=[9, 9, None]
  )
  folder = made.write(tmp_path, [good, bad | change])
  assert command.main(["", str(folder)]) == 1
  error = capsys.readouterr().err
  assert f"{tmp_path / run_records.FILE}, line 2: " in error
  assert re.search(message, error) and "delete this line" in error


def test_classes_are_sorted_and_absent_ones_are_last():
  """Unit: means over seeds of each class."""
  records = [
    made.segmentation(
      40.0, seed=42, class_iou=[60.0, 20.0, None], class_accuracy=[80, 0, None]
    ),
    made.segmentation(
      42.0, seed=44, class_iou=[70.0, 10.0, None], class_accuracy=[90, 0, None]
    ),
    made.segmentation(44.0, seed=82),  # keeps none
  ]
  found = rows.collect(records)
  (one,) = class_summaries.classes(found.rows, page.labels(found.rows))
  assert (one["measure"], one["seeds"], one["count"]) == ("IoU", 2, 3)
  assert one["table"] == [
    ["sky", 15.0, 7.071, 0.0],
    ["wall", 65.0, 7.071, 85.0],
    ["cat", None, None, None],
  ]
  assert one["overall"][0] == ("mIoU", 41.0)
  assert one["scores"] == [[15.0, 1, None], [65.0, 0, None]]
  curves = page.data(records, found)["curves"]
  assert curves[0]["score"] == "training pixel accuracy, %"
  many = made.segmentation(40.0, classes=(), class_iou=[1.0] * 150)
  one = class_summaries.ious([many])
  assert len(one["table"]) == 150 and one["left_out"] == 100


def save(path, shade, width=60):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((20, width, 3), shade, np.uint8)).save(path)


def shown(records, folder):
  """The galleries of a page of these records, all kept in one folder."""
  found = rows.collect(records)
  folders = {record["id"]: folder for record in records}
  return galleries.collect(found, page.labels(found.rows), folders)


def test_pictures_of_a_run_are_embedded(tmp_path):
  """Unit: the best first, made smaller, with what the run says of each."""
  record = made.segmentation(40.0, stage="single")
  folder = tmp_path / galleries.FOLDER
  assert shown([record], tmp_path) == {"runs": [], "left_out": 0}
  save(folder / "worst_1.png", 30)
  save(folder / "best_2.png", 90)
  save(folder / "best_1.png", 200, width=3 * galleries.LONGEST_SIDE)
  save(folder / "other.png", 0)
  facts = {"name": "a\x1b[31m.jpg", "miou": 81.46, "macc": 1e300, "aacc": 90}
  (folder / galleries.TOLD).write_text(json.dumps({"best_1": facts}))
  (folder / "typical_1.png").write_bytes(b"GIF89a" + b"\0" * 99)
  save(folder / "typical_2.png", 9)
  sound = (folder / "typical_2.png").read_bytes()
  (folder / "typical_2.png").write_bytes(sound[:-20])
  (run,) = shown([record], tmp_path)["runs"]
  titles = [one["title"] for one in run["pictures"]]
  assert titles == ["best 1", "best 2", "worst 1"]
  assert [one["text"] for one in run["pictures"]] == [
    r"a\x1b[31m.jpg, mIoU 81.5 %, pixel accuracy 90.0 %",
    "",
    "",
  ]
  assert (run["label"], run["seed"]) == ("vpt_deep", 42)
  assert len(run["damaged"]) == 2 and str(tmp_path) not in str(run["damaged"])
  head, content = run["pictures"][0]["src"].split(",")
  assert head == "data:image/jpeg;base64"
  with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
    assert picture.format == "JPEG"
    assert max(picture.size) == galleries.LONGEST_SIDE
    assert abs(picture.getpixel((5, 2))[0] - 200) < 4
  # Of a run of images nothing is looked for.
  assert not shown([made.record(stage="single")], tmp_path)["runs"]


def test_pictures_of_nobody_knows_which_run_are_not_shown(tmp_path):
  """Unit: of a folder with several records no gallery is anyone's."""
  records = gated((38.0, 39.0), stage="single")
  made.write(tmp_path / "both", records)
  made.write(tmp_path / "one", [made.segmentation(37.0, stage="single")])
  located = run_records.locate([tmp_path])
  (own,) = galleries.folders_of_runs(located).values()
  assert own == tmp_path / "one"


def test_a_strangers_folder_shows_no_other_file(tmp_path):
  """Security: no link is followed."""
  secret = tmp_path / "secret" / "best_1.png"
  save(secret, 7)
  inside = tmp_path / "inside"
  record = made.segmentation(40.0, stage="single")
  (inside / "gallery").mkdir(parents=True)
  (inside / "gallery" / "best_1.png").symlink_to(secret)
  assert not shown([record], inside)["runs"]
  linked = tmp_path / "linked"
  linked.mkdir()
  (linked / "gallery").symlink_to(secret.parent)
  assert not shown([record], linked)["runs"]
  # Told beside the picture: a link, again, is not read.
  save(inside / "gallery" / "best_2.png", 7)
  told = inside / "gallery" / galleries.TOLD
  (tmp_path / "private.json").write_text('{"best_2": {"name": "secret"}}')
  told.symlink_to(tmp_path / "private.json")
  (run,) = shown([record], inside)["runs"]
  assert [one["text"] for one in run["pictures"]] == [""]
  told.unlink()
  for strange in ("[1]", "{", '{"best_2": 7}', "[" * 10**5, '{"best_2": {}}'):
    told.write_text(strange)
    (run,) = shown([record], inside)["runs"]
    assert [one["text"] for one in run["pictures"]] == [""]


PROBE = """
addEventListener("load", () => setTimeout(() => {
  const texts = (query) => [...document.querySelectorAll(query)].map(
    (node) => node.textContent);
  document.body.dataset.seen = JSON.stringify({
    sections: [...document.querySelectorAll("section")].map((one) => one.id),
    heads: texts("#results-0 thead th"),
    classes: texts("#classes tbody td"), captions: texts("#gallery figcaption"),
    widths: [...document.querySelectorAll("#gallery img")].map(
      (one) => one.naturalWidth), curves: texts("#curves svg text")});
}, 600));
"""


def test_the_page_of_segmentation(tmp_path):
  """End to end, in a browser: classes by name, pictures that are loaded."""
  records = gated(
    (38.0, 39.0, 40.0),
    (39.0, 40.0, 41.0),
    stage="single",
    classes=("wall", made.HOSTILE, "cat"),
    class_iou=[60.0, 20.0, None],
    class_accuracy=[80.0, 0.0, None],
  )
  for record in records:
    made.write(tmp_path / record["id"], [record])
  folder = tmp_path / records[0]["id"] / "gallery"
  save(folder / "best_1.png", 200)
  told = {"best_1": {"name": made.HOSTILE, "miou": 50.0}}
  (folder / galleries.TOLD).write_text(json.dumps(told))
  out = tmp_path / "out"
  assert command.main(["", str(tmp_path), "--out", str(out)]) == 0
  text = (out / "report.html").read_text(encoding="utf-8")
  assert "<img" not in text and str(tmp_path) not in text
  seen, log = test_page.opened(text, tmp_path, probe=PROBE)
  assert "Uncaught" not in log and "Content Security Policy" not in log
  assert {"classes", "gallery", "curves"} <= {*seen["sections"]}
  assert "without head" in seen["heads"] and "mIoU (MS)" in seen["heads"]
  names = seen["classes"][::4]
  assert names == [made.HOSTILE, "wall", "cat"]
  assert seen["classes"][-3:] == ["absent", "-", "absent"]
  assert seen["widths"] == [60]
  assert seen["captions"] == [f"Best 1 \u2014 {made.HOSTILE}, mIoU 50.0 %"]
  assert "training pixel accuracy, %" in seen["curves"]
