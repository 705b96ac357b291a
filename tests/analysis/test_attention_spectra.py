"""Singular values of attention."""

import numpy as np

from tests.analysis.tiny import adapter_of, build, matrices, P, T, VIT
from vpt_jax.analysis import (
  attention_spectra,
)
from vpt_jax.methods.vpt import VPT

RNG = np.random.default_rng(0)


def test_cumulative_singular_values():
  curve = attention_spectra.cumulative
  np.testing.assert_allclose(curve(np.diag([1.0, 3.0])), [0.75, 1], rtol=1e-6)
  np.testing.assert_allclose(curve(np.full((4, 6), 1 / 6)), 1, rtol=1e-5)
  a, b = RNG.normal(size=(2, 5, 2)), RNG.normal(size=(2, 2, 7))
  low = np.asarray(curve(a @ b))
  assert low.shape == (2, 5) and (low[:, 0] < 0.999).all()
  np.testing.assert_allclose(low[:, 1:], 1, rtol=1e-4)
  identity = np.asarray(curve(np.eye(10)))
  np.testing.assert_allclose(identity, np.arange(1, 11) / 10, rtol=1e-5)
  assert attention_spectra.rank(identity, 0.9) == 9
  assert attention_spectra.rank(identity, 0.95) == 10
  assert attention_spectra.rank(low, 0.99).tolist() == [2, 2]


def test_spectra_leave_the_last_block_out():
  model, variables = build(VIT, VPT(VIT.spec, P))
  pixels = RNG.integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
  got = attention_spectra.spectra(adapter_of(model, variables), pixels)
  assert got.shape == (2, T)
  weights = matrices(model, variables, pixels / 127.5 - 1)[1].weights
  values = np.linalg.svd(np.asarray(weights, np.float64), compute_uv=False)
  want = (np.cumsum(values, -1) / values.sum(-1, keepdims=True)).mean((0, 1))
  np.testing.assert_allclose(got[1], want, rtol=1e-4)
