"""Runs the side of PyTorch: a training step as its users write it."""

from collections.abc import Callable, Mapping
import importlib.metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils import flop_counter

from vpt_jax.bench import pytorch_models, worker

# As in `jax_side.py`.
RATE = 0.01
MOMENTUM = 0.9
DECAY = 1e-3

INPUTS = ("image", "pixels", "label")  # arrays of a case that are no weights


class PytorchSide:
  """`PromptedViT` on a case's values; see `worker.Side`.

  The case says more than that of vpt_jax: `variant`, one of
  `measure.VARIANTS`, and `device`. With bfloat16 the frozen backbone is stored
  and computed in it, method and head are not: as in vpt_jax.
  """

  def __init__(self, case: dict[str, Any]):
    """Makes the model with a case's weights, its images, and an optimizer.

    Args:
      case: see `measure.Case`.
    """
    torch.manual_seed(case["seed"])
    torch.set_num_threads(worker.cores())
    # As exact as vpt_jax (`highest`).
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    self.case = case
    self.device = torch.device(case["device"])
    self.dtype = getattr(torch, case["dtype"])
    with np.load(case["file"], allow_pickle=False) as file:
      arrays = dict(file)
    pixels = torch.from_numpy(arrays["pixels"]).to(self.device)
    label = torch.from_numpy(arrays["label"]).to(self.device)
    self.image = pixels.permute(0, 3, 1, 2).contiguous()
    self.label = label.long()
    self.model = self._model(arrays)
    self.run: Callable[..., torch.Tensor] = self.model
    if case["variant"] == "compile":
      self.run = torch.compile(self.model)
    self.optimizer = self._optimizer()
    self.commands: Mapping[str, worker.Command] = {
      "logits": self.logits,
      "forward": self.forward,
      "train": self.train,
      "facts": self.facts,
      "memory": self.memory,
      "matmul": self.matmul,
    }

  def _model(self, arrays: pytorch_models.Arrays) -> pytorch_models.PromptedViT:
    weights = {
      path: array for path, array in arrays.items() if path not in INPUTS
    }
    model = pytorch_models.PromptedViT(
      weights,
      self.case["method"],
      self.case["dropout"],
      fused=self.case["variant"] != "eager",
    )
    model.vit.to(self.dtype)
    return model.to(self.device)

  def _optimizer(self) -> torch.optim.SGD:
    """Returns that of the papers, which spares the head's bias from decay."""
    decayed = []
    for name, parameter in self.model.named_parameters():
      if parameter.requires_grad and name != "head.bias":
        decayed.append(parameter)
    groups: list[dict[str, Any]] = [
      {"params": [self.model.head.bias], "weight_decay": 0.0},
      {"params": decayed},
    ]
    return torch.optim.SGD(
      groups,
      lr=RATE,
      momentum=MOMENTUM,
      weight_decay=DECAY,
    )

  def _wait(self, _: Any) -> None:
    if self.device.type == "cuda":
      torch.cuda.synchronize()

  def _set_training(self, training: bool) -> None:
    if self.model.training != training:  # it goes through all modules
      self.model.train(training)

  @torch.no_grad()
  def _run_forward(self) -> torch.Tensor:
    self._set_training(False)
    return self.run(self.image)

  def _run_step(self) -> torch.Tensor:
    self._set_training(True)
    self.optimizer.zero_grad()
    loss = F.cross_entropy(self.run(self.image), self.label)
    loss.backward()
    self.optimizer.step()
    self.model.method.constrain()
    return loss

  def logits(self, count: int) -> dict[str, Any]:
    """Returns those of all images, without dropout, and the seconds.

    At first these are with compilation.
    """
    seconds, logits = worker.timed(self._run_forward, self._wait, count)
    return {"logits": logits.float().cpu().tolist(), "seconds": seconds}

  def forward(self, count: int) -> dict[str, Any]:
    """Returns the seconds of a forward pass."""
    seconds, _ = worker.timed(self._run_forward, self._wait, count)
    return {"seconds": seconds}

  def train(self, count: int) -> dict[str, Any]:
    """Returns the seconds of a training step, and the last one's loss."""
    seconds, loss = worker.timed(self._run_step, self._wait, count)
    return {"seconds": seconds, "loss": loss.item()}

  def facts(self, count: int) -> dict[str, Any]:
    """Returns device, versions, and FLOPs per image of products as written."""
    del count
    is_cuda = self.device.type == "cuda"
    return {
      "device": torch.cuda.get_device_name() if is_cuda else "cpu",
      "gflops": self._gflops(),
      "threads": torch.get_num_threads(),
      "versions": {
        name: importlib.metadata.version(name) for name in ("torch", "timm")
      },
    }

  def _gflops(self) -> dict[str, float]:
    """Returns the GFLOPs of an image, {} where attention is not written out.

    Counting takes a training step.
    """
    if self.case["variant"] != "eager":
      return {}

    def forward() -> None:
      # Not by `_run_forward`: the counter does not work without gradients.
      self.model.eval()(self.image)

    out = {}
    for name, run in (("forward", forward), ("train", self._run_step)):
      with flop_counter.FlopCounterMode(display=False) as counter:
        run()
      out[name] = counter.get_total_flops() / self.case["batch"] / 1e9
    return out

  def memory(self, count: int) -> dict[str, Any]:
    """Returns the most bytes: of the device, or on CPU of this process."""
    del count
    if self.device.type == "cuda":
      return {"bytes": torch.cuda.max_memory_allocated()}
    return {"bytes": worker.peak_memory()}

  def matmul(self, count: int) -> dict[str, Any]:
    """Returns GFLOP/s of n x n matrix products, n = `count`."""
    a = torch.from_numpy(worker.matrix(count)).to(self.device, self.dtype)
    return worker.matmul(lambda: a @ a, self._wait, count)


if __name__ == "__main__":
  worker.serve(PytorchSide)
