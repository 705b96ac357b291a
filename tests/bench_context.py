"""Cost of deep prompts, as keys and values only against carried as published.

  python -m tests.bench_context --tokens 0 10 100 200 --batch 4

FLOPs are XLA's count for the compiled program. Times are medians; both forms
run alternately in one process. 0 prompts is the backbone alone; its "train"
column trains the head only, so no gradient passes the blocks there.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from tests.carried import CarriedModel
from vpt_jax import model as models
from vpt_jax.backbones import factory
from vpt_jax.backbones.vit import ViT
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.methods.method import Method
from vpt_jax.methods.vpt import VPT
from vpt_jax.problems import Classification
from vpt_jax.training import loop, optim
from vpt_jax.utils import trees


def programs(cls, backbone, tokens, batch):
  """(forward, its arguments), (train step, its arguments)."""
  method = (
    VPT(backbone.spec, tokens, dropout=0.0) if tokens else Method(backbone.spec)
  )
  model = cls(backbone, method, 100)
  params = models.init(model, jax.random.key(0))
  trainable, frozen = trees.split(params, r"(method|head)/.*")
  size = backbone.spec.image_size
  image = np.zeros((batch, *size, 3), np.uint8)
  data = {
    "image": image,
    "label": np.zeros(batch, np.int32),
    "mask": np.ones(batch, np.float32),
  }
  tx = optim.make_optimizer(
    "sgd", lambda step: 0.1, trainable, weight_decay=1e-4
  )
  state = loop.TrainState(
    jnp.int32(0), trainable, tx.init(trainable), {}, jax.random.PRNGKey(0)
  )
  step = loop.make_train_step(
    model,
    tx,
    problem=Classification(model.num_classes),
    preprocess=Preprocess(model.method.input_size, "imagenet"),
    augment="none",
  )
  forward = jax.jit(
    lambda t, f, x: model.apply({"params": trees.merge(t, f)}, x)
  )
  images = jnp.zeros((batch, *size, 3))
  return (forward, (trainable, frozen, images)), (step, (state, frozen, data))


def gflops(program) -> float:
  """XLA's count per program, in units of 1e9."""
  function, args = program
  return function.lower(*args).compile().cost_analysis()["flops"] / 1e9


def seconds(program, state_first: bool) -> float:
  """One run; a train step gets a copy of the state that it donates."""
  function, args = program
  if state_first:
    args = (jax.tree.map(jnp.copy, args[0]), *args[1:])
  jax.block_until_ready(args)
  start = time.perf_counter()
  jax.block_until_ready(function(*args))
  return time.perf_counter() - start


def main() -> None:
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
  forms = {"ours": models.Model, "carried": CarriedModel}
  timed = args.repeats > 0
  print(
    f"{args.backbone} at {args.image_size} px on "
    f"{jax.devices()[0].device_kind}; GFLOPs per image at batch "
    f"{args.flops_batch}" + f", seconds at batch {args.batch}" * timed
  )
  print(
    f"{'prompts':>7} {'form':>8} {'fwd GFLOPs':>11} {'vs 0':>6} "
    f"{'train GFLOPs':>13}" + f" {'fwd s':>7} {'train s':>8}" * timed
  )
  base = None
  for tokens in args.tokens:
    counts, times = {}, {}
    for form, cls in forms.items():
      counts[form] = [
        gflops(program) / args.flops_batch
        for program in programs(cls, backbone, tokens, args.flops_batch)
      ]
      if timed:
        times[form] = programs(cls, backbone, tokens, args.batch)
    base = base or counts["ours"][0]
    samples = {(form, i): [] for form in forms for i in (0, 1)}
    for repeat in range(args.repeats + timed):
      for form, i in samples:
        sample = seconds(times[form][i], state_first=i == 1)
        if repeat:  # the first run compiles
          samples[form, i].append(sample)
    for form in forms:
      forward, step = (
        statistics.median(samples[form, i] or [float("nan")]) for i in (0, 1)
      )
      print(
        f"{tokens:>7} {form:>8} {counts[form][0]:>11.2f} "
        f"{counts[form][0] / base:>6.3f} {counts[form][1]:>13.2f}"
        + f" {forward:>7.2f} {step:>8.2f}"
        * timed,
        flush=True,
      )


if __name__ == "__main__":
  main()
