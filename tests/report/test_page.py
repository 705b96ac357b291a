"""Tests the page, as a text and in a real browser."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess

import pytest

from tests import report_records as made
from vpt_jax.report import (
  details,
  page,
  rows,
)


def test_two_thousand_records_are_a_small_page():
  records = made.many(made.VTAB.tasks, seeds=range(10), epochs=100)
  records += [
    record
    for task in made.VTAB.tasks
    for name in made.METHODS
    for record in made.search(task, name, epochs=100)
  ]
  assert len(records) > 2000
  text = page.render(records, rows.collect(records))
  assert len(text) < 5e6
  assert len(page.embed(details.searches(records))) < 3e5


def everything():
  """Records of every section, with texts of a stranger."""
  classes = {"eurosat": ["AnnualCrop", made.HOSTILE, "\u2028&amp;'\"", "Sea"]}
  records = made.many(["eurosat", "dtd"], classes=classes)
  records += [*made.search(), made.condense()]
  records += [
    made.record("vapt", task="dtd", seed=100, status="diverged"),
    made.record(made.HOSTILE, 10.0, task="eurosat", backbone=made.HOSTILE),
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
  assert made.HOSTILE in json.loads(stored)["classes"][0]["titles"].values()


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


TITLES = """
addEventListener("load", () => setTimeout(() => {
  const texts = (query) => [...document.querySelectorAll(query)].map(
    (node) => node.textContent);
  document.body.dataset.seen = JSON.stringify({
    sections: texts("section > h2"), curves: texts("#curves svg text"),
    scatter: texts("#parameters svg text"),
    figures: texts("#classes figcaption"),
    classes: texts("#classes svg text")});
}, 400));
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
  assert out["first"] == [*names, made.HOSTILE]
  assert out["down"] == [*reversed(names), made.HOSTILE]
  assert out["sort"] == ["EuroSATdescending"]
  assert out["up"] == [made.HOSTILE, *names]
  assert out["named"] == sorted([*names, made.HOSTILE])
  assert set(out["means"]) <= {"1 of 4", "1 of 7", "2 of 19", "1 of 19", "-"}


def test_strange_texts_are_shown_as_they_are(seen):
  out, _ = seen
  assert out["images"] == 0
  assert made.HOSTILE in out["hostile"]
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


def test_a_page_of_another_problem(tags, tmp_path):
  records = made.tagged(tags)
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


def test_the_classes_of_a_multi_label_page(tmp_path):
  values = [90.0, 40.0, None]
  records = [made.multi_label(65.0, values, classes=("cat", "dog", "owl"))]
  text = page.render(records, rows.collect(records))
  out, log = opened(text, tmp_path, probe=TITLES)
  assert "Uncaught" not in log
  assert "Average precision of each class" in out["figures"]
  assert {"cat", "dog", "average precision, %"} <= {*out["classes"]}


def test_a_page_of_searches_alone(tmp_path):
  records = made.search()
  text = page.render(records, rows.collect(records))
  out, log = opened(text, tmp_path, probe=SECTIONS)
  assert out == ["overview", "search", "runs"] and "Uncaught" not in log


def test_no_path_of_this_machine_is_on_a_page():
  """A page is passed on: of paths in configs the last part is left."""
  paths = {
    "data__source": "npz:/home/me/secret/x.npz",
    "backbone__checkpoint": "/home/me/vit.npz",
  }
  records = made.search(**paths)
  assert "/home/me" in records[0]["config"]["data"]["source"]
  text = page.render(records, rows.collect(records))
  assert "npz:x.npz" in text
  assert "/home/me" not in text
