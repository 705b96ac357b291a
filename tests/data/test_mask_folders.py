"""Images with label maps are listed as they are meant, or refused by name."""

import dataclasses
import io
import itertools
import os
from pathlib import Path
import re

import numpy as np
from PIL import ExifTags, Image
import pytest

from vpt_jax.data.sources import mask_folders, mask_layouts, parts
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.data.transforms import decode

LABEL = np.kron(np.eye(2), np.ones((4, 4))).astype(np.uint8)
PARTS = ("train", "val", "test")


def encoded(pixels, file_format="PNG"):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, file_format)
  return buffer.getvalue()


IMAGE = encoded(np.full((8, 8, 3), 90, np.uint8), "JPEG")
MASK = encoded(LABEL)


def write(root, *paths, data=None):
  """Writes files, masks where the path ends in `.png`, below a folder."""
  for path in paths:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    content = data
    if content is None:
      content = MASK if path.endswith(".png") else IMAGE
    file.write_bytes(content)
  return root


def write_pairs(root, images, masks, stems):
  for stem in stems:
    write(root, f"{images}/{stem}.jpg", f"{masks}/{stem}.png")
  return root


def write_list(root, name, *lines):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{line}\n" for line in lines))


def own(root, split="train", **meaning):
  return mask_folders.read(root, split, 0, Meaning(**meaning))


def stems(examples):
  return [Path(name).stem for name in examples.names]


def refused(root, *words, split="train"):
  """The error has these words, and can be printed."""
  with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
    own(root, split)
  text = str(caught.value)
  text.encode()
  for word in words:
    assert word in text
  return text


# Folders of one's own.


@pytest.mark.parametrize("names", [PARTS, ("Training", "valid", "TST")])
@pytest.mark.parametrize("way", ["above", "below"])
def test_parts_are_folders(tmp_path, way, names):
  for i, name in enumerate(names):
    sides = (f"{name}/images", f"{name}/masks")
    if way == "below":
      sides = (f"images/{name}", f"masks/{name}")
    write_pairs(tmp_path, *sides, [f"{i}b", f"x/{i}a"])
  for i, split in enumerate(PARTS):
    examples = own(tmp_path, split)
    assert sorted(stems(examples)) == [f"{i}a", f"{i}b"]
    assert len(examples) == 2
    for pair in examples.pairs:
      assert Path(pair.image).stem == Path(pair.mask).stem
      assert (tmp_path / pair.image).is_file()
    image, mask = examples.decoded(1)
    assert image.shape == (8, 8, 3)
    np.testing.assert_array_equal(mask, LABEL)
  assert len(own(tmp_path, "trainval")) == 4


@pytest.mark.parametrize("way", ["flat", "train"])
def test_what_is_not_divided_is_divided_by_names(tmp_path, way):
  """A tenth for val and another for test, the same whenever it is read."""
  top = "" if way == "flat" else "train/"
  names = [f"{i:02d}" for i in range(20)]
  write_pairs(tmp_path, f"{top}images", f"{top}masks", names)
  found = {part: stems(own(tmp_path, part)) for part in PARTS}
  assert [len(found[part]) for part in PARTS] == [16, 2, 2]
  assert sorted(itertools.chain(*found.values())) == names
  assert stems(own(tmp_path, "val")) == found["val"]
  other = mask_folders.read(tmp_path, "train", 1)
  assert stems(other) != found["train"]


def test_val_is_a_tenth_of_train_beside_test(tmp_path):
  names = [f"{i:02d}" for i in range(20)]
  write_pairs(tmp_path, "train/images", "train/masks", names)
  write_pairs(tmp_path, "test/images", "test/masks", ["t"])
  assert len(own(tmp_path)) == 18
  assert len(own(tmp_path, "val")) == 2
  assert stems(own(tmp_path, "test")) == ["t"]


def test_no_images_for_a_split(tmp_path):
  for part in ("train", "val"):
    write_pairs(tmp_path, f"{part}/images", f"{part}/masks", [part])
  with pytest.raises(parts.NoImages, match="no images for test, only for tr"):
    own(tmp_path, "test")


@pytest.mark.parametrize("way", ["{}/images", "images/{}"])
def test_test_images_without_masks_are_for_prediction(tmp_path, caplog, way):
  """As competitions have them; what is meant for val or train needs masks."""
  caplog.set_level("INFO")
  for part in ("train", "val"):
    images = way.format(part)
    write_pairs(tmp_path, images, images.replace("images", "masks"), [part])
  write(tmp_path, f"{way.format('Testing')}/t.jpg")
  assert stems(own(tmp_path, "trainval")) == ["train", "val"]
  assert "Testing has no masks: its images are only for pred" in caplog.text
  with pytest.raises(parts.NoImages, match="no images for test, only for tr"):
    own(tmp_path, "test")
  write(tmp_path, f"{way.format('late')}/t.jpg")
  refused(tmp_path, "late")


@pytest.mark.parametrize("way", ["{}/images", "images/{}"])
@pytest.mark.parametrize("missing", ["train", "val"])
def test_other_parts_need_masks(tmp_path, way, missing):
  for part in PARTS:
    images = way.format(part)
    write(tmp_path, f"{images}/a.jpg")
    if part != missing:
      write(tmp_path, f"{images.replace('images', 'masks')}/a.png")
  refused(tmp_path, "expected", missing)


def test_lists_divide_a_folder(tmp_path, caplog):
  """Lines are stems, with an ending or not; others need no partner."""
  caplog.set_level("INFO")
  write_pairs(tmp_path, "images", "masks", ["a", "b.c", "x/d", "e"])
  write(tmp_path, "images/unlabelled.jpg")
  write_list(tmp_path, "train.txt", "x/d.jpg", "", " a ", "./b.c")
  write_list(tmp_path, "val.txt", "\ufeffe\r")
  names = ["images/a.jpg", "images/b.c.jpg", "images/x/d.jpg"]
  assert own(tmp_path).names == names
  assert own(tmp_path, "val").names == ["images/e.jpg"]
  assert "1 images are in none of train.txt, val.txt" in caplog.text


LISTS = {
  "unknown": (["a", "zz"], ["1 images that are not", "zz (line 2)"]),
  "twice": (["a", "b", "a"], ["train.txt:3: a is in line 1 already"]),
  "twice, with its ending": (["a", "a.jpg"], ["train.txt:2: a is in line 1"]),
  "outside": (["../a"], ["train.txt:1: ../a is no path below"]),
  "absolute": (["/a"], ["train.txt:1: /a is no path below"]),
  "no text": (["a\0"], ["train.txt is no text"]),
  "empty": ([" "], ["train.txt is empty"]),
  "in two lists": (["a", "c"], ["val.txt: c is in train.txt already"]),
  "without a mask": (["a", "u"], ["1 images of", "have no mask", ": u."]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_that_cannot_be_meant(tmp_path, kind):
  lines, words = LISTS[kind]
  write_pairs(tmp_path, "images", "masks", ["a", "b", "c"])
  write(tmp_path, "images/u.jpg")
  write_list(tmp_path, "train.txt", *lines)
  write_list(tmp_path, "val.txt", "c")
  refused(tmp_path, *words)


def test_files_without_partner_are_named_and_counted(tmp_path):
  write_pairs(tmp_path, "images", "masks", ["a", "b"])
  write(tmp_path, *(f"images/i{n:02d}.jpg" for n in range(12)))
  write(tmp_path, "masks/m.png")
  text = refused(tmp_path, f"12 images of {tmp_path}/images have no mask")
  assert "i00, i01" in text
  assert "... (4 more), i11" in text
  assert f"1 masks of {tmp_path}/masks have no image" in text
  assert ": m. Expected the same stems" in text


def test_suffixes_of_files(tmp_path):
  """Images of every kind, in any case; other files are not looked at."""
  write(tmp_path, "images/a.JPG", "images/b.jpeg", "images/c.Png")
  write(tmp_path, "masks/a.PNG", "masks/b.png", "masks/c.png", data=MASK)
  write(tmp_path, "images/notes.txt", "masks/a.json", data=b"x")
  found = own(tmp_path, "trainval").names + own(tmp_path, "test").names
  assert sorted(found) == ["images/a.JPG", "images/b.jpeg", "images/c.Png"]


@pytest.mark.parametrize("word", ["_mask", "-seg", ".labels", "_part_mask"])
def test_a_word_behind_the_stems_of_all_masks(tmp_path, caplog, word):
  caplog.set_level("INFO")
  for stem in ("a", "b_1"):
    write(tmp_path, f"images/{stem}.jpg", f"masks/{stem}{word}.png")
  examples = own(tmp_path)
  assert [pair.mask for pair in examples.pairs] == [
    f"masks/a{word}.png",
    f"masks/b_1{word}.png",
  ]
  assert f"with {word} behind" in caplog.text
  write(tmp_path, f"masks/lonely{word}.png")
  refused(tmp_path, "1 masks of", ": lonely.")


@pytest.mark.parametrize("names", [["a", "b_mask"], ["a_mask", "b_seg"]])
def test_words_that_only_some_masks_have(tmp_path, names):
  write(tmp_path, "images/a.jpg", "images/b.jpg")
  write(tmp_path, *(f"masks/{name}.png" for name in names))
  refused(tmp_path, "have no mask", "have no image")


@pytest.mark.parametrize("names", [["a_1", "a_2"], ["a1"], ["a_1"]])
def test_numbers_are_no_word(tmp_path, names):
  write(tmp_path, "images/a.jpg", *(f"masks/{name}.png" for name in names))
  refused(tmp_path, "1 images of", "have no image")


def test_hidden_files_are_not_looked_at(tmp_path):
  write_pairs(tmp_path, "images", "masks", ["a"])
  write(tmp_path, "images/._a.jpg", "masks/._a.png", "images/.cache/c.jpg")
  write(tmp_path, "images/__MACOSX/a.jpg", ".train/images/x.jpg")
  assert stems(own(tmp_path)) == ["a"]


def test_names_that_are_not_utf8(tmp_path):
  """They are read, from lists too; names and errors can be printed."""
  odd = os.fsdecode(b"caf\xe9")
  root = tmp_path / os.fsdecode(b"data\xff")
  write_pairs(root, "images", "masks", [odd, "b\nc"])
  examples = own(root)
  assert examples.names == ["images/b\\x0ac.jpg", "images/caf\\xe9.jpg"]
  assert examples.origin.endswith("data\\xff")
  examples.decoded(1)
  (root / "train.txt").write_bytes(b"caf\xe9\n")
  assert own(root).names == ["images/caf\\xe9.jpg"]
  (root / "masks" / f"{odd}.png").write_bytes(b"?")
  with pytest.raises(ValueError, match="caf.xe9.png: not an image") as caught:
    own(root).mask(0)
  str(caught.value).encode()
  (root / "masks" / f"{odd}.png").unlink()
  refused(root, "1 images of", ": caf\\xe9. ")


def test_links_are_followed(tmp_path):
  """To files and folders, of another disk say."""
  write_pairs(tmp_path / "disk", "photos", "maps", ["a", "x/b"])
  root = tmp_path / "root"
  (root / "masks").mkdir(parents=True)
  (root / "images").symlink_to(tmp_path / "disk/photos")
  (root / "masks/a.png").symlink_to(tmp_path / "disk/maps/a.png")
  (root / "masks/x").symlink_to(tmp_path / "disk/maps/x")
  examples = own(root)
  assert stems(examples) == ["a", "b"]
  examples.decoded(1)


@pytest.mark.parametrize("target", [".", "x", ".."])
def test_links_that_lead_to_a_folder_again(tmp_path, target):
  """No circle is walked, and no image is taken twice."""
  write_pairs(tmp_path, "images", "masks", ["x/a"])
  (tmp_path / "images/loop").symlink_to(tmp_path / "images" / target)
  refused(tmp_path, "a link leads from", "remove the link")


@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "pipe"])
@pytest.mark.parametrize("side", ["images/b.jpg", "masks/b.png"])
def test_what_is_no_file_is_named_before_training(tmp_path, side, kind):
  write_pairs(tmp_path, "images", "masks", ["a", "b"])
  path = tmp_path / side
  path.unlink()
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to("b.png" if kind == "link to itself" else "nothing")
    if kind == "link to itself":
      path.unlink()
      path.symlink_to(path.name)
  refused(tmp_path, f"{path} is no regular file")


@pytest.mark.parametrize("side", ["images", "masks"])
def test_two_files_of_one_stem(tmp_path, side):
  write_pairs(tmp_path, "images", "masks", ["a"])
  write(tmp_path, f"{side}/a.tif")
  refused(tmp_path, f"{tmp_path}/{side}: a.", "a.tif have the same stem")


UNCLEAR = {
  "nothing": (["notes.txt"], ["has notes.txt in it; expected PATH/{train"]),
  "no masks": (["images/a.jpg"], ["masks is missing; expected"]),
  "no images": (["masks/a.png", "images/a.txt"], ["images has no images"]),
  "two folders for a part": (
    ["val/images/a.jpg", "valid/images/a.jpg"],
    ["both val and valid are for val"],
  ),
  "no training": (
    ["val/images/a.jpg", "val/masks/a.png"],
    ["has val, but nothing for training"],
  ),
  "other parts of masks": (
    ["images/train/a.jpg", "images/val/b.jpg", "masks/train/a.png"],
    ["images has train, val, but masks has train; expected"],
  ),
  "no parts of masks": (
    ["images/train/a.jpg", "masks/a.png"],
    ["images has train, but masks has none of them"],
  ),
  "a folder beside parts": (
    ["images/train/a.jpg", "images/late/b.jpg", "masks/train/a.png"],
    ["images has late beside train"],
  ),
  "an image beside parts": (
    ["images/train/a.jpg", "masks/b.png", "masks/train/a.png"],
    ["masks has b.png beside train"],
  ),
  "another part above": (
    ["train/images/a.jpg", "train/masks/a.png", "val2/images/a.jpg"],
    ["has val2 with images beside train"],
  ),
  "folders and images": (
    ["train/images/a.jpg", "images/a.jpg"],
    ["several ways, by folders train and by the folder images"],
  ),
  "folders and lists": (
    ["images/train/a.jpg", "masks/train/a.png", "val.txt"],
    ["several ways, by folders in images train and by lists val.txt"],
  ),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_folders_that_may_mean_several_things(tmp_path, kind):
  paths, words = UNCLEAR[kind]
  refused(write(tmp_path, *paths), *words)


def test_no_folder(tmp_path):
  refused(tmp_path / "none", "none is no folder; expected")
  refused(tmp_path, "has nothing in it; expected")


def test_masks_that_are_the_images(tmp_path):
  write(tmp_path, "images/a.png")
  (tmp_path / "masks").symlink_to("images")
  refused(tmp_path, "are the same folder")


def test_a_folder_that_cannot_be_read_is_not_empty(tmp_path, monkeypatch):
  write_pairs(tmp_path, "images", "masks", ["a", "x/b"])
  listed = os.listdir

  def listdir(path):
    if Path(path).name == "x":
      raise PermissionError(13, "Permission denied", str(path))
    return listed(path)

  monkeypatch.setattr(os, "listdir", listdir)
  with pytest.raises(PermissionError, match="images/x"):
    own(tmp_path)


# Decoding.


@pytest.mark.parametrize(
  ("name", "pixels", "message"),
  [
    ("masks/a.png", LABEL[:6], "masks/a.png has 8 x 6 pixels, but its image"),
    ("masks/a.png", LABEL * 7, "masks/a.png: labels out of range: 7, the firs"),
    ("masks/a.png", np.stack([LABEL] * 3, -1), "masks/a.png: colours (RGB)"),
  ],
)
def test_masks_that_do_not_fit(tmp_path, name, pixels, message):
  """Sizes, labels and colours, with the file."""
  write_pairs(tmp_path, "images", "masks", ["a"])
  write(tmp_path, name, data=encoded(pixels))
  with pytest.raises(ValueError, match=re.escape(message)):
    own(tmp_path, num_classes=2).decoded(0)


def test_images_that_cannot_be_read(tmp_path):
  """Damaged, or gone since they were listed: a sentence with the file."""
  write_pairs(tmp_path, "images", "masks", ["a"])
  write(tmp_path, "images/a.jpg", data=b"<html>")
  examples = own(tmp_path)
  assert examples.read_image(0) == b"<html>"
  with pytest.raises(ValueError, match=r"image .*images/a.jpg: .* HTML"):
    examples.decoded(0)
  for side in ("images/a.jpg", "masks/a.png"):
    (tmp_path / side).unlink()
  with pytest.raises(ValueError, match=r"No such file .*images/a.jpg"):
    examples.decoded(0)
  with pytest.raises(ValueError, match=r"No such file .*masks/a.png"):
    examples.mask(0)


def test_photos_are_turned_as_their_masks_are(tmp_path):
  """A user's own; those of published sets are taken as they are stored."""
  photo = Image.new("RGB", (8, 6))
  photo.getexif()[ExifTags.Base.Orientation] = 6
  buffer = io.BytesIO()
  photo.save(buffer, "JPEG", exif=photo.getexif())
  write(tmp_path, "images/a.jpg", data=buffer.getvalue())
  write(tmp_path, "masks/a.png", data=encoded(np.zeros((8, 6), np.uint8)))
  examples = own(tmp_path)
  assert examples.decoded(0)[0].shape == (8, 6, 3)
  as_stored = dataclasses.replace(examples, upright=False)
  with pytest.raises(ValueError, match="height and width are swapped"):
    as_stored.decoded(0)


def test_deep_grey_needs_the_range_of_its_data_set(tmp_path):
  write(tmp_path, "images/a.png", data=encoded(np.full((8, 8), 1023, "u2")))
  write(tmp_path, "masks/a.png")
  with pytest.raises(decode.UnknownGreyRange):
    own(tmp_path).decoded(0)
  image, _ = own(tmp_path).decoded(0, grey_range=2047)
  assert image.max() == 127


# Published layouts.


ADE = "ADEChallengeData2016"
VOC = "VOCdevkit/VOC2012"
CONTEXT = "VOCdevkit/VOC2010"
AUG = f"{VOC}/SegmentationClassAug"
CITY = "cityscapes"


def write_ade(root):
  for part, stem in (("training", "t"), ("validation", "v")):
    images, masks = f"{ADE}/images/{part}", f"{ADE}/annotations/{part}"
    write_pairs(root, images, masks, [f"ADE_{stem}1", f"ADE_{stem}2"])


def write_voc(root):
  write_pairs(
    root, f"{VOC}/JPEGImages", f"{VOC}/SegmentationClass", ["t1", "t2", "v1"]
  )
  # Most of VOC's images have no masks.
  write(root, f"{VOC}/JPEGImages/s1.jpg", f"{VOC}/JPEGImages/other.jpg")
  lists = f"{VOC}/ImageSets/Segmentation"
  write_list(root, f"{lists}/train.txt", "t2", "t1")
  write_list(root, f"{lists}/val.txt", "v1")


def write_aug(root):
  """As the converter leaves it: t1 and v1 have masks of both kinds."""
  write_voc(root)
  twos = encoded(LABEL * 2)
  for stem in ("s1", "t1", "v1"):
    write(root, f"{AUG}/{stem}.png", data=twos)
  lists = f"{VOC}/ImageSets/Segmentation"
  write_list(root, f"{lists}/trainaug.txt", "t2", "s1", "t1")


def write_context(root):
  images = f"{CONTEXT}/JPEGImages"
  masks = f"{CONTEXT}/SegmentationClassContext"
  write_pairs(root, images, masks, ["t1", "t2", "v1"])
  lists = f"{CONTEXT}/ImageSets/SegmentationContext"
  write_list(root, f"{lists}/train.txt", "t1", "t2")
  write_list(root, f"{lists}/val.txt", "v1")


def write_cityscapes(root):
  for part, stem in (("train", "ulm/u_1"), ("val", "bonn/b_1")):
    gt = f"{CITY}/gtFine/{part}/{stem}_gtFine"
    image = f"{CITY}/leftImg8bit/{part}/{stem}_leftImg8bit.png"
    write(root, image, data=encoded(np.zeros((8, 8, 3), np.uint8)))
    write(root, f"{gt}_labelTrainIds.png", f"{gt}_color.png")
    write(root, f"{gt}_labelIds.png", f"{gt}_polygons.json")


# Name -> what writes it, its stems of train and val, labels of ones and zeros.
REDUCED = np.where(LABEL == 1, 0, 255)
PUBLISHED = {
  "ade20k": (write_ade, ["ADE_t1", "ADE_t2"], ["ADE_v1", "ADE_v2"], REDUCED),
  "voc2012": (write_voc, ["t1", "t2"], ["v1"], LABEL),
  "voc2012_aug": (write_aug, ["s1", "t1", "t2"], ["v1"], LABEL),
  "pascal_context60": (write_context, ["t1", "t2"], ["v1"], LABEL),
  "pascal_context59": (write_context, ["t1", "t2"], ["v1"], REDUCED),
  "cityscapes": (
    write_cityscapes,
    ["u_1_leftImg8bit"],
    ["b_1_leftImg8bit"],
    LABEL,
  ),
}


@pytest.mark.parametrize("name", mask_layouts.LAYOUTS)
def test_published_layouts(tmp_path, caplog, name):
  """Above the data set's folder or in it; test is val; sizes are compared."""
  make, train, val, label = PUBLISHED[name]
  make(tmp_path)
  inside = tmp_path / mask_layouts.LAYOUTS[name].folder
  for folder in (tmp_path, inside):
    found = mask_layouts.read(name, folder, "train")
    assert stems(found) == train
    assert not found.upright
    for split in ("val", "test"):
      assert stems(mask_layouts.read(name, folder, split)) == val
  image, mask = found.decoded(len(found) - 1)
  assert image.shape == (8, 8, 3)
  np.testing.assert_array_equal(mask, label)
  part = mask_layouts.LAYOUTS[name].parts["train"]
  assert f"{len(train)} images, but {part.size} were published" in caplog.text
  with pytest.raises(ValueError, match="no split 'trainval'; expected train"):
    mask_layouts.read(name, tmp_path, "trainval")


def test_vocs_own_masks_come_before_those_of_sbd(tmp_path):
  write_aug(tmp_path)
  train = mask_layouts.read("voc2012_aug", tmp_path, "train")
  assert [train.mask(i).max() for i in range(3)] == [2, 1, 1]
  assert mask_layouts.read("voc2012_aug", tmp_path, "val").mask(0).max() == 1


@pytest.mark.parametrize("name", mask_layouts.LAYOUTS)
@pytest.mark.parametrize("what", ["all", "a folder", "an image", "a mask"])
def test_what_is_missing_of_a_published_set(tmp_path, name, what):
  """It is named, with how to get it."""
  make, train, _, _ = PUBLISHED[name]
  layout = mask_layouts.LAYOUTS[name]
  message = "is missing"
  if what != "all":
    make(tmp_path)
  root = tmp_path / layout.folder
  stem = train[0].removesuffix("_leftImg8bit")
  part = layout.parts["train"].name
  if what == "a folder":
    (root / layout.masks[-1].format(part)).rename(root / "elsewhere")
  if what == "an image":
    message = f"have no image.*{stem}|are missing in .*{stem}|has no files"
    (found,) = (root / layout.images.format(part)).rglob(
      f"{stem}{layout.image_ending}"
    )
    found.unlink()
  if what == "a mask":
    message = f"1 images of .* have no mask in .*{stem}"
    (found,) = (root / layout.masks[-1].format(part)).rglob(
      f"{stem}{layout.mask_ending}"
    )
    found.unlink()
  with pytest.raises(ValueError, match=message) as caught:
    mask_layouts.read(name, tmp_path, "train")
  assert str(caught.value).startswith(f"{name}: ")
  assert str(caught.value).endswith(f"get {layout.get}")


def test_labels_of_a_published_set_are_in_its_range(tmp_path):
  write_voc(tmp_path)
  path = f"{VOC}/SegmentationClass/t1.png"
  write(tmp_path, path, data=encoded(LABEL * 21))
  with pytest.raises(ValueError, match=f"{path}: labels out of range: 21"):
    mask_layouts.read("voc2012", tmp_path, "train").decoded(0)


def test_an_unknown_data_set(tmp_path):
  with pytest.raises(ValueError, match="did you mean 'ade20k'"):
    mask_layouts.read("ade20", tmp_path, "train")
