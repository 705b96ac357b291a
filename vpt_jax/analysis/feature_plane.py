"""Draws the features of test images in the plane, by t-SNE or PCA."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter, Images

METHODS = ("tsne", "pca")
MOST_NAMES = 70  # pairs of colour and marker
LEAST_IMAGES = 4
LARGEST_PERPLEXITY = 30


def plane(
  features: np.ndarray, method: str, seed: int
) -> tuple[np.ndarray, list[str]]:
  """Returns points [N, 2], and what the two axes are.

  Args:
    features: [N, D], N > 3.
    method: `tsne` (van der Maaten and Hinton 2008; it starts from PCA and has
      perplexity 30, less for few images) or `pca`.
    seed: of t-SNE.
  """
  if method == "pca":
    from sklearn.decomposition import PCA

    pca = PCA(2)
    points = pca.fit_transform(features)
    axis_names = []
    for i, share in enumerate(pca.explained_variance_ratio_):
      axis_names.append(
        f"component {i + 1} ({100 * share:.0f} % of the variance)"
      )
    return points, axis_names
  from sklearn.manifold import TSNE

  perplexity = min(LARGEST_PERPLEXITY, (len(features) - 1) / 3)
  tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
  return tsne.fit_transform(features), ["t-SNE 1", "t-SNE 2"]


def nearest_neighbour(features: np.ndarray, labels: np.ndarray) -> float:
  """Returns how many images' nearest other one has their label, in percent.

  Args:
    features: [N, D], compared by Euclidean distance.
    labels: [N].
  """
  from sklearn.neighbors import NearestNeighbors

  search = NearestNeighbors(n_neighbors=1).fit(features)
  # Without an argument an image is not its own neighbour.
  nearest = search.kneighbors(return_distance=False)[:, 0]
  same = labels[nearest] == labels
  return float(100 * same.mean())


def draw(adapter: Adapter, method: str, count: int, seed: int, to: Path) -> str:
  """Draws the features of test images, coloured by class.

  Args:
    adapter: any.
    method: see `plane`.
    count: test images, drawn at random; 0: all.
    seed: of the choice and of t-SNE.
    to: the PNG.

  Returns:
    A summary for the terminal.

  Raises:
    ValueError: too few images, or images of several classes each.
  """
  if adapter.problem.multi_label:
    raise ValueError(
      f"{adapter.path}: images of this problem, {adapter.problem.name!r}, have "
      "several classes each, so that features cannot be coloured by class; use "
      "an adapter of 'classification'"
    )
  images = subject.test(adapter, count, seed)
  labels = np.asarray(images.labels)  # Those of test images are known.
  if len(labels) < LEAST_IMAGES:
    raise ValueError(f"{len(labels)} images; expected at least {LEAST_IMAGES}")
  features = _features(adapter, images)
  points, axis_names = plane(features, method, seed)
  accuracy = nearest_neighbour(features, labels)
  names = images.class_names
  if not names:
    names = tuple(str(k) for k in range(labels.max() + 1))

  title = (
    f"{adapter.title}\nPooled features of {len(labels)} test images; "
    f"{accuracy:.1f} % of nearest neighbours have the same class"
  )
  with figures.figure(to, 8.6, 5.6, "") as fig:
    axes = fig.subplots()
    axes.set(title=title, xlabel=axis_names[0], ylabel=axis_names[1])
    shown = _draw_points(axes, points, labels, names)
    if shown <= MOST_NAMES:
      fig.legend(loc="outside right upper", ncols=1 + shown // 25)
  class_names = [names[label] for label in labels]
  header = ["image", "label", "class", "x", "y"]
  columns = (images.names, labels, class_names, points[:, 0], points[:, 1])
  figures.write_csv(to, header, zip(*columns, strict=True))
  return f"nearest neighbour of the same class: {accuracy:.2f} %"


def _features(adapter: Adapter, images: Images) -> np.ndarray:
  """Returns what the head reads of each image, [N, D]."""
  model = adapter.model

  def features(variables, image):
    return model.apply(variables, image, method=model.features)

  return subject.run(adapter, features, images.pixels)


def _draw_points(
  axes: Any, points: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> int:
  """Draws the images of each class; returns how many classes there are."""
  shown = np.unique(labels)
  for n, label in enumerate(shown):
    x, y = points[labels == label].T
    axes.scatter(
      x,
      y,
      s=16,
      lw=0,
      alpha=0.85,
      marker=figures.marker(n),
      color=figures.colour(n),
      label=names[label],
    )
  return len(shown)
