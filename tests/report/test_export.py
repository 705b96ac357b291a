"""Tests the tables as Markdown, LaTeX and CSV."""

import csv
import io
import re

from tests import report_records as made
from vpt_jax.report import (
  export,
  rows,
)


def test_markdown_has_all_columns_of_a_suite():
  text = export.markdown(rows.collect([made.record(), made.record("a|b*")]))
  head = next(line for line in text.splitlines() if "CIFAR-100" in line)
  count = head.count("|")
  assert count == 1 + 4 + len(made.VTAB.columns)
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
  assert counts == {3 + len(made.VTAB.columns)}


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
