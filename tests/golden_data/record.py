"""Makes the values that test_resize.py and test_views.py compare with.

  python tests/golden_data/record.py tensorflow    (TensorFlow 2.21)
  python tests/golden_data/record.py torchvision   (torchvision 0.28, Pillow 13)

Only the other library's results are recorded, on `pattern` images.
"""

import collections
import hashlib
from pathlib import Path
import sys

import numpy as np

HERE = Path(__file__).parent

# (H, W) -> (height, width): up, down, both at once, and sides of one pixel.
TF_SHAPES = [
  ((1, 1), (5, 7)),
  ((1, 9), (6, 4)),
  ((11, 1), (4, 4)),
  ((2, 2), (9, 9)),
  ((8, 8), (16, 16)),
  ((8, 8), (18, 18)),
  ((7, 5), (7, 5)),
  ((5, 7), (7, 5)),
  ((16, 16), (8, 8)),
  ((32, 32), (14, 14)),
  ((64, 64), (9, 9)),
  ((13, 29), (17, 6)),
  ((29, 13), (6, 17)),
  ((33, 47), (16, 16)),
  ((97, 61), (12, 12)),
  ((61, 97), (12, 13)),
  ((40, 3), (8, 8)),
  ((3, 40), (8, 20)),
  ((500, 375), (14, 14)),
  ((17, 19), (1, 1)),
]

# (H, W), shorter side, crop.
RESIZE_CROP = [
  ((30, 40), 16, (14, 14)),
  ((40, 30), 16, (14, 14)),
  ((33, 47), 16, (14, 14)),
  ((47, 33), 17, (14, 14)),
  ((16, 21), 16, (16, 16)),
  ((9, 13), 24, (21, 21)),
  ((1, 1), 8, (7, 7)),
  ((1, 5), 8, (7, 7)),
  ((100, 3), 6, (6, 5)),
  ((20, 20), 10, (10, 10)),
  ((20, 30), 8, (12, 9)),
  ((31, 20), 8, (9, 15)),
]
# The same at sizes of papers: only a digest is kept.
RESIZE_CROP_LARGE = [
  ((375, 500), 256, (224, 224)),
  ((500, 333), 256, (224, 224)),
  ((333, 500), 512, (448, 448)),
  ((640, 427), 438, (384, 384)),
  ((64, 64), 224, (224, 224)),
  ((320, 480), 224, (224, 224)),
]
SQUASH = [
  ((30, 40), (14, 14)),
  ((40, 30), (14, 14)),
  ((32, 32), (20, 20)),
  ((30, 41), (14, 14)),
  ((41, 30), (14, 14)),
  ((20, 50), (12, 12)),
  ((50, 20), (12, 12)),
  ((31, 77), (12, 12)),
  ((1, 1), (6, 6)),
  ((1, 30), (6, 6)),
  ((23, 29), (23, 29)),
  ((12, 14), (9, 20)),
]

COLOUR_SHAPE = (16, 20)
BLENDS = (0.0, 0.6, 0.85, 1.0, 1.4)
TURNS = (-0.4, -0.11, 0.0, 0.25, 0.4)
# Rectangles (top, left, height, width) of a square image of SQUARE pixels.
SQUARE = 24
RECTANGLES = [
  (0, 0, 24, 24),
  (3, 5, 12, 15),
  (10, 0, 7, 9),
  (0, 11, 22, 13),
  (23, 23, 1, 1),
]


def pattern(height, width):
  """uint8 [H, W, 3] with every hue, steps and slopes; the same everywhere."""
  i, j, c = np.ogrid[:height, :width, :3]
  return (
    (5 * i * i + 3 * j * j + 7 * i * j + 11 * j + 90 * c * (1 + i + j))
    // (3 + c)
    % 256
  ).astype(np.uint8)


def colourful():
  """A `pattern` in which some pixels are grey, black, white or pure."""
  image = pattern(*COLOUR_SHAPE).copy()
  image[0, :8] = np.array(
    [
      [0, 0, 0],
      [255] * 3,
      [77] * 3,
      [255, 0, 0],
      [0, 255, 0],
      [0, 0, 255],
      [255, 255, 0],
      [127, 128, 129],
    ]
  )
  return image


def digest(image):
  return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()


def tensorflow():
  import tensorflow as tf

  return {
    f"resize_{i}": tf.image.resize(
      pattern(*shape), size, method="bilinear", antialias=False
    ).numpy()
    for i, (shape, size) in enumerate(TF_SHAPES)
  }


def torchvision():
  import torch

  # A wheel for CUDA misses two operators beside a torch for CPUs.
  library = torch.library.Library("torchvision", "FRAGMENT")
  for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
  from PIL import Image
  from torchvision import transforms as T
  from torchvision.transforms import functional as F

  out = {}

  def resized(shape, side, size):
    image = T.Resize(side)(Image.fromarray(pattern(*shape)))
    return np.asarray(T.CenterCrop(size)(image))

  for i, case in enumerate(RESIZE_CROP):
    out[f"resize_crop_{i}"] = resized(*case)
  out["resize_crop_large"] = np.array(
    [digest(resized(*case)) for case in RESIZE_CROP_LARGE]
  )

  for i, (shape, size) in enumerate(SQUASH):
    image = Image.fromarray(pattern(*shape))
    for mode in ("bilinear", "bicubic"):
      crop = T.RandomResizedCrop(
        size, scale=(1, 1), interpolation=T.InterpolationMode(mode)
      )
      torch.manual_seed(0)
      seen = collections.Counter(
        crop.get_params(image, crop.scale, crop.ratio) for _ in range(300)
      )
      ((box, count),) = seen.most_common(1)
      sys.stdout.write(f"squash {shape} {count / 300:.0%} {box}\n")
      out[f"squash_{mode}_{i}"] = np.asarray(
        F.resized_crop(image, *box, crop.size, crop.interpolation)
      )

  image = Image.fromarray(colourful())
  tensor = F.to_tensor(image)

  def both(name, function):
    """Records what a function does to the image of Pillow and to the tensor."""
    out[f"{name}_pil"] = np.asarray(function(image))
    out[f"{name}_float"] = function(tensor).permute(1, 2, 0).numpy()

  for i, factor in enumerate(BLENDS):
    both(f"brightness_{i}", lambda x: F.adjust_brightness(x, factor))
    both(f"contrast_{i}", lambda x: F.adjust_contrast(x, factor))
    both(f"saturation_{i}", lambda x: F.adjust_saturation(x, factor))
  for i, turn in enumerate(TURNS):
    both(f"hue_{i}", lambda x: F.adjust_hue(x, turn))
  both("grey", lambda x: F.rgb_to_grayscale(x, 3))
  out["solarize_pil"] = np.asarray(F.solarize(image, 128))
  # All four, in an order that is not theirs.
  both(
    "jitter",
    lambda x: F.adjust_contrast(
      F.adjust_brightness(F.adjust_hue(F.adjust_saturation(x, 1.3), 0.3), 0.7),
      1.2,
    ),
  )

  square = Image.fromarray(pattern(SQUARE, SQUARE))
  for i, box in enumerate(RECTANGLES):
    out[f"rectangle_{i}"] = np.asarray(
      F.resized_crop(
        square, *box, [SQUARE, SQUARE], T.InterpolationMode.BICUBIC
      )
    )
  return out


if __name__ == "__main__":
  record = {"tensorflow": tensorflow, "torchvision": torchvision}[sys.argv[1]]
  np.savez_compressed(HERE / f"{sys.argv[1]}.npz", **record())
