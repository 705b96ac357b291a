"""Defines how figures look, and writes them: a PNG and its numbers as CSV."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpt_jax.utils import csv_texts, files

DPI = 100
WIDEST = 11.5  # inches
# In the file. With fewer it has a quarter of the size, and hardly a difference
# can be seen.
NUM_COLOURS = 128

# Colour-blind people can tell them apart: Okabe and Ito's without yellow, then
# three like Tol's.
COLOURS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#000000",
  "#882255",
  "#BBBBBB",
  "#999933",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAT = "inferno"  # of equal steps in brightness

# Any, as matplotlib wants a type of the names that it knows.
STYLE: Any = {
  "font.size": 9,
  "axes.titlesize": 9,
  "figure.titlesize": 10,
  "legend.fontsize": 8,
  "legend.frameon": False,
  "lines.linewidth": 1.5,
  "lines.markersize": 5,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#dddddd",
  "grid.linewidth": 0.6,
  "axes.spines.top": False,
  "axes.spines.right": False,
}


def check(path: str) -> Path:
  """Returns the path of a figure; call it before anything is computed.

  Args:
    path: as the user gave it, in `--to`.

  Raises:
    ValueError: it is not a PNG, or matplotlib is not installed.
  """
  if importlib.util.find_spec("matplotlib") is None:
    raise ValueError(
      "figures are drawn by matplotlib, which is not installed; "
      "pip install -e '.[analyze]'"
    )
  if Path(path).suffix != ".png":
    raise ValueError(
      f"--to {path}: figures are PNG; expected a name that ends "
      "in .png (the numbers are put beside it, in .csv)"
    )
  return Path(path)


def check_room(images: int, most: int) -> None:
  """Raises ValueError if there are more images than a figure has room for."""
  if images > most:
    raise ValueError(f"{images} images; a figure has room for {most}")


@contextlib.contextmanager
def figure(
  path: Path, width: float, height: float, title: str
) -> Iterator[Any]:
  """Yields a figure to draw on, and writes it when all is drawn.

  It is drawn without a display, and without pyplot: nothing stays behind in the
  process.

  Args:
    path: of the PNG.
    width: inches.
    height: inches.
    title: above all, or "".
  """
  # Slow to import, and not needed by any other part.
  import matplotlib
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  with matplotlib.rc_context(STYLE):
    fig = Figure((width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)
    if title:
      fig.suptitle(title)
    yield fig
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png")
  image = Image.open(drawn).convert("RGB")
  packed = io.BytesIO()
  image.quantize(NUM_COLOURS, kmeans=1).save(packed, "PNG", optimize=True)
  files.write_atomic(path, packed.getvalue())


def write_csv(
  path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes the numbers of a figure beside it, as CSV.

  Args:
    path: of the figure.
    header: names of the columns.
    rows: of numbers and text; floats get six digits.
  """
  lines = [header]
  for row in rows:
    lines.append([_format(cell) for cell in row])
  text = csv_texts.lines(lines)
  files.write_atomic(path.with_suffix(".csv"), text.encode())


def _format(cell: Any) -> Any:
  if isinstance(cell, (float, np.floating)):
    return f"{cell:.6g}"
  return cell


def colour(i: int) -> str:
  """Returns the colour of line i; those that share one differ in `marker`."""
  return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
  """Returns the marker of line i; pairs with its colour repeat after 70."""
  return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def picture(
  axes: Any, image: np.ndarray, title: str = "", heat: np.ndarray | None = None
) -> None:
  """Draws an image, and a map over it.

  Args:
    axes: to draw on.
    image: what lies below, [H, W, 3] in [0, 1].
    title: above it.
    heat: [rows, columns] of the whole image, at least 0; its maximum has the
      brightest colour.
  """
  axes.set_axis_off()
  axes.set_title(title, fontsize=8)
  extent = (0, image.shape[1], image.shape[0], 0)
  if heat is None:
    axes.imshow(image, extent=extent)
    return
  # Grey below, so that all colour is of the map, which hides less where it is
  # low.
  grey = image.mean(-1)
  most = heat.max() or 1.0
  opacity = 0.25 + 0.55 * np.clip(heat / most, 0, 1)
  axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
  axes.imshow(
    heat,
    cmap=HEAT,
    vmin=0,
    vmax=most,
    extent=extent,
    alpha=opacity,
    interpolation="bilinear",
  )


def distinguish(keys: Sequence[Sequence[str]]) -> tuple[list[str], str]:
  """Returns labels that tell keys apart, and what all keys share.

  [("vpt", "eurosat"), ("vapt", "eurosat")] -> (["vpt", "vapt"], "eurosat")

  Args:
    keys: all of one length.
  """
  labels: list[list[str]] = [[] for _ in keys]
  shared = []
  for column in zip(*keys, strict=True):
    if len(set(column)) == 1:
      shared.append(column[0])
      continue
    for label, part in zip(labels, column, strict=True):
      label.append(part)
  return [", ".join(label) for label in labels], ", ".join(shared)
