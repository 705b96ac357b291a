"""Lists every task that a config can name, in one table."""

import dataclasses
from typing import Any, NamedTuple

from vpt_jax.data.origins import CIFAR10, COUNTS, ORIGINS
from vpt_jax.utils import lookup


class Slice(NamedTuple):
  """Some percent of a split of tensorflow-datasets, where images come from.

  Counts are rounded down, n * percent // 100; with `closest` as tfds rounds
  its own percent slices.
  """

  split: str
  start: int = 0
  stop: int = 100
  closest: bool = False


class Slices(NamedTuple):
  """Where each part of a task comes from."""

  train: Slice
  val: Slice
  test: Slice


@dataclasses.dataclass(frozen=True)
class Task:
  """One classification task.

  Attributes:
    num_classes: K.
    source: which reader it comes from, if the config names none.
    folder: of its pack, lists or images below `data.dir`, for the sources
      `pack`, `json` and `folder`; the file for `npz`.
    group: of VTAB-1k, "" otherwise.
    class_names: in the order of the labels, for zero-shot heads; () if not
      known here.
    suite: the benchmark that it belongs to, `vtab`, `fgvc`, `pgn` or "".
    images: where images are below `folder`, for source `json`.
    tfds: "name:version" or "name/config:version" in tensorflow-datasets: what
      its current release can prepare; "" if it is not there.
    published: the version that the papers used, where it is another.
    label: name of a function in `sources/tfds_labels.py`.
    scale: what the pixels stored by tfds are multiplied with.
    parts: where images come from in tfds; None if `tfds` is "".
    limits: how many images of `train` and of `val` count, the first ones in
      tfds order; None: all.
    sizes: images of (train, val, test); () if they depend on the user's copy.
    metric: what the papers report, `top1` or `mean_per_class`.
    preprocess: family of preprocessing, `vtab`, `fgvc` or `pgn`.
    licence: of the images, short; "not stated" if its authors state none.
    address: where it is described, and to be had where tfds cannot get it.
    gigabytes: approximate size of the download, 0 if not known.
    manual: what has to be done by hand, "" if nothing.
  """

  num_classes: int
  source: str = "pack"
  folder: str = ""
  group: str = ""
  class_names: tuple[str, ...] = ()
  suite: str = ""
  images: str = ""
  tfds: str = ""
  published: str = ""
  label: str = "label"
  scale: int = 1
  parts: Slices | None = None
  limits: tuple[int | None, int | None] = (None, None)
  sizes: tuple[int, ...] = ()
  metric: str = "top1"
  preprocess: str = "vtab"
  licence: str = "not stated"
  address: str = ""
  gigabytes: float = 0
  manual: str = ""


def _rest(percent: int, test: str = "test") -> Slices:
  """Returns parts whose validation is what is above `percent` of train."""
  return Slices(
    Slice("train", 0, percent), Slice("train", percent), Slice(test)
  )


def _thirds(first: int, second: int) -> Slices:
  """Returns three parts of a single split, which is cut at these percents."""
  return Slices(
    Slice("train", 0, first),
    Slice("train", first, second),
    Slice("train", second),
  )


_OWN = Slices(Slice("train"), Slice("validation"), Slice("test"))
_NORB = Slices(
  Slice("train"),
  Slice("test", 0, 50, closest=True),
  Slice("test", 50, 100, closest=True),
)


def _vtab(
  group: str,
  num_classes: int,
  folder: str,
  origin: str,
  parts: Slices,
  test_images: int,
  label: str = "label",
) -> Task:
  """Returns a task of VTAB-1k: 800 images to train, 200 to validate.

  Args:
    group: natural, specialized or structured.
    num_classes: K.
    folder: of its pack, below `vtab-1k`.
    origin: a key of `ORIGINS`.
    parts: where images come from in tfds.
    test_images: how many there are.
    label: see `Task`.
  """
  return Task(
    num_classes,
    folder=f"vtab-1k/{folder}",
    group=group,
    suite="vtab",
    parts=parts,
    limits=(800, 200),
    sizes=(800, 200, test_images),
    label=label,
    **ORIGINS[origin],
  )


# Folders are named as in the vtab-1k packs that circulate among researchers.
# Parts and labels are those of google-research/task_adaptation as VPT ships it.
_VTAB = {
  "caltech101": _vtab(
    "natural", 102, "caltech101", "caltech101", _rest(90), 6084
  ),
  "cifar100": _vtab("natural", 100, "cifar", "cifar100", _rest(90), 10000),
  "dtd": _vtab("natural", 47, "dtd", "dtd", _OWN, 1880),
  "oxford_flowers102": _vtab(
    "natural", 102, "oxford_flowers102", "flowers", _OWN, 6149
  ),
  "oxford_iiit_pet": _vtab(
    "natural", 37, "oxford_iiit_pet", "pets", _rest(80), 3669
  ),
  "sun397": _vtab("natural", 397, "sun397", "sun397", _OWN, 21750),
  "svhn": _vtab("natural", 10, "svhn", "svhn", _rest(90), 26032),
  "diabetic_retinopathy": _vtab(
    "specialized", 5, "diabetic_retinopathy", "retinopathy", _OWN, 42670
  ),
  "eurosat": _vtab(
    "specialized", 10, "eurosat", "eurosat", _thirds(60, 80), 5400
  ),
  "patch_camelyon": _vtab(
    "specialized", 2, "patch_camelyon", "patch_camelyon", _OWN, 32768
  ),
  "resisc45": _vtab(
    "specialized", 45, "resisc45", "resisc45", _thirds(60, 80), 6300
  ),
  "clevr_count": _vtab(
    "structured",
    8,
    "clevr_count",
    "clevr",
    _rest(90, "validation"),
    15000,
    "clevr_count",
  ),
  "clevr_distance": _vtab(
    "structured",
    6,
    "clevr_dist",
    "clevr",
    _rest(90, "validation"),
    15000,
    "clevr_distance",
  ),
  "dmlab": _vtab("structured", 6, "dmlab", "dmlab", _OWN, 22735),
  "dsprites_location": _vtab(
    "structured",
    16,
    "dsprites_loc",
    "dsprites",
    _thirds(80, 90),
    73728,
    "dsprites_x",
  ),
  "dsprites_orientation": _vtab(
    "structured",
    16,
    "dsprites_ori",
    "dsprites",
    _thirds(80, 90),
    73728,
    "dsprites_orientation",
  ),
  "kitti": _vtab(
    "structured", 4, "kitti", "kitti", _OWN, 711, "kitti_distance"
  ),
  "smallnorb_azimuth": _vtab(
    "structured",
    18,
    "smallnorb_azi",
    "smallnorb",
    _NORB,
    12150,
    "smallnorb_azimuth",
  ),
  "smallnorb_elevation": _vtab(
    "structured",
    9,
    "smallnorb_ele",
    "smallnorb",
    _NORB,
    12150,
    "smallnorb_elevation",
  ),
}

_FGVC_STEPS = (
  "unpack the images of the address to {folder} in the data folder, and put "
  "train.json, val.json and test.json of VPT beside them "
  "(https://cornell.box.com/v/vptfgvcsplits){more}"
)


def _fgvc(
  name: str,
  num_classes: int,
  images: str,
  sizes: tuple[int, ...],
  more_steps: str = "",
  **fields: Any,
) -> Task:
  """Returns a task of FGVC, with VPT's lists; `fields` are others of `Task`."""
  folder = f"fgvc/{name}"
  return Task(
    num_classes,
    "json",
    folder,
    suite="fgvc",
    preprocess="fgvc",
    images=images,
    sizes=sizes,
    manual=_FGVC_STEPS.format(folder=folder, more=more_steps),
    **fields,
  )


# With VPT's lists, or from tfds with the last tenth of train for validation:
# as many images, others.
_FGVC = {
  "fgvc_cub": _fgvc(
    "cub",
    200,
    "images",
    (5394, 600, 5794),
    tfds="caltech_birds2011:0.2.0",
    parts=_rest(90),
    gigabytes=1.2,
    address="https://data.caltech.edu/records/65de6-vp158",
  ),
  "fgvc_nabirds": _fgvc(
    "nabirds",
    555,
    "images",
    (21536, 2393, 24633),
    gigabytes=9,
    licence="Cornell's terms of use, to be accepted before the download",
    address="https://dl.allaboutbirds.org/nabirds",
  ),
  "fgvc_flowers": _fgvc(
    "flowers", 102, "", (1020, 1020, 6149), parts=_OWN, **ORIGINS["flowers"]
  ),
  "fgvc_dogs": _fgvc(
    "dogs",
    120,
    "Images",
    (10800, 1200, 8580),
    tfds="stanford_dogs:0.2.0",
    parts=_rest(90),
    gigabytes=0.8,
    address="http://vision.stanford.edu/aditya86/ImageNetDogs",
  ),
  "fgvc_cars": _fgvc(
    "cars",
    196,
    "",
    (7329, 815, 8041),
    "; the address is dead since 2023: copies are at Kaggle and GitHub "
    "(pytorch/vision#7545), the lists name the images car_ims/*.jpg",
    gigabytes=2,
    address="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
  ),
}


def _pgn(
  num_classes: int,
  origin: str,
  parts: Slices,
  sizes: tuple[int, ...],
  **fields: Any,
) -> Task:
  """Returns a task of PGN; `fields` of `Task` go before those of `ORIGINS`."""
  return Task(
    num_classes,
    "tfds",
    suite="pgn",
    preprocess="pgn",
    parts=parts,
    sizes=sizes,
    **ORIGINS[origin] | fields,
  )


# The published PGN code selects its checkpoints on the test images; here `val`
# is a part of train. For DTD, EuroSAT, Flowers, RESISC45 and UCF101 its tests
# are other images than these, from lists of its own.
_PGN = {
  "pgn_cifar100": _pgn(100, "cifar100", _rest(90), (45000, 5000, 10000)),
  "pgn_cifar10": _pgn(10, "cifar10", _rest(90), (45000, 5000, 10000)),
  "pgn_flowers": _pgn(102, "flowers", _OWN, (1020, 1020, 6149)),
  "pgn_food101": _pgn(
    101, "food101", _rest(90, "validation"), (68175, 7575, 25250)
  ),
  "pgn_eurosat": _pgn(10, "eurosat", _thirds(50, 70), (13500, 5400, 8100)),
  "pgn_sun397": _pgn(
    397,
    "sun397",
    _rest(90),
    (17865, 1985, 19850),
    tfds="sun397/standard-part1-120k:4.0.0",
  ),
  "pgn_ucf101": Task(
    101,
    "folder",
    "ucf101",
    suite="pgn",
    preprocess="pgn",
    gigabytes=7,
    address="https://www.crcv.ucf.edu/data/UCF101.php",
    manual="put the middle frame of each video in ucf101/train/CLASS and "
    "ucf101/test/CLASS as the official lists trainlist01 and "
    "testlist01 say: clips of one video must not be in both",
  ),
  "pgn_svhn": _pgn(10, "svhn", _rest(90), (65931, 7326, 26032)),
  "pgn_pets": _pgn(37, "pets", _rest(90), (3312, 368, 3669)),
  "pgn_dtd": _pgn(47, "dtd", _OWN, (1880, 1880, 1880)),
  "pgn_resisc45": _pgn(45, "resisc45", _thirds(60, 80), (18900, 6300, 6300)),
  "pgn_clevr": _pgn(
    8,
    "clevr",
    _rest(90, "validation"),
    (63000, 7000, 15000),
    label="clevr_count",
    class_names=COUNTS,
  ),
}

TASKS: dict[str, Task] = {
  "digits": Task(10, "digits"),
  **_VTAB,
  **_FGVC,
  **_PGN,
  "cifar10": Task(10, "npz", "cifar10_jpeg.npz", class_names=CIFAR10),
}


def get(name: str) -> Task:
  """Returns the task of that name.

  Raises:
    ValueError: unknown name, with the nearest known one.
  """
  return TASKS[lookup.choose(name, TASKS, "task")]
