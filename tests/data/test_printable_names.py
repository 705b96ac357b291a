"""Names of files that are not UTF-8: printable from the door on."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

import vpt_jax
from vpt_jax import main
from vpt_jax.data import __main__ as data_command
from vpt_jax.data import datasets
from vpt_jax.data.cache import prepared
from vpt_jax.report import __main__ as report_command
from vpt_jax.training import records
from vpt_jax.utils import texts

CLASS = b"caf\xe9"  # Latin-1
READABLE = "caf\\xe9"


@pytest.fixture
def photos(tmp_path):
  """A folder, a class and files whose names are all not UTF-8."""
  root = os.fsencode(tmp_path) + b"/photos\xff"
  for label, name in enumerate((CLASS, b"tea")):
    folder = root + b"/" + name
    os.makedirs(folder)
    for i in range(10):
      pixels = np.full((8, 8, 3), 100 * label + i, np.uint8)
      path = folder + f"/{i}".encode() + b"\xfe.png"
      with open(path, "wb") as file:
        Image.fromarray(pixels).save(file, "PNG")
  return os.fsdecode(root)


def test_printable():
  """Bytes that are no UTF-8, and characters that spoil a terminal or log."""
  for text, expected in (
    ("café", "café"),
    (os.fsdecode(CLASS), READABLE),
    ("\ud800a", "\\ud800a"),
    ("日本\U0001f600", "日本\U0001f600"),
    # Controls of a terminal, ends of lines, changes of direction.
    ("\x1b[31mred\x9b", "\\x1b[31mred\\x9b"),
    ("a\nb\tc\u2028", "a\\x0ab\\x09c\\u2028"),
    ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
    ("👨\u200d👩", "👨\u200d👩"),  # joined, which is sound
  ):
    assert texts.printable(text) == expected
    texts.printable(text).encode()
  value = {"a\udce9": ["b\udce9", 1, None, {"c": "\udce9"}]}
  assert texts.printable_values(value) == {
    "a\\xe9": ["b\\xe9", 1, None, {"c": "\\xe9"}]
  }


def test_names_are_printable_in_every_source(photos, tmp_path, caplog):
  """Folders, tables, lists and arrays: the image is read all the same."""
  caplog.set_level("INFO")
  (name, *_) = os.listdir(os.path.join(photos, os.fsdecode(CLASS)))
  path = f"{os.fsdecode(CLASS)}/{name}"
  lists = {path: "caf\udce9", "b.png": "tea"}
  for part in ("train", "val", "test"):
    with open(f"{photos}/{part}.json", "w") as file:
      json.dump(lists, file)
  np.savez(
    tmp_path / "x.npz",
    images=np.zeros((2, 4, 4), np.uint8),
    labels=["caf\udce9", "tea"],
    split=["train", "train"],
  )
  for source in (f"folder:{photos}", f"json:{photos}", f"npz:{tmp_path}/x.npz"):
    examples = datasets.open_split("", "train", source=source)
    assert examples.class_names == (READABLE, "tea")
    for text in (*examples.names, *examples.class_names, examples.origin):
      text.encode()
    assert len(examples.read(0)) > 0
  os.remove(f"{photos}/train.json")
  assert "\\xff" in caplog.text  # the folder's name
  caplog.text.encode()


def test_a_run_ends_with_such_names(config, photos, tmp_path):
  """The training, its files, the cache, the check and the report."""
  config.method = "linear"
  config.epochs = 1
  config.optim.warmup_epochs = 0
  config.batch_size = 8
  config.task = ""
  config.data.source = f"folder:{photos}"
  workdir = tmp_path / "run"
  vpt_jax.run(config, workdir)
  with (workdir / "predictions.csv").open(newline="", encoding="utf-8") as file:
    lines = list(csv.DictReader(file))
  assert {line["label"] for line in lines} == {READABLE, "tea"}
  assert all(line["path"].endswith("\\xfe.png") for line in lines)
  (record,) = records.Store(workdir / records.FILE).read()
  assert record["task"] == "photos\\xff"
  assert record["classes"] == [READABLE, "tea"]
  again = vpt_jax.run(config, workdir)  # it is finished, and knows so
  assert again["task"] == "photos\\xff"


def test_commands_print_such_names(photos, tmp_path, capfd):
  cache = tmp_path / "cache"
  options = [f"--source=folder:{photos}", f"--cache={cache}", "--image_size=8"]
  assert data_command.main(["data", "check", "--deep", *options]) == 0
  assert "caf\\xe9 (8), tea (8)" in capfd.readouterr().out
  assert data_command.main(["data", "prepare", *options]) == 0
  for folder in cache.glob("photos*"):
    assert prepared.open_cache(folder).class_names == (READABLE, "tea")
  sheet = tmp_path / "sheet.png"
  assert data_command.main(["data", "show", *options, f"--out={sheet}"]) == 0
  main.log.handlers.clear()


def test_a_terminal_without_the_letters(photos):
  """What its encoding lacks is escaped: no end in a print, nothing lost."""
  code = (
    "import sys; from vpt_jax.utils import command_line, texts\n"
    "def work():\n"
    f"  print({photos!r}, 'café')\n"
    "  return 0\n"
    "sys.exit(command_line.exit_status(work))"
  )
  for encoding, expected in (
    ("utf-8:strict", "photos\\udcff café"),
    ("ascii:strict", "photos\\udcff caf\\xe9"),
  ):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
      [sys.executable, "-c", code],
      check=True,
      capture_output=True,
      env=environment,
    )
    assert done.stdout.decode().strip().endswith(expected)


def test_a_report_of_an_old_record(tmp_path, config, photos):
  """Records of older versions kept such names as they are."""
  config.method = "linear"
  config.epochs = 1
  config.optim.warmup_epochs = 0
  config.task = ""
  config.data.source = f"folder:{photos}"
  vpt_jax.run(config, tmp_path / "run")
  path = tmp_path / "run" / records.FILE
  line = json.loads(path.read_text())
  line["classes"] = [os.fsdecode(CLASS), "tea"]
  line["task"] = line["name"] = "photos\udcff"
  path.write_text(json.dumps(line) + "\n")
  (record,) = records.Store(path).read()
  assert record["task"] == "photos\\xff"
  out = tmp_path / "page"
  arguments = ["report", str(tmp_path / "run"), "--out", str(out)]
  assert report_command.main(arguments) == 0
  assert "photos\\xff" in (out / "table.csv").read_text(encoding="utf-8")
  assert "photos" in (out / "report.html").read_text(encoding="utf-8")
