"""Rules of the house that no linter knows: rooms, names, links, pickles.

Who imports whom is in `.importlinter`, style in `pyproject.toml`; both are
checked by `launch/lint.sh`.
"""

import ast
from collections import Counter
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vpt_jax"
MODULES = sorted(
  path
  for folder in (PACKAGE, ROOT / "configs")
  for path in folder.rglob("*.py")
)
# Rooms, and those rooms' own parts that have a README of theirs.
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
PAGES = sorted(
  path
  for path in (
    *ROOT.glob("*.md"),
    *PACKAGE.rglob("*.md"),
    *(ROOT / "configs").glob("*.md"),
    *(ROOT / "tests").glob("*.md"),
  )
)
# `python -m vpt_jax.X` runs these, which only call what is in another room.
COMMANDS = {"analyze", "convert", "inversion"}


def relative(path):
  return str(path.relative_to(ROOT))


def pickles(source):
  """Lines on which arrays may be unpickled."""
  lines = []
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.keyword) or node.arg != "allow_pickle":
      continue
    if not isinstance(node.value, ast.Constant) or node.value.value:
      lines.append(node.value.lineno)
  return lines


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_is_unpickled(path):
  assert pickles(path.read_text(encoding="utf-8")) == []


def test_pickles_are_seen():
  assert pickles("np.load(f, allow_pickle=True)") == [1]
  assert pickles("np.load(f, allow_pickle=some)") == [1]
  assert pickles("np.load(f, allow_pickle=False)") == []


@pytest.mark.parametrize("room", ROOMS, ids=relative)
def test_a_room_says_what_is_in_it(room):
  tree = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
  assert ast.get_docstring(tree), "__init__.py has no docstring"
  assert "__all__" in (room / "__init__.py").read_text(encoding="utf-8")
  assert (room / "README.md").is_file()


def test_no_two_modules_share_a_name():
  names = Counter(
    path.stem for path in PACKAGE.rglob("*.py") if path.stem not in COMMANDS
  )
  del names["__init__"], names["__main__"]
  assert [name for name, count in names.items() if count > 1] == []


def broken_links(page):
  """Local links of a page to what is not there."""
  text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
  broken = []
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    path = target.partition("#")[0]
    if path and "://" not in path and not (page.parent / path).exists():
      broken.append(target)
  return broken


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
  assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path):
  page = tmp_path / "README.md"
  page.write_text("[a](b.md) [c](README.md#x) [d](https://e.org/f)")
  assert broken_links(page) == ["b.md"]


def test_the_front_page_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_package_imports_without_jax():
  """`import vpt_jax` is cheap: names are imported on first use."""
  code = "import sys, vpt_jax; sys.exit('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT)
  assert done.returncode == 0


@pytest.mark.skipif(
  not shutil.which("lint-imports"), reason="import-linter is not installed"
)
def test_imports_only_go_down():
  done = subprocess.run(
    ["lint-imports"], check=False, cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
