"""Maps are resized as PyTorch does it, in both forms, to any size."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops import forms
from vpt_jax.ops import bilinear

# The same size, whole multiples, others, smaller ones, and a single pixel.
SIZES = [(3, 4), (6, 8), (12, 4), (9, 20), (7, 5), (2, 3), (1, 1), (3, 1)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_the_fast_form_is_the_reference(size, align_corners):
  """Values and gradients, of every kind of size."""
  options = {"size": size, "align_corners": align_corners}
  forms.check_equal(
    functools.partial(bilinear.reference, **options),
    functools.partial(bilinear.fast, **options),
    (forms.draw(2, 3, 4, 5),),
  )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_values_are_pytorchs(size, align_corners):
  torch = pytest.importorskip("torch")
  x = np.asarray(forms.draw(2, 3, 4, 5))
  maps = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
  theirs = torch.nn.functional.interpolate(
    maps, size, mode="bilinear", align_corners=align_corners
  )
  want = theirs.numpy().transpose(0, 2, 3, 1)
  for form in (bilinear.reference, bilinear.fast):
    found = form(jnp.asarray(x), size, align_corners)
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_a_map_of_one_pixel_is_spread():
  x = jnp.full((1, 1, 1, 2), 3.0)
  for form in (bilinear.reference, bilinear.fast):
    np.testing.assert_array_equal(form(x, (4, 2)), jnp.full((1, 4, 2, 2), 3.0))


def test_bfloat16_stays():
  x = forms.draw(1, 2, 2, 3, dtype=jnp.bfloat16)
  for form in (bilinear.reference, bilinear.fast):
    assert form(x, (4, 5)).dtype == jnp.bfloat16
