"""What the folders of a data set mean: classes, parts, or an error."""

import logging
import random

import pytest

from vpt_jax.data import datasets
from vpt_jax.data.sources import class_folders, layouts
from vpt_jax.utils import texts


def make(root, *patterns):
  """Makes empty images; `{a,b}` stands for both, `*3` for three images."""
  for pattern in patterns:
    for path in expanded(pattern):
      file = root / path
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(path.encode())
  return root


def expanded(pattern):
  before, brace, after = pattern.partition("{")
  if brace:
    inside, _, rest = after.partition("}")
    for choice in inside.split(","):
      yield from expanded(before + choice + rest)
    return
  before, star, after = pattern.partition("*")
  if not star:
    yield pattern
    return
  for i in range(int(after[0])):
    yield from expanded(f"{before}{i}{after[1:]}")


def read(root, split="train", layout="auto"):
  return datasets.open_split("", split, source=f"folder:{root}", layout=layout)


CLASSES = "{glioma,tumour}/*5.jpg"


@pytest.mark.parametrize(
  "patterns,names",
  [
    (["{Training,Testing}/" + CLASSES], ("Training", "Testing")),
    (["{TRAIN,VAL,TEST}/" + CLASSES], ("TRAIN", "VAL", "TEST")),
    (["{train,eval,test}/" + CLASSES], ("train", "eval", "test")),
    (["{trn,dev,tst}/" + CLASSES], ("trn", "dev", "tst")),
    (["{train,valid,holdout}/" + CLASSES], ("train", "valid", "holdout")),
    (
      ["{train_images,images_test}/" + CLASSES],
      ("train_images", "images_test"),
    ),
    (["{training_set,test_set}/" + CLASSES], ("training_set", "test_set")),
    (["{TrainSet,TestSet}/" + CLASSES], ("TrainSet", "TestSet")),
    (["{train2017,val2017}/" + CLASSES], ("train2017", "val2017")),
    (["{x-train,x-val,x-test}/" + CLASSES], ("x-train", "x-val", "x-test")),
    (
      [
        "seg_train/seg_train/" + CLASSES,
        "seg_test/seg_test/" + CLASSES,
        "seg_pred/seg_pred/*4.jpg",
      ],
      ("seg_train/seg_train", "seg_test/seg_test"),
    ),
    (["train/images/" + CLASSES, "test/" + CLASSES], ("train/images", "test")),
  ],
)
def test_words_for_parts_are_known(tmp_path, patterns, names):
  """Folders of parts: common words, any case, affixes, one repetition."""
  make(tmp_path, *patterns)
  train = read(tmp_path, "trainval")
  assert train.class_names == ("glioma", "tumour")
  expected = [f"{name}/{c}" for name in names[:1] for c in train.class_names]
  if len(names) == 3 or "val2017" in names:
    expected += [f"{names[1]}/{c}" for c in train.class_names]
  assert sorted({name.rpartition("/")[0] for name in train.names}) == sorted(
    expected
  )
  if "val2017" not in names:
    test = read(tmp_path, "test")
    folders = {name.rpartition("/")[0] for name in test.names}
    assert folders == {f"{names[-1]}/{c}" for c in train.class_names}


@pytest.mark.parametrize(
  "patterns,classes",
  [
    (["{cat,dog}/*5.jpg"], ("cat", "dog")),
    (["{cat,dog}/images/*5.jpg"], ("cat", "dog")),
    (["cat/{2019,2020}/*5.jpg", "dog/{home,park}/*5.jpg"], ("cat", "dog")),
    (["train/{n01,n02}/images/*5.jpg"], ("n01", "n02")),
    (
      ["{steam_train,test_tube,bus}/*5.jpg"],
      ("bus", "steam_train", "test_tube"),
    ),
    (
      ["{express_train,valid_ticket}/*5.jpg"],
      ("express_train", "valid_ticket"),
    ),
    (["{mask,no_mask}/*5.jpg"], ("mask", "no_mask")),
    (["{grade1,grade2}/*5.jpg"], ("grade1", "grade2")),
    (["{3,1}/*5.jpg"], ("1", "3")),
    (
      ["benign/SOB/{a1,b1}/*5.jpg", "malignant/SOB/{a2,b2}/*5.jpg"],
      ("benign", "malignant"),
    ),
  ],
)
def test_folders_that_are_classes(tmp_path, patterns, classes):
  """Classes: also with parts' words within names, and with nested images."""
  make(tmp_path, *patterns)
  assert read(tmp_path).class_names == classes
  assert len(read(tmp_path, "test")) > 0


@pytest.mark.parametrize(
  "patterns,message",
  [
    (
      ["{train,val,test}/{a,b}/*3.jpg", "set/{train,val,test}/{a,b}/*3.jpg"],
      r"named like parts \(test, train, val\) beside others \(set\)",
    ),
    (["{train,bus,plane}/*3.jpg"], "named like parts .train. beside others"),
    (["{valid,invalid}/*3.jpg"], "named like parts"),
    (["{cat,dog,unlabeled}/*3.jpg"], "named like parts"),
    (
      ["fold_{1,2,3,4,5}/{a,b}/*3.jpg"],
      "5 folders without images of their own, in which there are the same "
      "folders, a, b",
    ),
    (["train/fold{1,2}/{a,b}/*3.jpg", "test/{a,b}/*3.jpg"], "same folders"),
    (["{covid,normal}/{images,masks}/*3.png"], "same folders, images, masks"),
    (["{images,masks}/*3.png"], "kinds of files"),
    (["{HAM_images_part_1,HAM_images_part_2}/*3.png"], "share one set"),
    (["images_{001,002,003}/images/*3.png"], "share one set"),
    (["fold{1,2,3}/*3.png"], "share one set"),
    (["{amazon,dslr,webcam}/images/{bike,mug}/*3.png"], "folders, bike, mug"),
    (["{colour,grey}/{apple,pear}/*3.png"], "folders, apple, pear"),
    (
      ["{rock,paper}/*3.png", "rps/{rock,paper}/*3.png"],
      "'rps', which holds it once more",
    ),
    (["{Train,Test}/{0,1}/*3.png", "Meta/*2.png"], "beside others .Meta."),
    (["train/{train,val}/*3.png", "test/*3.png"], "parts, where classes"),
    (["{cat,dog}/{train,test}/*3.png"], "same folders, test, train"),
    (["{train,test}/{images,masks}/*3.png"], "kinds of files"),
    (["{a,b}/*3.jpg", "whole/{a,b}/*3.jpg"], "'whole', which holds it once"),
    (["{a,b}/*3.jpg", "a/more/*3.jpg"], "class 'a' at different depths"),
    (["train/{a,b}/*3.jpg", "train/a/x/*3.jpg"], "at different depths"),
    (["{train,training,test}/{a,b}/*3.jpg"], "two folders for train"),
    (["{train_1,train_2,test}/{a,b}/*3.jpg"], "two folders for train"),
    (["{val,test}/{a,b}/*3.jpg"], "has no folder for training"),
    (["{train,seg_test}/{a,b}/*3.jpg"], "parts of different names"),
  ],
)
def test_layouts_that_are_not_clear_are_refused(tmp_path, patterns, message):
  """What may be parts or classes: told with what was seen, and both ways."""
  make(tmp_path, *patterns)
  with pytest.raises(ValueError, match=message) as error:
    read(tmp_path)
  for text in (str(tmp_path), "layout=classes", "layout=parts", "csv:FILE"):
    assert text in str(error.value)


def test_a_refusal_says_what_was_seen(tmp_path):
  make(tmp_path, "train/{a,b,c}/*3.jpg", "extra/*7.jpg")
  with pytest.raises(ValueError) as error:
    read(tmp_path)
  assert "Seen: extra (7 images), train (folders a, b, c)." in str(error.value)


def test_the_user_says_what_is_meant(tmp_path):
  """`data.layout` decides where nothing else does, either way."""
  make(
    tmp_path, "{train,val,test}/{a,b}/*3.jpg", "copy/{train,test}/{a,b}/*3.jpg"
  )
  parts = read(tmp_path, "train", "parts")
  assert parts.class_names == ("a", "b") and len(parts) == 6
  classes = read(tmp_path, "train", "classes")
  assert classes.class_names == ("copy", "test", "train", "val")
  with pytest.raises(ValueError, match="has no folder for training"):
    read(tmp_path / "copy/train", "train", "parts")


def test_one_folder_around_the_set(tmp_path):
  make(tmp_path, "PetImages/{Cat,Dog}/*3.jpg")
  with pytest.raises(ValueError) as error:
    read(tmp_path)
  assert f"folder:{tmp_path}/PetImages" in str(error.value)
  assert "Cat, Dog" in str(error.value)


@pytest.mark.parametrize(
  "test_images",
  [
    "test/*4.jpg",
    "test/test/*4.jpg",
    "test/images/*4.jpg",
    "test/unlabelled/*4.jpg",
  ],
)
def test_an_unlabelled_test_folder_is_for_prediction(
  tmp_path, caplog, test_images
):
  """Kaggle's train/CLASS with a flat test/: all parts are taken of train."""
  make(tmp_path, "train/{a,b}/*9.jpg", "train/{a,b}/x*1.jpg", test_images)
  with caplog.at_level(logging.INFO, "vpt_jax"):
    sizes = [len(read(tmp_path, part)) for part in ("train", "val", "test")]
  assert sizes == [16, 2, 2]
  assert "(4) have no classes and are only for prediction" in caplog.text
  for part in ("trainval", "test"):
    assert all(name.startswith("train/") for name in read(tmp_path, part).names)


def test_training_images_without_classes(tmp_path):
  make(tmp_path, "{train,test}/*4.jpg")
  with pytest.raises(ValueError, match="train has no class folders.*csv:FILE"):
    read(tmp_path)


def test_images_beside_class_folders_are_told(tmp_path, caplog):
  make(tmp_path, "{cat,dog}/*3.jpg", "*2.jpg")
  read(tmp_path)
  assert "2 images are not in a class folder and are not used" in caplog.text


def test_the_roles_of_names():
  for name, part in (
    ("Train", "train"),
    ("trainval", "train"),
    ("train_val", "train"),
    ("train_test", ""),
    ("asl_alphabet_test", "test"),
    ("prediction", layouts.UNLABELLED),
    ("contest", ""),
    ("trainer", ""),
    ("validity", ""),
    ("1", ""),
  ):
    assert layouts.role_of(name).part == part, name


def test_many_names_are_shortened():
  assert texts.shortened([*"abcdefghijkl"]) == (
    "a, b, c, d, e, f, g, ... (4 more), l"
  )
  assert texts.shortened([*"abc"], most=3) == "a, b, c"


def test_the_log_says_what_the_folders_are(tmp_path, caplog):
  make(tmp_path, "seg_train/seg_train/{a,b}/*3.jpg", "seg_test/{a,b}/*3.jpg")
  with caplog.at_level(logging.INFO, "vpt_jax"):
    class_folders.folder(tmp_path, "trainval", 0)
    class_folders.folder(tmp_path, "test", 0)
  assert caplog.text.count("train = seg_train/seg_train, test = seg_test") == 1


STYLES = (
  ("train", "val", "test"),
  ("Train", "Valid", "Test"),
  ("TRAINING", "VALIDATION", "TESTING"),
  ("trn", "dev", "tst"),
  ("training_set", "eval_set", "test_set"),
  ("cars-train", "cars-val", "cars-test"),
  ("images_train", "images_dev", "images_holdout"),
  ("TrainImages", "ValImages", "TestImages"),
)
NAMES = ("cat", "dog", "Übel", "n02", "7", "blue car", "test_tube", "no_mask")


def random_layout(rng):
  """Returns (paths of images, the classes that they have)."""
  classes = sorted(rng.sample(NAMES, rng.randint(2, 5)))
  style = rng.choice(STYLES)
  inside = rng.choice(["", "", "photos/"])

  def below(top):
    return [f"{top}{c}/{inside}{i}.jpg" for c in classes for i in range(3)]

  kind = rng.choice(
    ["classes", "parts", "folds", "domains", "copy", "stranger"]
  )
  if kind == "classes":
    return below(""), classes
  if kind == "folds":
    return [p for i in range(3) for p in below(f"fold_{i}/")], classes
  if kind == "domains":
    return [p for d in ("sketch", "photo") for p in below(f"{d}/")], classes
  used = style[:1] + tuple(rng.sample(style[1:], rng.randint(1, 2)))
  wrap = rng.random() < 0.3
  paths = []
  for part in used:
    paths += below(f"{part}/{part}/" if wrap else f"{part}/")
  if rng.random() < 0.3:
    paths += [f"unlabelled_pred/{i}.jpg" for i in range(3)]
  if kind == "copy":
    paths += [f"whole/{path}" for path in paths]
  if kind == "stranger":
    paths += [f"extra/{i}.jpg" for i in range(3)]
  return paths, classes


@pytest.mark.parametrize("seed", range(60))
def test_a_layout_is_understood_or_refused(tmp_path, seed):
  """No tree of files is read as other classes than it has."""
  paths, classes = random_layout(random.Random(seed))
  make(tmp_path, *paths)
  try:
    names = read(tmp_path).class_names
  except ValueError as error:
    assert "Say what is meant" in str(error)
    return
  assert sorted(names) == sorted(classes)


def test_most_layouts_are_understood(tmp_path):
  """Those of classes, and of parts above them, are."""
  understood = 0
  for seed in range(60):
    paths, _ = random_layout(random.Random(seed))
    root = tmp_path / str(seed)
    make(root, *paths)
    try:
      read(root)
    except ValueError:
      continue
    understood += 1
  assert understood >= 15
