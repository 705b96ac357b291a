"""A tiny run of segmentation that the tests of serving and analysis share."""

from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from tests.conftest import small_config

SIZES = ((16, 16), (13, 37), (40, 21), (9, 30))  # of images, height and width
NAMES = ("ground", "=2+2")  # a spreadsheet would compute the second
CLASSES = len(NAMES)


def scene(seed, size):
  """An image of noise whose right side is bright, and its label map."""
  rng = np.random.default_rng(seed)
  height, width = size
  image = rng.integers(0, 150, (height, width, 3), dtype=np.uint8)
  labels = np.zeros(size, np.uint8)
  edge = int(rng.integers(width // 4, width // 2))
  image[:, edge:] += 60
  labels[:, edge:] = 1
  return image, labels


def write_scenes(folder):
  """A `segfolder:`; one test image is on its side, one is grey."""
  for number, part in enumerate(("train", "val", "test")):
    for i, size in enumerate(SIZES):
      image, labels = scene(10 * number + i, size)
      exif = Image.Exif()
      if part == "test" and i == 1:
        exif[0x0112] = 6  # the file holds it turned by a quarter
        image = np.rot90(image)
      if part == "test" and i == 2:
        image = image[..., 0]
      for kind, pixels in (("images", image), ("masks", labels)):
        path = folder / part / kind / f"scene {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        of_file = {"exif": exif} if kind == "images" else {}
        Image.fromarray(pixels).save(path, **of_file)
  (folder / "classes.txt").write_text("\n".join(NAMES))
  return folder


def dense_config(folder, method="vpt"):
  """The config of a run on such a folder: seconds."""
  config = small_config()
  config.problem = "segmentation"
  config.method = method
  config.task = ""
  config.data.source = f"segfolder:{folder}"
  config.image_size = 16
  config.batch_size = 4
  config.epochs = 2
  config.optim.warmup_epochs = 0
  config.optim.policies = (("head/.*", {"lr": 10.0}), (".*", {}))
  config.segmentation = ConfigDict(
    {
      "decoder": "linear",
      "auxiliary": "",
      "scale": (40, 24),
      "test_scale": (40, 24),
      "multi_scale": "setr",
      "test_factors": (1.0, 1.5),
    }
  )
  return config
