"""Decodes label maps: PNG files in which each pixel is the number of a class.

What does not say without doubt which class a pixel has is refused, with what
was found and how to say it: see `decode_mask`.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import re

import numpy as np
from PIL import Image

from vpt_jax.data.transforms import decode, png_chunks
from vpt_jax.data.transforms.segmentation import IGNORED
from vpt_jax.utils import texts

Colour = tuple[int, int, int]

# Bits of a grey PNG's pixel -> what Pillow multiplies them by to fill 8 bits.
_SCALED_BY_PILLOW = {2: 85, 4: 17}
# PNG's types of colours.
_GREY, _RGB, _PALETTE = 0, 2, 3
# Labels of soft edges lie between others: they have no square of their own.
_MOST_THIN = 8
_SHOWN = 8
_MAP_HINT = (
  "; if they are meant, give config.segmentation.num_classes, or map them by "
  "config.segmentation.label_map"
)


@dataclasses.dataclass(frozen=True)
class Meaning:
  """Says what the pixels of the masks of a data set mean.

  The steps come in this order, as in mmsegmentation 1.x.

  Attributes:
    colours: red, green, blue -> label; then every mask is read by the colours
      that it shows, those of a palette too. Empty: by its numbers.
    reduce_zero_label: 0 is ignored, and k means class k - 1, as in ADE20K.
    label_map: label -> label; what is not in it stays as it is.
    num_classes: labels are 0 .. num_classes - 1, and 255 is ignored; 0: not
      known yet, see `number_of_classes`.
    thin: masks with many labels of which none fills a square are read as well;
      else they are taken for masks with soft edges.
  """

  colours: Mapping[Colour, int] = dataclasses.field(default_factory=dict)
  reduce_zero_label: bool = False
  label_map: Mapping[int, int] = dataclasses.field(default_factory=dict)
  num_classes: int = 0
  thin: bool = False


def decode_mask(
  data: bytes, name: str, meaning: Meaning | None = None
) -> np.ndarray:
  """Decodes a mask's content.

  A palette PNG means its numbers, not its colours; grey of 1, 2, 4 and 8 bits
  the value that is stored; of 16 bits too, if it is below 256 in the end.

  Args:
    data: the file's content.
    name: of the file, for errors.
    meaning: of its pixels; None: as they are.

  Returns:
    uint8 [H, W].

  Raises:
    ValueError: with the file's name: not a PNG, or a damaged one; colours
      without a map, or one that is not in it; transparency; labels out of
      range; soft edges.
  """
  meaning = meaning or Meaning()
  try:
    stored = _stored(data, bool(meaning.colours))
    if stored.ndim == 3:
      label = _labels_of_colours(stored, meaning.colours)
    else:
      label = stored
    return meant(label, meaning)
  except ValueError as error:
    raise ValueError(f"mask {name}: {error}") from error


def check_size(
  mask: np.ndarray, image_size: tuple[int, int], mask_name: str, image: str
) -> None:
  """Raises ValueError for a mask whose size is not its image's.

  Args:
    mask: [H, W].
    image_size: (height, width) of the decoded image.
    mask_name: of the mask's file.
    image: name of the image's file.
  """
  if mask.shape == tuple(image_size):
    return
  height, width = mask.shape
  hint = "resize it with nearest neighbours, or export it again"
  if (width, height) == tuple(image_size):
    hint = (
      "height and width are swapped: the image is turned by its EXIF "
      "orientation; turn the mask, or store the image upright"
    )
  raise ValueError(
    f"mask {mask_name} has {width} x {height} pixels, but its image {image} "
    f"has {image_size[1]} x {image_size[0]}; {hint}"
  )


def parse_colours(text: str) -> dict[Colour, int]:
  """Reads a map of colours such as `000000=0,ff0000=1`.

  Raises:
    ValueError: another form, a colour that is there twice, or a label that is
      none.
  """
  colours: dict[Colour, int] = {}
  for part in text.split(","):
    match = re.fullmatch(r"#?([0-9a-fA-F]{6})=([0-9]{1,3})", part.strip())
    if match is None or int(match[2]) > IGNORED:
      raise ValueError(
        f"a map of colours: found {part.strip()!r}; expected RRGGBB=LABEL with "
        "hexadecimal digits and a label in 0..255, parts divided by commas, "
        "such as 000000=0,ff0000=1"
      )
    red, green, blue = bytes.fromhex(match[1])
    if (red, green, blue) in colours:
      raise ValueError(f"a map of colours: {match[1]} is in it twice")
    colours[red, green, blue] = int(match[2])
  return colours


def count_labels(masks: Iterable[np.ndarray]) -> np.ndarray:
  """Returns how many pixels of masks have each label, int64 [256]."""
  counts = np.zeros(IGNORED + 1, np.int64)
  for mask in masks:
    counts += np.bincount(mask.reshape(-1), minlength=IGNORED + 1)
  return counts


def number_of_classes(counts: np.ndarray, origin: str) -> int:
  """Returns K if the labels of a data set are 0 .. K - 1 without doubt.

  Args:
    counts: of the labels of all training masks, see `count_labels`.
    origin: where they are from, for errors.

  Raises:
    ValueError: labels are missing in between, there is one class only, or all
      are 0 and 255, of which 255 would be ignored.
  """
  labels = np.flatnonzero(counts[:IGNORED]).tolist()
  has_ignored = bool(counts[IGNORED])
  if labels == [0] and has_ignored:
    raise ValueError(
      f"{origin}: all masks are 0 and 255, and 255 means that a pixel is "
      "ignored; if it is a class, say so: "
      "config.segmentation.label_map=((255,1),)"
    )
  if len(labels) < 2:
    raise ValueError(
      f"{origin}: the masks have the labels {labels}; expected two classes or "
      "more, 0 .. K - 1"
    )
  if labels != list(range(len(labels))):
    pairs = [f"({label},{number})" for number, label in enumerate(labels)]
    example = ",".join(pairs[:_SHOWN])
    rest = ",..." if len(pairs) > _SHOWN else ""
    raise ValueError(
      f"{origin}: the masks have the labels "
      f"{texts.shortened(list(map(str, labels)))}, not 0 .. K - 1; if some "
      "classes just do not occur, give config.segmentation.num_classes; else "
      f"map them, such as config.segmentation.label_map=({example}{rest})"
    )
  return len(labels)


def _stored(data: bytes, as_colours: bool) -> np.ndarray:
  """Returns a PNG's numbers [H, W], or its colours, uint8 [H, W, 3]."""
  with decode.opened(data) as image:
    if image.format == "JPEG":
      raise ValueError(
        "a JPEG, whose compression changes labels; export it as PNG"
      )
    if image.format != "PNG":
      raise ValueError(f"a {image.format} file; expected PNG: convert it")
    _, _, bits, kind, _ = png_chunks.header(data)
    _check_opaque(image)
    if kind in (_GREY, _PALETTE) and not as_colours:
      factor = _SCALED_BY_PILLOW.get(bits, 1) if kind == _GREY else 1
      # One bit is read as bool.
      return np.asarray(image, np.uint16) // factor
    if bits == 16:
      raise ValueError(
        "colours of 16 bits; expected numbers of classes, or colours of 8 bits"
      )
    return np.asarray(image.convert("RGB"))


def _check_opaque(image: Image.Image) -> None:
  """Raises ValueError for pixels that are transparent by an alpha channel."""
  if image.mode in ("LA", "RGBA"):
    least = int(np.asarray(image.getchannel("A")).min())
    if least < 255:
      raise ValueError(
        f"has transparent pixels (alpha down to {least}), which are of no "
        "class; expected numbers of classes, without an alpha channel"
      )


def _labels_of_colours(
  image: np.ndarray, colours: Mapping[Colour, int]
) -> np.ndarray:
  """Returns the labels [H, W] of an RGB mask, uint8 [H, W, 3].

  Raises:
    ValueError: there is no map, or a colour is not in it.
  """
  wide = image.astype(np.int32)
  codes = (wide[..., 0] << 16) + (wide[..., 1] << 8) + wide[..., 2]
  if not colours:
    counts = np.bincount(codes.reshape(-1))
    order = np.argsort(-counts, kind="stable")
    raise ValueError(_without_map(order[: np.count_nonzero(counts)].tolist()))
  unknown = -1
  table = np.full(1 << 24, unknown, np.int16)
  for (red, green, blue), label in colours.items():
    table[(red << 16) + (green << 8) + blue] = label
  labels = table[codes]
  if labels.min() == unknown:
    missing = np.unique(codes[labels == unknown]).tolist()
    shown = texts.shortened([f"{code:06x}" for code in missing])
    raise ValueError(
      f"{len(missing)} colours are not in the map of colours: {shown}; add "
      "them (=255: ignored). Where they lie between others, edges are soft: "
      "export without anti-aliasing"
    )
  return labels.astype(np.uint8)


def _without_map(frequent: list[int]) -> str:
  """Says how to map colours, of which the most frequent one is first."""
  shown = texts.shortened([f"{code:06x}" for code in frequent])
  found = f"colours (RGB) instead of numbers of classes: {shown}"
  if len(frequent) > IGNORED:
    return (
      f"{found}. So many are no classes: an image, or a mask with soft edges "
      "or saved as JPEG before; export numbers of classes as PNG"
    )
  pairs = []
  for label, code in enumerate(frequent[:_SHOWN]):
    pairs.append(f"{code:06x}={label}")
  return (
    f"{found}; say what they mean by a map of colours: "
    f"config.segmentation.colours={','.join(pairs)}"
  )


def meant(label: np.ndarray, meaning: Meaning) -> np.ndarray:
  """Returns stored numbers as labels.

  Args:
    label: integers from 0 on, [H, W].
    meaning: of its pixels.

  Returns:
    uint8 [H, W], in range.

  Raises:
    ValueError: labels out of range, or soft edges.
  """
  stored = np.flatnonzero(np.bincount(label.reshape(-1))).tolist()
  new = []
  for value in stored:
    if meaning.reduce_zero_label and value != IGNORED:
      # More than 255 stays so: 256 must not become the ignored 255.
      value = IGNORED if value == 0 else value - (value <= IGNORED)
    new.append(meaning.label_map.get(value, value))
  end = meaning.num_classes or IGNORED
  wrong = []
  for value, mapped in zip(stored, new, strict=True):
    if not 0 <= mapped < end and mapped != IGNORED:
      wrong.append(value)
  if wrong:
    first = np.argwhere(label == wrong[0])[0].tolist()
    soft = _soft_hint(label, len(stored))
    raise ValueError(
      f"labels out of range: {texts.shortened(list(map(str, wrong)))}, the "
      f"first at row {first[0]}, column {first[1]}; expected "
      f"{_expected(meaning)}{soft or _MAP_HINT}"
    )
  if not meaning.thin and not meaning.colours:
    soft = _soft_hint(label, len(stored))
    if soft:
      raise ValueError(f"{len(stored)} different labels{soft}")
  table = np.zeros(stored[-1] + 1, np.uint8)
  table[stored] = new
  return table[label]


def _expected(meaning: Meaning) -> str:
  first = 1 if meaning.reduce_zero_label else 0
  last = (meaning.num_classes or IGNORED) - 1 + first
  return f"{first}..{min(last, IGNORED - 1)} and, for ignored pixels, 255"


def _soft_hint(label: np.ndarray, count: int) -> str:
  """Says so if most labels lie on edges only, else returns an empty text.

  Args:
    label: numbers [H, W].
    count: how many different ones there are.
  """
  above, below = label[:-1], label[1:]
  is_square = (above[:, :-1] == above[:, 1:]) & (below[:, :-1] == below[:, 1:])
  is_square &= above[:, :-1] == below[:, :-1]
  filled = np.count_nonzero(np.bincount(above[:, :-1][is_square]))
  thin = count - filled
  if thin < _MOST_THIN or thin <= filled:
    return ""
  return (
    f", of which {thin} fill no square of 2 x 2 pixels: the mask seems to have "
    "soft edges (anti-aliased, or resized with interpolation); export it "
    "again, resized with nearest neighbours "
    "(config.segmentation.thin=True reads it as it is)"
  )
