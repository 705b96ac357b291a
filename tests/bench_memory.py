"""Images that do not fit into memory: trains on 5 GB of them in 2 GiB.

Compared are, in turn: the disk (plain reads of the same bytes in the same
order), the feed alone, training on one batch that never changes (what computing
takes), and training as it is.

  sudo python -m tests.bench_memory [--folder FOLDER] [--gb 5] [--limit_gb 2]

The limit is a control group's: it counts the page cache too, so files cannot
hide there. That takes root on Linux; without, it says so and stops. The model
is small (width 64, two blocks), so that reading is not hidden by computing.
"""

import argparse
import os
from pathlib import Path
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

SIDE, BATCH = 224, 64
GROUPS = Path("/sys/fs/cgroup")


def limited(gigabytes: float) -> Path:
  """Puts this process into a new control group; returns its folder."""
  # Of version 1, memory has a hierarchy of its own.
  is_version_1 = (GROUPS / "memory").is_dir()
  parent = GROUPS / "memory" if is_version_1 else GROUPS
  limit = "memory.limit_in_bytes" if is_version_1 else "memory.max"
  group = parent / f"vpt_jax_{os.getpid()}"
  try:
    group.mkdir()
    (group / limit).write_text(str(int(gigabytes * 2**30)))
    (group / "cgroup.procs").write_text(str(os.getpid()))
  except OSError as error:
    sys.exit(f"needs root on Linux, to limit memory: {error}")
  return group


def prepared(folder: Path, gigabytes: float) -> Path:
  """A cache of that size, of noise that no file system can compress."""
  from vpt_jax.data.cache import prepared as cache
  from vpt_jax.data.cache.decoding import Layout
  from vpt_jax.data.examples import Examples
  from vpt_jax.data.transforms.preprocess import Preprocess

  count = int(gigabytes * 1e9 / SIDE**2 / 3)
  noise = np.random.default_rng(0).integers(
    0, 256, (SIDE * 2, SIDE, 3), np.uint8
  )
  return cache.prepare(
    Examples(
      [f"{i}" for i in range(count)],
      np.arange(count, dtype=np.int32) % 10,
      10,
      lambda i: np.roll(noise, i, 0)[:SIDE].copy(),
      "noise",
      f"noise {count}",
    ),
    Layout(Preprocess((SIDE, SIDE), "half", "pgn"), train=True),
    folder,
  )


def forget(path: Path) -> None:
  """Drops a file from the page cache."""
  with path.open("rb") as file:
    os.fsync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk(path: Path, order: np.ndarray) -> float:
  """Seconds to read all images, batch by batch, in the order of training."""
  from vpt_jax.data.cache import writer

  forget(path)
  size = SIDE**2 * 3
  start = time.perf_counter()
  with path.open("rb", buffering=0) as file:
    for first in range(0, len(order), BATCH):
      for i in np.sort(order[first : first + BATCH]):
        file.seek(writer.HEADER + i * size)
        file.read(size)
  return time.perf_counter() - start


def training(folder: Path, order: np.ndarray, what: str) -> tuple[float, bool]:
  """Seconds of an epoch, without compilation; whether images were streamed."""
  import jax
  import jax.numpy as jnp

  from vpt_jax import model as models
  from vpt_jax.backbones.vit import ViT
  from vpt_jax.data import pipeline
  from vpt_jax.data.cache import prepared as cache
  from vpt_jax.data.transforms.preprocess import Preprocess
  from vpt_jax.distributed import sharding
  from vpt_jax.methods.vpt import VPT
  from vpt_jax.problems import Classification
  from vpt_jax.training import optim
  from vpt_jax.training import step as step_lib
  from vpt_jax.utils import trees

  backbone = ViT((SIDE, SIDE), 56, 64, 2, 2, 128)
  model = models.Model(backbone, VPT(backbone.spec, 4, dropout=0.0), 10)
  trainable, frozen = trees.split(
    models.init(model, jax.random.key(0)), r"(method|head)/.*"
  )
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
  feed = pipeline.Feed(
    cache.open_cache(folder), BATCH, sharding.make_mesh(BATCH)
  )
  for batch in feed.batches(order[:BATCH]):
    state, _ = jax.block_until_ready(step(state, frozen, batch))
  forget(folder / "images.npy")
  start = time.perf_counter()
  batches = feed.batches(order)
  if what == "compute":
    batches = [batch] * len(feed)
  for batch in batches:
    if what == "feed":
      jax.block_until_ready(batch)
    else:
      state, metrics = step(state, frozen, batch)
      float(metrics["loss"])
  return time.perf_counter() - start, not feed.resident


def child(folder: Path, what: str, limit: float) -> None:
  group = limited(limit)
  images = np.load(folder / "images.npy", mmap_mode="r")
  order = np.random.default_rng(0).permutation(len(images))
  size = images.nbytes / 1e9
  if what == "disk":
    taken = disk(folder / "images.npy", order)
    note = ""
  else:
    taken, streamed = training(folder, order, what)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    failed = "?"  # only version 1 counts
    counter = group / "memory.failcnt"
    if counter.exists():
      failed = counter.read_text().strip()
    kind = "streamed" if streamed else "RESIDENT"
    note = f", {kind}, peak {peak:.2f} GiB resident, limit met {failed} times"
  print(
    f"{what:8} {size:.2f} GB in {taken:6.1f} s: {size / taken:.3f} GB/s, "
    f"{len(images) / taken:.0f} images/s{note}",
    flush=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--folder", type=Path)
  parser.add_argument("--gb", type=float, default=5)
  parser.add_argument("--limit_gb", type=float, default=2)
  parser.add_argument("--rounds", type=int, default=2)
  parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    child(Path(args.child[0]), args.child[1], args.limit_gb)
    return
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    start = time.perf_counter()
    path = prepared(Path(folder), args.gb)
    print(
      f"prepared in {time.perf_counter() - start:.0f} s; limit "
      f"{args.limit_gb} GiB",
      flush=True,
    )
    for what in ("disk", "feed", "compute", "training") * args.rounds:
      subprocess.run(
        [
          sys.executable,
          "-m",
          "tests.bench_memory",
          "--child",
          path,
          what,
          "--limit_gb",
          str(args.limit_gb),
        ],
        check=True,
      )


if __name__ == "__main__":
  main()
