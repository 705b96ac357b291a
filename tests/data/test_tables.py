"""Tables as people have them: their text, their columns, their paths."""

import codecs
import unicodedata

import numpy as np
from PIL import Image
import pytest

from vpt_jax import config as config_lib
from vpt_jax.data import __main__ as command
from vpt_jax.data import datasets
from vpt_jax.data.sources import csv_tables, table_columns

NAMES = [f"{i}.png" for i in range(20)]
LABELS = ["cat", "dog"] * 10


def pictures(folder, names=NAMES):
  folder.mkdir(parents=True, exist_ok=True)
  for i, name in enumerate(names):
    Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / name, "PNG")


@pytest.fixture(name="folder")
def folder_(tmp_path):
  pictures(tmp_path)
  return tmp_path


def write(folder, rows, head="path,label", delimiter=",", encoding="utf-8"):
  """Writes t.csv; the heading's commas become the delimiter, too."""
  lines = [head.replace(",", delimiter)] if head else []
  lines += [delimiter.join(row) for row in rows]
  path = folder / "t.csv"
  path.write_bytes("\n".join(lines).encode(encoding))
  return path


ROWS = list(zip(NAMES, LABELS, strict=True))


def read(path, split="train", **options):
  """Returns {name: class} of a split, whose images can all be read."""
  examples = csv_tables.read_csv(path, split, 0, **options)
  for i in range(len(examples)):
    assert examples.read(i).startswith(b"\x89PNG")
  classes = examples.class_names
  return {
    name: classes[label]
    for name, label in zip(examples.names, examples.labels, strict=True)
  }


@pytest.fixture(name="expected")
def expected_(folder):
  """What the plainest table gives."""
  expected = read(write(folder, ROWS))
  assert len(expected) == 16 and set(expected.values()) == {"cat", "dog"}
  return expected


# Its text.


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
  "encoding",
  ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"],
)
def test_delimiters_and_encodings(folder, expected, delimiter, encoding):
  """Comma, semicolon and tab, in all of Unicode, with and without its mark."""
  for head in ("path,label", ""):
    path = write(folder, ROWS, head, delimiter, encoding)
    assert read(path) == expected
  big = codecs.BOM_UTF16_BE + path.read_text(encoding).encode("utf-16-be")
  path.write_bytes(big)
  assert read(path) == expected


def test_a_semicolon_leaves_commas_to_the_cells(folder):
  pictures(folder, ["a, b.png", "c,d.png"])
  rows = [("a, b.png", "x"), ("c,d.png", "y, z")] * 2
  got = read(write(folder, rows, delimiter=";"))
  assert got == {"a, b.png": "x", "c,d.png": "y, z"}


def test_latin_1_is_read_and_told(folder, caplog):
  """What is no UTF-8 is Windows' Latin-1, if the files that it names exist."""
  pictures(folder, ["café.png", "zoë.png"])
  rows = [*ROWS, ("café.png", "naïve"), ("zoë.png", "naïve")]
  got = read(write(folder, rows, encoding="latin-1"))
  assert got["café.png"] == "naïve"
  assert "is no UTF-8 and was read as windows-1252" in caplog.text


def test_names_that_are_latin_1_on_the_disk_too(folder):
  pictures(folder, [b"caf\xe9.png".decode(errors="surrogateescape")])
  rows = [*ROWS, ("café.png", "cat")]
  examples = csv_tables.read_csv(
    write(folder, rows, encoding="latin-1"), "train", 0
  )
  assert any(name.startswith("caf") for name in examples.names)
  for i in range(len(examples)):
    assert examples.read(i)


def test_text_that_cannot_be_told_is_refused(folder):
  cases = {
    b"path,label\ncaf\xe9.png,a\n": "names 'caf\xe9.png', which is not there",
    b"path,label\n\x81.png,a\n": "neither UTF-8 nor windows-1252",
    b"\xff\xfea": "truncated",
  }
  for data, message in cases.items():
    (folder / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
      read(folder / "t.csv")
    assert str(caught.value).startswith(str(folder / "t.csv"))


# Its columns.


@pytest.mark.parametrize(
  "head",
  [
    "file,class",
    "filename,label",
    "file_name,label",
    "File Name,Target",
    "image,category",
    "Image-Path,class_name",
    "path,labels",
    "img,category_id",
  ],
)
def test_the_usual_names_of_columns(folder, expected, head):
  assert read(write(folder, ROWS, head)) == expected


def test_the_more_telling_name_is_meant(folder, expected):
  rows = [(str(i), *row, "x") for i, row in enumerate(ROWS)]
  assert read(write(folder, rows, "id,image,label,category")) == expected
  rows = [(label, name) for name, label in ROWS]
  assert read(write(folder, rows, "target,filename")) == expected


@pytest.mark.parametrize("head", ["image,breed", "a,b", "id,species"])
def test_other_names_are_said(folder, expected, head):
  """`config.data.columns` says them; without it the error says how."""
  path = write(folder, ROWS, head)
  with pytest.raises(ValueError, match="config.data.columns=image,breed"):
    read(path)
  assert read(path, columns=head) == expected
  assert read(path, columns=head.upper().replace(",", " , ")) == expected


def test_columns_that_may_both_be_meant(folder, expected):
  rows = [(*row, "x") for row in ROWS]
  path = write(folder, rows, "path,class,target")
  with pytest.raises(ValueError, match="'class' and 'target' may be meant"):
    read(path)
  assert read(path, columns="path,class") == expected


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_no_heading(folder, expected, delimiter):
  """Is told by a first cell that is an image, or said by numbers."""
  path = write(folder, ROWS, "", delimiter)
  assert read(path) == expected == read(path, columns="1,2")
  swapped = [(label, name) for name, label in ROWS]
  path = write(folder, swapped, "", delimiter)
  assert read(path) == expected == read(path, columns="2,1")
  three = [(*row, "train") for row in ROWS] + [("0.png", "cat", "train")]
  assert read(write(folder, three, "", delimiter), "train")
  four = [("x", *row, "y") for row in ROWS]
  path = write(folder, four, "", delimiter)
  with pytest.raises(ValueError, match="=1,2 for a table without a heading"):
    read(path)
  assert read(path, columns="2,3") == expected


def test_columns_of_parts(folder):
  parts = ["train"] * 12 + ["Validation"] * 4 + ["test"] * 4
  rows = [(*row, part) for row, part in zip(ROWS, parts, strict=True)]
  for head in ("path,label,split", "path,label,subset", "path,label,set"):
    path = write(folder, rows, head)
    counts = [len(read(path, part)) for part in ("train", "val", "test")]
    assert counts == [12, 4, 4]
  path = write(folder, rows, "path,label,which")
  assert len(read(path, "test", columns="path,label,which")) == 4
  other = [(*row, "a") for row in ROWS]  # a column that only is called so
  assert len(read(write(folder, other, "path,label,set"))) == 16


@pytest.mark.parametrize("named", ["path", "path,", "a,b,c,d", "path,x", "1,9"])
def test_columns_that_are_not_there(folder, named):
  with pytest.raises(ValueError, match=f"config.data.columns='{named}'"):
    read(write(folder, ROWS), columns=named)


def test_columns_is_an_option_of_configs_and_commands(folder, capsys):
  """`--config.data.columns=image,breed`, and `--columns` of `data`."""
  config = config_lib.defaults()
  assert config.data.columns == ""
  config.data.columns = "image,breed"
  options = datasets.reading_options(config.data)
  options["source"] = f"csv:{write(folder, ROWS, 'image,breed')}"
  assert len(datasets.open_split("x", "train", **options)) == 16
  words = ["data", "check", f"--source={options['source']}"]
  assert command.main(words) == 1
  assert "config.data.columns" in capsys.readouterr().out
  assert command.main([*words, "--columns=image,breed"]) == 0


# Its paths.


def test_ids_without_an_ending(folder, expected):
  """Each is the one image with this stem, beside the table."""
  rows = [(name.removesuffix(".png"), label) for name, label in ROWS]
  assert read(write(folder, rows, "id,label")) == expected
  assert read(write(folder, rows, "")) == expected
  pictures(folder, ["3.jpg"])
  with pytest.raises(ValueError, match="'3' may be 3.jpg or 3.png"):
    read(write(folder, rows, "id,label"))


def test_images_in_one_folder_beside_the_table(tmp_path):
  """Kaggle's `train.csv` with `train/`, as ids or as names."""
  pictures(tmp_path / "train")
  pictures(tmp_path / "test", NAMES[:9])  # not all of them
  ids = [(name.removesuffix(".png"), label) for name, label in ROWS]
  for rows in (ROWS, ids):
    got = read(write(tmp_path, rows, "id,label"))
    assert len(got) == 16 and all(name.startswith("train/") for name in got)
  pictures(tmp_path / "copy")
  with pytest.raises(ValueError, match="both in copy and in train"):
    read(write(tmp_path, ids, "id,label"))


def test_a_missing_image_is_not_looked_for_elsewhere(folder):
  """A row whose neighbours are there is missing, whatever else is there."""
  pictures(folder / "other", ["99.png"])
  path = write(folder, [*ROWS, ("99.png", "cat"), ("98", "cat")])
  examples = csv_tables.read_csv(path, "train", 0)
  gone = [name for name in examples.names if not (folder / name).exists()]
  assert gone and set(gone) <= {"99.png", "98"}


def test_windows_separators_and_the_accents_of_macos(tmp_path):
  name = unicodedata.normalize("NFD", "é.png")
  pictures(tmp_path / "a/b", [*NAMES, name])
  rows = [(f"a\\b\\{name}", label) for name, label in ROWS]
  got = read(write(tmp_path, [*rows, ("a\\b\\é.png", "cat")]))
  assert len(got) >= 16 and all(name.startswith("a/b/") for name in got)
  rows = [(name.removesuffix(".png"), label) for name, label in rows]
  assert len(read(write(tmp_path, rows))) == 16
  pictures(tmp_path, ["x\\y.png"])  # a file that is really called so
  assert "x\\y.png" in read(write(tmp_path, [("x\\y.png", "a"), *rows[:9]]))


# Hugging Face's folders of images.


def test_metadata_csv(tmp_path):
  """`train/metadata.csv` with `file_name`, by its path or by its folder."""
  for part, names in (("train", NAMES), ("validation", NAMES[:4])):
    pictures(tmp_path / part, names)
    rows = ROWS[: len(names)]
    table = write(tmp_path / part, rows, "file_name,label")
    table.rename(tmp_path / part / "metadata.csv")
  alone = read(tmp_path / "train/metadata.csv")
  assert len(alone) == 16
  both = read(tmp_path)
  assert len(both) == 20 and all(name.startswith("train/") for name in both)
  assert len(read(tmp_path, "val")) == 4
  with pytest.raises(ValueError, match="no images for test"):
    read(tmp_path, "test")
  with pytest.raises(ValueError, match=f"config.data.source=csv:{tmp_path}$"):
    datasets.open_split("x", "train", source=f"folder:{tmp_path}")


def test_metadata_csv_without_parts(tmp_path):
  pictures(tmp_path / "images")
  rows = [(f"images/{name}", label) for name, label in ROWS]
  table = write(tmp_path, rows, "file_name,label")
  with pytest.raises(ValueError, match="a folder with t.csv in it, and none"):
    read(tmp_path)
  table.rename(tmp_path / "metadata.csv")
  assert len(read(tmp_path)) == 16


def test_every_usual_name_is_in_one_group():
  for groups in (table_columns.PATHS, table_columns.LABELS):
    names = [name for group in groups for name in group]
    assert len(set(names)) == len(names)


TOKENS = (b'"', b",", b";", b"\t", b"\n", b"\r", b"\0", b"\\", b"../", b"\xff")


def mutated(data, rng):
  """Returns bytes with one to three changes."""
  data = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    place = int(rng.integers(len(data)))
    stop = place + int(rng.integers(1, 30))
    match rng.integers(4):
      case 0:
        data[place] ^= 1 << int(rng.integers(8))
      case 1:
        del data[place:stop]
      case 2:
        data[place:place] = data[place:stop]
      case 3:
        data[place:place] = rng.choice(TOKENS)
    if not data:
      return b""
  return bytes(data)


def test_mutated_tables(folder):
  """Any bytes: the images that the table names, or one error with its name."""
  parts = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
  with_parts = [(*row, part) for row, part in zip(ROWS, parts, strict=True)]
  ids = [(str(i), label) for i, label in enumerate(LABELS)]
  sound = [
    write(folder, with_parts, "path,label,split").read_bytes(),
    write(folder, ids, "id,class", ";", "utf-16").read_bytes(),
    write(folder, ROWS, "", "\t").read_bytes(),
  ]
  outcomes = {"read": 0, "refused": 0}
  for number in range(600):
    rng = np.random.default_rng(number)
    (folder / "t.csv").write_bytes(mutated(sound[number % 3], rng))
    try:
      examples = csv_tables.read_csv(folder / "t.csv", "train", 0)
    except ValueError as error:
      outcomes["refused"] += 1
      assert str(error).startswith(str(folder / "t.csv"))
    else:
      outcomes["read"] += 1
      assert examples.num_classes > 1 and len(examples)
  assert min(outcomes.values()) > 60


def test_columns_that_are_not_read_are_told(folder, caplog):
  """A second label, a division under another name: nothing is left silently."""
  rows = [(*row, "1", "True") for row in ROWS]
  read(write(folder, rows, "path,label,fold,is_valid"))
  assert (
    "images are in column 'path', labels in 'label', parts in none; "
    "left out: 'fold', 'is_valid'"
  ) in caplog.text
  caplog.clear()
  read(write(folder, ROWS))
  assert "left out" not in caplog.text
