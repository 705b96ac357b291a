"""Lists published data sets of images with masks, as they are unpacked."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path

from vpt_jax.data.sources import file_stems
from vpt_jax.data.sources.file_stems import refusal
from vpt_jax.data.sources.masked_images import MaskedImages, Pair
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.utils import lookup, texts
from vpt_jax.utils.logs import log


@dataclasses.dataclass(frozen=True)
class Part:
  """Says where a part of a data set is.

  Attributes:
    name: stands for `{}` in the folders' names.
    size: how many images were published.
    stems: a list of their stems; "": all that are in the folders.
  """

  name: str
  size: int
  stems: str = ""


@dataclasses.dataclass(frozen=True)
class Layout:
  """Says where a data set has its images and masks.

  Attributes:
    folder: that it unpacks to.
    images: the images' folder in it.
    image_ending: what an image's name has behind its stem.
    masks: folders of the masks; a mask is taken from the first that has it.
    mask_ending: what a mask's name has behind its stem.
    parts: train and val.
    meaning: of the masks' pixels.
    get: how to get it, for errors.
  """

  folder: str
  images: str
  image_ending: str
  masks: Sequence[str]
  mask_ending: str
  parts: Mapping[str, Part]
  meaning: Meaning
  get: str


def _meaning(num_classes: int, reduce_zero_label: bool = False) -> Meaning:
  """Returns the meaning of published masks, which have no soft edges."""
  return Meaning(
    num_classes=num_classes, reduce_zero_label=reduce_zero_label, thin=True
  )


def _voc(
  year: str,
  masks: Sequence[str],
  parts: Mapping[str, Part],
  meaning: Meaning,
  get: str,
) -> Layout:
  """Returns a data set of Pascal VOC's images."""
  folder = f"VOCdevkit/VOC{year}"
  return Layout(
    folder, "JPEGImages", ".jpg", masks, ".png", parts, meaning, get
  )


_VOC_LISTS = "ImageSets/Segmentation"
_VOC_TRAIN = Part("train", 1464, f"{_VOC_LISTS}/train.txt")
_VOC_AUG = Part("trainaug", 10582, f"{_VOC_LISTS}/trainaug.txt")
_VOC_VAL = Part("val", 1449, f"{_VOC_LISTS}/val.txt")
_VOC_GET = "VOCtrainval_11-May-2012.tar of Pascal VOC 2012"

_CONTEXT_LISTS = "ImageSets/SegmentationContext"
_CONTEXT_PARTS = {
  "train": Part("train", 4998, f"{_CONTEXT_LISTS}/train.txt"),
  "val": Part("val", 5105, f"{_CONTEXT_LISTS}/val.txt"),
}
_CONTEXT_MASKS = ("SegmentationClassContext",)
_CONTEXT_GET = (
  "VOCtrainval_03-May-2010.tar of Pascal VOC 2010 and trainval_merged.json of "
  "Pascal Context, then make masks and lists by mmsegmentation's converter "
  "pascal_context.py"
)

LAYOUTS = {
  "ade20k": Layout(
    "ADEChallengeData2016",
    "images/{}",
    ".jpg",
    ("annotations/{}",),
    ".png",
    {"train": Part("training", 20210), "val": Part("validation", 2000)},
    _meaning(150, reduce_zero_label=True),
    "ADEChallengeData2016.zip of data.csail.mit.edu/places/ADEchallenge",
  ),
  "voc2012": _voc(
    "2012",
    ("SegmentationClass",),
    {"train": _VOC_TRAIN, "val": _VOC_VAL},
    _meaning(21),
    _VOC_GET,
  ),
  # VOC's own masks where there are such, those of SBD for all other images.
  "voc2012_aug": _voc(
    "2012",
    ("SegmentationClass", "SegmentationClassAug"),
    {"train": _VOC_AUG, "val": _VOC_VAL},
    _meaning(21),
    f"{_VOC_GET} and SBD's benchmark.tgz, then make masks and trainaug.txt by "
    "mmsegmentation's converter voc_aug.py",
  ),
  "pascal_context60": _voc(
    "2010", _CONTEXT_MASKS, _CONTEXT_PARTS, _meaning(60), _CONTEXT_GET
  ),
  "pascal_context59": _voc(
    "2010",
    _CONTEXT_MASKS,
    _CONTEXT_PARTS,
    _meaning(59, reduce_zero_label=True),
    _CONTEXT_GET,
  ),
  "cityscapes": Layout(
    "cityscapes",
    "leftImg8bit/{}",
    "_leftImg8bit.png",
    ("gtFine/{}",),
    "_gtFine_labelTrainIds.png",
    {"train": Part("train", 2975), "val": Part("val", 500)},
    _meaning(19),
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of "
    "cityscapes-dataset.com, then run createTrainIdLabelImgs of "
    "cityscapesScripts",
  ),
}


def read(name: str, data_dir: Path, split: str) -> MaskedImages:
  """Lists a split of a published data set.

  `test` is what published scores are of: the images of val. So there is no
  `trainval`, which would be tested on what it has seen.

  Args:
    name: in `LAYOUTS`.
    data_dir: the folder that has the data set's, or the data set's.
    split: train, val or test.

  Raises:
    ValueError: an unknown name or split, or what is missing and how to get it.
    OSError: a folder cannot be read.
  """
  layout = LAYOUTS[lookup.choose(name, LAYOUTS, "data set with masks")]
  if split not in ("train", "val", "test"):
    raise ValueError(
      f"{name} has no split {split!r}; expected train, val or test (the images "
      "of val, which published scores are of; trainval would hold them)"
    )
  root = _root(name, layout, data_dir.absolute())
  part = layout.parts["train" if split == "train" else "val"]
  try:
    pairs = _pairs(layout, root, part)
  except ValueError as error:
    raise refusal(f"{name}: {error}; get {layout.get}") from error
  origin = texts.printable(f"{name} ({root})")
  if len(pairs) != part.size:
    log.warning(
      "%s: %s has %d images, but %d were published: scores do not compare",
      origin,
      part.name,
      len(pairs),
      part.size,
    )
  return MaskedImages(root, pairs, layout.meaning, origin, upright=False)


def is_there(name: str, data_dir: Path) -> bool:
  """Returns whether a published data set's folder and lists are there."""
  layout = LAYOUTS[name]
  root = _find(layout, data_dir.absolute())
  if root is None:
    return False
  return all((root / part.stems).exists() for part in layout.parts.values())


def _root(name: str, layout: Layout, data_dir: Path) -> Path:
  """Returns the data set's folder.

  Raises:
    ValueError: it is missing.
  """
  root = _find(layout, data_dir)
  if root is None:
    raise refusal(
      f"{name}: {data_dir / layout.folder} is missing; config.data.dir names "
      f"the folder above; get {layout.get}"
    )
  return root


def _find(layout: Layout, data_dir: Path) -> Path | None:
  """Returns the data set's folder, None if it is missing."""
  root = data_dir / layout.folder
  if root.is_dir():
    return root
  is_named_so = data_dir.name == Path(layout.folder).name
  if is_named_so and data_dir.is_dir():
    return data_dir
  return None


def _pairs(layout: Layout, root: Path, part: Part) -> list[Pair]:
  """Returns the pairs of a part, sorted.

  Raises:
    ValueError: a folder, a list or files are missing.
  """
  images = layout.images.format(part.name)
  folders = [folder.format(part.name) for folder in layout.masks]
  masks: dict[str, str] = {}
  for folder in folders:
    for stem in file_stems.with_ending(root / folder, layout.mask_ending):
      masks.setdefault(stem, f"{folder}/{stem}{layout.mask_ending}")
  there = file_stems.with_ending(root / images, layout.image_ending)
  if not there:
    raise refusal(f"{root / images} has no files *{layout.image_ending}")
  if part.stems:
    wanted = sorted(file_stems.read_list(root / part.stems))
    _check_images(wanted, there, root / images, part.stems)
    with_mask = [stem for stem in wanted if stem in masks]
  else:
    wanted = there
    with_mask = sorted(masks)
  where = root / folders[-1]
  hint = "Expected the same stems"
  file_stems.check_partners(wanted, with_mask, root / images, where, hint)
  found = []
  for stem in wanted:
    found.append(Pair(f"{images}/{stem}{layout.image_ending}", masks[stem]))
  return found


def _check_images(
  wanted: Sequence[str], there: Sequence[str], folder: Path, stems: str
) -> None:
  """Raises ValueError if images that a list names are not there."""
  missing = sorted(set(wanted) - set(there))
  if missing:
    raise refusal(
      f"{len(missing):,} images of {stems} are missing in {folder}: "
      f"{texts.shortened(missing)}"
    )
