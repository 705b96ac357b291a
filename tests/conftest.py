"""Shared fixtures: the smallest run that goes through everything."""

import os
import tempfile

import pytest

# Tests compile the same small programs again and again, in several processes:
# they share what is compiled. Set before JAX is imported.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  os.path.join(tempfile.gettempdir(), f"vpt_jax_tests_{os.getuid()}"),
)
# What runs remember of files is none of the user's.
os.environ.setdefault(
  "VPT_JAX_CACHE",
  os.path.join(tempfile.gettempdir(), f"vpt_jax_tests_cache_{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
# Models here are tiny: nearly all the time is compilation, which takes a third
# so. Processes that tests start get it too, or `as_users_compile`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1",
)

import flax.linen as nn

from configs import common
from vpt_jax.backbones import factory
from vpt_jax.backbones.swin import Swin
from vpt_jax.training import adapter_files, metrics

factory.BACKBONES["vit_test"] = factory.Entry(
  {"patch_size": 4, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}
)
factory.BACKBONES["swin_test"] = factory.Entry(
  {
    "patch_size": 1,
    "width": 16,
    "depths": (2, 2),
    "num_heads": (2, 2),
    "window": 4,
    "mlp_ratio": 2.0,
  },
  Swin,
)
factory.BACKBONES["mae_test"] = factory.Entry(
  {
    "patch_size": 4,
    "width": 32,
    "depth": 2,
    "mlp_dim": 64,
    "num_heads": 2,
    "gelu": "exact",
    "pool": "imgprompt",
    "norm_order": "fresh",
  }
)
factory.BACKBONES["clip_test"] = factory.Entry(
  {
    "patch_size": 4,
    "width": 32,
    "depth": 2,
    "mlp_dim": 64,
    "num_heads": 2,
    "gelu": "quick",
    "eps": 1e-5,
    "patch_bias": False,
    "pre_norm": True,
    "normalize": "clip",
  },
  projection=lambda: nn.Dense(8, use_bias=False),
)


def as_users_compile():
  """The environment of a process, without the tests' own options of XLA."""
  return {
    name: value
    for name, value in os.environ.items()
    if name not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
  }


def small_config():
  """Digits as 2 x 2 patches on a random backbone: seconds on one core."""
  config = common.embedded(common.get_config())
  config.optim = common.get_config().optim  # the published protocol
  config.backbone.name = "vit_test"
  config.backbone.checkpoint = "random"
  config.image_size = 8
  config.epochs = 3
  config.optim.warmup_epochs = 1
  config.batch_size = 128
  config.vapt.num_tokens = config.vpt.num_tokens = 3
  return config


@pytest.fixture
def config():
  """See `small_config`."""
  return small_config()


def trained(workdir):
  """(adapter arrays, metrics) of a run."""
  return (
    adapter_files.read_adapter(workdir / "adapter.npz")[0],
    list(metrics.read_metrics(workdir / "metrics.jsonl")),
  )
