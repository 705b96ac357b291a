"""Shared fixtures: the smallest run that goes through everything."""

import jax
import pytest

from configs import common
from vpt_jax import checkpoint, report

# Tests compile much and run little.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def config():
  """Digits as 2 x 2 patches on a random backbone: seconds on one core."""
  config = common.embedded(common.get_config())
  config.backbone.name = "vit_mini4"
  config.backbone.checkpoint = "random"
  config.image_size = 8
  config.epochs = 3
  config.optim.warmup_epochs = 1
  config.batch_size = 128
  config.vapt.num_tokens = config.vpt.num_tokens = 3
  return config


def trained(workdir):
  """(adapter arrays, metrics) of a run."""
  return (checkpoint.read_adapter(workdir / "adapter.npz")[0],
          list(report.read_metrics(workdir / "metrics.jsonl")))
