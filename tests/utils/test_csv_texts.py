"""No cell of a CSV that is written here is a formula in a spreadsheet."""

import csv
import io

import numpy as np
import pytest

from tests import report_records
from vpt_jax.analysis import figures
from vpt_jax.problems import Classification, MultiLabel
from vpt_jax.report import export, rows
from vpt_jax.utils import csv_texts

LINK = '=HYPERLINK("http://example.com","a")'


def parsed(text):
  return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize(
  "text",
  [
    LINK,
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1",
    "\n=1",
    "\uff1d1",
    "-a.jpg",
    "--1",
  ],
)
def test_formulas_are_texts(text):
  ((cell,),) = parsed(csv_texts.lines([[text]]))
  assert cell == f"'{text}"


@pytest.mark.parametrize(
  "value,cell",
  [
    (-1.5, "-1.5"),
    ("-1.5", "-1.5"),
    ("+3", "+3"),
    ("-.5e-7", "-.5e-7"),
    ("-inf", "-inf"),
    (np.float32(-2), "-2.0"),
    (None, ""),
    ("", ""),
    ("a=b", "a=b"),
    ('a,"b"', 'a,"b"'),
    ("'", "'"),
    ("\r=1", "\\r=1"),
  ],
)
def test_numbers_and_other_texts_stay(value, cell):
  assert parsed(csv_texts.lines([[value, "end"]])) == [[cell, "end"]]


def assert_no_formula(text):
  cells = [cell for line in parsed(text) for cell in line]
  assert any(LINK in cell for cell in cells)
  for cell in cells:
    assert csv_texts.cell(cell) == cell


def test_every_csv_that_is_written(tmp_path):
  """Tables, predictions of every problem, numbers of figures."""
  found = rows.collect([report_records.record(LINK)])
  assert_no_formula(export.table_csv(found))

  one = Classification(2).write_predictions(
    [LINK, "b.jpg"],
    np.array([0, 1]),
    {"prediction": np.array([1, 0]), "confidence": np.array([0.5, 0.5])},
    (LINK, "@b"),
  )
  assert_no_formula(one)
  several = MultiLabel(2).write_predictions(
    [LINK],
    np.array([[1, 0]]),
    {"logits": np.array([[3.0, -3.0]])},
    (LINK, "-b"),
  )
  assert_no_formula(several)

  figures.write_csv(tmp_path / "a.png", [LINK, "x"], [[LINK, -0.5]])
  text = (tmp_path / "a.csv").read_text()
  assert_no_formula(text)
  assert text.endswith(",-0.5\n")
