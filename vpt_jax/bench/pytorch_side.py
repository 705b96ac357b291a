"""PyTorch's side of the benchmark: a training step as its users write it."""

import importlib.metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils import flop_counter

from vpt_jax.bench import pytorch_models, worker

RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-3  # as in `ours.py`
INPUTS = ("image", "pixels", "label")


class Theirs:
  """`peers.Peer` on a case's values; see `worker.Side`.

  The case says more than our side's: `variant`, one of `measure.VARIANTS`, and
  `device`. With bfloat16 the frozen backbone is stored and computed in it,
  method and head are not: as ours.
  """

  def __init__(self, case: dict[str, Any]):
    torch.manual_seed(case["seed"])
    torch.set_num_threads(worker.cores())
    # As exact as ours (`highest`).
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    self.case, self.device = case, torch.device(case["device"])
    self.dtype = getattr(torch, case["dtype"])
    with np.load(case["file"], allow_pickle=False) as file:
      arrays = dict(file)
    image, self.label = (
      torch.from_numpy(arrays[name]).to(self.device)
      for name in ("pixels", "label")
    )
    self.image = image.permute(0, 3, 1, 2).contiguous()
    self.label = self.label.long()
    self.model = pytorch_models.Peer(
      {path: array for path, array in arrays.items() if path not in INPUTS},
      case["method"],
      case["dropout"],
      fused=case["variant"] != "eager",
    )
    self.model.vit.to(self.dtype)
    self.model.to(self.device)
    self.run = (
      torch.compile(self.model) if case["variant"] == "compile" else self.model
    )
    trained = dict(self.model.named_parameters())
    trained = {
      name: parameter
      for name, parameter in trained.items()
      if parameter.requires_grad
    }
    self.optimizer = torch.optim.SGD(
      [
        {"params": [trained.pop("head.bias")], "weight_decay": 0.0},
        {"params": list(trained.values())},
      ],
      lr=RATE,
      momentum=MOMENTUM,
      weight_decay=DECAY,
    )
    self.commands = {
      "logits": self.logits,
      "forward": self.forward,
      "train": self.train,
      "facts": self.facts,
      "memory": self.memory,
      "matmul": self.matmul,
    }

  def _wait(self, _: Any) -> None:
    if self.device.type == "cuda":
      torch.cuda.synchronize()

  def _mode(self, training: bool) -> None:
    if self.model.training != training:  # it goes through all modules
      self.model.train(training)

  @torch.no_grad()
  def _forward(self) -> torch.Tensor:
    self._mode(False)
    return self.run(self.image)

  def _step(self) -> torch.Tensor:
    self._mode(True)
    self.optimizer.zero_grad()
    loss = F.cross_entropy(self.run(self.image), self.label)
    loss.backward()
    self.optimizer.step()
    self.model.method.constrain()
    return loss

  def logits(self, count: int) -> dict[str, Any]:
    """Of all images, without dropout; seconds, at first with compilation."""
    seconds, logits = worker.timed(self._forward, self._wait, count)
    return {"logits": logits.float().cpu().tolist(), "seconds": seconds}

  def forward(self, count: int) -> dict[str, Any]:
    """Seconds of a forward pass."""
    return {"seconds": worker.timed(self._forward, self._wait, count)[0]}

  def train(self, count: int) -> dict[str, Any]:
    """Seconds of a training step, and the last one's loss."""
    seconds, loss = worker.timed(self._step, self._wait, count)
    return {"seconds": seconds, "loss": loss.item()}

  def facts(self, count: int) -> dict[str, Any]:
    """Device and versions; FLOPs of the products as written, per image.

    They are counted where attention is written out; counting takes a step.
    """
    del count
    gflops = {}
    if self.case["variant"] == "eager":
      # The counter does not work without gradients.
      forward = lambda: self.model.eval()(self.image)
      for name, run in (("forward", forward), ("train", self._step)):
        with flop_counter.FlopCounterMode(display=False) as counter:
          run()
        gflops[name] = counter.get_total_flops() / self.case["batch"] / 1e9
    is_cuda = self.device.type == "cuda"
    return {
      "device": torch.cuda.get_device_name() if is_cuda else "cpu",
      "gflops": gflops,
      "threads": torch.get_num_threads(),
      "versions": {
        name: importlib.metadata.version(name) for name in ("torch", "timm")
      },
    }

  def memory(self, count: int) -> dict[str, Any]:
    """Peak bytes: of the device, or on CPU of this process."""
    del count
    return {
      "bytes": torch.cuda.max_memory_allocated()
      if self.device.type == "cuda"
      else worker.peak_memory()
    }

  def matmul(self, count: int) -> dict[str, Any]:
    """GFLOP/s of n x n matrix products, n = `count`."""
    a = torch.from_numpy(worker.matrix(count)).to(self.device, self.dtype)
    return worker.matmul(lambda: a @ a, self._wait, count)


if __name__ == "__main__":
  worker.serve(Theirs)
