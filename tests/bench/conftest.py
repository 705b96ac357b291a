"""Skips tests of PyTorch's side where it is not installed."""

import pytest

from tests import peers as installed
from vpt_jax.bench import worker


@pytest.fixture(scope="module")
def torch_side():
  """Returns `pytorch_side`, or the test is skipped."""
  installed.timm()
  from vpt_jax.bench import pytorch_side

  with pytest.MonkeyPatch.context() as patch:
    # PyTorch's threads wait for each other: slow beside other tests.
    patch.setattr(worker, "cores", lambda: 1)
    yield pytorch_side
