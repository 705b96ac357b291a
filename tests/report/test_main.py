"""Tests the command."""

import configparser
from pathlib import Path
import re

import pytest

from tests import report_records as made
from vpt_jax import main
from vpt_jax.report import __main__ as command
from vpt_jax.report import (
  published,
)
from vpt_jax.training import records as run_records


def test_command_reads_two_workdirs_and_writes_all_files(tmp_path, capsys):
  one = made.write(tmp_path / "one", [made.record(top1=90.0)])
  two = made.write(
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
  folder = made.write(tmp_path, [made.record()])
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
