"""Cost of deep prompts, as keys and values only against carried as published.

  python -m tests.bench_context --tokens 0 10 100 200 --batch 4

FLOPs are XLA's count for the compiled program. Times are medians; both forms
run alternately in one process. 0 prompts is the backbone alone; its "train"
column trains the head only, so no gradient passes the blocks there.
"""

import argparse
from collections.abc import Callable, Sequence
import statistics
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.carried import CarriedModel
from vpt_jax import model as model_lib
from vpt_jax.backbones import factory
from vpt_jax.backbones.vit import ViT
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.methods.method import Method
from vpt_jax.methods.vpt import VPT
from vpt_jax.problems import Classification
from vpt_jax.training import optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees

CLASSES = 100
FORMS = {"context": model_lib.Model, "carried": CarriedModel}


class Program(NamedTuple):
  """A compiled function and its arguments.

  Attributes:
    function: jitted.
    args: that it is called with.
    donates: it takes the first of them for its result.
  """

  function: Callable[..., Any]
  args: tuple[Any, ...]
  donates: bool = False

  def gflops(self) -> float:
    """Returns XLA's count, in units of 1e9."""
    compiled = self.function.lower(*self.args).compile()
    return compiled.cost_analysis()["flops"] / 1e9

  def seconds(self) -> float:
    """Returns what one run takes."""
    args = self.args
    if self.donates:
      args = (jax.tree.map(jnp.copy, args[0]), *args[1:])
    jax.block_until_ready(args)
    start = time.perf_counter()
    jax.block_until_ready(self.function(*args))
    return time.perf_counter() - start


def programs(
  cls: type[model_lib.Model], backbone: nn.Module, tokens: int, batch: int
) -> tuple[Program, Program]:
  """Returns the forward pass and the training step."""
  method = Method(backbone.spec)
  if tokens:
    method = VPT(backbone.spec, tokens, dropout=0.0)
  model = cls(backbone, method, CLASSES)
  params = model_lib.init(model, jax.random.key(0))
  trainable, frozen = trees.split(params, r"(method|head)/.*")
  size = backbone.spec.image_size
  data = {
    "image": np.zeros((batch, *size, 3), np.uint8),
    "label": np.zeros(batch, np.int32),
    "mask": np.ones(batch, np.float32),
  }
  tx = optim.make_optimizer(
    "sgd", lambda step: 0.1, trainable, weight_decay=1e-4
  )
  state = step_lib.TrainState(
    jnp.int32(0), trainable, tx.init(trainable), {}, jax.random.PRNGKey(0)
  )
  step = step_lib.make_train_step(
    model,
    tx,
    problem=Classification(CLASSES),
    preprocess=Preprocess(model.method.input_size, "imagenet"),
    augment="none",
  )

  @jax.jit
  def forward(trainable, frozen, images):
    params = trees.merge(trainable, frozen)
    return model.apply({"params": params}, images)

  images = jnp.zeros((batch, *size, 3))
  return (
    Program(forward, (trainable, frozen, images)),
    Program(step, (state, frozen, data), donates=True),
  )


def medians(
  programs_of: dict[str, tuple[Program, Program]], repeats: int
) -> dict[str, list[float]]:
  """Returns the seconds of each form's programs, which take turns."""
  samples = {form: ([], []) for form in programs_of}
  for repeat in range(repeats + 1):
    for form, pair in programs_of.items():
      for program, times in zip(pair, samples[form], strict=True):
        sample = program.seconds()
        if repeat:  # the first run compiles
          times.append(sample)
  return {
    form: [statistics.median(times) for times in pair]
    for form, pair in samples.items()
  }


def report(
  backbone: nn.Module, counts_of: Sequence[int], args: argparse.Namespace
) -> None:
  """Prints a row for each form and number of prompts."""
  base = None
  for tokens in counts_of:
    counts = {}
    for form, cls in FORMS.items():
      forward, step = programs(cls, backbone, tokens, args.flops_batch)
      counts[form] = [
        forward.gflops() / args.flops_batch,
        step.gflops() / args.flops_batch,
      ]
    if base is None:
      base = counts["context"][0]
    times = {}
    if args.repeats:
      timed = {
        form: programs(cls, backbone, tokens, args.batch)
        for form, cls in FORMS.items()
      }
      times = medians(timed, args.repeats)
    for form, (forward, step) in counts.items():
      line = (
        f"{tokens:>7} {form:>8} {forward:>11.2f} {forward / base:>6.3f} "
        f"{step:>13.2f}"
      )
      if times:
        forward_s, step_s = times[form]
        line += f" {forward_s:>7.2f} {step_s:>8.2f}"
      print(line, flush=True)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--backbone", default="vit_b16")
  parser.add_argument("--image_size", type=int, default=224)
  parser.add_argument(
    "--tokens", type=int, nargs="+", default=[0, 10, 100, 200]
  )
  parser.add_argument("--batch", type=int, default=4, help="of the timings")
  parser.add_argument("--flops_batch", type=int, default=64)
  parser.add_argument(
    "--repeats", type=int, default=5, help="of the timings; 0 only counts"
  )
  args = parser.parse_args()
  arch = factory.get(args.backbone).arch
  backbone = ViT((args.image_size,) * 2, gelu="exact", **arch)
  title = (
    f"{args.backbone} at {args.image_size} px on "
    f"{jax.devices()[0].device_kind}; GFLOPs per image at batch "
    f"{args.flops_batch}"
  )
  heading = (
    f"{'prompts':>7} {'form':>8} {'fwd GFLOPs':>11} {'vs 0':>6} "
    f"{'train GFLOPs':>13}"
  )
  if args.repeats:
    title += f", seconds at batch {args.batch}"
    heading += f" {'fwd s':>7} {'train s':>8}"
  print(title)
  print(heading)
  report(backbone, args.tokens, args)


if __name__ == "__main__":
  main()
