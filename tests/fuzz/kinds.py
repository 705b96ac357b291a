"""Defines what is mutated: sound files of every kind, and who reads them."""

from pathlib import Path
import shutil
from typing import Any, Protocol

from flax import serialization
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
import safetensors.numpy

from tests import weight_files
from tests.fuzz import mutations
from tests.fuzz.masks_kind import Masks
from tests.fuzz.outcomes import judge, Outcome
from tests.fuzz.own_state import any_file, damage, make_run, OwnState
from tests.serving import dense_run
from vpt_jax import main
from vpt_jax.backbones.vit import ViT
from vpt_jax.data import datasets
from vpt_jax.data.transforms import decode
from vpt_jax.nn import cost
from vpt_jax.serving import predictor
from vpt_jax.training import adapter_files
from vpt_jax.utils import trees
from vpt_jax.weights import load

Arrays = dict[str, np.ndarray]


class Kind(Protocol):
  """A kind of files: makes sound ones, and reads mutated ones."""

  def make(self, folder: Path) -> None:
    """Writes the sound files into a folder, once."""

  def open(self, folder: Path, scratch: Path) -> None:
    """Reads the sound files.

    Args:
      folder: that `make` wrote to.
      scratch: of this process, for mutated files.
    """

  def run(self, rng: np.random.Generator) -> Outcome:
    """Mutates a file, and says what reading it leads to."""


def same_arrays(got: Arrays, want: Arrays) -> bool:
  """Returns whether names, shapes and all bits are the same."""
  if got.keys() != want.keys():
    return False
  for name, array in got.items():
    if array.shape != want[name].shape:
      return False
    if array.tobytes() != np.asarray(want[name], array.dtype).tobytes():
      return False
  return True


class Checkpoints:
  """Weights of a backbone, in all formats of files."""

  # Zip files have a checksum for each entry.
  SEALED = ("npz", "packed.npz", "zip.pth")

  def __init__(self):
    self._model = ViT(
      (8, 8), patch_size=4, width=16, depth=2, num_heads=2, mlp_dim=32
    )
    self._template = cost.shapes(self._model)
    self._files: dict[str, bytes] = {}
    self._want: Arrays = {}
    self._orbax = Path()
    self._scratch = Path()

  def make(self, folder: Path) -> None:
    rng = np.random.default_rng(0)
    flat = {}
    for name, leaf in self._template.items():
      flat[name] = rng.normal(size=leaf.shape).astype(np.float32)
    np.savez(folder / "npz", **flat)
    (folder / "npz.npz").rename(folder / "npz")
    np.savez_compressed(folder / "packed", **flat)
    (folder / "float32.safetensors").write_bytes(safetensors.numpy.save(flat))
    tree = trees.unflatten(flat)
    (folder / "flax.msgpack").write_bytes(serialization.to_bytes(tree))
    parts = _torch_parts(flat)
    (folder / "zip.pth").write_bytes(weight_files.torch_zip(parts))
    (folder / "legacy.pth").write_bytes(weight_files.torch_legacy(parts))
    ocp.PyTreeCheckpointer().save((folder / "orbax").absolute(), flat)

  def open(self, folder: Path, scratch: Path) -> None:
    for path in sorted(folder.iterdir()):
      if path.is_file():
        self._files[path.name] = path.read_bytes()
    self._orbax = folder / "orbax"
    self._want = self._load(folder / "npz")
    self._scratch = scratch

  def run(self, rng: np.random.Generator) -> Outcome:
    name = str(rng.choice([*self._files, "orbax"]))
    if name == "orbax":
      return self._run_folder(rng)
    data = self._files[name]
    is_sealed = name in self.SEALED
    if name == "npz" and rng.random() < 0.4:
      data = mutations.mutate_npz(data, rng)
      is_sealed = False
    else:
      data = mutations.mutate_bytes(data, rng)
    path = self._scratch / name
    path.write_bytes(data)
    return judge(
      lambda: same_arrays(self._load(path), self._want), str(path), is_sealed
    )

  def _run_folder(self, rng: np.random.Generator) -> Outcome:
    """Mutates a file of a folder; of these only some have checksums."""
    path = self._scratch / "orbax"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(self._orbax, path)
    damage(any_file(path, rng), rng)
    return judge(lambda: same_arrays(self._load(path), self._want), str(path))

  def _load(self, path: Path) -> Arrays:
    return load.load(path, self._template, self._model.spec).backbone


def _torch_parts(flat: Arrays) -> dict[str, bytes]:
  """Returns the parts of a PyTorch file, see `weight_files`."""
  tensors = {}
  parts = {}
  for number, (name, array) in enumerate(flat.items()):
    strides = [stride // 4 for stride in array.strides]
    tensors[name] = weight_files.tensor(
      str(number), array.size, array.shape, tuple(strides)
    )
    parts[f"data/{number}"] = array.tobytes()
  return {"data.pkl": weight_files.pickled(tensors), **parts}


class Images:
  """Image files; only PNG has checksums."""

  def __init__(self):
    self._files: dict[str, bytes] = {}
    self._want: dict[str, np.ndarray] = {}

  def make(self, folder: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(256, size=(6, 5, 3), dtype=np.uint8))
    colour = coarse.resize((40, 48), Image.Resampling.BICUBIC)
    deep = np.asarray(colour.convert("L")).astype(np.uint16) * 16
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "a.jpg", exif=exif, quality=90)
    colour.save(folder / "progressive.jpg", progressive=True)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.save(folder / "a.png")
    colour.convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(deep).save(folder / "deep.png")
    colour.convert("P").save(folder / "a.gif")
    colour.save(folder / "a.bmp")
    colour.save(folder / "a.webp")
    colour.save(folder / "lossless.webp", lossless=True)
    colour.save(folder / "a.tif", compression="tiff_lzw")
    Image.fromarray(deep).save(folder / "deep.tif")
    colour.save(folder / "a.ppm")
    colour.save(folder / "a.jp2")

  def open(self, folder: Path, scratch: Path) -> None:
    del scratch  # images are decoded from memory
    for path in sorted(folder.iterdir()):
      self._files[path.name] = path.read_bytes()
      self._want[path.name] = decode.decode_image(path.read_bytes())

  def run(self, rng: np.random.Generator) -> Outcome:
    name = str(rng.choice(list(self._files)))
    data = mutations.mutate_bytes(self._files[name], rng)

    def read() -> bool:
      got = decode.decode_image(data)
      return np.array_equal(got, self._want[name])

    # Who calls knows the file's name, and adds it.
    return judge(read, "", is_sealed=name.endswith(".png"))


class NpzData:
  """Images and labels of a user, as `data.source=npz:PATH`."""

  def __init__(self):
    self._data = b""
    self._want: tuple[list[bytes], list[int], list[str]] | None = None
    self._scratch = Path()

  def make(self, folder: Path) -> None:
    rng = np.random.default_rng(0)
    count = 24
    np.savez(
      folder / "data.npz",
      images=rng.integers(256, size=(count, 8, 8, 3), dtype=np.uint8),
      labels=np.arange(count) % 3,
      split=np.array(["train"] * 12 + ["val"] * 4 + ["test"] * 8),
    )

  def open(self, folder: Path, scratch: Path) -> None:
    self._data = (folder / "data.npz").read_bytes()
    self._want = self._content(folder / "data.npz")
    self._scratch = scratch

  def run(self, rng: np.random.Generator) -> Outcome:
    is_sealed = rng.random() < 0.5
    change = mutations.mutate_bytes if is_sealed else mutations.mutate_npz
    path = self._scratch / "data.npz"
    path.write_bytes(change(self._data, rng))
    return judge(
      lambda: self._content(path) == self._want, str(path), is_sealed
    )

  def _content(self, path: Path) -> tuple[list[bytes], list[int], list[str]]:
    """Returns all images, labels and names that a training would get."""
    images = []
    labels = []
    names = []
    for split in ("train", "val", "test"):
      examples = datasets.open_split("own", split, source=f"npz:{path}")
      for i in range(len(examples)):
        images.append(bytes(examples.read(i)))
      labels.extend(examples.labels.tolist())
      names.extend(examples.names)
    return images, labels, names


class Adapters:
  """Adapter files, as people pass them on."""

  def __init__(self):
    self._data = b""
    self._want: tuple[Any, ...] = ()
    self._scratch = Path()

  def make(self, folder: Path) -> None:
    make_run(folder)

  def open(self, folder: Path, scratch: Path) -> None:
    path = folder / "run" / "adapter.npz"
    self._data = path.read_bytes()
    self._want = self._content(path)
    self._scratch = scratch

  def run(self, rng: np.random.Generator) -> Outcome:
    is_sealed = rng.random() < 0.4
    if is_sealed:
      data = mutations.mutate_bytes(self._data, rng)
    else:
      data = mutations.mutate_npz(self._data, rng, texts=("meta",))
    path = self._scratch / "adapter.npz"
    path.write_bytes(data)
    return judge(lambda: self._is_same(path), str(path), is_sealed)

  def _is_same(self, path: Path) -> bool:
    """Reads a file, and builds its model if it says something else."""
    content = self._content(path)
    is_same = same_arrays(content[0], self._want[0])
    if is_same and content[1] == self._want[1]:
      return True
    images = np.zeros((2, 8, 8, 3), np.uint8)
    predictor.load_adapter(path)(images)
    return False

  def _content(self, path: Path) -> tuple[Arrays, Any]:
    arrays, meta = adapter_files.read_adapter(path)
    return dict(arrays), meta.to_json()


class MapAdapters(Adapters):
  """Adapter files of segmentation, which give label maps."""

  def make(self, folder: Path) -> None:
    dense_run.write_scenes(folder / "data")
    main.run(dense_run.dense_config(folder / "data"), folder / "run")

  def _is_same(self, path: Path) -> bool:
    content = self._content(path)
    is_same = same_arrays(content[0], self._want[0])
    if is_same and content[1] == self._want[1]:
      return True
    predict = predictor.load_adapter(path)
    try:
      predict(np.zeros((2, 8, 8, 3), np.uint8))
    except ValueError as error:
      # Such as a scale at which these images would be huge: of them, not of
      # the file.
      if type(error) is not ValueError:
        raise
    return False


KINDS: dict[str, type] = {
  "checkpoints": Checkpoints,
  "images": Images,
  "masks": Masks,
  "npz": NpzData,
  "adapters": Adapters,
  "map_adapters": MapAdapters,
  "state": OwnState,
}
