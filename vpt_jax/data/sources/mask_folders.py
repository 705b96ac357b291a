"""Lists `segfolder:PATH`: a user's own images and masks, with the same stems.

Which images are for training is told in one of four ways, see `EXPECTED`.
What may mean several things is refused.
"""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path

from vpt_jax.data.sources import file_stems, layouts, name_parts, parts
from vpt_jax.data.sources.file_stems import refusal
from vpt_jax.data.sources.image_files import SUFFIXES
from vpt_jax.data.sources.masked_images import MaskedImages, Pair
from vpt_jax.data.sources.masks import Meaning
from vpt_jax.utils import texts
from vpt_jax.utils.logs import log

IMAGES, MASKS = "images", "masks"
EXPECTED = (
  "expected PATH/{train,val,test}/{images,masks}, or "
  "PATH/{images,masks}/{train,val,test}, or PATH/{images,masks} with lists "
  "PATH/{train,val,test}.txt of stems, or PATH/{images,masks} alone, which is "
  "divided at random"
)
_SAME_STEMS = (
  f"Expected the same stems, such as {IMAGES}/a.jpg and {MASKS}/a.png; "
  "rename, add or remove files"
)
# What a name may go on with behind a stem, as in `a_mask.png`.
_BEFORE_WORDS = ("_", "-", ".", " ")


def read(
  path: Path, split: str, seed: int, meaning: Meaning | None = None
) -> MaskedImages:
  """Lists `segfolder:PATH`.

  A part that is missing is divided off: val is a tenth of train; where nothing
  is divided, test is another tenth. A folder for test without masks is left
  out: it is only for prediction.

  Args:
    path: the folder.
    split: train, val, trainval or test.
    seed: of the division.
    meaning: of the masks' pixels; None: as they are.

  Raises:
    ValueError: another layout, or files without partner, with their names.
    NoImages: nothing is for this split.
    OSError: a folder cannot be read.
  """
  root = path.absolute()
  origin = texts.printable(str(root))
  if not root.is_dir():
    raise refusal(f"{root} is no folder; {EXPECTED}")
  found = _divided(root, seed, split in parts.TOLD)
  pairs = name_parts.select(found, split, origin)
  return MaskedImages(root, pairs, meaning or Meaning(), origin, upright=True)


def has_masks(path: Path) -> bool:
  """Returns whether a folder, or one for a part in it, has images and masks."""
  if not path.is_dir():
    return False
  tops = [path, *_named_after_parts(path, "", is_strict=False).values()]
  return any(_has_both(top) for top in tops)


def _has_both(top: Path) -> bool:
  return (top / IMAGES).is_dir() and (top / MASKS).is_dir()


def _divided(root: Path, seed: int, tells: bool) -> dict[str, list[Pair]]:
  """Returns the pairs by part, with val and test taken out of the others."""
  found = _read_parts(root)
  pair_of = {pair.image: pair for pairs in found.values() for pair in pairs}
  names = {}
  for part, pairs in found.items():
    names[part] = [pair.image for pair in pairs]
  try:
    divided = name_parts.divide(names, str(root), seed, tells)
  except ValueError as error:
    raise refusal(f"{error}; {EXPECTED}") from None
  found = {}
  for part, of_part in divided.items():
    found[part] = [pair_of[name] for name in of_part]
  return found


def _read_parts(root: Path) -> dict[str, list[Pair]]:
  """Returns the pairs by part; "" where nothing is divided."""
  above = _named_after_parts(root, "")
  below = _named_after_parts(root / IMAGES, "")
  lists = _named_after_parts(root, ".txt")
  ways = {
    "folders": above,
    f"folders in {IMAGES}": below,
    "lists": lists,
  }
  used = [f"{what} {_names(names)}" for what, names in ways.items() if names]
  if above and (root / IMAGES).is_dir():
    used.append(f"the folder {IMAGES}")
  if len(used) > 1:
    raise refusal(
      f"{root} is divided in several ways, by {' and by '.join(used)}; keep "
      f"one of them: {EXPECTED}"
    )
  if above:
    _check_no_others(root, above)
    return _parts_above(root, above)
  if not (root / IMAGES).is_dir():
    there = sorted(entry.name for entry in root.iterdir())
    seen = texts.shortened(there) or "nothing"
    raise refusal(f"{root} has {seen} in it; {EXPECTED}")
  if below:
    return _parts_below(root, below)
  if lists:
    return _listed_parts(root, lists)
  return {"": _pairs(root, Path(IMAGES), Path(MASKS))}


def _names(paths: Mapping[str, Path]) -> str:
  return ", ".join(path.name for path in paths.values())


def _named_after_parts(
  folder: Path, suffix: str, is_strict: bool = True
) -> dict[str, Path]:
  """Returns what is named after parts: folders, or files with a suffix.

  Args:
    folder: that is looked into.
    suffix: of the files; "": folders.
    is_strict: two of the same part are an error, else the first is returned.

  Raises:
    ValueError: two are named after the same part.
  """
  found: dict[str, Path] = {}
  if not folder.is_dir():
    return found
  for path in sorted(folder.iterdir()):
    is_meant = path.is_file() if suffix else path.is_dir()
    if not is_meant or not path.name.lower().endswith(suffix):
      continue
    part = parts.NAMES.get(path.name.lower().removesuffix(suffix))
    if part is None:
      continue
    if part in found and not is_strict:
      continue
    if part in found:
      raise refusal(
        f"{folder}: both {found[part].name} and {path.name} are for {part}; "
        "keep one of them"
      )
    found[part] = path
  return found


def _parts_above(
  root: Path, folders: Mapping[str, Path]
) -> dict[str, list[Pair]]:
  """Reads PATH/train/images/a.jpg and PATH/train/masks/a.png."""
  sides = {}
  for part, folder in folders.items():
    top = Path(folder.name)
    if part == "test" and not (folder / MASKS).is_dir():
      _tell_unlabelled(folder)
      continue
    sides[part] = (top / IMAGES, top / MASKS)
  return _pairs_of_parts(root, sides)


def _parts_below(
  root: Path, folders: Mapping[str, Path]
) -> dict[str, list[Pair]]:
  """Reads PATH/images/train/a.jpg and PATH/masks/train/a.png."""
  masks_below = _named_after_parts(root / MASKS, "")
  without_masks = folders.keys() - masks_below.keys()
  if masks_below and without_masks == {"test"}:
    _tell_unlabelled(folders["test"])
    masks_below["test"] = root / MASKS / folders["test"].name
  if folders.keys() != masks_below.keys():
    raise refusal(
      f"{root}: {IMAGES} has {_names(folders)}, but {MASKS} has "
      f"{_names(masks_below) or 'none of them'}; expected the same folders"
    )
  for side, known in ((IMAGES, folders), (MASKS, masks_below)):
    outside = _outside(root / side, known)
    if outside:
      raise refusal(
        f"{root / side} has {texts.shortened(outside)} beside {_names(known)}; "
        "nothing says what they are for: move or remove them"
      )
  sides = {}
  for part, folder in folders.items():
    if part in without_masks:
      continue
    masks_of_part = Path(MASKS, masks_below[part].name)
    sides[part] = (Path(IMAGES, folder.name), masks_of_part)
  return _pairs_of_parts(root, sides)


def _tell_unlabelled(folder: Path) -> None:
  """Logs that images of test are not read, as there is nothing to test by."""
  log.info(
    "%s has no masks: its images are only for prediction",
    texts.printable(str(folder)),
  )


def _check_no_others(root: Path, folders: Mapping[str, Path]) -> None:
  """Raises ValueError for a folder like that of a part, of another name."""
  others = []
  for name in _outside(root, folders):
    if (root / name / IMAGES).is_dir():
      others.append(name)
  if others:
    raise refusal(
      f"{root} has {texts.shortened(others)} with {IMAGES} beside "
      f"{_names(folders)}; nothing says what they are for: rename, move or "
      "remove them"
    )


def _outside(folder: Path, known: Mapping[str, Path]) -> list[str]:
  """Returns the folders and images in a folder that are not known, sorted."""
  outside = []
  for path in sorted(folder.iterdir()):
    if layouts.is_hidden(path.name) or path in known.values():
      continue
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
      outside.append(path.name)
  return outside


def _pairs_of_parts(
  root: Path, sides: Mapping[str, tuple[Path, Path]]
) -> dict[str, list[Pair]]:
  """Returns the pairs of all parts; what is wrong in any of them is told.

  Args:
    root: the folder.
    sides: folders of the images and of the masks of each part.
  """
  found = {}
  wrong = []
  for part, (images, label_maps) in sides.items():
    try:
      found[part] = _pairs(root, images, label_maps)
    except ValueError as error:
      wrong.append(str(error))
  if wrong:
    raise refusal(". ".join(wrong))
  return found


def _pairs(root: Path, images: Path, label_maps: Path) -> list[Pair]:
  """Returns the pairs of two folders, all of whose files have a partner.

  Args:
    root: the folder.
    images: the images' folder, below the root.
    label_maps: the masks' folder, below the root.

  Raises:
    ValueError: a folder is missing or empty, a stem is there twice, or a file
      has no partner.
  """
  image_of, mask_of = _both_sides(root, images, label_maps)
  file_stems.check_partners(
    image_of, mask_of, root / images, root / label_maps, _SAME_STEMS
  )
  found = []
  for stem, image in image_of.items():
    found.append(Pair(image, mask_of[stem]))
  return found


def _both_sides(
  root: Path, images: Path, label_maps: Path
) -> tuple[dict[str, str], dict[str, str]]:
  """Returns the images and the masks of two folders: stem -> path.

  Where every mask ends in the same word behind its image's stem, such as
  `a_mask.png` of `a.jpg`, it is left out of the stem.
  """
  for folder in (root / images, root / label_maps):
    if not folder.is_dir():
      raise refusal(f"{folder} is missing; {EXPECTED}")
  if (root / images).samefile(root / label_maps):
    raise refusal(
      f"{root / images} and {root / label_maps} are the same folder; expected "
      "images in one of them and masks in the other"
    )
  image_of = file_stems.with_suffix(root / images, SUFFIXES)
  mask_of = file_stems.with_suffix(root / label_maps, SUFFIXES)
  if not image_of:
    endings = ", ".join(sorted(SUFFIXES))
    raise refusal(f"{root / images} has no images, which end in {endings}")
  word = _common_word(image_of, mask_of)
  if word:
    log.info(
      "%s: masks are named like images with %s behind",
      texts.printable(str(root / label_maps)),
      texts.printable(word),
    )
  mask_of = {stem.removesuffix(word): path for stem, path in mask_of.items()}
  return _joined(images, image_of), _joined(label_maps, mask_of)


def _joined(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
  return {stem: str(folder / path) for stem, path in files.items()}


def _common_word(
  image_of: Mapping[str, str], mask_of: Mapping[str, str]
) -> str:
  """Returns what all masks have behind their images' stems, or "".

  Where a mask has the very stem of an image, all have to.
  """
  if any(stem in image_of for stem in mask_of):
    return ""
  example = min(mask_of, default="")
  best, most = "", 0
  for start, letter in enumerate(example):
    word = example[start:]
    if letter not in _BEFORE_WORDS or not any(map(str.isalpha, word)):
      continue
    if not all(stem.endswith(word) for stem in mask_of):
      continue
    matches = sum(stem.removesuffix(word) in image_of for stem in mask_of)
    if matches > most:
      best, most = word, matches
  return best


def _listed_parts(
  root: Path, lists: Mapping[str, Path]
) -> dict[str, list[Pair]]:
  """Reads PATH/images and PATH/masks by PATH/train.txt and so on.

  What no list names may have no partner: nothing is read of it.
  """
  image_of, mask_of = _both_sides(root, Path(IMAGES), Path(MASKS))
  found = {}
  part_of: dict[str, str] = {}
  for part, path in lists.items():
    stems = _listed_stems(path, image_of)
    for stem in stems:
      first = part_of.setdefault(stem, part)
      if first != part:
        raise refusal(
          f"{path}: {stem} is in {lists[first].name} already; an image for "
          "both would be tested on what it was trained on: keep one of them"
        )
    listed = [stem for stem in stems if stem in mask_of]
    file_stems.check_partners(
      stems, listed, root / IMAGES, root / MASKS, f"{path} names them"
    )
    found[part] = [Pair(image_of[stem], mask_of[stem]) for stem in listed]
  left_out = len(image_of) - len(part_of)
  if left_out:
    log.info(
      "%s: %d images are in none of %s and are not used",
      texts.printable(str(root)),
      left_out,
      _names(lists),
    )
  return found


def _listed_stems(path: Path, image_of: Mapping[str, str]) -> Sequence[str]:
  """Returns the stems of a list, sorted; its lines may have the suffix, too.

  Raises:
    ValueError: a line names no image, or one that another line names.
  """
  found: dict[str, int] = {}
  missing = []
  for name, number in file_stems.read_list(path).items():
    stem = name
    if stem not in image_of:
      stem, suffix = os.path.splitext(name)
      if suffix.lower() not in SUFFIXES or stem not in image_of:
        missing.append(f"{name} (line {number})")
        continue
    if stem in found:
      raise refusal(
        f"{path}:{number}: {stem} is in line {found[stem]} already; keep one "
        "of them"
      )
    found[stem] = number
  if missing:
    example = min(image_of)
    raise refusal(
      f"{path} names {len(missing):,} images that are not in {IMAGES}: "
      f"{texts.shortened(missing)}; expected stems such as {example}"
    )
  return sorted(found)
