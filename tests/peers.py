"""timm and PyTorch as peers, where they are installed."""

from typing import Any

import pytest

_KEPT: list[Any] = []  # What torch forgets when it is collected.


def timm() -> Any:
  """The module, or the test is skipped."""
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
