"""Gives tests timm and PyTorch to compare with, where they are installed."""

from typing import Any

import pytest

# Libraries of operators, which torch forgets when they are collected.
_KEPT: list[Any] = []


def timm() -> Any:
  """Returns the module `timm`; without it the test is skipped."""
  torch = pytest.importorskip("torch")
  try:
    import timm as module
  except ImportError as error:
    pytest.skip(f"no timm: {error}")
  except RuntimeError:
    # A CUDA wheel's torchvision does not load its C extension beside a torch
    # for CPUs, and then misses two operators that no ViT needs.
    _KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))
    for name in ("nms", "qnms"):
      _KEPT[0].define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    import timm as module
  return module
