"""Our side of the benchmark: the model and the step that a run would have."""

from collections.abc import Callable
import functools
import importlib.metadata
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vpt_jax import model as models
from vpt_jax.bench import worker
from vpt_jax.condensation import prompt_scores
from vpt_jax.data.transforms import views
from vpt_jax.nn import cost
from vpt_jax.problems import Classification
from vpt_jax.training import loop as train
from vpt_jax.training import optim
from vpt_jax.utils import lookup, trees

RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-3
NORMALIZE = "imagenet"
# Backward passes per batch: one for each image, or one.
SCORES = ("elementwise_sample_abs", "elementwise_abs")

# Name here -> (method, options, options that are dropout rates).
METHODS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
  "linear": ("linear", {}, ()),
  "vpt_shallow": ("vpt", {"deep": False}, ("dropout",)),
  "vpt_deep": ("vpt", {"deep": True}, ("dropout",)),
  "vapt": ("vapt", {}, ("dropout", "dropout_channel", "dropout_mlp")),
  "gated": ("gated", {}, ("dropout",)),
  "pgn": ("pgn", {}, ()),
}

# Leaf -> (mean, standard deviation) of its random values; others: 0 and
# fan-in^-1/2. Nothing is 0 or 1, so that every number has a part in the logits.
_VALUES = {
  "scale": (1.0, 0.1),
  "bias": (0.0, 0.1),
  "mean": (0.0, 0.1),
  "var": (1.0, 0.05),
  "temperature": (1.0, 0.1),
  "gate_logit": (0.0, 1.0),
  "cls": (0.0, 0.5),
  "pos_embedding": (0.0, 0.5),
  "prompt": (0.0, 0.5),
  "library": (0.0, 0.5),
}


def config_of(case: dict[str, Any]) -> ConfigDict:
  """What `models.build` and `optim.from_config` read.

  Args:
    case: see `measure.Case`.
  """
  method, options, rates = METHODS[
    lookup.choose(case["method"], METHODS, "method")
  ]
  options = options | dict.fromkeys(rates, case["dropout"])
  if method != "linear":
    options["num_tokens"] = case["prompts"]
  return ConfigDict(
    dict(
      method=method,
      image_size=case["image_size"],
      pool="",
      head="linear",
      head_init="kaiming",
      head_groups=(),
      head_layers=0,
      backbone=dict(
        name=case["backbone"],
        gelu="torch",
        norm="",
        projection=False,
        frozen_dtype=case["dtype"],
      ),
      compute=dict(
        dtype=case["dtype"],
        remat=False,
        attention=case.get("attention", "ours"),
      ),
      optim=dict(
        name="sgd",
        momentum=MOMENTUM,
        policies=(("head/bias", {"weight_decay": 0.0}), (".*", {})),
      ),
      **{method: options},
    )
  )


def random_values(shapes: dict[str, tuple[int, ...]], seed: int) -> trees.Flat:
  """Random float32 arrays of these shapes, of sizes as in a trained model."""
  rng, out = np.random.default_rng(seed), {}
  for path, shape in shapes.items():
    *_, layer, leaf = path.split("/")
    inputs = shape[:1] if layer in ("query", "key", "value") else shape[:-1]
    mean, std = _VALUES.get(leaf, (0.0, np.prod(inputs) ** -0.5))
    out[path] = (mean + std * rng.standard_normal(shape)).astype(np.float32)
  return out


class Ours:
  """Our model on a case's values; see `worker.Side`."""

  def __init__(self, case: dict[str, Any]):
    self.case, self.config = case, config_of(case)
    self.model = models.build(self.config, case["classes"])
    self._gflops: dict[str, float] = {}
    self.commands = {
      "export": self.export,
      "logits": self.logits,
      "forward": self.forward,
      "train": self.train,
      "facts": self.facts,
      "memory": self.memory,
      "matmul": self.matmul,
      "score": self.score,
    }

  def export(self, count: int) -> dict[str, Any]:
    """Writes the case's weights, images and labels for both sides."""
    del count
    key = lambda: jax.random.key(0)
    shapes = jax.eval_shape(
      lambda: {
        **models.init(self.model, key()),
        **models.collections(self.model, key()),
      }
    )
    arrays = random_values(
      {path: leaf.shape for path, leaf in trees.flatten(shapes).items()},
      self.case["seed"],
    )
    rng = np.random.default_rng(self.case["seed"])
    batch, size = self.case["batch"], self.model.method.input_size
    image = rng.integers(0, 256, (batch, *size, 3), np.uint8)
    mean, std = (np.asarray(x, np.float32) for x in views.NORMALIZE[NORMALIZE])
    np.savez(
      self.case["file"],
      image=image,
      pixels=(image.astype(np.float32) / 255 - mean) / std,
      label=rng.integers(0, self.case["classes"], batch, np.int32),
      **arrays,
    )
    return {}

  @functools.cached_property
  def arrays(self) -> trees.Flat:
    """The exported ones, on the device, the frozen ones as they are stored."""
    with np.load(self.case["file"], allow_pickle=False) as file:
      arrays = dict(file)
    frozen = {
      path: leaf
      for path, leaf in arrays.items()
      if path.startswith("backbone/")
    }
    return jax.device_put(arrays | models.store(frozen, self.config))

  def _part(self, *prefixes: str) -> trees.Flat:
    return {
      path: leaf
      for path, leaf in self.arrays.items()
      if path.startswith(prefixes)
    }

  @property
  def variables(self) -> dict[str, Any]:
    """What the model is applied to."""
    return {
      "params": trees.unflatten(self._part("backbone/", "method/", "head/")),
      **trees.unflatten(self._part("batch_stats/")),
    }

  def _compiled(
    self, name: str, make: Callable[[models.Model], Any], args: tuple[Any, ...]
  ) -> Any:
    """The program of `make(model)`, the FLOPs of its products noted."""
    # Of attention written out: a fused one is nothing that can be counted.
    plain = models.build(
      config_of({**self.case, "attention": "ours"}), self.case["classes"]
    )
    self._gflops[name] = (
      2 * cost.counted(make(plain), *args) / self.case["batch"] / 1e9
    )
    return make(self.model).lower(*args).compile()

  @functools.cached_property
  def _forward(self) -> Any:
    args = self.variables, self.arrays["pixels"]
    program = self._compiled(
      "forward", lambda model: jax.jit(model.apply), args
    )
    return lambda: program(*args)

  @functools.cached_property
  def step(self) -> tuple[Any, train.TrainState, trees.Flat, dict[str, Any]]:
    """(compiled training step, its three arguments)."""
    trainable = jax.tree.map(jnp.copy, self._part("method/", "head/"))
    frozen = self._part("backbone/")
    tx = optim.from_config(
      self.config.optim,
      lambda step: RATE,
      DECAY,
      trainable,
      [*trainable, *frozen],
    )
    state = train.TrainState(
      jnp.int32(0),
      trainable,
      tx.init(trainable),
      jax.tree.map(jnp.copy, trees.unflatten(self._part("batch_stats/"))),
      jax.random.PRNGKey(self.case["seed"]),
    )
    batch = {
      "image": self.arrays["image"],
      "label": self.arrays["label"],
      "mask": jnp.ones(self.case["batch"]),
    }
    make = lambda model: train.make_train_step(
      model,
      tx,
      problem=Classification(model.num_classes),
      normalize=NORMALIZE,
      augment="none",
    )
    args = state, frozen, batch
    return self._compiled("train", make, args), *args

  @functools.cached_property
  def _train(self) -> Any:
    """One more step each time; gives its metrics."""
    program, state, frozen, batch = self.step
    states = [state]

    def run():
      states[0], metrics = program(states[0], frozen, batch)
      return metrics

    return run

  def logits(self, count: int) -> dict[str, Any]:
    """Of all images, without dropout; seconds, at first with compilation."""
    seconds, logits = worker.timed(
      lambda: self._forward(), jax.block_until_ready, count
    )
    return {
      "logits": np.asarray(logits, np.float32).tolist(),
      "seconds": seconds,
    }

  def forward(self, count: int) -> dict[str, Any]:
    """Seconds of a forward pass."""
    return {
      "seconds": worker.timed(
        lambda: self._forward(), jax.block_until_ready, count
      )[0]
    }

  def train(self, count: int) -> dict[str, Any]:
    """Seconds of a training step, and the last one's loss."""
    seconds, metrics = worker.timed(
      lambda: self._train(), jax.block_until_ready, count
    )
    return {"seconds": seconds, "loss": float(metrics["loss"])}

  def facts(self, count: int) -> dict[str, Any]:
    """Device and versions; FLOPs of the products that have run, per image."""
    del count
    device = jax.devices()[0]
    return {
      "platform": device.platform,
      "device": device.device_kind,
      "gflops": self._gflops,
      "versions": {
        name: importlib.metadata.version(name)
        for name in ("jax", "jaxlib", "flax", "optax")
      },
    }

  def memory(self, count: int) -> dict[str, Any]:
    """Peak bytes: of the device, or on CPU of this process."""
    del count
    stats = jax.devices()[0].memory_stats()
    return {
      "bytes": stats["peak_bytes_in_use"] if stats else worker.peak_memory()
    }

  def matmul(self, count: int) -> dict[str, Any]:
    """GFLOP/s of n x n matrix products, n = `count`."""
    a = jnp.asarray(worker.matrix(count), self.case["dtype"])
    product = jax.jit(lambda a: a @ a)
    return worker.matmul(lambda: product(a), jax.block_until_ready, count)

  def score(self, count: int) -> dict[str, Any]:
    """Seconds to score the prompts on `count` images (in whole batches).

    A first batch comes before them, and with it compilation.

    Raises:
      ValueError: prompts that can't be condensed.
    """
    batch = {"image": self.arrays["pixels"], "label": self.arrays["label"]}
    batches = -(-count // self.case["batch"])
    found, times = {}, []

    def feed():  # the next batch is asked for when one is done
      for _ in range(1 + batches):
        times.append(time.perf_counter())
        yield batch

    for statistic in SCORES:
      times.clear()
      prompt_scores.scores(self.model, self.variables, feed(), [statistic])
      end = time.perf_counter()
      found[statistic] = {
        "first_batch": times[1] - times[0],
        "seconds": end - times[1],
      }
    return {"images": batches * self.case["batch"], "scores": found}


if __name__ == "__main__":
  worker.serve(Ours)
