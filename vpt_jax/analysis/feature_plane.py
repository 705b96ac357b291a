"""The features of test images in the plane, by t-SNE or PCA."""

from pathlib import Path

import numpy as np

from vpt_jax.analysis import figures, subject
from vpt_jax.analysis.subject import Adapter

METHODS = ("tsne", "pca")
MOST_NAMES = 70  # pairs of colour and marker


def plane(
  features: np.ndarray, method: str, seed: int
) -> tuple[np.ndarray, list[str]]:
  """Features [N, D] -> (points [N, 2], what the axes are).

  Args:
    features: N > 3.
    method: `tsne` (van der Maaten and Hinton 2008; it starts from PCA and has
      perplexity 30, less for few images) or `pca`.
    seed: of t-SNE.
  """
  if method == "pca":
    from sklearn.decomposition import PCA

    pca = PCA(2)
    points = pca.fit_transform(features)
    return points, [
      f"component {i + 1} ({100 * share:.0f} % of the variance)"
      for i, share in enumerate(pca.explained_variance_ratio_)
    ]
  from sklearn.manifold import TSNE

  return TSNE(
    2,
    perplexity=min(30, (len(features) - 1) / 3),
    init="pca",
    random_state=seed,
  ).fit_transform(features), ["t-SNE 1", "t-SNE 2"]


def nearest_neighbour(features: np.ndarray, labels: np.ndarray) -> float:
  """Percent of images whose nearest other one (Euclid) has their label."""
  from sklearn.neighbors import NearestNeighbors

  # Without an argument an image is not its own neighbour.
  nearest = (
    NearestNeighbors(n_neighbors=1)
    .fit(features)
    .kneighbors(return_distance=False)[:, 0]
  )
  return float(100 * (labels[nearest] == labels).mean())


def draw(adapter: Adapter, method: str, count: int, seed: int, to: Path) -> str:
  """Features of test images, coloured by class.

  Args:
    adapter: any.
    method: see `plane`.
    count: test images, drawn at random; 0: all.
    seed: of the choice and of t-SNE.
    to: the PNG.

  Raises:
    ValueError: too few images.
  """
  images = subject.test(adapter, count, seed)
  labels = images.labels
  if len(labels) < 4:
    raise ValueError(f"{len(labels)} images; expected at least 4")
  model = adapter.model
  features = subject.run(
    adapter,
    lambda variables, image: model.apply(
      variables, image, method=model.features
    ),
    images.pixels,
  )
  points, axis_names = plane(features, method, seed)
  accuracy = nearest_neighbour(features, labels)
  names = images.class_names or tuple(map(str, range(labels.max() + 1)))
  with figures.figure(to, 8.6, 5.6, "") as fig:
    axes = fig.subplots()
    axes.set_title(
      f"{adapter.title}\nPooled features of {len(labels)} test images; "
      f"{accuracy:.1f} % of nearest neighbours have the same class"
    )
    shown = np.unique(labels)
    for n, label in enumerate(shown):
      axes.scatter(
        *points[labels == label].T,
        s=16,
        lw=0,
        alpha=0.85,
        marker=figures.marker(n),
        color=figures.colour(n),
        label=names[label],
      )
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    if len(shown) <= MOST_NAMES:
      fig.legend(loc="outside right upper", ncols=1 + len(shown) // 25)
  figures.table(
    to,
    ["image", "label", "class", "x", "y"],
    [
      [name, label, names[label], *point]
      for name, label, point in zip(images.names, labels, points)
    ],
  )
  return f"nearest neighbour of the same class: {accuracy:.2f} %"
