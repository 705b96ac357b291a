"""Features in the plane."""

import numpy as np
import pytest

from tests.analysis.tiny import adapter_of, build, VIT
from vpt_jax.analysis import (
  feature_plane,
)
from vpt_jax.methods.method import Method

RNG = np.random.default_rng(0)


def test_nearest_neighbour_leaves_itself_out():
  features = np.array([[0.0], [0.1], [1.0], [1.1], [0.2]])
  # Of the last one and of the second the nearest has another label.
  labels = np.array([0, 0, 1, 1, 1])
  assert feature_plane.nearest_neighbour(features, labels) == pytest.approx(80)
  assert (
    feature_plane.nearest_neighbour(np.zeros((4, 1)), np.array([0, 1, 2, 3]))
    == 0
  )  # duplicates


def test_pca_finds_the_plane():
  flat = RNG.normal(size=(20, 2)) * [3, 1]
  points, names = feature_plane.plane(
    np.pad(flat, ((0, 0), (0, 4))) + 7, "pca", 0
  )
  distance = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
  np.testing.assert_allclose(distance(points), distance(flat), atol=1e-6)
  assert "component 1" in names[0]


def test_images_of_several_classes_cannot_be_coloured(tmp_path):
  model, variables = build(VIT, Method(VIT.spec))
  adapter = adapter_of(model, variables, problem="multi_label")
  with pytest.raises(ValueError, match="'multi_label', have several classes"):
    feature_plane.draw(adapter, "pca", 9, 0, tmp_path / "figure.png")
