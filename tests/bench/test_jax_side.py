"""Tests the side of vpt_jax."""

from tests.bench import cases
from vpt_jax.bench import jax_side


def test_scoring(tmp_path):
  jax_run = cases.exported("vpt_deep", tmp_path)
  found = jax_run.score(5)  # in batches of 4
  assert found["images"] == 8 and found["scores"].keys() == set(jax_side.SCORES)
  for times in found["scores"].values():
    # Compilation is of the first batch.
    assert 0 < times["seconds"] < times["first_batch"]
