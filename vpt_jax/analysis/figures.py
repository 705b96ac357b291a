"""How figures look, and how they are written: a PNG and its numbers as CSV."""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import csv
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpt_jax.utils import files

DPI = 100
WIDEST = 11.5  # inches

# The colour-blind tell them apart: Okabe and Ito's without yellow, then three
# like Tol's.
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

STYLE = {
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
  """The path of a figure, before anything is computed for it.

  Raises:
    ValueError: it is no PNG, or nothing can draw it.
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


@contextlib.contextmanager
def figure(
  path: Path, width: float, height: float, title: str
) -> Iterator[Any]:
  """A figure to draw on, written to `path` when all is drawn.

  Drawn without a display, and without pyplot: nothing stays behind in the
  process.

  Args:
    path: of the PNG.
    width, height: inches.
    title: above all, or "".
  """
  import matplotlib  # slow, and not needed by any other part
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
  packed = io.BytesIO()  # a quarter of the size, hardly a difference to the eye
  Image.open(drawn).convert("RGB").quantize(128, kmeans=1).save(
    packed, "PNG", optimize=True
  )
  files.write_atomic(path, packed.getvalue())


def table(
  path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes the numbers of a figure beside it, as CSV."""
  out = io.StringIO()
  write = csv.writer(out, lineterminator="\n").writerow
  write(header)
  for row in rows:
    write(
      [
        f"{cell:.6g}" if isinstance(cell, (float, np.floating)) else cell
        for cell in row
      ]
    )
  files.write_atomic(path.with_suffix(".csv"), out.getvalue().encode())


def colour(i: int) -> str:
  """Of line i; `marker` tells apart those that share one."""
  return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
  """Of line i; the pairs of colour and marker repeat after 70."""
  return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def picture(
  axes: Any, image: np.ndarray, title: str = "", heat: np.ndarray | None = None
) -> None:
  """Draws an image [H, W, 3] in [0, 1], and a map over it.

  Args:
    axes: to draw on.
    image: what lies below.
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
  most = heat.max() or 1.0
  axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=1, extent=extent)
  axes.imshow(
    heat,
    cmap=HEAT,
    vmin=0,
    vmax=most,
    extent=extent,
    alpha=0.25 + 0.55 * np.clip(heat / most, 0, 1),
    interpolation="bilinear",
  )


def apart(keys: Sequence[Sequence[str]]) -> tuple[list[str], str]:
  """(what tells keys of equal length apart, what they share).

  [("vpt", "eurosat"), ("vapt", "eurosat")] -> (["vpt", "vapt"], "eurosat")
  """
  differs = [len(set(column)) > 1 for column in zip(*keys)]
  join = lambda key, which: ", ".join(
    part for part, differ in zip(key, differs) if differ == which
  )
  return [join(key, True) for key in keys], join(keys[0], False)
