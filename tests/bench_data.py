"""Does the data ever make the device wait? Images decoded per second and core,
epochs read per second, and a training step with its feed against the same step
on one batch that never changes.

  python -m tests.bench_data [--pack FOLDER] [--backbone vit_ti16]

Decoding runs in one thread. Steps with and without a feed alternate in one
process; ratios are of medians. `--pack` is a vtab-1k pack of JPEG files
(EuroSAT's, say), in place of noise.
"""

import argparse
import io
from pathlib import Path
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vpt_jax import model as models
from vpt_jax.backbones import factory
from vpt_jax.backbones.vit import ViT
from vpt_jax.data import pipeline
from vpt_jax.data.cache import decoding, prepared
from vpt_jax.data.cache.decoding import Layout
from vpt_jax.data.examples import Examples
from vpt_jax.data.sources import image_files
from vpt_jax.data.transforms.preprocess import Preprocess
from vpt_jax.distributed import sharding
from vpt_jax.methods.vpt import VPT
from vpt_jax.problems import Classification
from vpt_jax.training import optim
from vpt_jax.training import step as step_lib
from vpt_jax.utils import trees


def photos(count: int, height: int, width: int) -> Examples:
  """JPEG files in memory of about the size that photographs compress to."""
  rng = np.random.default_rng(0)
  files = []
  for _ in range(8):
    small = rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    files.append(buffer.getvalue())
  return Examples(
    [f"{i}" for i in range(count)],
    np.arange(count, dtype=np.int32) % 10,
    10,
    lambda i: files[i % len(files)],
    "noise",
    f"{count} {height} {width}",
  )


def pack(folder: str) -> Examples:
  """The 1,000 training images of a vtab-1k pack."""
  classes = (Path(folder) / "classes.txt").read_text().split()
  return image_files.pack(Path(folder), "trainval", len(classes))


def time_decoding(what: str, examples: Examples) -> None:
  """Images per second of every family, in one thread."""
  for family in ("vtab", "fgvc", "pgn"):
    layout = Layout(Preprocess((224, 224), "half", family), train=True)
    start = time.perf_counter()
    for i in range(len(examples)):
      layout.fit(layout.read(examples, i), None)
    taken = time.perf_counter() - start
    note = (
      " (straight to 224 px here; in training small images keep their size)"
      if family == "vtab" and what.startswith("EuroSAT")
      else ""
    )
    print(
      f"decode  {what}, family {family:4}  "
      f"{len(examples) / taken:8.0f} images/s{note}",
      flush=True,
    )


def epochs(feed: pipeline.Feed, times: int) -> float:
  """Median seconds in which all batches are there, without any computing."""
  taken = []
  for epoch in range(times + 1):
    start = time.perf_counter()
    order = pipeline.order(len(feed.split), 0, epoch)
    for batch in feed.batches(order):
      jax.block_until_ready(batch)
    taken.append(time.perf_counter() - start)
  return statistics.median(taken[1:])


def reading(examples: Examples, folder: str, times: int = 5) -> pipeline.Feed:
  """Epochs per second from the device, and from the prepared cache."""
  layout = Layout(Preprocess((224, 224), "half", "pgn"), train=True)
  path = prepared.prepare(examples, layout, folder)
  split = prepared.open_cache(path)
  mesh = sharding.make_mesh(64)
  feed = pipeline.Feed(split, 64, mesh)
  for what, one in (
    ("from the device", feed),
    ("read ahead from the cache", pipeline.Feed(split, 64, mesh, 1)),
  ):
    taken = epochs(one, times)
    print(
      f"read    {len(split)} images of 224 px {what:26}  "
      f"{1 / taken:6.2f} epochs/s  {len(split) / taken:8.0f} images/s",
      flush=True,
    )
  return feed


def stepping(
  name: str,
  batch_size: int,
  feeds: dict[str, pipeline.Feed],
  repeats: int,
  steps: int,
) -> None:
  """A training step of VPT-deep with its feed against one without."""
  backbone = ViT((224, 224), gelu="tanh", **factory.get(name).arch)
  model = models.Model(backbone, VPT(backbone.spec, 10, dropout=0.0), 10)
  params = models.init(model, jax.random.key(0))
  trainable, frozen = trees.split(params, r"(method|head)/.*")
  tx = optim.make_optimizer(
    "sgd", lambda step: 0.01, trainable, weight_decay=1e-4
  )
  state = step_lib.TrainState(
    jnp.int32(0), trainable, tx.init(trainable), {}, jax.random.PRNGKey(0)
  )
  step = step_lib.make_train_step(
    model,
    tx,
    problem=Classification(model.num_classes),
    preprocess=Preprocess(model.method.input_size, "half"),
    augment="none",
  )
  fixed = jax.block_until_ready(
    next(next(iter(feeds.values())).batches(np.arange(batch_size)))
  )

  def endless(feed):
    epoch = 0
    while True:
      yield from feed.batches(pipeline.order(len(feed.split), 0, epoch))
      epoch += 1

  sources = {
    "one batch": None,
    **{what: endless(feed) for what, feed in feeds.items()},
  }
  times = {what: [] for what in sources}
  for repeat in range(repeats + 1):
    for what, batches in sources.items():
      start = time.perf_counter()
      for _ in range(steps):
        state, metrics = step(
          state, frozen, next(batches) if batches else fixed
        )
      jax.block_until_ready((state, metrics))
      if repeat:  # the first round compiles
        times[what].append((time.perf_counter() - start) / steps)
  base = statistics.median(times["one batch"])
  for what, taken in times.items():
    median = statistics.median(taken)
    print(
      f"step    {name}, VPT-deep, batch {batch_size}, {what:26}  "
      f"{1e3 * median:8.1f} ms  x {median / base:.3f}",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--pack")
  parser.add_argument("--backbone", default="vit_ti16")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--steps", type=int, default=4)
  args = parser.parse_args()
  print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
  with decoding.quiet():
    if args.pack:
      time_decoding("EuroSAT, 64 px", pack(args.pack))
    time_decoding("500 x 375 px", photos(300, 375, 500))
  with tempfile.TemporaryDirectory() as folder:
    feed = reading(photos(1000, 375, 500), folder)
    mesh = sharding.make_mesh(args.batch)
    stepping(
      args.backbone,
      args.batch,
      {
        "from the device": pipeline.Feed(feed.split, args.batch, mesh),
        "read ahead from the cache": pipeline.Feed(
          feed.split, args.batch, mesh, 1
        ),
      },
      args.repeats,
      args.steps,
    )


if __name__ == "__main__":
  main()
