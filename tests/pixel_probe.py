"""Trains a linear classifier on the pixels of the digits, as a baseline.

python -m tests.pixel_probe
"""

import numpy as np
from sklearn.linear_model import LogisticRegression

from tests import images as images_lib

STRENGTHS = (0.01, 0.1, 1, 10, 100)  # C, the inverse of regularisation


def pixels_of(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (pixels [N, 64 * 3] in [0, 1], labels [N]) of a split."""
  part = images_lib.load("digits", split, folder="", image_size=(8, 8))
  return part.images.reshape(len(part), -1) / 255, part.labels


def top1(strength: float, train: str, test: str) -> tuple[float, int]:
  """Returns the share of `test` that is right after `train`, and its size."""
  probe = LogisticRegression(C=strength, max_iter=5000)
  probe.fit(*pixels_of(train))
  pixels, labels = pixels_of(test)
  return probe.score(pixels, labels), len(labels)


def main() -> None:
  """Chooses C on the validation images, and prints the score of the test's."""
  scores = {}
  for strength in STRENGTHS:
    scores[strength], _ = top1(strength, "train", "val")
  # Of equal ones the last, the least regularised.
  best = max(STRENGTHS, key=lambda strength: (scores[strength], strength))
  share, count = top1(best, "trainval", "test")
  print(
    f"logistic regression on pixels, C={best} (chosen on "
    f"the validation images): {100 * share:.2f} % of {count} test images"
  )


if __name__ == "__main__":
  main()
