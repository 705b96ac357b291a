"""A linear classifier on the pixels of the embedded digits, as a baseline.

python -m tests.pixel_probe
"""

from sklearn.linear_model import LogisticRegression

from tests import images as images_lib


def main() -> None:
  read = lambda split: images_lib.load(
    "digits", split, folder="", image_size=(8, 8)
  )
  flat = lambda part: part.images.reshape(len(part), -1) / 255
  train, val, test = read("train"), read("val"), read("test")
  scores = {}
  for c in (0.01, 0.1, 1, 10, 100):
    probe = LogisticRegression(C=c, max_iter=5000)
    scores[
      probe.fit(flat(train), train.labels).score(flat(val), val.labels)
    ] = c
  best = LogisticRegression(C=scores[max(scores)], max_iter=5000)
  both = read("trainval")
  top1 = best.fit(flat(both), both.labels).score(flat(test), test.labels)
  print(
    f"logistic regression on pixels, C={scores[max(scores)]} (chosen on "
    f"the validation images): {100 * top1:.2f} % of {len(test)} test images"
  )


if __name__ == "__main__":
  main()
