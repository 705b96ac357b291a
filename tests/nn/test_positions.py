"""Positions come to another grid as the published codes bring them there."""

import numpy as np
import pytest

from vpt_jax.nn import positions

OWN = (3, 4)
TABLE = np.random.default_rng(0).normal(size=(1, 12, 5)).astype(np.float32)
# Larger, smaller, the same, larger and smaller, a single one.
GRIDS = [(6, 9), (2, 3), (3, 4), (2, 7), (1, 1)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
  "how, mode", [("bilinear", "bilinear"), ("bicubic_exact", "bicubic")]
)
def test_pytorchs_interpolation_to_a_size(how, mode, grid):
  """As mmsegmentation does it: by the ratio of the sizes."""
  torch = pytest.importorskip("torch")
  found = positions.resize(TABLE, OWN, grid, how)
  table = torch.from_numpy(TABLE.reshape(1, *OWN, 5).transpose(0, 3, 1, 2))
  resized = torch.nn.functional.interpolate(
    table.double(), grid, mode=mode, align_corners=False
  )
  want = resized.numpy().transpose(0, 2, 3, 1).reshape(1, -1, 5)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("how", ["linear", "bilinear", "bicubic_exact"])
def test_the_own_grid_changes_nothing(how):
  found = positions.resize(TABLE, OWN, OWN, how)
  np.testing.assert_allclose(found, TABLE, atol=1e-7)
