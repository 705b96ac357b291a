"""python -m vpt_jax.data check | show | prepare, of images with masks."""

import re

import numpy as np
from PIL import Image
import pytest

from tests.data.test_data_command import row
from tests.data.test_masked_datasets import (
  encoded,
  saved,
  STRIPES,
  three_packed,
  write,
  write_voc,
)
from vpt_jax.data import __main__ as command
from vpt_jax.data import mask_classes


@pytest.fixture
def run(tmp_path, capsys):
  """(exit status, stdout and stderr) of a command line."""

  def main(line):
    options = [f"--data_dir={tmp_path}", f"--cache={tmp_path}/cache"]
    status = command.main(["data", *line.split(), *options])
    captured = capsys.readouterr()
    return status, captured.out + captured.err

  return main


@pytest.fixture
def own(tmp_path):
  root = tmp_path / "own"
  for number, part in enumerate(("train", "val", "test")):
    masks = [STRIPES, STRIPES.T.copy(), np.minimum(STRIPES, 1)]
    write(root, part, masks)
    for i in range(3):  # images of no other part
      pixels = np.full((*masks[i].shape, 3), 60 * number + i, np.uint8)
      (root / part / f"images/{i}.png").write_bytes(encoded(pixels))
  return root


@pytest.mark.parametrize("how", ["", " --deep"])
def test_check_counts_images_and_shares_of_classes(run, own, how):
  (own / "classes.txt").write_text("sky\nsea\nboat\nfish\n")
  status, out = run(f"check --source=segfolder:{own}{how}")
  assert status == 0
  assert row(out, "own") == ["own", "ready", "3/3/3", "3 of 4", "2 to 3"]
  assert "train: 3 masks: 3 of 4 classes with shares of the labelled " in out
  assert "sky 33.3 %, sea 44.4 %, boat 22.2 %; 0 % of all" in out
  assert "1 of 4 classes have no pixel in the masks that were decoded: " in out


SOFT = np.arange(108, dtype=np.uint8).reshape(12, 9)
BAD_MASKS = {
  "other size": (STRIPES[:-1], "test/masks/0.png has 9 x 11 pixels, but its"),
  "colours": (STRIPES[..., None].repeat(3, -1) * 90, "colours=000000=0,5a5a5a"),
  "out of range": (STRIPES + np.uint8(4), "labels out of range: 4, 5, 6, the"),
  "soft edges": (SOFT, "soft edges"),
  "16 bits": (STRIPES.astype(np.uint16) + 300, "labels out of range: 300"),
}


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_check_names_every_bad_mask(run, own, kind):
  """Each kind, in a part that training never reads."""
  mask, words = BAD_MASKS[kind]
  for i in (0, 1):
    (own / f"test/masks/{i}.png").write_bytes(encoded(mask))
  status, out = run(f"check --source=segfolder:{own} --deep")
  assert status == 1
  assert "test: 2 of 3 images or masks that were decoded are bad: " in out
  assert words in out
  assert "test/masks/1.png" in out
  assert "train: 3 masks" in out


def test_check_tells_of_files_without_partner_and_of_images_in_two_parts(
  run, own
):
  (own / "val/masks/2.png").unlink()
  (own / "test/images/2.png").unlink()
  status, out = run(f"check --source=segfolder:{own}")
  assert status == 1
  for words in ("1 images of", "have no mask in", "own/val/masks: 2"):
    assert words in out
  assert "1 masks of" in out and "own/test/images: 2" in out
  for stem in ("images/2.png", "masks/2.png"):
    (own / "val" / stem).write_bytes((own / "train" / stem).read_bytes())
    (own / "test" / stem).write_bytes((own / "train" / stem).read_bytes())
  status, out = run(f"check --source=segfolder:{own}")
  assert status == 0
  assert "1 of 3 images of val have the same bytes as images of train" in out


@pytest.mark.parametrize("damaged", [True, False])
def test_check_decodes_images_of_an_npz(run, tmp_path, damaged):
  arrays = three_packed(names=np.array(["a", "b", "c"]))
  if damaged:
    arrays["jpeg_bytes"] = arrays["jpeg_bytes"].copy()
    arrays["jpeg_bytes"][-60:] = 0
  where = saved(tmp_path, arrays)
  status, out = run(f"check --source={where['source']} --deep")
  assert status == damaged
  assert row(out, "scenes")[2:4] == ["1/1/1", "3 of 3"]
  assert (
    "1 of 1 images or masks that were decoded are bad: image c" in out
  ) == (damaged)


def test_published_sets_are_in_the_table(run, tmp_path):
  """What is missing says how to get it; `check all` has them all."""
  write_voc(tmp_path)
  status, out = run("check voc2012")
  assert status == 0
  assert row(out, "voc2012")[:4] == ["voc2012", "ready", "1/1/-", "3 of 21"]
  status, out = run("check voc2012_aug")
  assert status == 0
  assert "needs manual steps" in out and "SBD's benchmark.tgz" in out
  status, out = run("check cityscapes")
  assert status == 0
  assert "needs manual steps" in out and "gtFine_trainvaltest.zip" in out
  status, out = run("check")
  assert status == 0
  assert row(out, "ade20k")[1] == "needs manual steps"
  assert row(out, "digit_scenes")[2:4] == ["320/80/100", "11 of 11"]


def test_show_draws_overlays_and_a_legend(run, own, tmp_path):
  """Bad ones are left out; colours are those of the classes."""
  (own / "classes.txt").write_text("sky\nsea\nboat\nfish\n")
  (own / "train/masks/0.png").write_bytes(b"<html>")
  path = tmp_path / "sheet.png"
  status, out = run(f"show --source=segfolder:{own} --out={path}")
  assert status == 0 and str(path) in out
  assert re.search("left out: mask .*train/masks/0.png.* HTML", out)
  page = np.asarray(Image.open(path)).reshape(-1, 3)
  drawn = {tuple(colour) for colour in np.unique(page, axis=0).tolist()}
  palette = mask_classes.default_palette(4)
  assert {*palette[:3]} <= drawn
  assert palette[3] not in drawn  # no picture has it


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("show --source={} --augment", "--augment draws views of classification"),
    ("prepare --source={}", "images with masks need no preparation"),
    ("check --source={} --label_map=a", "expected STORED=LABEL"),
    ("check --source={} --num_classes=1", "num_classes=1; expected 2..255"),
  ],
)
def test_what_masks_have_none_of_is_refused(run, own, line, words):
  status, out = run(line.format(f"segfolder:{own}"))
  assert status != 0
  assert words in out
