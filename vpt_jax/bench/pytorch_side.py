"""Runs the side of PyTorch: a training step as its users write it."""

from collections.abc import Callable, Mapping
import importlib.metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils import flop_counter

from vpt_jax.bench import dense_cases, pytorch_dense, pytorch_models, worker

# As in `jax_side.py` and `jax_models.py`.
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
    options = {
      "method": self.case["method"],
      "dropout": self.case["dropout"],
      "fused": self.case["variant"] != "eager",
    }
    head = self.case.get("segmentation")
    model: pytorch_models.PromptedViT
    if head:
      model = pytorch_dense.SegmentingViT(weights, head=head, **options)
    else:
      model = pytorch_models.PromptedViT(weights, **options)
    model.vit.to(self.dtype)
    return model.to(self.device)

  @property
  def is_dense(self) -> bool:
    """Whether it is a case of segmentation."""
    return isinstance(self.model, pytorch_dense.SegmentingViT)

  def _optimizer(self) -> torch.optim.SGD:
    """Returns that of the papers.

    Of classification it spares the head's bias from decay, of segmentation the
    head has a larger rate.
    """
    groups: list[dict[str, Any]]
    method = list(self.model.method.parameters())
    head = dict(self.model.head.named_parameters())
    if self.is_dense:
      rate = dense_cases.HEAD_RATE * RATE
      groups = [{"params": list(head.values()), "lr": rate}]
      if method:
        groups.append({"params": method})
      return self._sgd(groups)
    bias = head.pop("bias")
    groups = [
      {"params": [bias], "weight_decay": 0.0},
      {"params": [*method, *head.values()]},
    ]
    return self._sgd(groups)

  def _sgd(self, groups: list[dict[str, Any]]) -> torch.optim.SGD:
    """Returns an optimizer of groups of parameters and their options."""
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

  def loss(self, outputs: Any) -> torch.Tensor:
    """Returns the mean loss of what the model gives."""
    if self.is_dense:
      return pytorch_dense.loss(outputs, self.label)
    return F.cross_entropy(outputs, self.label)

  def _run_step(self) -> torch.Tensor:
    self._set_training(True)
    self.optimizer.zero_grad()
    loss = self.loss(self.run(self.image))
    loss.backward()
    self.optimizer.step()
    self.model.method.constrain()
    return loss

  def logits(self, count: int) -> dict[str, Any]:
    """Returns those of all images, without dropout, and the seconds.

    At first these are with compilation. Of segmentation logits are the main
    head's at some pixels.
    """
    seconds, logits = worker.timed(self._run_forward, self._wait, count)
    if self.is_dense:
      main = logits[0].permute(0, 2, 3, 1)
      logits = dense_cases.sampled(main)
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
