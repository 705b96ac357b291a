"""Names and colours of the classes of published data sets, and default ones.

Names, their order and the colours of ADE20K and Cityscapes are those of
mmsegmentation (`mmseg/datasets/ade.py`, `pascal_context.py`,
`mmseg/utils/class_names.py`), without the blank behind ADE20K's `bed`. It
draws Pascal Context in the first colours of ADE20K. Those of Pascal VOC are a
formula.
"""

from collections.abc import Sequence
import colorsys
from pathlib import Path
from typing import NamedTuple

from vpt_jax.data.sources.file_stems import refusal
from vpt_jax.data.sources.masks import Colour
from vpt_jax.utils import strange_files, texts

# Of a user's own folder of images and masks: one name a line.
NAMES_FILE = "classes.txt"
_MOST_NAMES = 2**16  # bytes
_GOLDEN = 0.6180339887  # of the circle of hues, from one class to the next
_BLACK = (0, 0, 0)

_ADE20K = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass,
cabinet, sidewalk, person, earth, door, table, mountain, plant, curtain,
chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink,
skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case,
pool table, pillow, screen door, stairway, river, bridge, bookcase, blind,
coffee table, toilet, flower, book, hill, bench, countertop, stove, palm,
kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus,
towel, light, truck, tower, chandelier, awning, streetlight, booth, television
receiver, airplane, dirt track, apparel, pole, land, bannister, escalator,
ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall,
tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture,
hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
monitor, bulletin board, shower, radiator, glass, clock, flag
"""
_ADE20K_COLOURS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff
ebff07 96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa
ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806
0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599
0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00
0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85
ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00
00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff
ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a
ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff
00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00
ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff
ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
_VOC = """
background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow,
diningtable, dog, horse, motorbike, person, pottedplant, sheep, sofa, train,
tvmonitor
"""
_CONTEXT = """
background, aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book,
bottle, building, bus, cabinet, car, cat, ceiling, chair, cloth, computer,
cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground,
horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform,
pottedplant, road, rock, sheep, shelves, sidewalk, sign, sky, snow, sofa,
table, track, train, tree, truck, tvmonitor, wall, water, window, wood
"""
_CITYSCAPES = """
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign,
vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle,
bicycle
"""
_CITYSCAPES_COLOURS = """
804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4
dc143c ff0000 00008e 000046 003c64 005064 0000e6 770b20
"""


class Classes(NamedTuple):
  """What the K classes of a data set are called, and drawn in."""

  names: tuple[str, ...]
  palette: tuple[Colour, ...]


def published(name: str) -> Classes:
  """Returns the classes of a data set.

  Args:
    name: a key of `mask_layouts.LAYOUTS`.
  """
  match name:
    case "ade20k":
      return Classes(_names(_ADE20K), _colours(_ADE20K_COLOURS))
    case "voc2012" | "voc2012_aug":
      return Classes(_names(_VOC), voc_palette(21))
    case "pascal_context60":
      return Classes(_names(_CONTEXT), _colours(_ADE20K_COLOURS)[:60])
    case "pascal_context59":
      # Without the background.
      return Classes(_names(_CONTEXT)[1:], _colours(_ADE20K_COLOURS)[1:60])
    case "cityscapes":
      return Classes(_names(_CITYSCAPES), _colours(_CITYSCAPES_COLOURS))
  raise ValueError(f"the classes of {name!r} have no names here")


def _names(text: str) -> tuple[str, ...]:
  return tuple(" ".join(text.split()).split(", "))


def _colours(text: str) -> tuple[Colour, ...]:
  colours = []
  for word in text.split():
    red, green, blue = bytes.fromhex(word)
    colours.append((red, green, blue))
  return tuple(colours)


def voc_palette(count: int) -> tuple[Colour, ...]:
  """Returns Pascal VOC's colours of classes 0 .. count - 1.

  Three bits of a number at a time are the next lower bits of its red, green and
  blue.
  """
  colours = []
  for label in range(count):
    channels = [0, 0, 0]
    for place in range(8):
      bits = label >> (3 * place)
      for channel in range(3):
        channels[channel] |= (bits >> channel & 1) << (7 - place)
    red, green, blue = channels
    colours.append((red, green, blue))
  return tuple(colours)


def default_palette(
  count: int, names: Sequence[str] = ()
) -> tuple[Colour, ...]:
  """Returns bright colours for a user's own classes, as different as can be.

  Args:
    count: K.
    names: of the classes; one that is called background is black.
  """
  colours = []
  for label in range(count):
    # From one turn of the hues to the next they become paler, and darker.
    turn = label // 8
    saturation = (0.95, 0.6, 0.95, 0.4)[turn % 4]
    value = (1.0, 1.0, 0.65, 0.8)[turn % 4]
    hue = (label * _GOLDEN) % 1
    rgb = colorsys.hsv_to_rgb(hue, saturation, value)
    red, green, blue = (round(255 * channel) for channel in rgb)
    colours.append((red, green, blue))
  for label, name in enumerate(names):
    if name.lower() == "background":
      colours[label] = _BLACK
  return tuple(colours)


def read_names(folder: Path) -> tuple[str, ...]:
  """Returns the names in `classes.txt` of a folder, () if there is none.

  Raises:
    ValueError: no text in UTF-8, or a name that is there twice.
  """
  path = folder / NAMES_FILE
  if not path.exists():
    return ()
  data = strange_files.read_bytes(path, _MOST_NAMES)
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError:
    raise refusal(f"{path} is no text in UTF-8; save it as UTF-8") from None
  lines = [line.strip() for line in text.split("\n")]
  return checked_names([line for line in lines if line], str(path))


def checked_names(names: Sequence[str], where: str) -> tuple[str, ...]:
  """Returns names of classes that can be printed, as they are.

  Args:
    names: as they were read.
    where: from, for the error.

  Raises:
    ValueError: one is there twice, or fewer than two.
  """
  readable = [texts.readable_name(name) for name in names]
  twice = sorted({name for name in readable if readable.count(name) > 1})
  if twice:
    raise refusal(
      f"{where}: {texts.shortened(twice)} is the name of two classes; the "
      "first name is of label 0, the next of label 1, and so on"
    )
  if len(readable) < 2:
    raise refusal(
      f"{where} has {len(readable)} names; expected one for each of two "
      "classes or more, the first of label 0"
    )
  return tuple(readable)
