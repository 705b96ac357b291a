"""Labels every pixel of images with a saved adapter, and writes label maps."""

from collections import deque
from collections.abc import Iterator, Sequence
import io
import os
from pathlib import Path
from typing import Any, cast

import jax
from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from vpt_jax import model as model_lib
from vpt_jax import problems
from vpt_jax.data import mask_pictures
from vpt_jax.data.sources.masks import Colour
from vpt_jax.data.transforms import decode
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import processes
from vpt_jax.serving import inputs
from vpt_jax.training.adapter_files import AdapterMeta
from vpt_jax.training.dense_evaluation import map_names
from vpt_jax.training.labelling import Labeller, Seen, Variables
from vpt_jax.utils import csv_texts, files, texts

OVERLAYS = "overlays"  # folder of the images with the classes' colours
SHARES = "shares.csv"  # of each image's pixels, which share each class has


class MapPredictor:
  """Predicts the class of every pixel of images with a saved adapter.

  Images are decoded, turned upright, resized and cut into windows as those on
  which the run was evaluated, so that the same files get the same label maps.

  Attributes:
    meta: what the file says of the run.
    preprocess: how images are decoded and normalised.
    class_names: K, in the order of the labels; numbers as text where the
      classes have no names.
    palette: colours in which label maps are drawn, K or more; []: as Pascal VOC
      numbers them.
  """

  def __init__(
    self,
    model: model_lib.Model,
    variables: Variables,
    meta: AdapterMeta,
    preprocess: Preprocess,
  ):
    config = ConfigDict(meta.config)
    problem = problems.from_config(config, meta.num_classes)
    self.meta = meta.to_json()
    self.preprocess = preprocess
    self.class_names = meta.classes
    self.palette: list[Colour] = []
    for red, green, blue in meta.palette or ():
      self.palette.append((red, green, blue))
    self._variables = variables
    self._precision = config.compute.matmul_precision
    self._labeller = Labeller(
      model, cast(problems.Segmentation, problem), Seen.from_config(config)
    )

  def __call__(
    self, images: Any, grey: bool = False, multi_scale: bool = False
  ) -> np.ndarray | list[np.ndarray]:
    """Returns label maps, each of its image's own size.

    Args:
      images: one image or several, see `Predictor`.
      grey: an array [N, H, W] is a stack of grey images.
      multi_scale: see each image at several scales, as the run's second test
        did; `config.segmentation.multi_scale` says in which form.

    Returns:
      uint8 [H, W] of one image, [N, H, W] of an array of several; of a list of
      several a list, as images may have any sizes. Every pixel has a class.

    Raises:
      ValueError: an image that cannot be read, an array of another shape,
        several scales where the run had none, or a process that was forked
        after the adapter was loaded.
    """
    self._check(multi_scale)
    parts, is_single = inputs.split_images(images, grey)
    maps = []
    with jax.default_matmul_precision(self._precision):
      for _, labels in self._labelled(parts, multi_scale):
        maps.append(labels)
    if is_single:
      return maps[0]
    if isinstance(images, list | tuple):
      return maps
    return np.stack(maps)

  def save(
    self,
    images: Any,
    folder: str | os.PathLike,
    *,
    grey: bool = False,
    multi_scale: bool = False,
    overlays: bool = False,
  ) -> list[Path]:
    """Writes the label map of each image, as a PNG in the classes' colours.

    A map has its image's name, `photo.png` of `photo.jpg`; where two images
    have the same one, or an image is an array, it has a number. Its pixels are
    the labels. `shares.csv` says which share of each image's pixels each class
    has. One image after the other is read, so that there may be many.

    Args:
      images: see `__call__`.
      folder: that is written to; made if it is not there.
      grey: see `__call__`.
      multi_scale: likewise.
      overlays: write the images with the classes' colours over them, too, into
        `overlays/`.

    Returns:
      The paths of the label maps, in the order of the images.

    Raises:
      ValueError: see `__call__`; or a map would take the place of an image.
    """
    self._check(multi_scale)
    parts, _ = inputs.split_images(images, grey)
    names = [_name_of(image, i) for i, image in enumerate(parts)]
    folder = Path(folder).expanduser()
    paths = [folder / f"{stem}.png" for stem in map_names(names)]
    written = list(paths)
    if overlays:
      written += [folder / OVERLAYS / path.name for path in paths]
    _check_takes_no_place(parts, written)
    rows: list[list[Any]] = []
    with jax.default_matmul_precision(self._precision):
      for name, path, (image, labels) in zip(
        names, paths, self._labelled(parts, multi_scale), strict=True
      ):
        png = mask_pictures.palette_png(labels, self.palette)
        files.write_atomic(path, png)
        if overlays:
          over = mask_pictures.overlay(image, labels, self.palette)
          files.write_atomic(folder / OVERLAYS / path.name, _png(over))
        rows.append([texts.printable(name), path.name, *self._shares(labels)])
    header = ["image", "map", *map(texts.printable, self.class_names)]
    table = csv_texts.lines([header, *rows])
    files.write_atomic(folder / SHARES, table.encode())
    return paths

  def _check(self, multi_scale: bool) -> None:
    """Raises ValueError where nothing can be predicted."""
    processes.check_not_forked()
    if multi_scale and not self._labeller.seen.multi_scale:
      raise ValueError(
        "multi_scale=True: the run of this adapter names no form of it "
        "(config.segmentation.multi_scale=''); leave multi_scale out, or train "
        "with config.segmentation.multi_scale=setr, scale or own"
      )

  def _labelled(
    self, images: Sequence[inputs.OneImage], multi_scale: bool
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (uint8 [H, W, 3], its label map uint8 [H, W]), in order."""
    waiting: deque[np.ndarray] = deque()  # images whose windows are computed

    def decoded() -> Iterator[np.ndarray]:
      for image in images:
        waiting.append(self._read(image, multi_scale))
        yield waiting[-1]

    for canvas in self._labeller(self._variables, decoded(), multi_scale):
      yield waiting.popleft(), canvas.label_map().astype(np.uint8)

  def _read(self, image: inputs.OneImage, multi_scale: bool) -> np.ndarray:
    """Returns an image, uint8 [H, W, 3], as it was stored.

    Raises:
      ValueError: it cannot be read, or would be seen at far too large a size.
    """
    with inputs.reading(image):
      decoded = inputs.decode_image(image, self.preprocess)
      height, width, channels = decoded.shape
      for size in self._labeller.seen.sizes((height, width), multi_scale):
        decode.check_sides(size[1], size[0])
    return decoded if channels == 3 else np.repeat(decoded, 3, axis=-1)

  def _shares(self, labels: np.ndarray) -> list[str]:
    """Returns the share of the pixels that each class has, as texts."""
    pixels = np.bincount(labels.reshape(-1), minlength=len(self.class_names))
    return [f"{share:.6f}" for share in (pixels / labels.size).tolist()]


def _name_of(image: inputs.OneImage, number: int) -> str:
  """Returns the name of an image: its path, or a number if it has none."""
  path = _path_of(image)
  return path or f"image_{number}.png"


def _path_of(image: inputs.OneImage) -> str:
  """Returns the path of an image's file; "": it is not known."""
  if isinstance(image, Image.Image):
    image = getattr(image, "filename", "")
  if isinstance(image, str | os.PathLike):
    return os.fspath(image)
  return ""


def _check_takes_no_place(
  images: Sequence[inputs.OneImage], paths: Sequence[Path]
) -> None:
  """Raises ValueError if a label map would be written over an image."""
  own = set()
  for source in filter(None, map(_path_of, images)):
    if os.path.exists(source):
      own.add(_file_of(source))
  for path in paths:
    if path.exists() and _file_of(path) in own:
      raise ValueError(
        f"{path} would be written over, and is one of the images; choose "
        "another folder than theirs"
      )


def _file_of(path: str | os.PathLike) -> tuple[int, int]:
  """Returns what tells a file from others, whatever path leads to it."""
  stat = os.stat(path)
  return stat.st_dev, stat.st_ino


def _png(image: np.ndarray) -> bytes:
  """Returns an image as a PNG."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG")
  return buffer.getvalue()
